"""Ports that stay free until the server for which they were asked for is there.

A port that the kernel chooses is from the range out of which it serves connections as well: somebody's connection may
have it a moment later, and a server that is started again may find it taken. These lie below that range (from 32768 on
Linux, 49152 elsewhere), and each process has a block of its own: it listens on the block's first port as long as it
lives, so no other process takes the block.
"""

from __future__ import annotations

import atexit
import socket
from collections.abc import Iterator
from functools import cache
from itertools import cycle

FIRST, LAST, BLOCK = 12_000, 32_000, 100


class Ports:
    def __init__(self) -> None:
        self._held, first = _hold_a_block()
        self._numbers: Iterator[int] = cycle(range(first + 1, first + BLOCK))

    def next(self) -> int:
        """One on which nobody listens; of this block it is the one that was given longest ago."""
        for _ in range(BLOCK):
            if server := _listen(number := next(self._numbers)):
                server.close()
                return number
        raise RuntimeError(f"all {BLOCK} ports of this process are in use")

    def close(self) -> None:
        self._held.close()


def _hold_a_block() -> tuple[socket.socket, int]:
    for first in range(FIRST, LAST, BLOCK):
        if held := _listen(first):
            return held, first
    raise RuntimeError(f"no block of ports is free from {FIRST} to {LAST}")


def _listen(port: int) -> socket.socket | None:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return None


def free_port() -> int:
    return _of_this_process().next()


@cache
def _of_this_process() -> Ports:
    ports = Ports()
    atexit.register(ports.close)
    return ports
