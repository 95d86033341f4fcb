"""A sink of peers that are written to over HTTP: one POST an event, on kept connections, pipelined."""

from __future__ import annotations

import asyncio

from bench.load import stamp

CONNECTIONS = 256
"""A server begins a pipelined request when the one before it is answered: with few connections, round trips to what
keeps its log would be what is measured."""


class PostSink:
    """`paths`: of a stream at the server, by its number."""

    paths: str
    refused = (b"HTTP/1.1 4", b"HTTP/1.1 5")

    def __init__(self, port: str) -> None:
        self._port = int(port)
        self._connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.untaken = 0
        self._all_taken = asyncio.Event()
        self._counting: list[asyncio.Task[None]] = []

    def request(self, stream: int, body: bytes) -> bytes:
        """The POST of an event."""
        raise NotImplementedError

    def creation(self, stream: int) -> bytes:
        """The request that creates a stream. Empty: streams need none."""
        return b""

    def path(self, stream: int) -> str:
        return self.paths.format(stream)

    async def open(self, streams: int) -> list[str]:
        self._connections = [await asyncio.open_connection("127.0.0.1", self._port) for _ in range(CONNECTIONS)]
        self._counting = [asyncio.create_task(self._count(answers)) for answers, _ in self._connections]
        for stream in range(streams):
            if creation := self.creation(stream):
                self._send(stream, creation)
        await self.flush()
        return [self.path(stream) for stream in range(streams)]

    def write(self, stream: int, n: int) -> None:
        self._send(stream, self.request(stream, stamp.event_json(n)))

    def _send(self, stream: int, request: bytes) -> None:
        # A stream's events on one connection: they must not overtake each other.
        self._connections[stream % CONNECTIONS][1].write(request)
        self.untaken += 1

    def send(self) -> None:
        """The transports have it."""

    async def flush(self) -> None:
        while self.untaken:
            self._all_taken.clear()
            await self._all_taken.wait()

    async def _count(self, answers: asyncio.StreamReader) -> None:
        cut_off = b""
        while some := await answers.read(2**18):
            answered = cut_off + some
            if any(mark in answered for mark in self.refused):
                raise SystemExit(f"the server refused an event: {answered[:300]!r}")
            self.untaken -= answered.count(b"HTTP/1.1 20")  # 200, 201, 202 where nobody watches, 204
            if not self.untaken:
                self._all_taken.set()
            cut_off = answered[-10:]


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    more = b"".join(b"%b\r\n" % header for header in headers)
    return b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (path, more, len(body), body)
