"""What stands between an endpoint and the server behind it: it counts, cuts, and refuses, where a test says so."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Upstream:
    def __init__(self, port: int) -> None:
        self._server_port = port
        self.port = 0
        self.heads: list[str] = []
        """What was asked."""
        self.asking = 0
        """Connections on which something was asked. (After an abort Node's fetch opens one more, for nothing.)"""
        self.cut_at: bytes | None = None
        """Connections end behind these bytes of an answer."""
        self.answer: bytes | None = None
        """Instead of the server's."""
        self.is_silent = False
        """Requests come in and are not answered."""
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Every connection, now."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server, behind = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._writers.add(writer)
        ways = [
            asyncio.ensure_future(self._ask(reader, writer, behind)),
            asyncio.ensure_future(self._say(server, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            behind.close()
            writer.close()
            self._writers.discard(writer)

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, behind: asyncio.StreamWriter
    ) -> None:
        has_asked = False
        try:
            while data := await reader.read(2**16):
                if re.match(rb"[A-Z]+ /", data):
                    self.heads.append(data.partition(b"\r\n\r\n")[0].decode())
                    self.asking += not has_asked
                    has_asked = True
                if self.answer is not None:
                    writer.write(self.answer)
                elif not self.is_silent:
                    behind.write(data)
        except OSError:
            pass
        finally:
            self.asking -= has_asked

    async def _say(self, server: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await server.read(2**16):
                if self.cut_at is not None and self.cut_at in data:
                    writer.write(data[: data.index(self.cut_at) + len(self.cut_at)])
                    return
                writer.write(data)


@asynccontextmanager
async def upstream_of(port: int, at: int = 0) -> AsyncIterator[Upstream]:
    """`at`: its own port. 0: any."""
    upstream = Upstream(port)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", at)
    upstream.port = server.sockets[0].getsockname()[1]
    async with server:
        yield upstream
