"""Where pages come from: plain modules as they stand in clients/js/src, under a strict policy, and the server's API.

The API is passed on to a server, one connection a request: so the site knows who follows, over how many connections.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from tests.js.packages import PACKAGE

PAGES = Path(__file__).parent / "npm"
POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'; require-trusted-types-for 'script'"
TYPES = {".html": "text/html; charset=utf-8", ".mjs": "text/javascript", ".js": "text/javascript"}
REQUEST = re.compile(rb"(?P<method>[A-Z]+) (?P<path>/\S*) HTTP/1\.1\r\n")
PIECE = 2**16


class Asked(NamedTuple):
    at: float
    """By time.monotonic()."""
    method: str
    path: str
    last_event_id: str | None


@dataclass
class Site:
    upstream_port: int
    port: int = 0
    policy: str = POLICY
    pace_s: float = 0
    """Between two pieces of what the server says: a kernel gives a slow connection little room to lie in."""
    latency_s: float = 0
    """Before a request is passed on."""
    refused: str | None = None
    """A token that is answered 401."""
    asked: list[Asked] = field(default_factory=list)
    """What was passed on to the server."""
    left_at: list[float] = field(default_factory=list)
    """When connections on which a stream was read have ended, by time.monotonic()."""
    following: set[int] = field(default_factory=set)
    """Connections, by the number of their request, on which a stream is read."""
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def page(self, **options: Any) -> str:
        """The address of page.html, which follows as `options` say."""
        return f"{self.url}/page.html?{quote(json.dumps(options), safe='')}"

    def cut(self) -> None:
        """All that is open."""
        for writer in list(self._open):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)
        with suppress(OSError, asyncio.IncompleteReadError):
            while self._give(head := await reader.readuntil(b"\r\n\r\n"), writer):
                await writer.drain()
            await self._pass_on(head, reader, writer)
        writer.close()
        self._open.discard(writer)

    def _give(self, head: bytes, writer: asyncio.StreamWriter) -> bool:
        """A file; or False, if it is the server who is asked."""
        found = REQUEST.match(head)
        assert found, head
        path = found["path"].decode().partition("?")[0]
        if path.startswith("/v1/"):
            return False
        file = PACKAGE / "src" / path.rpartition("/")[2] if path.startswith("/lastevent/") else PAGES / path[1:]
        body = file.read_bytes() if file.suffix in TYPES and file.is_file() else b""
        status = "200 OK" if body else "404 Not Found"
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: {TYPES.get(file.suffix, 'text/plain')}\r\nContent-Length: {len(body)}\r\n"
            f"Content-Security-Policy: {self.policy}\r\n\r\n".encode()
            + body
        )
        return True

    async def _pass_on(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = REQUEST.match(head)
        assert found
        cursor = re.search(rb"(?i)\r\nlast-event-id: *([^\r]*)", head)
        self.asked.append(
            Asked(time.monotonic(), found["method"].decode(), found["path"].decode(), cursor[1].decode() if cursor else None)
        )
        number = len(self.asked)
        await asyncio.sleep(self.latency_s)
        if self.refused and f"\r\nauthorization: bearer {self.refused}\r\n".encode() in head.lower():
            writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.upstream_port, limit=PIECE)
        upstream_writer.write(re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", head)[:-2] + b"Connection: close\r\n\r\n")
        if found["method"] == b"GET" and re.search(rb"/events\b", found["path"]):
            self.following.add(number)
        try:
            passing = [
                asyncio.ensure_future(_pass(reader, upstream_writer)),
                asyncio.ensure_future(_pass(upstream_reader, writer, self.pace_s)),
            ]
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            for each in passing:
                each.cancel()
            await asyncio.wait(passing)
        finally:
            if number in self.following:
                self.following.discard(number)
                self.left_at.append(time.monotonic())
            upstream_writer.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pace_s: float = 0) -> None:
    with suppress(OSError):
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pace_s)


@asynccontextmanager
async def site_of(upstream_port: int) -> AsyncIterator[Site]:
    site = Site(upstream_port)
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
        site.cut()
