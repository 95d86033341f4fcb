"""The stand-in: a loopback server that speaks the providers' wires, and is not a model.

It exists so that the one real provider path (the SDK, a socket, the wire) is what runs in a demo, a test and a
benchmark.

`GET /open` answers {"open": n, "requests": m}: how many requests for an answer are being answered now, and ever were.
`GET /v1/models` (Gemini's `/v1beta/models` too) lists one model, in the words of the client's provider.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from email.utils import formatdate
from hashlib import sha256
from typing import Any

import orjson
import uvicorn
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from worker.standin.anthropic_wire import AnthropicWire
from worker.standin.chat_wire import ChatWire
from worker.standin.directives import Directives, read_directives
from worker.standin.gemini_wire import GeminiWire
from worker.standin.reply import Reply
from worker.standin.responses_wire import ResponsesWire
from worker.standin.wire import Refused, Request, Wire, events_of

BODY_LIMIT_BYTES = 32 * 1024 * 1024  # the real API's; without one, a runaway client fills this process's memory
REMEMBERED_MESSAGES = (
    10_000  # for overload=K, cut_times=K …; a benchmark that varies its messages must not grow it for ever
)
# Longer than any client keeps an idle connection (a worker: 5 s, which is uvicorn's default too): when both let go
# at the same moment, the next request is written into a closed connection.
KEEP_ALIVE_S = 75


WIRES: tuple[type[Wire], ...] = (AnthropicWire, ResponsesWire, ChatWire, GeminiWire)


def wire_at(path: str) -> type[Wire] | None:
    return next((wire for wire in WIRES if wire.PATH.fullmatch(path)), None)


def wire_of(scope: HTTPScope) -> type[Wire]:
    """Whose words a request is answered in that asks for no answer of a model: by how its client shows a key."""
    headers = {name for name, _ in scope["headers"]}
    if b"x-goog-api-key" in headers or scope["path"].startswith("/v1beta"):
        return GeminiWire
    is_openai = b"anthropic-version" not in headers and b"authorization" in headers
    return ResponsesWire if is_openai else AnthropicWire


class StandInApp:
    """The ASGI application."""

    def __init__(self) -> None:
        self.open = 0
        self.requests = 0
        self._turned_away = _Counts()
        self._attempts = _Counts()

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        assert scope["type"] == "http"
        wire = wire_at(scope["path"])
        if (scope["method"], scope["path"]) == ("GET", "/open"):
            await _send_json(send, 200, {"open": self.open, "requests": self.requests})
        elif wire and scope["method"] == "POST":
            self.requests += 1
            self.open += 1
            try:
                await self._answer(wire, self.requests, scope, receive, send)
            finally:
                self.open -= 1
        elif (scope["method"], scope["path"]) in (("GET", "/v1/models"), ("GET", "/v1beta/models")):
            await _send_json(send, 200, wire_of(scope).models())
        else:
            await _send_refusal(send, wire or wire_of(scope), self.requests, Refused(404))

    async def _answer(
        self,
        wire: type[Wire],
        number: int,
        scope: HTTPScope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
    ) -> None:
        model = ""
        try:
            body = await _read_body(receive)
            if body is None:
                return
            request = wire.read_request(body, scope["path"], scope["query_string"].decode("latin-1"))
            model = request.model
            directives = read_directives(request.message)
            self._turn_away(wire, request, directives)
            directives = self._for_this_attempt(request, directives)
        except Refused as refused:
            await _send_refusal(send, wire, number, refused, model)
            return
        hang_up: Any = scope["extensions"]["standin"]["hang_up"]
        if not request.is_streamed:
            directives = replace(directives, piece=0, gzip=0)
            send = _Whole(send, wire, hang_up).take
        reply = Reply(wire(number, request, directives), request, directives, send, hang_up)
        async with asyncio.TaskGroup() as tasks:
            speaking = tasks.create_task(reply.speak(wire.request_id(number)))
            await _client_gone(receive)  # or the answer complete, for which uvicorn says the same
            speaking.cancel()

    def _turn_away(self, wire: type[Wire], request: Request, asked: Directives) -> None:
        if asked.overload is not None:
            if self._turned_away.add(request.message) >= asked.overload:
                return
        elif asked.status is None:
            return
        raise Refused(asked.status or wire.OVERLOADED, headers=_retry_headers(asked), kind=asked.code)

    def _for_this_attempt(self, request: Request, asked: Directives) -> Directives:
        if asked.times is None:
            return asked
        attempts = self._attempts.add(request.message)
        if attempts >= asked.times:
            self._attempts.forget(request.message)
        return asked.after(attempts)


class _Whole:
    """What would have been streamed, as the one body that a request without `stream` gets; at the same time."""

    def __init__(self, send: ASGISendCallable, wire: type[Wire], hang_up: Any) -> None:
        self._send = send
        self._wire = wire
        self._hang_up = hang_up
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = bytearray()

    async def take(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            self._headers = [header for header in message["headers"] if header[0] != b"content-type"]
        elif message["type"] == "http.response.body":
            self._body += message["body"]
            if not message["more_body"]:
                await self._end()

    async def _end(self) -> None:
        events = events_of(bytes(self._body))
        if error := next((said for said in events if said.get("error") or said.get("type") == "error"), None):
            await _send_json(self._send, self._wire.OVERLOADED, error, self._headers)
        elif whole := self._wire.whole(events):
            await _send_json(self._send, 200, whole, self._headers)
        else:  # it was to end early, and half of a body is none
            self._hang_up()


class _Counts:
    """How often each message was met; of many, the newest."""

    def __init__(self) -> None:
        self._met: dict[bytes, int] = {}

    def add(self, message: str) -> int:
        """How often it had been met before."""
        key = sha256(message.encode()).digest()
        before = self._met.pop(key, 0)
        self._met[key] = before + 1
        if len(self._met) > REMEMBERED_MESSAGES:
            del self._met[next(iter(self._met))]
        return before

    def forget(self, message: str) -> None:
        self._met.pop(sha256(message.encode()).digest(), None)


def _retry_headers(asked: Directives) -> Iterator[tuple[bytes, bytes]]:
    if asked.retry_after is not None:
        yield b"retry-after", b"%d" % asked.retry_after
    elif asked.retry_date is not None:
        yield b"retry-after", formatdate(time.time() + asked.retry_date, usegmt=True).encode()


async def _send_refusal(
    send: ASGISendCallable, wire: type[Wire], number: int, refused: Refused, model: str = ""
) -> None:
    headers = [*wire.request_id(number), *refused.headers]
    await _send_json(send, refused.status, wire.refusal(number, refused, model), headers)


async def _send_json(
    send: ASGISendCallable, status: int, data: dict[str, Any], headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    body = orjson.dumps(data)
    own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _read_body(receive: ASGIReceiveCallable) -> bytes | None:
    """The request's body, or None if its client has gone."""
    body = bytearray()
    while True:
        event = await receive()
        if event["type"] != "http.request":
            return None
        body += event["body"]
        if len(body) > BODY_LIMIT_BYTES:
            raise Refused(413, f"The request is longer than {BODY_LIMIT_BYTES} bytes", [(b"connection", b"close")])
        if not event["more_body"]:
            return bytes(body)


async def _client_gone(receive: ASGIReceiveCallable) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which lets the application hang up.

    An application that returns early drops the connection too, but uvicorn logs that as an error each time;
    here it is intended.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn itself
        super().connection_made(transport)
        self.access_log = False  # Config(access_log=False) would silence every uvicorn server of this process

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"standin": {"hang_up": self.transport.close}}


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Answers may be long, or silent for ever: a stand-in need not finish them.
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await super().shutdown(sockets)


def server() -> _Server:
    config = uvicorn.Config(
        StandInApp(),
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    return _Server(config)


def listen(port: int) -> socket.socket:
    # Loopback only: anyone who can reach it can use it. It accepts connections from here on; the server answers later.
    return socket.create_server(("127.0.0.1", port), backlog=2048)


def url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


class StandIn:
    """A stand-in that runs in a thread of this process. `base_url` is what a provider is given.

    `on_death` is called, in that thread, if it ends without having been closed.
    """

    def __init__(self) -> None:
        self.on_death: Callable[[], object] | None = None
        self._listener = listen(0)
        self.base_url = url(self._listener)
        self._server = server()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="standin", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Cut every answer and free the port; returns when both are done."""
        self._is_closing = True
        self._server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        try:
            self._server.run([self._listener])
        finally:
            if self.on_death and not self._is_closing:
                self.on_death()
