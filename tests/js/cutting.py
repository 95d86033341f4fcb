"""A proxy that cuts connections as networks do, in front of one server, or of several in turn.

A request says in its header `case` whose it is. What a case's first, second … request meets is told beforehand, and
what it asked for is told afterwards. A WebSocket is a request too: all that comes is its answer.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, NamedTuple

LOST = (OSError, asyncio.IncompleteReadError)
AT_ONCE = struct.pack("ii", 1, 0)  # what SO_LINGER takes: a close is a reset
HEAD_ENDS = b"\r\n\r\n"
FINAL_CHUNK = b"0\r\n\r\n"

How = Literal["reset", "close", "end"]
Blocking = Literal["refuses", "swallows", "mutes"]
"""What proxies do with a WebSocket that they do not know: no; no answer; 101, and nothing else."""
Of = Literal["answer", "body", "request"]


class Cut(NamedTuple):
    """`after` so many bytes of the answer (its head included), of its body, or of the request.

    - `reset`: as by a router that has forgotten the connection
    - `close`: the connection ends, the body does not
    - `end`: the body ends too, properly, as a proxy does it that takes a cut for an end
    """

    after: int
    how: How = "reset"
    of: Of = "body"


class Asked(NamedTuple):
    at: float
    """By time.monotonic()."""
    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def cursor(self) -> int:
        return int(self.headers.get("last-event-id", 0))


class Cutter:
    def __init__(self, ports: Sequence[int]) -> None:
        self.ports = list(ports)
        """A case's first request goes to the first of them, its second one to the second, and so on."""
        self.port = 0
        self.cuts: dict[str, list[Cut]] = {}
        self.asked: dict[str, list[Asked]] = defaultdict(list)
        self.only = ""
        """Other requests than those with this in their path are passed on, to the first server, and not counted."""
        self.blocking: Blocking | None = None
        self._open: dict[asyncio.StreamWriter, asyncio.Task[Any]] = {}
        self._answering: dict[asyncio.StreamWriter, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answering(self, *ports: int) -> int:
        """How many requests these servers are answering just now; without ports, all."""
        return sum(not ports or port in ports for port in self._answering.values())

    def reset_all(self) -> None:
        for writer in list(self._open):
            _reset(writer)

    async def close(self) -> None:
        tasks = list(self._open.values())
        self.reset_all()
        if tasks:
            await asyncio.wait(tasks)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._open[writer] = task
        try:
            await self._serve(reader, writer)
        except LOST:  # the client has left; or there is no server, or it has been killed
            _reset(writer)
        writer.close()
        del self._open[writer]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = _next_head(reader)
        while True:
            asked = _asked(await head)
            if "upgrade" in asked.headers:
                await self._pass_socket(asked, head.result(), reader, writer)
                return
            request = head.result() + await reader.readexactly(int(asked.headers.get("content-length", 0)))
            head = _next_head(reader)
            answering = asyncio.create_task(self._answer(asked, request, writer))
            await asyncio.wait([head, answering], return_when=asyncio.FIRST_COMPLETED)
            if head.done() and head.exception():  # the client has left
                answering.cancel()
            await asyncio.wait([answering])
            if answering.cancelled() or not answering.result():
                return

    async def _pass_socket(
        self, asked: Asked, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        port, cut = self._next(asked)
        if self.blocking == "refuses":
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        if self.blocking == "swallows":
            await reader.read()
            return
        answer, upstream = await asyncio.open_connection("127.0.0.1", port)
        self._answering[writer] = port
        try:
            upstream.write(head)
            writer.write(await answer.readuntil(HEAD_ENDS))
            if self.blocking == "mutes":
                await reader.read()
                return
            ways = [
                asyncio.create_task(_pass(reader, upstream, None)),
                asyncio.create_task(_pass(answer, writer, cut.after if cut else None)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
        finally:
            del self._answering[writer]
            upstream.close()
            if cut:
                _break_off(writer, cut)

    def _next(self, asked: Asked) -> tuple[int, Cut | None]:
        """Where to, and what it meets."""
        if self.only not in asked.path:
            return self.ports[0], None
        case = asked.headers.get("case", "")
        number = len(self.asked[case])
        self.asked[case].append(asked)
        cuts = self.cuts.get(case, [])
        return self.ports[number % len(self.ports)], cuts[number] if number < len(cuts) else None

    async def _answer(self, asked: Asked, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether another request may follow on this connection."""
        port, cut = self._next(asked)
        upstream: asyncio.StreamWriter | None = None
        try:
            answer, upstream = await asyncio.open_connection("127.0.0.1", port)
            self._answering[writer] = port
            if cut and cut.of == "request":
                upstream.write(request[: cut.after])
                _break_off(writer, cut)
                return False
            upstream.write(request)
            return await _bring_back(answer, writer, cut)
        finally:
            self._answering.pop(writer, None)
            if upstream:
                upstream.close()


def _next_head(reader: asyncio.StreamReader) -> asyncio.Task[bytes]:
    """It fails if the client leaves, whether anybody waits for it or not."""
    head = asyncio.create_task(reader.readuntil(HEAD_ENDS))
    head.add_done_callback(lambda read: read.cancelled() or read.exception())
    return head


def _asked(head: bytes) -> Asked:
    request, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, path, _ = request.split(" ", 2)
    named = (line.split(":", 1) for line in lines)
    return Asked(time.monotonic(), method, path, {name.lower(): value.strip() for name, value in named})


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None) -> None:
    """To the end, or `left` bytes."""
    with suppress(OSError):
        while left != 0 and (piece := await reader.read(2**16 if left is None else min(left, 2**16))):
            writer.write(piece)
            await writer.drain()
            if left is not None:
                left -= len(piece)


async def _bring_back(answer: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: Cut | None) -> bool:
    head = await answer.readuntil(HEAD_ENDS)
    left: float = cut.after if cut else float("inf")
    if cut and cut.of == "answer":
        left -= len(head)
    writer.write(head if left >= 0 else head[: int(left)])
    is_chunked = b"\r\ntransfer-encoding: chunked" in head.lower()
    pieces = _chunks(answer) if is_chunked else _whole(answer, head)
    while left > 0 and (piece := await anext(pieces, b"")):
        seen = piece[: int(min(left, len(piece)))]
        left -= len(seen)
        writer.write(b"%x\r\n%s\r\n" % (len(seen), seen) if is_chunked else seen)
        await writer.drain()
    if cut and left <= 0:
        return _break_off(writer, cut, is_in_body=is_chunked and left >= 0)
    if is_chunked:
        writer.write(FINAL_CHUNK)
    return True


async def _chunks(answer: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await answer.readuntil(b"\r\n"), 16):
        while size:
            piece = await answer.read(size)
            if not piece:
                raise asyncio.IncompleteReadError(b"", size)
            size -= len(piece)
            yield piece
        await answer.readexactly(2)


async def _whole(answer: asyncio.StreamReader, head: bytes) -> AsyncIterator[bytes]:
    length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
    yield await answer.readexactly(int(length or 0))


def _break_off(writer: asyncio.StreamWriter, cut: Cut, *, is_in_body: bool = False) -> bool:
    """Whether another request may follow."""
    if cut.how == "reset":
        _reset(writer)
    elif cut.how == "end" and is_in_body:
        writer.write(FINAL_CHUNK)
        return True
    return False


def _reset(writer: asyncio.StreamWriter) -> None:
    """What was written before is sent first: it is with the kernel already, since so little waits here."""
    plug = writer.get_extra_info("socket")
    with suppress(OSError):
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    writer.transport.abort()


@asynccontextmanager
async def cutting(*ports: int) -> AsyncIterator[Cutter]:
    cutter = Cutter(ports)
    server = await asyncio.start_server(cutter.serve, "127.0.0.1", 0, backlog=4096)
    cutter.port = server.sockets[0].getsockname()[1]
    try:
        yield cutter
    finally:
        server.close()
        await cutter.close()
