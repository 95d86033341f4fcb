"""Few descriptors: less is done at a time, nothing fails for want of one, and it is said."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from bench.ports import free_port
from broker.process.descriptors import KEPT, raise_limit, room_of
from tests.command.conftest import environment, processes_in
from tests.rig.deployment import HTTP, wait_until

DESCRIPTORS = 256
VIEWERS = 200
GENERATIONS = 120
"""With the stand-in each takes two."""


def test_the_soft_limit_is_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
        assert raise_limit() > 200
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_of_many_descriptors_a_few_are_kept_back_and_of_few_half() -> None:
    assert room_of(100_000) == 100_000 - KEPT
    assert room_of(256) == 128


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of everything on this machine, with a hard limit of 256 descriptors for each process."""
    folder, port = tmp_path_factory.mktemp("few"), free_port()
    up = f'ulimit -n {DESCRIPTORS}; exec "{sys.executable}" -m broker up --port {port}'
    with Path(folder, "out").open("wb") as out:
        process = subprocess.Popen(["sh", "-c", up], cwd=folder, env=environment(), stdout=out, stderr=out)
    try:
        wait_until(lambda: b"is ready" in Path(folder, "out").read_bytes(), "it is ready")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(60) == 0
    said = Path(folder, "out").read_text()
    assert "this server holds 128 connections at a time, not 25000: it may have 256 descriptors. Raise" in said
    assert "this worker runs 64 generations at a time, not 500: it may have 256 descriptors. Raise" in said
    assert "connections beyond LASTEVENT_MAX_CONNECTIONS, or beyond what the descriptors allow" in said
    assert "Traceback" not in said
    assert processes_in(folder) == {}


def test_generations_beyond_what_a_worker_has_descriptors_for_wait(url: str) -> None:
    prompt = "[[tokens=10 rate=20 ttft_ms=0]] each for half a second"
    sids = [HTTP.post(f"{url}/v1/streams", json={"prompt": prompt}).json()["id"] for _ in range(GENERATIONS)]

    def states() -> set[str]:
        return {HTTP.get(f"{url}/v1/streams/{sid}").json()["state"] for sid in sids}

    wait_until(lambda: states() <= {"done", "error"}, "all have ended")
    assert states() == {"done"}


def test_viewers_beyond_what_a_server_has_descriptors_for_are_reset_and_it_is_not_taken_for_dead(url: str) -> None:
    sid = HTTP.post(f"{url}/v1/streams", json={"producer": "external"}).json()["id"]
    port = int(url.rpartition(":")[2])
    served = 0
    with ExitStack() as held:
        for _ in range(VIEWERS):
            viewer = held.enter_context(socket.create_connection(("127.0.0.1", port)))
            viewer.settimeout(10)
            with suppress(ConnectionError):
                viewer.sendall(b"GET /v1/streams/%s/events HTTP/1.1\r\nHost: localhost\r\n\r\n" % sid.encode())
                served += viewer.recv(100).startswith(b"HTTP/1.1 200")
        assert DESCRIPTORS // 2 - 2 <= served <= DESCRIPTORS // 2
        assert HTTP.get(f"{url}/healthz", headers={"Connection": "close"}).status_code == 200
        assert HTTP.get(f"{url}/readyz", headers={"Connection": "close"}).status_code == 200
