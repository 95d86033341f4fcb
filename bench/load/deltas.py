"""python -m bench.load.deltas: reads the provider's deltas where they come out, and times each.

They come out of Redis, as they are published, or of a server, as a viewer's SSE. Nothing is parsed: a delta is where
its stamp is (provider.py), whatever is around it. So this costs little, and takes whatever form a commit gives to it.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

import uvloop

from bench.load.agent import Answer, raise_descriptor_limit, say
from bench.load.pipeline import packed
from bench.load.provider import STAMP_DIGITS

MARK = b"~"
SPAN = len(MARK) + STAMP_DIGITS
LIMIT_S = 60.0


class Timings:
    """Of all connections together."""

    def __init__(self) -> None:
        self.seen = 0
        self.delays_us: list[int] = []
        self._wanted = math.inf
        self._has_wanted = asyncio.Event()

    async def wait_for(self, wanted: int) -> None:
        """Until so many have been seen in all."""
        self._wanted = wanted
        self._look()
        await self._has_wanted.wait()

    def _look(self) -> None:
        if self.seen >= self._wanted:
            self._has_wanted.set()

    def take(self, data: bytes, now_ns: int) -> bytes:
        """Time the deltas in here; returns what is left of one that is cut off."""
        at = data.find(MARK)
        while at >= 0:
            if at + SPAN > len(data):
                return data[at:]
            self.seen += 1
            self.delays_us.append((now_ns - int(data[at + 1 : at + SPAN])) // 1000)
            at = data.find(MARK, at + SPAN)
        self._look()
        return b""


class Connection(asyncio.Protocol):
    def __init__(self, timings: Timings, asked: bytes, sign: bytes) -> None:
        """`sign`: what is in the answer once events will come."""
        self.is_ready = asyncio.Event()
        self.received = b""
        self._timings = timings
        self._asked = asked
        self._sign = sign

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._asked)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.is_ready.is_set():
            if self._sign not in self.received:
                return
            self.is_ready.set()
        self.received = self._timings.take(self.received, time.time_ns())


class Deltas:
    def __init__(self) -> None:
        self._timings = Timings()

    async def subscribe(self, port: int, channels: list[str]) -> Answer:
        """Read these channels of Redis; the answer comes when they are subscribed to."""
        subscribe = b"*%d\r\n" % (1 + len(channels)) + packed("SUBSCRIBE", *channels)
        await self._open(port, subscribe + b"*1\r\n" + packed("PING"), b"pong")
        return {}

    async def view(self, port: int, paths: list[str]) -> Answer:
        """A viewer for each path; the answer comes when each has its stream's first event."""
        for path in paths:
            get = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n\r\n"
            await self._open(port, get.encode(), b"event: queued")
        return {}

    async def begin(self) -> Answer:
        """The measured time begins."""
        self._timings.delays_us = []
        return {}

    async def end(self) -> Answer:
        """The delays since `begin`."""
        delays_us, self._timings.delays_us = self._timings.delays_us, []
        return {"delays_us": delays_us}

    async def finish(self, deltas: int, limit_s: float) -> Answer:
        """Wait until so many have been seen in all; how many have been."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._timings.wait_for(deltas), limit_s)
        return {"seen": self._timings.seen}

    async def _open(self, port: int, asked: bytes, sign: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self._timings, asked, sign), "127.0.0.1", port)
        try:
            await asyncio.wait_for(connection.is_ready.wait(), LIMIT_S)
        except TimeoutError:
            raise SystemExit(f"no events will come: {asked!r} was answered by {connection.received!r}") from None


async def main() -> None:
    """Read deltas, and answer what is asked, until standard input ends."""
    deltas = Deltas()
    do: dict[str, Callable[..., Awaitable[Answer]]] = {
        "subscribe": deltas.subscribe,
        "view": deltas.view,
        "begin": deltas.begin,
        "end": deltas.end,
        "finish": deltas.finish,
    }
    questions = asyncio.StreamReader(limit=2**20)  # a line may hold the paths of hundreds of streams
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    while line := await questions.readline():
        asked: dict[str, Any] = json.loads(line)
        say(await do[asked.pop("do")](**asked))


if __name__ == "__main__":
    raise_descriptor_limit()
    uvloop.run(main())
