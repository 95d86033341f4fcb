"""python -m bench.load.neighbour PORT: the tenant next door, which asks for more than it may have, at a pace.

A few connections, each with one request at a time: whoever is refused sooner does not ask more often. It runs at a low
priority, so that it takes no CPU from those that measure.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from typing import Any

import uvloop

from bench.load.agent import Answer, raise_descriptor_limit, say

LANES = 4
NICE = 10
LIMIT_S = 30.0

TAKEN = {"200", "201", "401"}
REFUSED = {"429", "too_many_viewers", "rate_limited"}

CUT = b"\n: "
"""What a refused viewer is told before it is cut: an SSE comment with the code."""
_LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]+)", re.IGNORECASE)

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Neighbour:
    def __init__(self, port: int) -> None:
        self._port = port
        self._answers: Counter[str] = Counter()
        self._held: list[Connection] = []
        self._lanes: list[asyncio.Task[None]] = []
        self._began_s = 0.0

    async def begin(self, requests: list[str], per_s: float, held: list[str], *, anew: bool) -> Answer:
        """Connect once for each of `held`, and stay; then send the requests in turn, `per_s` of them in all. The answer
        comes when the first is refused: from then on it is at its limit.

        `anew`: each over a connection of its own, as viewers connect.
        """
        self._answers.clear()
        for request in held:
            reader, writer = await self._open()
            self._held.append((reader, writer))
            writer.write(request.encode())
            async with asyncio.timeout(LIMIT_S):
                await reader.readuntil(b"event: ")
        turns = cycle(request.encode() for request in requests)
        async with asyncio.timeout(LIMIT_S):
            await self._until_refused(turns, anew=anew)
        self._began_s = time.monotonic()
        self._lanes = [asyncio.create_task(self._ask(turns, per_s / LANES, anew=anew)) for _ in range(LANES)]
        return {}

    async def end(self) -> Answer:
        """Stop, and let everything go. Returns how often there was which answer."""
        seconds = time.monotonic() - self._began_s
        for lane in self._lanes:
            if lane.done():
                lane.result()  # what ended it before its time is told
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        for _, writer in self._held:
            writer.close()
        self._held = []
        return {"answers": dict(self._answers), "seconds": seconds}

    async def _until_refused(self, turns: Iterator[bytes], *, anew: bool) -> None:
        connection = await self._open()
        while (said := await _answer(connection, next(turns))) in TAKEN:
            if anew:
                connection[1].close()
                connection = await self._open()
        if said not in REFUSED:
            raise SystemExit(f"the neighbour was to be refused, and was answered: {said}")
        connection[1].close()

    async def _ask(self, turns: Iterator[bytes], per_s: float, *, anew: bool) -> None:
        clock = asyncio.get_running_loop().time
        due_s = clock()
        connection = await self._open()
        try:
            while True:
                due_s = max(due_s + 1 / per_s, clock())
                await asyncio.sleep(due_s - clock())
                if anew:
                    connection[1].close()
                    connection = await self._open()
                async with asyncio.timeout(LIMIT_S):
                    self._answers[await _answer(connection, next(turns))] += 1
        finally:
            connection[1].close()

    async def _open(self) -> Connection:
        return await asyncio.open_connection("127.0.0.1", self._port)


async def _answer(connection: Connection, request: bytes) -> str:
    """Its status; of an event stream that was cut at once, the code that it was told."""
    reader, writer = connection
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    status = head[9:12].decode()
    if length := _LENGTH.search(head):
        await reader.readexactly(int(length[1]))
        return status
    said = b""
    with suppress(ConnectionError):
        while b"event: " not in said and (some := await reader.read(65536)):
            said += some
    _, is_cut, rest = said.partition(CUT)
    return rest.partition(b"\n")[0].strip().decode() if is_cut else status


async def main(port: int) -> None:
    neighbour = Neighbour(port)
    lines = asyncio.StreamReader(limit=2**24)  # a line may hold the requests of hundreds of tokens
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        asked: dict[str, Any] = json.loads(line)
        say(await {"begin": neighbour.begin, "end": neighbour.end}[asked.pop("do")](**asked))


if __name__ == "__main__":
    raise_descriptor_limit()
    os.nice(NICE)
    uvloop.run(main(int(sys.argv[1])))
