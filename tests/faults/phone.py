"""A viewer on a bad line: it cuts itself at any byte, comes back with `Last-Event-ID`, to any server.

Made for hundreds at a time, and written from the specifications alone: HTTP/1.1 (RFC 9112, 7.1: chunks) and
Server-Sent Events (WHATWG HTML, 9.2). What it saw is a `Transcript`, for the checker to judge.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from random import Random
from typing import NamedTuple

from tests.faults.checker import TERMINAL, Closed, Connected, Notice, Received, Refused, Transcript
from tests.faults.plan import ViewerPlan
from tests.rig.deployment import until

CONNECT_LIMIT_S = 5.0
IDLE_LIMIT_S = 20.0
"""Servers send a comment every 15 s: a line that is quiet for longer is dead."""

AFTER_END_S = 2.0
"""Whoever has the ending listens so long for what must not follow."""

RETRY_S = 1.0
GIVES_UP_AFTER_404 = 3
ASKS_AFTER_THE_END_S = 40
SMALL_BUFFER = 4096
LOST_CONNECTION = (OSError, EOFError, TimeoutError)


class Answer(NamedTuple):
    status: int
    body: bytes


class Dechunker:
    """RFC 9112, 7.1. `complete` once the final chunk has come."""

    def __init__(self) -> None:
        self.complete = False
        self._buffer = bytearray()
        self._left = 0  # of the chunk that is being read, with the CRLF behind it

    def feed(self, data: bytes) -> bytes:
        buffer = self._buffer
        buffer += data
        body = bytearray()
        while not self.complete:
            if self._left == 0:
                line, found, _ = buffer.partition(b"\r\n")
                if not found:
                    break
                del buffer[: len(line) + 2]
                size = int(line.split(b";")[0], 16)
                self._left = size + 2
                self.complete = size == 0
                continue
            body += buffer[: min(self._left - 2, len(buffer))] if self._left > 2 else b""
            taken = min(self._left, len(buffer))
            del buffer[:taken]
            self._left -= taken
            if not buffer:
                break
        return bytes(body)


class Phone:
    def __init__(self, sid: str, plan: ViewerPlan, ports: list[int]) -> None:
        self.transcript = Transcript(plan.seed, sid, is_public=plan.is_public)
        self.counts: Counter[str] = Counter()
        self._plan = plan
        self._rng = Random(f"viewer {plan.seed}")
        self._ports = ports
        self._cuts_left = plan.cuts
        self._retry_s = RETRY_S
        self._rest = b""
        self._last: Received | None = None
        self._not_found = 0

    async def watch(self) -> None:
        await asyncio.sleep(self._plan.late_s)  # the plan: when somebody looks is nobody's effect
        while not self.transcript.finished and self._not_found < GIVES_UP_AFTER_404:
            await self._connect(self._choose_cut())
            if not self.transcript.finished:
                await asyncio.sleep(self._patience_s())  # as an EventSource does: obeying `retry:` is under test
        if self._plan.asks_after_the_end and self._has_ended:
            await self._ask_after_the_end()

    @property
    def _has_ended(self) -> bool:
        return self._last is not None and self._last.kind in TERMINAL

    def _choose_cut(self) -> int | None:
        """After how many bytes of the body it hangs up; -1: before the answer. None: not by itself."""
        if not self._cuts_left:
            return None
        self._cuts_left -= 1
        return self._rng.choice((-1, self._rng.randint(0, 300), self._rng.randint(0, 6000)))

    def _patience_s(self) -> float:
        """As the server asked, or sooner, as people do."""
        return self._retry_s if self._rng.random() < 0.5 else self._rng.uniform(0, 0.3)

    async def _ask_after_the_end(self) -> None:
        async def is_told() -> bool:
            await self._connect(None)
            return isinstance(self.transcript.items[-1], Refused)

        with suppress(TimeoutError):  # then it has heard nothing, for the checker to judge
            await until(is_told, "it is told that there is no more", ASKS_AFTER_THE_END_S, every_s=RETRY_S)

    # -- one connection --------------------------------------------------------------------------------

    async def _connect(self, cut: int | None) -> None:
        port = self._rng.choice(self._ports)
        writer: asyncio.StreamWriter | None = None
        self.counts["connections"] += 1
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                reader, writer = await asyncio.open_connection(sock=await self._open(port), limit=self._buffer)
            writer.write(self._request(port))
            asked_at = time.time()
            if cut == -1:
                self.counts["own cuts"] += 1
                return
            status = await self._read_head(reader)
            if status == 200:
                self._begin(asked_at)
                await self._read_body(reader, cut)
            else:
                self._refused(status)
        except LOST_CONNECTION:
            self.counts["failed connections"] += 1
        finally:
            if writer:
                writer.transport.abort()

    @property
    def _buffer(self) -> int:
        return SMALL_BUFFER if self._plan.is_slow else 65536

    async def _open(self, port: int) -> socket.socket:
        plug = socket.socket()
        plug.setblocking(False)
        if self._plan.is_slow:
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        try:
            await asyncio.get_running_loop().sock_connect(plug, ("127.0.0.1", port))
        except BaseException:
            plug.close()
            raise
        return plug

    def _request(self, port: int) -> bytes:
        cursor = f"Last-Event-ID: {self._last.id}\r\n" if self._last else ""
        audience = "?audience=public" if self._plan.is_public else ""
        path = f"/v1/streams/{self.transcript.sid}/events{audience}"
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n{cursor}\r\n"
        return head.encode()

    async def _read_head(self, reader: asyncio.StreamReader) -> int:
        async with asyncio.timeout(IDLE_LIMIT_S):
            head = await reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1])

    def _begin(self, asked_at: float) -> None:
        self.transcript.items.append(Connected(asked_at, self._last.id if self._last else None))
        self._not_found = 0
        self._rest = b""

    def _refused(self, status: int) -> None:
        self.counts[f"answers {status}"] += 1
        self.transcript.items.append(Refused(time.time(), status))
        self._not_found = self._not_found + 1 if status == 404 else 0
        if status == 204:
            self.transcript.finished = True

    async def _read_body(self, reader: asyncio.StreamReader, cut: int | None) -> None:
        chunks, left = Dechunker(), sys.maxsize if cut is None else cut
        with suppress(*LOST_CONNECTION):
            while not chunks.complete and left > 0:
                async with asyncio.timeout(AFTER_END_S if self._has_ended else IDLE_LIMIT_S):
                    data = await reader.read(self._buffer)
                if not data:
                    break
                body = chunks.feed(data)[:left]
                left -= len(body)
                self._take(body)
                if self._plan.is_slow:
                    await asyncio.sleep(self._rng.choice((0.05, 0.2, 0.8)))  # reading slowly is under test
        self.counts["own cuts" if left <= 0 else "ends" if chunks.complete else "cuts"] += 1
        self.transcript.items.append(Closed(time.time(), chunks.complete and left > 0))
        self.transcript.finished = self._has_ended

    # -- what it reads ---------------------------------------------------------------------------------

    def _take(self, body: bytes) -> None:
        *blocks, self._rest = (self._rest + body).split(b"\n\n")
        for block in blocks:
            self._dispatch(block.decode())

    def _dispatch(self, block: str) -> None:
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        if "retry" in fields:
            self._retry_s = int(fields["retry"]) / 1000
        if "data" not in fields:
            return
        kind, data = fields.get("event", "message"), fields["data"]
        if kind == "gap":
            self.counts["notices"] += 1
            self.transcript.items.append(Notice(time.time(), **json.loads(data)))
        else:
            self.counts["events"] += 1
            self._last = Received(time.time(), int(fields["id"]), sys.intern(kind), sys.intern(data))
            self.transcript.items.append(self._last)


async def post(port: int, path: str, body: dict[str, object], headers: dict[str, str] | None = None) -> Answer:
    """One request on a connection of its own. Raises one of LOST_CONNECTION."""
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    async with asyncio.timeout(IDLE_LIMIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + content)
            head = await reader.readuntil(b"\r\n\r\n")
            return Answer(int(head.split(b" ", 2)[1]), await reader.read())
        finally:
            writer.transport.abort()
