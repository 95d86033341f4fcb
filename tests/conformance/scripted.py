"""The server of a case of the table, as a transport of httpx2 in virtual time. The table's top tells what it does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import httpx2

from lastevent import Answer, Event, fold
from tests.conformance.virtual import Clock

STREAM = {"content-type": "text/event-stream; charset=utf-8"}
MAX_REQUESTS = 200  # more is a spin
ENDINGS = ("done", "error", "cancelled")


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    chunks: Sequence[tuple[float, bytes]]
    """Seconds after the request, and what is said then."""
    how: str


class Server:
    """`cut`: what `every` stands for in this run."""

    def __init__(self, case: Mapping[str, Any], clock: Clock, cut: int) -> None:
        self.log = case.get("log", [])
        self.script = case.get("script", [])
        self.render = case.get("render", {})
        self.clock = clock
        self.cut = cut
        self.length = 0
        """Bytes of the body that `every` is about."""
        self.requests: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self.open = 0

    def reply(self, request: httpx2.Request) -> Reply:
        url = request.url
        path = url.path
        asked = {
            "method": request.method,
            "origin": f"{url.scheme}://{url.netloc.decode()}",
            "path": url.raw_path.decode(),
            "last_event_id": request.headers.get("last-event-id"),
            "authorization": request.headers.get("authorization"),
            "key": request.headers.get("idempotency-key"),
            "body": json.loads(request.content) if request.content else None,
            "at_ms": self.clock.now() * 1000,
        }
        self.requests.append(asked)
        if len(self.requests) > MAX_REQUESTS:
            raise AssertionError(f"more than {MAX_REQUESTS} requests")
        if self.open:
            self.wrong.append(f"request {len(self.requests)}: the connection before is open")
        number = len(self.requests) - 1
        entry = self.script[number] if number < len(self.script) else self._product(asked, path)
        if "expect_path" in entry and not path.endswith(f"/{entry['expect_path']}"):
            self.wrong.append(f"request {number + 1} is for {path}, not for {entry['expect_path']}")
        if entry.get("error"):
            raise httpx2.ConnectError("network")
        return self._reply(entry, asked)

    def _product(self, asked: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        """What the server does of which the script says nothing."""
        if asked["method"] == "POST":
            return {"serve": "log", "headers": {"location": "/v1/streams/s1"}}
        if not path.endswith("/text"):
            return {"serve": "log"}
        answer = folded(self.log)
        headers = {"content-type": "text/plain; charset=utf-8", "last-event-id": str(answer.cursor)}
        return {"headers": headers, "body": answer.text}

    def _reply(self, entry: Mapping[str, Any], asked: Mapping[str, Any]) -> Reply:
        status = entry.get("status", 200)
        headers = entry.get("headers", {})
        chunks: list[tuple[float, bytes]] = []
        if "chunks" in entry:
            headers = {**STREAM, **headers}
            chunks = [(ms / 1000, text.encode()) for ms, text in entry["chunks"]]
        elif "serve" in entry or "frames" in entry:
            headers = {**STREAM, **headers}
            events = entry.get("frames", [])
            if "serve" in entry:
                events = [event for event in self.log if event[0] > int(asked["last_event_id"] or 0)]
                if not events and self.log and self.log[-1][1] in ENDINGS:
                    status = 204
                events = events[: entry.get("frames")]
            said = b"" if status == 204 else rendered(events, self.render)
            if entry.get("cut") == "every":
                self.length = len(said)
            if "cut" in entry:
                said = said[: self.cut if entry["cut"] == "every" else entry["cut"]]
            size = self.render.get("chunk", max(len(said), 1))
            chunks = [(0, said[at : at + size]) for at in range(0, len(said), size)]
        elif entry.get("body"):
            chunks = [(0, entry["body"].encode())]
        return Reply(status, headers, chunks, "end" if status == 204 else entry.get("how", "end"))


def folded(log: Sequence[Any]) -> Answer:
    return reduce(lambda answer, event: fold(answer, Event.received(*event)), log, Answer())


def rendered(events: Sequence[Any], how: Mapping[str, Any]) -> bytes:
    """Frames of server-sent events: how, the table's `render` says."""
    lines = [f"retry: {how.get('retry', 1000)}"]
    for n, (number, kind, data) in enumerate(events):
        said = [f"event: {kind}", f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}"]
        if number is not None:
            said.insert(0 if how.get("id", "first") == "first" else 2, f"id: {number}")
        if how.get("pings"):
            lines += [": ping", *([""] if n % 2 else [])]
        lines += [*said, ""]
    return (("\ufeff" if how.get("bom") else "") + "".join(line + how.get("newline", "\n") for line in lines)).encode()


def silence_s(request: httpx2.Request) -> float:
    """How long its client lets a read wait."""
    found: float = request.extensions["timeout"]["read"]
    return found


class Transport(httpx2.BaseTransport):
    def __init__(self, server: Server) -> None:
        self.server = server

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        reply = self.server.reply(request)
        if reply.how == "never":
            self.server.clock.sleep(silence_s(request))
            raise httpx2.ReadTimeout("no headers")
        return httpx2.Response(
            reply.status, headers=reply.headers, stream=_Body(self.server, reply, silence_s(request))
        )


class _Body(httpx2.SyncByteStream):
    def __init__(self, server: Server, reply: Reply, silence: float) -> None:
        self.server, self.reply, self.silence = server, reply, silence
        self.is_open = True
        server.open += 1

    def __iter__(self) -> Iterator[bytes]:
        clock = self.server.clock
        began = clock.now()
        for at, piece in self.reply.chunks:
            wait = began + at - clock.now()
            if wait > self.silence:
                clock.sleep(self.silence)
                raise httpx2.ReadTimeout("silent")
            clock.sleep(max(wait, 0))
            yield piece
        if self.reply.how == "hang":
            clock.sleep(self.silence)
            raise httpx2.ReadTimeout("silent")
        if self.reply.how == "reset":
            raise httpx2.ReadError("reset")

    def close(self) -> None:
        self.server.open -= self.is_open
        self.is_open = False


class AsyncTransport(httpx2.AsyncBaseTransport):
    def __init__(self, server: Server) -> None:
        self.server = server

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        reply = self.server.reply(request)
        if reply.how == "never":
            await asyncio.sleep(silence_s(request))
            raise httpx2.ReadTimeout("no headers")
        body = _AsyncBody(self.server, reply, silence_s(request))
        return httpx2.Response(reply.status, headers=reply.headers, stream=body)


class _AsyncBody(httpx2.AsyncByteStream):
    def __init__(self, server: Server, reply: Reply, silence: float) -> None:
        self.server, self.reply, self.silence = server, reply, silence
        self.is_open = True
        server.open += 1

    async def __aiter__(self) -> AsyncIterator[bytes]:
        clock = self.server.clock
        began = clock.now()
        for at, piece in self.reply.chunks:
            wait = began + at - clock.now()
            if wait > self.silence:
                await asyncio.sleep(self.silence)
                raise httpx2.ReadTimeout("silent")
            await asyncio.sleep(max(wait, 0))
            yield piece
        if self.reply.how == "hang":
            await asyncio.sleep(self.silence)
            raise httpx2.ReadTimeout("silent")
        if self.reply.how == "reset":
            raise httpx2.ReadError("reset")

    async def aclose(self) -> None:
        self.server.open -= self.is_open
        self.is_open = False
