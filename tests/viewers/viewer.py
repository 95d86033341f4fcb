"""A viewer written from the specifications alone: HTTP/1.1 (RFC 9112) and Server-Sent Events (WHATWG HTML, 9.2).

It works on a bare socket, so that it can stop at any byte, keeps the exact bytes of what it saw, and knows the proper
end of a body (the final chunk) from a cut. `Viewer` is one person's view of a stream over any number of connections:
after a cut it takes what was complete, and presents the last id of it.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from tests.rig.deployment import HTTP

LIMIT_S = 60.0
_SAYS_NOTHING = re.compile(rb"^(?:retry: [0-9]+|: [a-z_]+)\n", re.MULTILINE)

CutAt = Callable[[bytearray], int | None]
"""Given the body so far, after how many of its bytes the client's connection breaks (None: not yet)."""


def at_byte(position: int) -> CutAt:
    return lambda body: position if len(body) >= position else None


def within_a_character(after: int) -> CutAt:
    """Behind the first byte, of several, of the first character that is not ASCII."""

    def cut(body: bytearray) -> int | None:
        found = re.compile(rb"[\xc2-\xf4]").search(body, after)
        return found.end() if found else None

    return cut


def after_event(number: int) -> CutAt:
    """As soon as that event has begun to arrive."""
    return lambda body: len(body) if b"id: %d\n" % number in body else None


class Event(NamedTuple):
    id: int | None
    kind: str
    data: str

    @property
    def text(self) -> str:
        text: str = json.loads(self.data)["text"]
        return text


@dataclass
class Answer:
    """One response: what its head said, and the body's bytes without the chunks around them."""

    status: int
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    has_final_chunk: bool = False

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value

    @property
    def is_cut(self) -> bool:
        return not self.has_final_chunk

    @property
    def blocks(self) -> list[bytes]:
        """The complete blocks, each up to and with its blank line; what follows the last one was cut off."""
        assert b"\r" not in self.body, "this reader takes LF alone for a line's end"
        return [block + b"\n\n" for block in bytes(self.body).split(b"\n\n")[:-1]]

    @property
    def remainder(self) -> bytes:
        return bare(bytes(self.body).rpartition(b"\n\n")[2])


def bare(block: bytes) -> bytes:
    """Without comments and without `retry:`, which is another for each viewer."""
    return _SAYS_NOTHING.sub(b"", block)


def parse(block: bytes) -> Event | None:
    """The event that a block dispatches, if it does."""
    fields: dict[str, list[str]] = {}
    for line in block.decode().split("\n"):
        name, _, value = line.partition(":")
        if name:
            fields.setdefault(name, []).append(value.removeprefix(" "))
    if "data" not in fields:
        return None
    event_id = int(fields["id"][-1]) if "id" in fields else None
    return Event(event_id, fields.get("event", ["message"])[-1], "\n".join(fields["data"]))


class Connection:
    """A socket to a server, for one request after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        self._reader = reader
        self._writer = writer
        self._port = port

    def stop_reading(self) -> None:
        """From here on nothing leaves the kernel's buffers: a phone in a tunnel, its connection still open."""
        self._writer.transport.pause_reading()

    def send(self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self._port}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        self.send_bytes("\r\n".join([*lines, "", ""]).encode() + body)

    def send_bytes(self, some: bytes) -> None:
        self._writer.write(some)

    async def read_head(self) -> Answer:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *lines = head.rstrip("\r\n").split("\r\n")
        named = (line.split(": ", 1) for line in lines)
        return Answer(int(status.split(" ", 2)[1]), {name.lower(): value for name, value in named})

    async def read_body(self, answer: Answer, cut: CutAt | None = None) -> None:
        """Until the body's proper end, the server's cut, or our own."""
        async for _ in self.pieces(answer):
            if cut and (position := cut(answer.body)) is not None:
                del answer.body[position:]
                self.abort()
                return

    async def pieces(self, answer: Answer) -> AsyncIterator[bytes]:
        """The body as it comes, each piece once it has been added to `answer.body`."""
        if answer.headers.get("transfer-encoding") != "chunked":
            answer.body += await self._reader.readexactly(int(answer.headers.get("content-length", 0)))
            answer.has_final_chunk = True
            yield bytes(answer.body)
            return
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                while size:
                    piece = await self._reader.read(size)
                    if not piece:
                        return
                    size -= len(piece)
                    answer.body += piece
                    yield piece
                assert await self._reader.readexactly(2) == b"\r\n"
            assert await self._reader.readexactly(2) == b"\r\n"
            answer.has_final_chunk = True

    async def closed_by_server(self) -> bool:
        """Wait for the server to close it; False if there was something else to read."""
        with suppress(ConnectionError):
            return await self._reader.read(1) == b""
        return True

    def abort(self) -> None:
        self._writer.transport.abort()

    async def close(self) -> None:
        self.abort()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@asynccontextmanager
async def connect(port: int, *, receive_buffer: int | None = None) -> AsyncIterator[Connection]:
    """`receive_buffer`: how many bytes (about) the kernel takes for a client that does not read."""
    plug = socket.socket()
    plug.setblocking(False)
    if receive_buffer:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await asyncio.get_running_loop().sock_connect(plug, ("127.0.0.1", port))
    except BaseException:
        plug.close()
        raise
    reader, writer = await asyncio.open_connection(sock=plug)
    connection = Connection(reader, writer, port)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def get_events(
    port: int, sid: str, last_event_id: int | None = None, *, receive_buffer: int | None = None
) -> AsyncIterator[tuple[Connection, Answer]]:
    """A connection that has the head of its answer and nothing of the body yet."""
    async with connect(port, receive_buffer=receive_buffer) as connection:
        headers = {"Accept": "text/event-stream"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = str(last_event_id)
        connection.send("GET", f"/v1/streams/{sid}/events", headers)
        yield connection, await connection.read_head()


async def post(port: int, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Answer:
    """The whole answer to a request of its own connection."""
    async with asyncio.timeout(LIMIT_S), connect(port) as connection:
        connection.send("POST", path, headers, json.dumps(body).encode())
        answer = await connection.read_head()
        await connection.read_body(answer)
    return answer


def viewers_connected(url: str) -> int:
    """How many viewers a server says it has."""
    lines = HTTP.get(f"{url}/metrics").text.splitlines()
    return sum(int(float(line.split()[1])) for line in lines if line.startswith("lastevent_viewers{"))


class Viewer:
    """One person's view of a stream, over any number of connections."""

    def __init__(self, sid: str) -> None:
        self.sid = sid
        self.blocks: list[bytes] = []
        """Every complete block, without comments and without the jittered `retry:` lines."""
        self.answers: list[Answer] = []
        self.last_event_id: int | None = None
        self.has_ended = False

    @property
    def has_something(self) -> bool:
        """A first byte has come, on any of its connections."""
        return any(answer.body for answer in self.answers)

    def has_seen(self, event_id: int) -> bool:
        return any(b"id: %d\n" % event_id in answer.body for answer in self.answers)

    @property
    def bytes(self) -> bytes:
        return b"".join(self.blocks)

    @property
    def events(self) -> list[Event]:
        return [event for block in self.blocks if (event := parse(block))]

    @property
    def ids(self) -> list[int | None]:
        return [event.id for event in self.events]

    def text(self, kind: str = "text_delta") -> str:
        return "".join(event.text for event in self.events if event.kind == kind)

    async def view(self, port: int, cut: CutAt | None = None) -> Answer:
        """One connection, until its end or the cut. What was complete is kept."""
        async with asyncio.timeout(LIMIT_S), get_events(port, self.sid, self.last_event_id) as (connection, answer):
            self.answers.append(answer)
            try:
                await connection.read_body(answer, cut)
            finally:
                self.take(answer)
        return answer

    async def view_to_the_end(self, *ports: int) -> None:
        """Connections until the stream's end, on each server in turn. Who is cut comes back at once."""
        while not self.has_ended:
            await self.view(ports[len(self.answers) % len(ports)])

    def take(self, answer: Answer) -> None:
        """Keep an answer's complete blocks. No other status than these two would let an EventSource live."""
        assert answer.status in (200, 204), answer
        for block in map(bare, answer.blocks):
            event = parse(block)
            if event is None:
                assert all(line.startswith(b":") for line in block.split(b"\n") if line), block
                continue
            self.blocks.append(block)
            if event.id is not None:
                self.last_event_id = event.id
        self.has_ended = answer.status == 204 or answer.has_final_chunk


def outcome(viewer: Viewer, expected: list[int]) -> dict[str, int]:
    """How many events a viewer lost, got twice and got out of order, of those it should have."""
    ids = [-1 if event_id is None else event_id for event_id in viewer.ids]
    return {
        "lost": len(set(expected) - set(ids)),
        "doubled": len(ids) - len(set(ids)),
        "reordered": sum(a > b for a, b in pairwise(ids)),
    }
