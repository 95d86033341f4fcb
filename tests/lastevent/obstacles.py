"""What stands between a producer and its server: some requests it refuses, some it forwards and loses the answer to."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

HURDLES = ("refused", "dropped", "unanswered", "unavailable")
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class Obstacles:
    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._random = random.Random(seed)
        self._serving: set[asyncio.Task[None]] = set()
        self.url = ""
        self.share = 0.0
        """Of the requests that meet one of HURDLES."""
        self.met: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        with suppress(asyncio.CancelledError):
            await task

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while await self._one(await _message(reader), reader, writer):
                    pass
        finally:
            writer.transport.abort()

    async def _one(self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        hurdle = self._random.choice(HURDLES) if self._random.random() < self.share else ""
        self.met[hurdle] += 1
        if hurdle == "refused":
            return False
        if hurdle == "unavailable":
            writer.write(UNAVAILABLE)
            return True
        answer = await self._forward(request)
        if hurdle == "dropped":
            return False
        if hurdle == "unanswered":
            await reader.read()  # until the client gives up
            return False
        writer.write(answer)
        return True

    async def _forward(self, request: bytes) -> bytes:
        there, upstream = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            upstream.write(request)
            return await _message(there)
        finally:
            upstream.close()

    async def close(self) -> None:
        for task in (serving := list(self._serving)):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def _message(reader: asyncio.StreamReader) -> bytes:
    """A request, or an answer, whole."""
    head = await reader.readuntil(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            body += await reader.readuntil(b"\r\n")
        return head + body
    length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
    return head + (await reader.readexactly(int(length[1])) if length else b"")


@asynccontextmanager
async def obstacles(port: int, seed: int = 1) -> AsyncIterator[Obstacles]:
    between = Obstacles(port, seed)
    server = await asyncio.start_server(between.serve, "127.0.0.1", 0, backlog=1024)
    between.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield between
    finally:
        server.close()
        await between.close()
