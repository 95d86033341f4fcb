"""A viewer that does not read costs nobody anything: not the fast ones, and of the server's memory little."""

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.rig.deployment import Deployment, until
from tests.viewers.producer import Producer
from tests.viewers.viewer import LIMIT_S, Viewer, get_events, viewers_connected

STALLED = 100
EVENT_BYTES = 95_000
EVENTS = 40  # 3.8 MB: nearly what a stream may hold
MEMORY_A_VIEWER_BYTES = 1024 * 1024
STALL_S = 2
SMALL = 4096  # of the client's receive buffer: what the kernels hold is not what is measured


@pytest.fixture
def deployment(own_deployment: Callable[..., Deployment]) -> Deployment:
    if not Path("/proc/self/status").exists():
        pytest.skip("how much memory another process has is read from /proc")
    return own_deployment(servers=1, LASTEVENT_VIEWER_STALL_S=str(STALL_S), LASTEVENT_HEARTBEAT_S="1")


async def test_viewers_that_stop_reading_slow_no_other_and_take_little_memory(deployment: Deployment) -> None:
    here = deployment.ports[0]
    producer = await Producer.create(here)
    fast = Viewer(producer.sid)
    before = _memory_bytes(deployment)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group, asyncio.timeout(LIMIT_S):
        await _stall(stack, here, producer.sid)
        following = group.create_task(fast.view(here))
        for _ in range(EVENTS):
            await producer.write("x" * EVENT_BYTES)
        await producer.finish()
        await following
        taken = _most_memory_bytes(deployment) - before
        await until(lambda: viewers_connected(deployment.url) == 0, "they are cut")
        await until(lambda: _connections(deployment) == 0, "their connections are gone, though they never read")

    print(f"{STALLED} viewers that stalled at the tail: {taken / STALLED / 1024:.0f} KiB each")
    assert fast.ids == list(range(1, EVENTS + 3))
    assert len(fast.answers) == 1
    assert taken < STALLED * MEMORY_A_VIEWER_BYTES


async def test_viewers_that_stop_reading_a_long_backlog_take_little_memory(deployment: Deployment) -> None:
    here = deployment.ports[0]
    producer = await Producer.create(here)
    for _ in range(EVENTS):
        await producer.write("x" * EVENT_BYTES)
    fast = Viewer(producer.sid)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group, asyncio.timeout(LIMIT_S):
        following = group.create_task(fast.view(here))
        await until(lambda: fast.has_seen(EVENTS + 1), "one that reads has everything")
        before = _memory_bytes(deployment)
        await _stall(stack, here, producer.sid)
        await until(lambda: viewers_connected(deployment.url) == 1, "they are cut, except for the one that reads")
        taken = _most_memory_bytes(deployment) - before
        await producer.finish()
        await following
        await until(lambda: _connections(deployment) == 0, "their connections are gone, though they never read")

    print(f"{STALLED} viewers that stalled in the backlog: {taken / STALLED / 1024:.0f} KiB each")
    assert taken < STALLED * MEMORY_A_VIEWER_BYTES


async def test_a_viewer_that_reads_slowly_all_the_time_is_not_cut(deployment: Deployment) -> None:
    """However long one write takes: the kernel lets the server write again only when a third of its buffer is free."""
    here = deployment.ports[0]
    producer = await Producer.create(here)
    for _ in range(EVENTS):
        await producer.write("x" * EVENT_BYTES)
    await producer.finish()
    loop, seen = asyncio.get_running_loop(), b""
    with socket.socket() as plug:
        plug.setblocking(False)
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * SMALL)
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)  # as on a network: loopback's has 64 KB
        async with asyncio.timeout(LIMIT_S):
            await loop.sock_connect(plug, ("127.0.0.1", here))
            head = f"GET /v1/streams/{producer.sid}/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
            await loop.sock_sendall(plug, head.encode())
            ends_at = time.monotonic() + 4 * STALL_S
            while time.monotonic() < ends_at:
                seen += await loop.sock_recv(plug, SMALL)
                await asyncio.sleep(STALL_S / 20)  # how slow it is: 40 KB/s
            assert viewers_connected(deployment.url) == 1
    assert len(seen) > 20 * 1024


async def _stall(stack: AsyncExitStack, port: int, sid: str) -> None:
    for _ in range(STALLED):
        connection, _ = await stack.enter_async_context(get_events(port, sid, receive_buffer=SMALL))
        connection.stop_reading()


def _memory_bytes(deployment: Deployment) -> int:
    return _status_bytes(deployment, "VmRSS")


def _most_memory_bytes(deployment: Deployment) -> int:
    return _status_bytes(deployment, "VmHWM")


def _status_bytes(deployment: Deployment, name: str) -> int:
    for line in Path(f"/proc/{deployment.servers[0].pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


LISTENING, TIME_WAIT = "0A", "06"


def _connections(deployment: Deployment) -> int:
    """Of the server's port, as the kernel sees them, also those that no process has any more."""
    port = f":{deployment.ports[0]:04X}"
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] not in (LISTENING, TIME_WAIT) for row in rows)
