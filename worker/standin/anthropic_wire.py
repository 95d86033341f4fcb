"""The Anthropic Messages streaming wire: a request → its events, whole or broken as its directives ask.

Everything revolves around `Reply.speak`, the wire's events in their order:

    message_start  content_block_start ping content_block_delta… content_block_stop  …  message_delta message_stop
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple, NoReturn

import orjson
from uvicorn._types import ASGISendCallable

from worker.standin.directives import Directives
from worker.standin.framing import Framing
from worker.standin.words import thoughts, words

BATCH_EVENTS = 64  # events in one write when there is no pace: some 8 KiB, and the loop gets its turn in between
PING_EVERY_S = 10.0  # the API pings through long pauses, so that no client takes them for a dead connection

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


def _event(data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), orjson.dumps(data))


@lru_cache(maxsize=8192)  # few words, repeated often: a delta costs a look-up instead of two encodings
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


class Reply:
    """One answer being spoken to one client."""

    def __init__(self, number: int, request: Request, directives: Directives, send: ASGISendCallable, hang_up: Any):
        self._number = number
        self._request = request
        self._asked = directives
        self._framing = Framing(directives)
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
        await self._send({"type": "http.response.body", "body": self._framing.end(), "more_body": False})

    async def _begin(self) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"request-id", request_id_of(self._number)),
            *self._framing.headers,
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
        """Commit the fault. True if the answer continues after it."""
        if fault == "garbage":
            await self._write(_GARBAGE)
        elif fault == "error":
            await self._write(_event(error_event(self._asked.error, REASONS.get(self._asked.error, "Asked to fail"))))
        elif fault == "cut":
            self._hang_up()
        if fault == "stall" and self._asked.stall_ms is not None:
            self._first_due += self._asked.stall_ms / 1000  # what comes after it keeps its pace
            await asyncio.sleep(self._asked.stall_ms / 1000)
            return True
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
        if self._framing.is_plain:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            return
        for piece in self._framing.pieces(body):
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)  # many pieces: others get their turn, and the reader perhaps a read of each


async def _silence() -> NoReturn:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nothing ends this but a cancellation")


REASONS = {
    "overloaded_error": "Overloaded",
    "rate_limit_error": "This request would exceed your organization's rate limit",
    "api_error": "Internal server error",
    "authentication_error": "invalid x-api-key",
    "permission_error": "Your API key does not have permission to use the specified resource",
    "not_found_error": "The requested resource could not be found",
}


class Refused(Exception):
    def __init__(self, status: int, message: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = tuple(headers)


class Request(NamedTuple):
    model: str
    message: str  # the last of the user's
    input_tokens: int


def read_request(body: bytes) -> Request:
    try:
        request = orjson.loads(body)
    except ValueError:
        raise Refused(400, "The request body is not valid JSON") from None
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
    return Request(request["model"], user[-1], input_tokens=1 + sum(map(len, user)) // 4)


def _demand(holds: bool, complaint: str) -> None:
    if not holds:
        raise Refused(400, complaint)


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    return "".join(b["text"] for b in blocks if isinstance(b, dict) and isinstance(b.get("text"), str))


def error_type(status: int) -> str:
    return ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def error_event(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def request_id_of(number: int) -> bytes:
    return b"req_standin_%d" % number
