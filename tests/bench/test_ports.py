"""The ports that benchmarks and tests give to servers."""

import socket

from bench.ports import BLOCK, FIRST, LAST, Ports

FIRST_OF_KERNEL = 32_768
"""The lowest from which a kernel takes ports for connections, unless told otherwise."""


def test_two_processes_are_given_different_ports_out_of_which_no_connection_is_served() -> None:
    one, other = Ports(), Ports()
    given = [ports.next() for ports in (one, other) for _ in range(2 * BLOCK)]
    one.close()
    other.close()
    assert len(set(given)) == 2 * (BLOCK - 1)
    assert FIRST < min(given) < max(given) < LAST < FIRST_OF_KERNEL


def test_a_port_on_which_somebody_listens_is_not_given() -> None:
    ports = Ports()
    with socket.create_server(("127.0.0.1", ports.next())) as server:
        given = {ports.next() for _ in range(2 * BLOCK)}
        assert server.getsockname()[1] not in given
    ports.close()
