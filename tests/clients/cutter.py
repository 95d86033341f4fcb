"""A proxy that cuts connections where a test says, for clients that others wrote.

Each case has a base address of its own, `cutter.url("some case")`; what its connections are cut at is told beforehand,
and what it asked for is told afterwards. The server behind sees the request without the case.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

NO_ANSWER = -1
"""A cut before the answer's first byte."""
CASE = re.compile(rb"(?P<method>[A-Z]+) /(?P<case>[^/]+)(?P<rest>/\S*) HTTP/1\.1\r\n")


class Asked(NamedTuple):
    at: float
    """By time.monotonic()."""
    method: str
    path: str
    last_event_id: str | None


@dataclass
class Cutter:
    upstream_port: int
    port: int = 0
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """For each case, after how many bytes of body its first connections, its second … is cut. Then it is let be."""
    asked: dict[str, list[Asked]] = field(default_factory=lambda: defaultdict(list))
    seen: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    """For each case, what its connections got of a body before they were cut."""
    _serving: set[asyncio.Task[None]] = field(default_factory=set)

    def url(self, case: str, cuts: Sequence[int] = ()) -> str:
        self.cuts[case] = list(cuts)
        return f"http://127.0.0.1:{self.port}/{case}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        with suppress(asyncio.CancelledError):
            await task

    async def close(self) -> None:
        """What clients have left open must not be found by a later test."""
        for task in (serving := list(self._serving)):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while await self._answer(await reader.readuntil(b"\r\n\r\n"), writer):
                    pass
        finally:
            writer.close()

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the client got the whole of it, and may ask again on this connection."""
        found = CASE.match(head)
        assert found, head
        case = found["case"].decode()
        cuts = self.cuts.get(case, [])
        cut = cuts.pop(0) if cuts else None
        if cut == NO_ANSWER:
            self.asked[case].append(_asked(found, head))
            return False
        answer, upstream = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        try:
            self.asked[case].append(_asked(found, head))
            upstream.write(b"%s %s HTTP/1.1\r\n" % (found["method"], found["rest"]) + head[found.end() :])
            seen = bytearray()
            is_whole = await _bring_back(answer, writer, cut, seen)
            if not is_whole:
                self.seen[case].append(bytes(seen))
            return is_whole
        finally:
            upstream.close()


def _asked(found: re.Match[bytes], head: bytes) -> Asked:
    cursor = re.search(rb"(?i)\r\nlast-event-id: *([^\r]*)", head)
    return Asked(
        time.monotonic(), found["method"].decode(), found["rest"].decode(), cursor[1].decode() if cursor else None
    )


async def _bring_back(
    answer: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: int | None, seen: bytearray
) -> bool:
    """The answer, of whose body the client never sees more than `cut` bytes: `seen`. Whether it was all of it."""
    head = await answer.readuntil(b"\r\n\r\n")
    writer.write(head)
    if b"\r\ntransfer-encoding: chunked" not in head.lower():
        length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
        writer.write(await answer.readexactly(int(length[1]) if length else 0))
        return True
    left = float("inf") if cut is None else cut
    while left:
        line = await answer.readuntil(b"\r\n")
        writer.write(line)
        size = int(line, 16)
        while size and left:
            piece = await answer.read(int(min(size, left, 2**16)))
            if not piece or writer.is_closing():
                return False
            size -= len(piece)
            left -= len(piece)
            seen += piece
            writer.write(piece)
        if left:
            writer.write(await answer.readexactly(2))
        if line == b"0\r\n":
            return True
    return False


@asynccontextmanager
async def cutting(upstream_port: int) -> AsyncIterator[Cutter]:
    cutter = Cutter(upstream_port)
    server = await asyncio.start_server(cutter.serve, "127.0.0.1", 0, backlog=4096)
    cutter.port = server.sockets[0].getsockname()[1]
    try:
        yield cutter
    finally:
        server.close()
        await cutter.close()
