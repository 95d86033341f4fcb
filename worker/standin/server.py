"""The stand-in: a loopback server that speaks the Anthropic Messages streaming wire, and is no model.

It exists so that the one real provider path (the anthropic SDK, a socket, the wire) is what runs in a demo, a
test and a benchmark. Everything revolves around `_Reply.speak`, the wire's events in their order:

    message_start  content_block_start ping content_block_delta… content_block_stop  …  message_delta message_stop

What it says is a pure function of the last user message. How it says it is asked for in that message, between
double brackets, as in `[[tokens=200 rate=50 cut_at=120]]`; what is unknown or malformed in there is ignored:

    tokens=60 rate=30    that many text deltas, so many a second (0: as fast as it can)
    ttft_ms=300          silence before the first of them
    thinking=N           N thinking deltas in a block of their own before the text
    tools=N              N tool_use blocks after the text
    server_tool=ok       a server-side search after the text, and its result (server_tool=error: it failed)
    stop=refusal         the stop_reason to give
    overload=K           the first K requests with this very message get 529 (with status=S: get S)
    status=S             every request gets HTTP status S (400 to 599; or 200, though it is no stream)
    retry_after=S        the retry-after header of those, in seconds (retry_date=S: as an HTTP date, S from now)

and the faults. N counts the text deltas sent before it happens:

    error_at=N           an `error` event (overloaded_error; error=api_error names another)
    cut_at=N             the connection is dropped in the middle of the body
    end_at=N             the body ends properly, but without message_stop
    stall_at=N           silence, without pings, until the client goes away
    garbage_at=N         a data line that is no JSON, then on as if nothing were
    hold=1               everything is said, message_stop too, but the body does not end
    surrogate_at=N       the next text delta ends in half of a UTF-16 surrogate pair

`GET /open` answers {"open": n, "requests": m}: how many message requests are being answered now, and ever were.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from hashlib import sha256
from itertools import chain, count, islice
from typing import Any, NamedTuple, NoReturn

import orjson
import uvicorn
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

BODY_LIMIT_BYTES = 32 * 1024 * 1024  # the real API's; without one, a runaway client fills this process's memory
REMEMBERED_MESSAGES = 10_000  # for overload=K; a benchmark that varies its messages must not grow it for ever
BATCH_EVENTS = 64  # events in one write when there is no pace: some 8 KiB, and the loop gets its turn in between
PING_EVERY_S = 10.0  # the API pings through long pauses, so that nobody takes them for a dead connection
# Longer than any client keeps an idle connection (httpx2: 5 s, which is uvicorn's default too): when both let go
# at the same moment, the next request is written into a closed connection.
KEEP_ALIVE_S = 75

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


# ---- What the message asks for


@dataclass(frozen=True, slots=True)
class Directives:
    tokens: int = 60
    rate: float = 30.0
    ttft_ms: int = 300
    thinking: int = 0
    tools: int = 0
    server_tool: str = ""
    stop: str = ""
    overload: int | None = None
    status: int | None = None
    retry_after: int | None = None
    retry_date: int | None = None
    hold: int = 0
    error: str = "overloaded_error"
    error_at: int | None = None
    cut_at: int | None = None
    end_at: int | None = None
    stall_at: int | None = None
    garbage_at: int | None = None
    surrogate_at: int | None = None

    def first_fault(self) -> tuple[int, str]:
        """How many text deltas are sent before the first fault, and which it is ("" when none is reached)."""
        asked = {
            "error": self.error_at,
            "cut": self.cut_at,
            "end": self.end_at,
            "stall": self.stall_at,
            "garbage": self.garbage_at,
        }
        reached = [(n, fault) for fault, n in asked.items() if n is not None and n <= self.tokens]
        return min(reached, default=(self.tokens, ""))


_BRACKETS = re.compile(r"\[\[([^\[\]]*)\]\]")
_COUNTS = "tokens ttft_ms thinking tools overload retry_after retry_date hold"
_PLACES = "error_at cut_at end_at stall_at garbage_at surrogate_at"
_SHAPES = {
    **dict.fromkeys(f"{_COUNTS} {_PLACES}".split(), (r"[0-9]{1,9}", int)),
    "rate": (r"[0-9]{1,7}(\.[0-9]{1,3})?", float),
    "status": (r"200|[45][0-9]{2}", int),
    "server_tool": (r"ok|error", str),
    "stop": (r"[a-z_]{1,64}", str),
    "error": (r"[a-z_]{1,64}", str),
}


def read_directives(message: str) -> Directives:
    asked: dict[str, Any] = {}
    for part in " ".join(_BRACKETS.findall(message)).replace(",", " ").split():
        name, _, value = part.partition("=")
        shape, read = _SHAPES.get(name, ("", str))
        if shape and re.fullmatch(shape, value):
            asked[name] = read(value)
    return Directives(**asked)


# ---- What it says

_OPENING = "This is a stand-in and no model: nobody has understood your message."
_ASIDE = "A stand-in does not think, so this is only what thinking would look like on the way to you."
_SENTENCES = (
    "A river does not ask the stone to move.",
    "Every word here was chosen by arithmetic.",
    "The log keeps what the wire forgets.",
    "Somebody in a tunnel will read this a little later.",
    "Counting is the oldest way of not losing things.",
    "Trains leave on time when nobody is watching.",
    "If the line drops now, you will miss nothing.",
    "Salt, bread and a good index carry far.",
    "The lighthouse blinks whether or not a ship is near.",
    "Two clocks agree only by accident.",
    "What was said once need not be said again.",
    "A patient reader is still a reader.",
    "Snow falls on the fast and on the slow alike.",
    "The bridge was drawn before the road was.",
    "Numbers in order make a quiet kind of promise.",
    "An empty page is also an answer, but not this one.",
    "The kettle boils at its own pace.",
    "Names are short so that they may be shouted.",
    "Somewhere a machine restarts and picks up the thread.",
    "Old maps show the sea where the sea still is.",
    "The last letter arrives after the first, always.",
    "Windmills turn and nobody hurries them.",
    "This sentence is the same every time you ask.",
)  # a prime number of them, so that every step through them visits all


def words(message: str) -> Iterator[str]:
    """The answer to `message`, word by word, for ever. Joined, they are the text."""
    return _strung([*_OPENING.split(), *_quote(message)], message)


def thoughts(message: str) -> Iterator[str]:
    return _strung(_ASIDE.split(), message)


def _strung(opening: list[str], message: str) -> Iterator[str]:
    said = chain(opening, chain.from_iterable(sentence.split() for sentence in _sentences(message)))
    yield next(said)
    for word in said:
        yield f" {word}"


def _quote(message: str) -> list[str]:
    said = _BRACKETS.sub(" ", message[:400]).split()[:8]
    return f"You wrote: “{' '.join(said)[:80]}”.".split() if said else []


def _sentences(message: str) -> Iterator[str]:
    seed = int.from_bytes(sha256(message.encode()).digest()[:8], "big")
    step = 1 + seed % (len(_SENTENCES) - 1)
    return (_SENTENCES[(seed + i * step) % len(_SENTENCES)] for i in count())


# ---- The wire


def _event(data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), orjson.dumps(data))


@lru_cache(maxsize=8192)  # few words, said often: a delta costs a look-up instead of two encodings
def _delta(index: int, kind: str, field: str, text: str) -> bytes:
    return _event({"type": "content_block_delta", "index": index, "delta": {"type": kind, field: text}})


def _torn_delta(index: int, text: str) -> bytes:
    # The standard library's encoder, because orjson refuses to write what this is for.
    delta = {"type": "text_delta", "text": f"{text}\ud83d"}
    data = {"type": "content_block_delta", "index": index, "delta": delta}
    return b"event: content_block_delta\ndata: %b\n\n" % json.dumps(data).encode()


_PING = _event({"type": "ping"})
_GARBAGE = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":\n\n'
_TOOL_ARGS = '{"city": "Oslo", "unit": "celsius", "days": 3}'
_SEARCH_ARGS = '{"query": "resumable streams"}'
_SEARCH_FOUND = [
    {
        "type": "web_search_result",
        "title": "Nothing was searched",
        "url": "https://example.com/",
        "encrypted_content": "",
        "page_age": None,
    }
]
_SEARCH_FAILED = {"type": "web_search_tool_result_error", "error_code": "unavailable"}


class _Reply:
    """One answer being spoken to one client."""

    def __init__(self, number: int, request: _Request, directives: Directives, send: ASGISendCallable, hang_up: Any):
        self._number = number
        self._request = request
        self._asked = directives
        self._send = send
        self._hang_up = hang_up
        self._loop = asyncio.get_running_loop()
        self._first_due = self._loop.time() + directives.ttft_ms / 1000
        self._paced = 0  # events the pace has let through
        self._index = 0  # of the content block

    async def speak(self) -> None:
        await self._begin()
        await self._think()
        if await self._say():
            await self._use_tools()
            await self._finish()
            if self._asked.hold:
                await _silence()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"request-id", _request_id(self._number)),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        message: dict[str, Any] = {
            "id": f"msg_standin_{self._number}",
            "type": "message",
            "role": "assistant",
            "model": self._request.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(output_tokens=1),
        }
        await self._write(_event({"type": "message_start", "message": message}))
        await self._pause_until(self._first_due)

    async def _think(self) -> None:
        if not self._asked.thinking:
            return
        await self._open_block({"type": "thinking", "thinking": "", "signature": ""})
        texts = islice(thoughts(self._request.message), self._asked.thinking)
        await self._write_paced(_delta(self._index, "thinking_delta", "thinking", text) for text in texts)
        await self._write(_delta(self._index, "signature_delta", "signature", "c3RhbmQtaW4="))
        await self._close_block()

    async def _say(self) -> bool:
        """The text, up to the fault and, where that is survivable, beyond it."""
        await self._open_block({"type": "text", "text": ""})
        deltas = self._text_deltas()
        until_fault, fault = self._asked.first_fault()
        await self._write_paced(islice(deltas, until_fault))
        if fault and not await self._break(fault):
            return False
        await self._write_paced(deltas)
        await self._close_block()
        return True

    def _text_deltas(self) -> Iterator[bytes]:
        for i, text in enumerate(islice(words(self._request.message), self._asked.tokens)):
            if i == self._asked.surrogate_at:
                yield _torn_delta(self._index, text)
            else:
                yield _delta(self._index, "text_delta", "text", text)

    async def _break(self, fault: str) -> bool:
        """Commit the fault. True if the answer goes on after it."""
        if fault == "garbage":
            await self._write(_GARBAGE)
        elif fault == "error":
            await self._write(_event(_error(self._asked.error, _REASONS.get(self._asked.error, "Asked to fail"))))
        elif fault == "cut":
            self._hang_up()
        if fault in ("cut", "stall"):
            await _silence()  # which ends when the client has gone
        return fault == "garbage"

    async def _use_tools(self) -> None:
        for i in range(self._asked.tools):
            tool = {"type": "tool_use", "id": f"toolu_standin_{self._number}_{i}", "name": "get_weather", "input": {}}
            await self._tool_block(tool, _TOOL_ARGS)
        if self._asked.server_tool:
            await self._search(f"srvtoolu_standin_{self._number}")

    async def _search(self, use_id: str) -> None:
        await self._tool_block(
            {"type": "server_tool_use", "id": use_id, "name": "web_search", "input": {}}, _SEARCH_ARGS
        )
        content = _SEARCH_FOUND if self._asked.server_tool == "ok" else _SEARCH_FAILED
        await self._open_block({"type": "web_search_tool_result", "tool_use_id": use_id, "content": content})
        await self._close_block()

    async def _tool_block(self, block: dict[str, Any], args: str) -> None:
        await self._open_block(block)
        pieces = ["", *(args[i : i + 12] for i in range(0, len(args), 12))]  # the API's first piece is empty too
        await self._write_paced(_delta(self._index, "input_json_delta", "partial_json", piece) for piece in pieces)
        await self._close_block()

    async def _finish(self) -> None:
        stop_reason = self._asked.stop or ("tool_use" if self._asked.tools else "end_turn")
        delta = {"stop_reason": stop_reason, "stop_sequence": None}
        usage = self._usage(output_tokens=self._paced)
        end = _event({"type": "message_delta", "delta": delta, "usage": usage}) + _event({"type": "message_stop"})
        await self._write(end)

    def _usage(self, output_tokens: int) -> dict[str, int | None]:
        return {
            "input_tokens": self._request.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": output_tokens,
            "server_tool_use": None,
        }

    async def _open_block(self, block: dict[str, Any]) -> None:
        start = _event({"type": "content_block_start", "index": self._index, "content_block": block})
        await self._write(start if self._index else start + _PING)

    async def _close_block(self) -> None:
        await self._write(_event({"type": "content_block_stop", "index": self._index}))
        self._index += 1

    async def _write_paced(self, events: Iterable[bytes]) -> None:
        """Write the events, each when it is due, those due together in one write; return when the next would be."""
        events = iter(events)
        while batch := list(islice(events, await self._due())):
            self._paced += len(batch)
            await self._write(b"".join(batch))

    async def _due(self) -> int:
        # Deadlines are absolute: a late wake-up, or a client that could not take more, is caught up, never added up.
        if not self._asked.rate:
            await asyncio.sleep(0)
            return BATCH_EVENTS
        await self._pause_until(self._first_due + self._paced / self._asked.rate)
        due = int((self._loop.time() - self._first_due) * self._asked.rate) + 1
        return min(max(due - self._paced, 1), BATCH_EVENTS)

    async def _pause_until(self, due: float) -> None:
        while (left_s := due - self._loop.time()) > PING_EVERY_S:
            await asyncio.sleep(PING_EVERY_S)
            await self._write(_PING)
        await asyncio.sleep(max(left_s, 0))

    async def _write(self, body: bytes) -> None:
        # uvicorn's send waits while the transport's buffer is full: that is the backpressure.
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


async def _silence() -> NoReturn:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nothing ends this but a cancellation")


# ---- Requests

_REASONS = {
    "overloaded_error": "Overloaded",
    "rate_limit_error": "This request would exceed your organization's rate limit",
    "api_error": "Internal server error",
    "authentication_error": "invalid x-api-key",
    "permission_error": "Your API key does not have permission to use the specified resource",
    "not_found_error": "The requested resource could not be found",
}


class _Refused(Exception):
    def __init__(self, status: int, message: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = tuple(headers)


class _Request(NamedTuple):
    model: str
    message: str  # the last of the user's
    input_tokens: int


def _read_request(body: bytes) -> _Request:
    try:
        request = orjson.loads(body)
    except ValueError:
        raise _Refused(400, "The request body is not valid JSON") from None
    _demand(isinstance(request, dict), "The request body must be a JSON object")
    _demand(request.get("stream") is True, "stream: this stand-in only streams; it must be true")
    _demand(isinstance(request.get("model"), str), "model: Field required")
    max_tokens = request.get("max_tokens")
    _demand(type(max_tokens) is int and max_tokens > 0, "max_tokens: must be an integer greater than 0")
    messages = request.get("messages")
    _demand(isinstance(messages, list) and bool(messages), "messages: at least one message is required")
    _demand(all(isinstance(m, dict) for m in messages), "messages: every message must be an object")
    user = [_text_of(m.get("content")) for m in messages if m.get("role") == "user"]
    _demand(bool(user), "messages: one must be the user's")
    return _Request(request["model"], user[-1], input_tokens=1 + sum(map(len, user)) // 4)


def _demand(holds: bool, complaint: str) -> None:
    if not holds:
        raise _Refused(400, complaint)


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    return "".join(b["text"] for b in blocks if isinstance(b, dict) and isinstance(b.get("text"), str))


class StandInApp:
    """The ASGI application."""

    def __init__(self) -> None:
        self.open = 0
        self.requests = 0
        self._turned_away: dict[bytes, int] = {}

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        assert scope["type"] == "http"
        if (scope["method"], scope["path"]) == ("GET", "/open"):
            await _send_json(send, 200, {"open": self.open, "requests": self.requests})
        elif (scope["method"], scope["path"]) == ("POST", "/v1/messages"):
            self.requests += 1
            self.open += 1
            try:
                await self._answer(self.requests, scope, receive, send)
            finally:
                self.open -= 1
        else:
            await _send_json(send, 404, _error("not_found_error", _REASONS["not_found_error"]))

    async def _answer(
        self, number: int, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        try:
            body = await _read_body(receive)
            if body is None:
                return
            request = _read_request(body)
            directives = read_directives(request.message)
            self._turn_away(request, directives)
        except _Refused as refused:
            await _send_refusal(send, number, refused)
            return
        hang_up = scope["extensions"]["standin"]["hang_up"]
        reply = _Reply(number, request, directives, send, hang_up)
        async with asyncio.TaskGroup() as tasks:
            speaking = tasks.create_task(reply.speak())
            await _client_gone(receive)  # or the answer complete, for which uvicorn says the same
            speaking.cancel()

    def _turn_away(self, request: _Request, asked: Directives) -> None:
        if asked.overload is not None:
            key = sha256(request.message.encode()).digest()
            seen = self._turned_away.pop(key, 0)
            self._turned_away[key] = seen + 1
            if len(self._turned_away) > REMEMBERED_MESSAGES:
                del self._turned_away[next(iter(self._turned_away))]
            if seen >= asked.overload:
                return
        elif asked.status is None:
            return
        status = asked.status or 529
        # The API names the model that it does not find, too: some of its words are the caller's.
        reason = f"model: {request.model}" if status == 404 else _REASONS.get(_error_type(status), "Asked to refuse")
        raise _Refused(status, reason, _retry_headers(asked))


def _retry_headers(asked: Directives) -> Iterator[tuple[bytes, bytes]]:
    if asked.retry_after is not None:
        yield b"retry-after", b"%d" % asked.retry_after
    elif asked.retry_date is not None:
        yield b"retry-after", formatdate(time.time() + asked.retry_date, usegmt=True).encode()


def _error_type(status: int) -> str:
    return ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def _request_id(number: int) -> bytes:
    return b"req_standin_%d" % number


async def _send_refusal(send: ASGISendCallable, number: int, refused: _Refused) -> None:
    request_id = _request_id(number)
    body = {**_error(_error_type(refused.status), refused.message), "request_id": request_id.decode()}
    await _send_json(send, refused.status, body, [(b"request-id", request_id), *refused.headers])


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
            raise _Refused(413, f"The request is longer than {BODY_LIMIT_BYTES} bytes", [(b"connection", b"close")])
        if not event["more_body"]:
            return bytes(body)


async def _client_gone(receive: ASGIReceiveCallable) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# ---- The server


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which lets the application hang up.

    An application that returns early drops the connection too, but uvicorn calls that an error and says so in the
    log each time; here it is the purpose.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn itself
        super().connection_made(transport)
        self.access_log = False  # Config(access_log=False) would silence every uvicorn server of this process

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"standin": {"hang_up": self.transport.close}}


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Answers may be long, or silent for ever: nobody waits for a stand-in to finish its sentence.
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await super().shutdown(sockets)


def _server() -> _Server:
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


def _listen(port: int) -> socket.socket:
    # Loopback only: whoever can reach it can make it work. It accepts from here on, though nobody answers yet.
    return socket.create_server(("127.0.0.1", port), backlog=2048)


def _url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


class StandIn:
    """A stand-in that runs in a thread of this process. `base_url` is what a provider is given.

    `on_death` is called, in that thread, if it ends without having been closed.
    """

    def __init__(self) -> None:
        self.on_death: Callable[[], object] | None = None
        self._listener = _listen(0)
        self.base_url = _url(self._listener)
        self._server = _server()
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


def start_in_thread() -> StandIn:
    return StandIn()


def _leave(_signal: int, _frame: Any) -> NoReturn:
    raise SystemExit(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="worker.standin", description="A loopback server in a model's place.")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    try:
        listener = _listen(parser.parse_args().port)
    except OSError as error:
        parser.exit(1, f"{parser.prog}: cannot listen: {error.strerror}\n")
    # uvicorn takes these signals over, shuts down, then raises the signal again for whoever had it before: us.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    print(f"The stand-in (no model) is listening at {_url(listener)}", flush=True)
    _server().run([listener])


if __name__ == "__main__":
    main()
