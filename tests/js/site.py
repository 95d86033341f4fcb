"""Where pages come from: plain modules as they stand in clients/js/src, under a strict policy, and the server's API.

Each request to the API has a connection of its own, which the site passes on: so it knows who follows, and over how
many connections, and it can cut them.
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
from typing import Any
from urllib.parse import quote, unquote

from tests.js.packages import PACKAGE

PAGES = Path(__file__).parent / "npm"
POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'; require-trusted-types-for 'script'"
TYPES = {".html": "text/html; charset=utf-8", ".mjs": "text/javascript", ".js": "text/javascript"}
API = "/v1/"
MODULES = "/lastevent/"
REPORT = "/report?"
HOLD = "/hold"
PIECE = 2**16


@dataclass
class Request:
    method: str
    path: str
    head: bytes
    at: float = field(default_factory=time.monotonic)

    def header(self, name: str) -> str | None:
        found = re.search(rf"\r\n{name}: *([^\r]*)", self.head.decode(), re.IGNORECASE)
        return found and found[1]

    @property
    def is_following(self) -> bool:
        return self.is_socket or (self.method == "GET" and self.path.partition("?")[0].endswith("/events"))

    @property
    def is_socket(self) -> bool:
        return self.path == "/v1/socket"


@dataclass
class Site:
    upstream_port: int
    port: int = 0
    policy: str = POLICY
    latency_s: float = 0
    """Before a request is passed on."""
    pace_s: float = 0
    """Between two pieces of what the server says: a kernel gives a slow connection little room to lie in."""
    refused: str | None = None
    """A token that is answered 401."""
    asked: list[Request] = field(default_factory=list)
    """What was passed on to the server."""
    following: int = 0
    """On how many connections streams are read."""
    left_at: list[float] = field(default_factory=list)
    """When such connections have ended, by time.monotonic()."""
    reports: list[dict[str, Any]] = field(default_factory=list)
    """What pages that no driver asks have told by themselves."""
    held: int = 0
    """How many pages wait, with their whole thread, until they are `free`."""
    free: asyncio.Event = field(default_factory=asyncio.Event)
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
            while not (request := _request(await reader.readuntil(b"\r\n\r\n"))).path.startswith(API):
                if request.path == HOLD:
                    self.held += 1
                    await self.free.wait()
                writer.write(self._answer(request.path))
            await self._pass_on(request, reader, writer)
        writer.close()
        self._open.discard(writer)

    def _answer(self, path: str) -> bytes:
        if path.startswith(REPORT):
            self.reports.append(json.loads(unquote(path.removeprefix(REPORT))))
            return _answer("204 No Content")
        name = path.partition("?")[0]
        file = PACKAGE / "src" / name.removeprefix(MODULES) if name.startswith(MODULES) else PAGES / name[1:]
        if file.suffix not in TYPES or not file.is_file():
            return _answer("404 Not Found")
        kind, policy = f"Content-Type: {TYPES[file.suffix]}", f"Content-Security-Policy: {self.policy}"
        return _answer("200 OK", kind, policy, "Cache-Control: max-age=600", body=file.read_bytes())

    async def _pass_on(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(request)
        await asyncio.sleep(self.latency_s)
        if self.refused and request.header("authorization") == f"Bearer {self.refused}":
            writer.write(_answer("401 Unauthorized", "Connection: close"))
            return
        answer, upstream = await _connect(self.upstream_port)
        connection = b"Upgrade" if request.is_socket else b"close"
        head = re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", request.head)[:-2]
        upstream.write(head + b"Connection: %b\r\n\r\n" % connection)
        self.following += request.is_following
        try:
            passing = [
                asyncio.ensure_future(_pass(reader, upstream)),
                asyncio.ensure_future(_pass(answer, writer, self.pace_s)),
            ]
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            for each in passing:
                each.cancel()
            await asyncio.wait(passing)
        finally:
            upstream.transport.abort()
            self.following -= request.is_following
            if request.is_following:
                self.left_at.append(time.monotonic())


def _request(head: bytes) -> Request:
    method, path, _ = head.decode().split(" ", 2)
    return Request(method, path, head)


def _answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """What nobody takes stays with the server: little room here, and before (`serve`)."""
    plug = socket.socket()
    plug.setblocking(False)
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE)
    await asyncio.get_running_loop().sock_connect(plug, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=plug, limit=PIECE)


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
