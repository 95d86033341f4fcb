"""A socket's streams do not hold up each other, and sockets that read nothing hold up nobody.

In its long form (`make long`) with the figures that must hold; in its short form with a tenth of the bytes.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, closing, suppress
from statistics import median
from typing import Any

import pytest

from bench.meter import memory_bytes
from bench.table import p99
from broker.live.tail import HELD_BYTES
from broker.web.socket_connection import HIGH_BYTES, PIECE_BYTES
from tests.rig.long import LONG
from tests.viewers.test_socket_cuts import frame, messages
from tests.web.speaker import speaker
from tests.web.wire import Api

pytestmark = pytest.mark.processes

PARTS = 1 if not LONG else 10
LARGE_BYTES, BYTES_PER_S = 300_000 * PARTS, 300_000
LATE_S = 0.5
DEAF = 50 if LONG else 10
LIVE_EVENTS = 300 if LONG else 40
MOST_EACH = 1.5 * (2 * 2 * HELD_BYTES + HIGH_BYTES + PIECE_BYTES)
"""Of a socket that reads nothing: of each of two follows a page, as it was read and as it is written, and its buffer.
Half as much again: what Python keeps of them.
"""
HANDSHAKE = (
    b"GET /v1/socket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.fixture
def api_of() -> Iterator[Callable[[str], Api]]:
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(closing(Api(url)))


def large(api: Api, size: int) -> str:
    sid = api.start_external()
    for _ in range(size // 100_000):
        api.append(sid, *[("text_delta", {"text": "x" * 1000})] * 100).raise_for_status()
    return sid


async def test_a_live_answer_beside_two_large_ones_is_little_late(
    own_deployment: Any, api_of: Callable[[str], Api]
) -> None:
    own = own_deployment(servers=1, workers=0)
    api = api_of(own.url)
    larges = [large(api, LARGE_BYTES) for _ in range(2)]
    live = api.start_external()
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)  # a slow line holds little itself
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", own.ports[0]))
    reader, writer = await asyncio.open_connection(sock=raw, limit=4096)
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    for sid in (live, *larges):
        writer.write(frame({"op": "follow", "stream": sid}))
    slow = _Slowly(reader, BYTES_PER_S)
    late_s: list[float] = []
    late_bytes: list[int] = []
    left = set(larges)

    async def write() -> None:
        while left:
            said = {"text": "w", "at": time.time(), "read": slow.read_bytes}
            await asyncio.to_thread(api.append, live, ("text_delta", said))
            await asyncio.sleep(0.05)  # a model's pace

    writing = asyncio.create_task(write())
    tails = {sid: api.get(f"/v1/streams/{sid}").json()["last_event_id"] for sid in larges}
    async for message in messages(slow, None):  # type: ignore[arg-type]
        if message.get("stream") == live and "at" in message.get("data", {}) and left:
            late_s.append(time.time() - message["data"]["at"])
            late_bytes.append(slow.read_bytes - message["data"]["read"])
        elif "id" in message and message["id"] == tails.get(message["stream"]):
            left.discard(message["stream"])
            if not left:
                break
    await writing
    await dropped(writer)
    print(
        f"{len(late_s)} live events beside 2 × {LARGE_BYTES:,} bytes: median {median(late_s):.2f} s late, "
        f"behind {median(late_bytes):,.0f} bytes"
    )
    assert len(late_s) >= 10
    assert median(late_bytes) <= LATE_S * BYTES_PER_S, "however slow this machine is"
    assert not LONG or median(late_s) <= LATE_S


async def dropped(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


class _Slowly:
    """A reader of so many bytes a second."""

    def __init__(self, reader: asyncio.StreamReader, bytes_per_s: int) -> None:
        self._reader = reader
        self._bytes_per_s = bytes_per_s
        self._began_s = time.monotonic()
        self.read_bytes = 0

    async def read(self, size: int) -> bytes:
        due_s = self._began_s + self.read_bytes / self._bytes_per_s
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))  # the line's speed itself
        data = await self._reader.read(min(size, 4096))
        self.read_bytes += len(data)
        return data


async def test_sockets_that_read_nothing_cost_little_and_hold_up_nobody(
    own_deployment: Any, api_of: Callable[[str], Api]
) -> None:
    own = own_deployment(servers=1, workers=0)
    api = api_of(own.url)
    sids = [large(api, LARGE_BYTES) for _ in range(2)]
    live = api.start_external()

    async def takes_s() -> list[float]:
        """From each event's append until it is here."""
        took_s: list[float] = []
        async with speaker(own.url) as talks:
            await talks.ask("follow", stream=live)
            for _ in range(LIVE_EVENTS):
                began_s = time.monotonic()
                said = {"n": f"{began_s}"}
                appending = asyncio.create_task(asyncio.to_thread(api.append, live, ("text_delta", said)))
                await talks.until(lambda message, said=said: message.get("data") == said)  # type: ignore[misc]
                took_s.append(time.monotonic() - began_s)
                await appending
        return took_s

    async with speaker(own.url) as talks:
        for sid in sids:  # what is loaded and read once
            await talks.ask("follow", stream=sid)
        await talks.ask("ping")
    alone_s = await takes_s()
    before = memory_bytes(own.servers[0].pid)[0]
    async with AsyncExitStack() as stack:
        for _ in range(DEAF):
            _, writer = await asyncio.open_connection("127.0.0.1", own.ports[0], limit=1024)
            stack.push_async_callback(dropped, writer)
            writer.write(HANDSHAKE + b"".join(frame({"op": "follow", "stream": sid}) for sid in sids))
            writer.transport.pause_reading()  # type: ignore[attr-defined]
        beside_s = await takes_s()
        grown = memory_bytes(own.servers[0].pid)[0] - before
    print(
        f"{DEAF} deaf sockets: +{grown / 1e6:.1f} MB; a live event beside them after {_ms(beside_s)}, "
        f"alone after {_ms(alone_s)}"
    )
    assert grown < DEAF * MOST_EACH
    assert median(beside_s) < 0.5
    assert not LONG or p99(beside_s) < 2 * p99(alone_s) + 0.01
    assert b"Traceback" not in own.servers[0].output.read_bytes()


def _ms(took_s: list[float]) -> str:
    return f"{median(took_s) * 1000:.1f} ms at the median and {p99(took_s) * 1000:.1f} at p99"
