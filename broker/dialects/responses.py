"""OpenAI Responses: a stream's events as the events of a response (Open Responses, spec of 2026-04-24).

A response has *items*: a message, a reasoning, a call. Each is added, grows, and is done; its `output_index` and its id
count the items since the stream's start, over restarts, since clients refuse an index that comes again.

The cursor is `sequence_number`: 0, 1, 2 … without holes, for some clients take a hole for a loss. But where ids begin a
block of their own (scripts/prelude.lua), Redis may have lost events before it, whose numbers clients have seen. So what
is said then is numbered from 20,000 × block, where block is (id - 1) // 1,000,000: within 32 bits for 29 h. An ending
that somebody else wrote goes on: it is the last, and whoever is beyond it is told it.

All of a delta but its text is the same for all deltas of an item, and is encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from broker.dialects.fold import Facts, Text
from broker.dialects.sse import CONTENT_TYPE, Gap
from broker.log.event import (
    CANCELLED,
    DONE,
    ERROR,
    QUEUED,
    RESTART,
    START,
    TERMINAL,
    TEXT_DELTA,
    THINKING_DELTA,
    TOOL_ARGS_DELTA,
    Event,
    encode_data,
)

BLOCK, NUMBERS = 1_000_000, 20_000
"""Ids that a writer has for itself (scripts/prelude.lua), and the numbers of what it says."""

COUNT_LIMIT = 2**53
"""Sums of counts below it fit into 64 bits. What a producer counts beyond, it has not counted."""

DEFAULTS: Final[Mapping[str, Any]] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "previous_response_id": None,
    "parallel_tool_calls": True,
    "tools": [],
    "tool_choice": "auto",
    "text": {"format": {"type": "text"}},
    "reasoning": {"effort": None, "summary": None},
    "temperature": 1.0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_logprobs": 0,
    "truncation": "disabled",
    "service_tier": "default",
    "store": True,
    "metadata": {},
    "user": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
}
"""What a response repeats of its request, where that did not say it, or it was not used. The schema wants all of it."""

OF_THE_REQUEST = frozenset({"instructions", "tools", "tool_choice", "text", "metadata", "user", "previous_response_id"})
"""Of these, what operators may see alone: a token for one stream shows what was answered, not what was asked."""

MESSAGE, REASONING, FUNCTION, OTHER = "message", "reasoning", "function_call", "mcp_call"
_PREFIXES = {MESSAGE: "msg", REASONING: "rs", FUNCTION: "fc", OTHER: "mcp"}

_COMPLETED, _INCOMPLETE, _FAILED = "completed", "incomplete", "failed"
_IN_PROGRESS, _CANCELLED = "in_progress", "cancelled"

_SERVER_LABEL = "lastevent"
"""Whose tool it was that ran: clients show such a call and do not run it."""

_DELTAS = {
    MESSAGE: (b"response.output_text.delta", b'"content_index":0,"logprobs":[],'),
    REASONING: (b"response.reasoning_summary_text.delta", b'"summary_index":0,'),
    FUNCTION: (b"response.function_call_arguments.delta", b""),
    OTHER: (b"response.mcp_call_arguments.delta", b""),
}

_REASONS = {
    "max_tokens": "max_output_tokens",
    "model_context_window_exceeded": "max_output_tokens",
    "refusal": "content_filter",
}
"""stop_reason → why a response is incomplete."""

_ERRORS = {"provider_rate_limited": "rate_limit_exceeded", "provider_refused": "invalid_prompt"}


def response_id(sid: str) -> str:
    return f"resp_{sid}"


@dataclass(frozen=True)
class Responses:
    """`shows_request`: a response also repeats OF_THE_REQUEST. The numbers are the same."""

    shows_request: bool = False

    name = "responses"
    content_type = CONTENT_TYPE
    heartbeat = b": ping\n\n"
    """Nothing else: openai's Python client takes a block of `id:` or `retry:` alone for an event without JSON."""
    end = b"data: [DONE]\n\n"
    merges = False
    needs_request = False

    def begin(self, facts: Facts) -> ResponseFold:
        hidden = frozenset() if self.shows_request else OF_THE_REQUEST
        shown = {name: value for name, value in facts.echo.items() if name in DEFAULTS and name not in hidden}
        return ResponseFold(facts, {**DEFAULTS, **shown})

    def frame(self, payload: bytes, event_id: int, index: int) -> bytes:
        """A payload is all of its frame: nothing in it depends on what is not in the fold."""
        return payload


class _Item:
    """One item of the output. `text`: a message's or reasoning's, or a call's arguments, as JSON."""

    __slots__ = ("called", "delta", "error", "id", "index", "kind", "output", "status", "text")

    def __init__(self, kind: str, sid: str, index: int, called: tuple[str, str] = ("", "")) -> None:
        self.kind = kind
        self.index = index
        self.id = f"{_PREFIXES[kind]}_{sid}_{index}"
        self.called = called  # the call's id, the tool's name
        self.status = _IN_PROGRESS
        self.text = Text()
        self.output: str | None = None
        self.error: dict[str, Any] | None = None
        event, part = _DELTAS[kind]
        place = b'"item_id":%b,"output_index":%d,%b' % (encode_data(self.id), index, part)
        self.delta = b'event: %b\ndata: {"type":"%b",%b"delta":' % (event, event, place)

    def copy(self) -> _Item:
        copy = _Item.__new__(_Item)
        copy.kind, copy.index, copy.id, copy.delta = self.kind, self.index, self.id, self.delta
        copy.called, copy.status, copy.output, copy.error = self.called, self.status, self.output, self.error
        copy.text = self.text.copy()
        return copy

    def part(self, text: str) -> dict[str, Any]:
        if self.kind == REASONING:
            return {"type": "summary_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def shown(self) -> dict[str, Any]:
        """As it is now."""
        item: dict[str, Any] = {"id": self.id, "type": self.kind, "status": self.status}
        text = str(self.text)
        match self.kind:
            case "message":
                content = [self.part(text)] if self.text or self.status != _IN_PROGRESS else []
                return {**item, "role": "assistant", "content": content}
            case "reasoning":
                return {**item, "summary": [self.part(text)] if self.text or self.status != _IN_PROGRESS else []}
            case "function_call":
                return {**item, "call_id": self.called[0], "name": self.called[1], "arguments": text}
        called = {"name": self.called[1], "server_label": _SERVER_LABEL, "arguments": text}
        return {**item, **called, "output": self.output, "error": self.error, "approval_request_id": None}


class ResponseFold:
    """A response after some events of its stream."""

    __slots__ = (
        *("_block_ends", "_calls", "_count", "_done", "_echo", "_ended", "_facts", "_has_begun", "_status", "_text"),
        *("_used", "is_over", "number"),
    )

    def __init__(self, facts: Facts, echo: Mapping[str, Any]) -> None:
        self.number = 0
        self.is_over = False
        self._facts = facts
        self._echo = echo
        self._status = QUEUED if self._echo["background"] else _IN_PROGRESS
        self._ended: dict[str, Any] = {}  # fields of the response that its ending has set
        self._has_begun = False
        self._block_ends = BLOCK
        self._count = 0  # of items, since the stream's start
        self._done: list[_Item] = []  # of this attempt; none of them changes any more
        self._text: _Item | None = None  # the message or reasoning that is open
        self._calls: dict[str, _Item] = {}  # those that are open, by the log's own id
        self._used: frozenset[str] = frozenset()  # ids of the caller's calls, since the stream's start

    def copy(self) -> ResponseFold:
        copy = ResponseFold.__new__(ResponseFold)
        copy.number, copy.is_over, copy._count = self.number, self.is_over, self._count
        copy._block_ends = self._block_ends
        copy._facts, copy._echo, copy._ended, copy._used = self._facts, self._echo, self._ended, self._used
        copy._status, copy._has_begun = self._status, self._has_begun
        copy._done = self._done.copy()
        copy._text = self._text and self._text.copy()
        copy._calls = {call_id: item.copy() for call_id, item in self._calls.items()}
        return copy

    # -- what it is ----------------------------------------------------------------------------------------------

    def response(self) -> dict[str, Any]:
        """The response as it is now; its output is the current attempt's alone."""
        items = [*self._done, *self._calls.values(), *((self._text,) if self._text else ())]
        return {
            "id": response_id(self._facts.sid),
            "object": "response",
            "created_at": self._facts.created_ms // 1000,
            "completed_at": None,
            "status": self._status,
            "model": self._facts.model,
            "output": [item.shown() for item in sorted(items, key=lambda item: item.index)],
            "error": None,
            "incomplete_details": None,
            "usage": None,
            **self._echo,
            **self._ended,
        }

    # -- what an event says --------------------------------------------------------------------------------------

    def step(self, event: Event) -> list[bytes]:
        kind = event.kind
        if event.id > self._block_ends and kind not in TERMINAL:
            self._begin_block(event)
        if kind == TEXT_DELTA:
            return self._said(MESSAGE, event.data)
        if kind == THINKING_DELTA:
            return self._said(REASONING, event.data)
        say = _SAYS.get(kind)
        if say is None or not isinstance(data := orjson.loads(event.data), dict):
            return []
        return say(self, event, data)

    def opening(self) -> list[bytes]:
        return []

    def gap(self, gap: Gap) -> list[bytes]:
        """The client retrieves the response. Both of the forms that clients know, in one: of the flat one alone,
        openai's Python client makes an event like any other, and the end of the stream looks like the answer's.
        """
        self.is_over = True
        message = "Events of this response are lost. Retrieve the response, and follow it from there."
        told = {"code": "log_lost_tail", "message": message, "param": None}
        return [self._frame("error", **told, error={"type": "server_error", **told})]

    def _said(self, kind: str, data: bytes) -> list[bytes]:
        said = orjson.loads(data)
        if not isinstance(said, dict) or not isinstance(text := said.get("text"), str) or not text:
            return []
        item = self._text
        if item is not None and item.kind == kind:
            return [self._delta(item, text)]
        frames, item = self._opened_text(kind)
        return [*frames, self._delta(item, text)]

    def _delta(self, item: _Item, text: str) -> bytes:
        item.text.add(text)
        number = self.number
        self.number = number + 1
        return b'%b%b,"sequence_number":%d}\n\n' % (item.delta, encode_data(text), number)

    def _frame(self, kind: str, **fields: Any) -> bytes:
        data = encode_data({"type": kind, "sequence_number": self.number, **fields})
        self.number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)

    # -- the response --------------------------------------------------------------------------------------------

    def _queued(self, event: Event, data: dict[str, Any]) -> list[bytes]:
        names = ("created", QUEUED) if self._echo["background"] else ("created",)
        return [self._lifecycle(name) for name in names]

    def _started(self, event: Event, data: dict[str, Any]) -> list[bytes]:
        return self._begun()

    def _begun(self) -> list[bytes]:
        """With the first `start`, or before the first item of a producer that says none."""
        if self._has_begun:
            return []
        self._has_begun = True
        self._status = _IN_PROGRESS
        return [self._lifecycle(_IN_PROGRESS)]

    def _restarted(self, event: Event, data: dict[str, Any]) -> list[bytes]:
        frames = self._closed_all(_INCOMPLETE)
        self._done = []
        return frames

    def _begin_block(self, event: Event) -> None:
        block = (event.id - 1) // BLOCK
        self._block_ends = BLOCK * (block + 1)
        self.number = max(self.number, NUMBERS * block)

    def _ended_well(self, event: Event, data: dict[str, Any]) -> list[bytes]:
        stopped = data.get("stop_reason")
        reason = _REASONS.get(stopped) if isinstance(stopped, str) else None
        if reason is None:
            frames = self._closed_all(_COMPLETED)
            return [*frames, self._end(_COMPLETED, data, completed_at=event.t // 1000)]
        frames = self._closed_all(_INCOMPLETE)
        return [*frames, self._end(_INCOMPLETE, data, incomplete_details={"reason": reason})]

    def _failed(self, event: Event, data: dict[str, Any]) -> list[bytes]:
        code, message = (word if isinstance(word := data.get(name), str) else "" for name in ("code", "message"))
        frames = self._closed_all(_INCOMPLETE)
        theirs = _ERRORS.get(code, "server_error")
        # The AI SDK wants a type, and takes an answer without for no JSON.
        error = {"code": theirs, "message": f"{code or ERROR}: {message}", "type": theirs, "param": None}
        return [*frames, self._end(_FAILED, data, error=error)]

    def _cancelled(self, event: Event, data: dict[str, Any]) -> list[bytes]:
        """There is no event of that name. The reason is for clients that look at nothing else: without one, the AI
        SDK takes it for a whole answer.
        """
        frames = self._closed_all(_INCOMPLETE)
        self._status = _CANCELLED
        return [*frames, self._end(_INCOMPLETE, data, incomplete_details={"reason": _CANCELLED})]

    def _end(self, name: str, data: dict[str, Any], **fields: Any) -> bytes:
        if self._status != _CANCELLED:
            self._status = name
        self._ended = {**fields, "usage": usage_of(data.get("usage"))}
        return self._lifecycle(name)

    def _lifecycle(self, name: str) -> bytes:
        return self._frame(f"response.{name}", response=self.response())

    # -- its items -----------------------------------------------------------------------------------------------

    def _added(self, kind: str, called: tuple[str, str] = ("", "")) -> tuple[list[bytes], _Item]:
        frames = self._begun()
        item = _Item(kind, self._facts.sid, self._count, called)
        self._count += 1
        frames.append(self._frame("response.output_item.added", output_index=item.index, item=item.shown()))
        return frames, item

    def _opened_text(self, kind: str) -> tuple[list[bytes], _Item]:
        closed = self._closed_text(_COMPLETED)
        frames, item = self._added(kind)
        self._text = item
        name = "reasoning_summary_part" if kind == REASONING else "content_part"
        frames.append(self._frame(f"response.{name}.added", **_place_of_part(item), part=item.part("")))
        return [*closed, *frames], item

    def _called(self, event: Event, data: dict[str, Any]) -> list[bytes]:
        call_id, tool = data.get("tool_call_id"), data.get("tool")
        if not (isinstance(call_id, str) and isinstance(tool, str) and call_id and tool) or call_id in self._calls:
            return []
        closed = self._closed_text(_COMPLETED)
        kind = FUNCTION if data.get("client") is True else OTHER
        frames, item = self._added(kind, (self._id_for_caller(call_id) if kind == FUNCTION else call_id, tool))
        self._calls[call_id] = item
        if kind == OTHER:
            frames.append(self._frame("response.mcp_call.in_progress", **_place(item)))
        return [*closed, *frames]

    def _id_for_caller(self, call_id: str) -> str:
        """Clients refuse a call whose id was another item's, as a producer may give it after a restart."""
        shown = f"{call_id}.{self._count}" if call_id in self._used else call_id
        self._used |= {call_id}
        return shown

    def _argued(self, event: Event, data: dict[str, Any]) -> list[bytes]:
        item, piece = self._call_of(data), data.get("partial_json")
        return [self._delta(item, piece)] if item and isinstance(piece, str) and piece else []

    def _argued_all(self, event: Event, data: dict[str, Any]) -> list[bytes]:
        if not (item := self._call_of(data)) or data.get("complete") is not True or "args" not in data:
            return []
        # Some providers give them at once, and clients want a delta all the same.
        frames = [] if item.text else [self._delta(item, orjson.dumps(data["args"]).decode())]
        if item.kind == FUNCTION:
            del self._calls[data["tool_call_id"]]
            frames += self._closed(item, _COMPLETED)
        return frames

    def _returned(self, event: Event, data: dict[str, Any]) -> list[bytes]:
        if not (item := self._call_of(data)):
            return []
        output = _as_text(data["output"]) if "output" in data else None
        del self._calls[data["tool_call_id"]]
        if event.kind == "tool_end" or item.kind == FUNCTION:
            item.output = output
            return self._closed(item, _COMPLETED)
        said = next((word for name in ("message", "code") if isinstance(word := data.get(name), str)), "failed")
        item.error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": said}]}
        return self._closed(item, _FAILED)

    def _call_of(self, data: dict[str, Any]) -> _Item | None:
        call_id = data.get("tool_call_id")
        return self._calls.get(call_id) if isinstance(call_id, str) else None

    def _closed_all(self, status: str) -> list[bytes]:
        calls, self._calls = self._calls, {}
        # Who runs one of ours, and was not heard of its end, has not ended it.
        closed = [(item, status if item.kind == FUNCTION else _INCOMPLETE) for item in calls.values()]
        return [*self._closed_text(status), *(frame for one in closed for frame in self._closed(*one))]

    def _closed_text(self, status: str) -> list[bytes]:
        if (item := self._text) is None:
            return []
        self._text = None
        return self._closed(item, status)

    def _closed(self, item: _Item, status: str) -> list[bytes]:
        """Every item that was added is done one day: openai's Python client raises otherwise."""
        item.status = status
        self._done.append(item)
        return [
            *self._closing(item),
            self._frame("response.output_item.done", output_index=item.index, item=item.shown()),
        ]

    def _closing(self, item: _Item) -> list[bytes]:
        text = str(item.text)
        if item.kind == MESSAGE:
            place = _place_of_part(item)
            return [
                self._frame("response.output_text.done", **place, text=text, logprobs=[]),
                self._frame("response.content_part.done", **place, part=item.part(text)),
            ]
        if item.kind == REASONING:
            place = _place_of_part(item)
            return [
                self._frame("response.reasoning_summary_text.done", **place, text=text),
                self._frame("response.reasoning_summary_part.done", **place, part=item.part(text)),
            ]
        if item.status == _INCOMPLETE:
            return []  # nobody may take its arguments for whole
        if item.kind == FUNCTION:
            done = {"name": item.called[1], "arguments": text}
            return [self._frame("response.function_call_arguments.done", **_place(item), **done)]
        return [
            self._frame("response.mcp_call_arguments.done", **_place(item), arguments=text),
            self._frame(f"response.mcp_call.{item.status}", **_place(item)),
        ]


_SAYS: dict[str, Callable[[ResponseFold, Event, dict[str, Any]], list[bytes]]] = {
    QUEUED: ResponseFold._queued,
    START: ResponseFold._started,
    RESTART: ResponseFold._restarted,
    "tool_start": ResponseFold._called,
    TOOL_ARGS_DELTA: ResponseFold._argued,
    "tool_args": ResponseFold._argued_all,
    "tool_end": ResponseFold._returned,
    "tool_error": ResponseFold._returned,
    DONE: ResponseFold._ended_well,
    ERROR: ResponseFold._failed,
    CANCELLED: ResponseFold._cancelled,
}
"""Any other kind a response has no word for."""


def _place(item: _Item) -> dict[str, Any]:
    return {"item_id": item.id, "output_index": item.index}


def _place_of_part(item: _Item) -> dict[str, Any]:
    return {**_place(item), "summary_index" if item.kind == REASONING else "content_index": 0}


def _as_text(output: Any) -> str:
    return output if isinstance(output, str) else orjson.dumps(output).decode()


def usage_of(usage: Any) -> dict[str, Any] | None:
    """Ours has each token in one place; theirs has all of the input in one number, and of that what was cached."""
    if not isinstance(usage, dict):
        return None
    read, written = _count(usage, "cache_read_input_tokens"), _count(usage, "cache_creation_input_tokens")
    into, out = _count(usage, "input_tokens") + read + written, _count(usage, "output_tokens")
    return {
        "input_tokens": into,
        "input_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "output_tokens": out,
        "output_tokens_details": {"reasoning_tokens": _count(usage, "thinking_tokens")},
        "total_tokens": into + out,
    }


def _count(usage: dict[str, Any], name: str) -> int:
    count = usage.get(name)
    return count if type(count) is int and 0 <= count < COUNT_LIMIT else 0
