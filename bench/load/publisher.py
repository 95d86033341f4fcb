"""python -m bench.load.publisher CONTESTANT ADDRESS: writes numbered events to streams at an even pace.

Events are spread over every interval: of a thousand streams with 20 events a second each, twenty get one each
millisecond. What a contestant's events are written with is its *sink*, in contestants/.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import sys
from typing import Any, Protocol

import uvloop

from bench.load.agent import Answer, raise_descriptor_limit, say

SLOT_S = 0.001

SLACK_S = 0.05
"""The last slot is never quite in time."""

UNTAKEN_EVENTS = 20_000
"""What may wait to be taken. Beyond it the publisher waits, and so publishes less than it was asked to, which is said:
going on would make ever larger batches ever later, and the publisher would be what is measured."""


class Sink(Protocol):
    """How a contestant's events are written."""

    async def open(self, streams: int) -> list[str]:
        """Create that many streams; their paths at the server."""
        ...

    def write(self, stream: int, n: int) -> None:
        """May gather, until `send`."""
        ...

    def send(self) -> None: ...

    @property
    def untaken(self) -> int:
        """Events written that have not been taken, about."""
        ...

    async def flush(self) -> None:
        """Until all that was written has been taken."""
        ...


class Publisher:
    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._streams = 0
        self._written = 0
        self._pace: asyncio.Task[float] | None = None
        self._until_s = 0.0

    async def answer(self, asked: dict[str, Any]) -> Answer:
        match asked:
            case {"do": "open", "streams": streams}:
                self._streams = streams
                paths = await self._sink.open(streams)
                gc.collect()
                gc.freeze()  # or the collector walks all streams amid the load, for tens of ms
                return {"paths": paths}
            case {"do": "go", "rate": rate, "seconds": seconds}:
                self._pace = asyncio.create_task(self._keep_pace(rate * self._streams, seconds))
                return {}
            case {"do": "stop"}:
                self._until_s = 0
                return {}
            case {"do": "written"}:
                return {"written": self._by_stream()}
            case {"do": "finish"}:
                assert self._pace
                share = await self._pace
                await self._sink.flush()
                return {"written": self._by_stream(), "share": share}
        raise ValueError(asked)

    def _by_stream(self) -> list[int]:
        """Streams are written in turn: the first ones may be one event ahead."""
        rounds, ahead = divmod(self._written, self._streams)
        return [rounds + (stream < ahead) for stream in range(self._streams)]

    async def _keep_pace(self, rate: float, seconds: float) -> float:
        """Write `rate` events a second in all, for so long. Returns which share of them could be written."""
        clock = asyncio.get_running_loop().time
        first, total, began_s = self._written, round(rate * seconds), clock()
        self._until_s = began_s + seconds + SLACK_S
        while (done := self._written - first) < total and clock() < self._until_s:
            due = min(total, 1 + int((clock() - began_s) * rate))
            room = max(0, UNTAKEN_EVENTS - self._sink.untaken)
            for _ in range(min(due - done, room)):
                n, stream = divmod(self._written, self._streams)
                self._sink.write(stream, n + 1)
                self._written += 1
            self._sink.send()
            await asyncio.sleep(SLOT_S)
        return (self._written - first) / total


async def main(contestant: str, address: str) -> None:
    sink: Sink = importlib.import_module(f"bench.contestants.{contestant}").sink(address)
    publisher = Publisher(sink)
    lines = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        say(await publisher.answer(json.loads(line)))


if __name__ == "__main__":
    raise_descriptor_limit()
    uvloop.run(main(*sys.argv[1:]))
