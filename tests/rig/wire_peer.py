"""A server on loopback that answers each HTTP request with the bytes that a test gives it, and keeps what was asked."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import orjson

EVENTS = "text/event-stream"


class Asked(NamedTuple):
    head: bytes
    body: bytes

    @property
    def line(self) -> str:
        """`POST /v1/responses HTTP/1.1`"""
        return self.head.partition(b"\r\n")[0].decode()

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    def header(self, name: str) -> str | None:
        found = re.search(rb"(?im)^%s: *(.*?)\r?$" % re.escape(name.encode()), self.head)
        return found[1].decode() if found else None


class Answer(NamedTuple):
    pieces: Iterable[bytes]
    """Of the body. Each is a chunk of its own on the wire."""
    status: int = 200
    content_type: str = EVENTS
    headers: tuple[tuple[str, str], ...] = ()
    end: str = "proper"
    """`proper`: the body ends as HTTP wants it. `cut`: the connection closes before. `hold`: nothing more, for ever."""


class WirePeer:
    """`answer`: what every request gets from now on, after those that are `next`. `asked`: the requests, in order."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Asked] = []
        self.answer = Answer(())
        self.next: list[Answer] = []
        self.writers: set[asyncio.StreamWriter] = set()

    def says(self, *pieces: bytes, **options: Any) -> None:
        self.asked.clear()
        self.answer = Answer(pieces, **options)

    def says_in_turn(self, *answers: Answer) -> None:
        self.asked.clear()
        self.next = list(answers)

    def refuses(self, status: int, body: Any, **headers: str) -> None:
        """With a JSON body. Headers by their names, `_` for `-`."""
        named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        self.asked.clear()
        self.answer = Answer((orjson.dumps(body),), status, "application/json", named)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self._answer_one(reader, writer):
                pass
        self.writers.discard(writer)
        writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        self.asked.append(Asked(head, await reader.readexactly(int(length[1]) if length else 0)))
        answer = self.next.pop(0) if self.next else self.answer
        lines = [f"HTTP/1.1 {answer.status} x", f"Content-Type: {answer.content_type}", "Transfer-Encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in answer.headers]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        for piece in answer.pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        if answer.end == "hold":
            await reader.read(1)
        elif answer.end == "proper":
            writer.write(b"0\r\n\r\n")
        return answer.end == "proper"


@asynccontextmanager
async def wire_peer() -> AsyncIterator[WirePeer]:
    """A module's tests may share one: a fixture of module scope."""
    peer = WirePeer()
    async with await asyncio.start_server(peer.serve, "127.0.0.1", 0, limit=2**26) as server:
        peer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield peer
        finally:
            for writer in peer.writers:
                writer.close()


def sse(*payloads: Any, named: bool = True) -> bytes:
    """Server-sent events of JSON, with the payload's `type` as their name if it has one. Bytes go as they are."""
    return b"".join(map(_named if named else _unnamed, payloads))


def _named(payload: Any) -> bytes:
    kind = payload.get("type") if isinstance(payload, dict) else None
    return (b"event: %s\n" % kind.encode() if kind else b"") + _unnamed(payload)


def _unnamed(payload: Any) -> bytes:
    return b"data: %s\n\n" % (payload if isinstance(payload, bytes) else orjson.dumps(payload))
