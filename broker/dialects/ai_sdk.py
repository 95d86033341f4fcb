"""AI SDK: a stream as the chunks of Vercel's UI message stream, version 1 (ai, `uiMessageChunkSchema`), which useChat
and WorkflowChatTransport read.

useChat has no cursor: it is given the attempt that there is from its beginning, and replaces what it had.
WorkflowChatTransport counts the chunks that it was given, so each is an event's, and nothing else may be a chunk.

A payload is a chunk's JSON. A chunk of an unknown type, or one about a part that has not begun, ends a client: nothing
is said of an event that would need one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson

from broker.dialects.fold import Facts, Text
from broker.dialects.sse import CONTENT_TYPE, HEARTBEAT, Gap
from broker.log.event import (
    CANCELLED,
    DONE,
    ERROR,
    QUEUED,
    RESTART,
    START,
    TEXT_DELTA,
    THINKING_DELTA,
    Event,
    encode_data,
)

Version = Literal[5, 6, 7]
"""Of `ai`. From 7 on (7.0.70) a step can be taken back."""

LOST = "log_lost_tail"

FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool-calls",
    "refusal": "content-filter",
}
"""`stop_reason` → `finishReason`. Any other is `other`: older clients refuse words that they do not know."""

FINISHED = b'data: {"type":"finish","finishReason":"other"}\n\ndata: [DONE]\n\n'
"""For a client that has all of a stream that has ended, and not its end."""

_START_STEP, _FINISH_STEP, _RESET_STEP = b'{"type":"start-step"}', b'{"type":"finish-step"}', b'{"type":"reset-step"}'
_TEXT, _REASONING = "text", "reasoning"
_PLAIN = b'{"text":"'


@dataclass(frozen=True)
class AiSdk:
    """`merges`: for useChat; False: for WorkflowChatTransport, which counts. `ui`: which version of `ai` reads it."""

    merges: bool = True
    ui: Version = 7

    name = "ai-sdk"
    content_type = CONTENT_TYPE
    heartbeat = HEARTBEAT
    end = b"data: [DONE]\n\n"
    needs_request = False

    def begin(self, facts: Facts) -> AiSdkFold:
        return AiSdkFold(self, _message_id(facts))

    def frame(self, payload: bytes, event_id: int, index: int) -> bytes:
        return b"data: %b\n\n" % payload


def _message_id(facts: Facts) -> str:
    """An answer that goes on with a message of the assistant's (it has its tools' results) keeps that message's id.
    With one of its own, useChat would show that message twice.
    """
    asked = facts.echo.get("message_id")
    return asked if isinstance(asked, str) else f"msg_{facts.sid}"


class _Tool(NamedTuple):
    """A call that has no result yet. `args`: what has come of them in pieces. `has_input`: they were sent whole."""

    name: str
    is_client: bool
    args: Text | None = None
    has_input: bool = False

    @property
    def whose(self) -> dict[str, Any]:
        """What a client must run is a tool of its app (onToolCall). Any other is shown, and no app need know it."""
        return {} if self.is_client else {"providerExecuted": True, "dynamic": True}

    def ready(self, call_id: str, args: Any) -> bytes:
        ready = {"type": "tool-input-available", "toolCallId": call_id, "toolName": self.name, "input": args}
        return encode_data({**ready, **self.whose})


class AiSdkFold:
    """One step an attempt: `reset-step` takes back what an attempt said."""

    __slots__ = (
        *("number", "is_over", "_dialect", "_message_id", "_is_step_open", "_open", "_id", "_parts", "_delta"),
        "_tools",
    )

    def __init__(self, dialect: AiSdk, message_id: str) -> None:
        self.number = 0
        self.is_over = False
        self._dialect = dialect
        self._message_id = message_id
        self._is_step_open = False
        self._open = ""  # text or reasoning, if such a part is open
        self._id = b""  # its id
        self._parts = 0  # how many have begun: their ids are never used again
        self._delta = b""  # the beginning of the open part's next chunk
        self._tools: dict[str, _Tool] = {}

    def copy(self) -> AiSdkFold:
        copy = AiSdkFold(self._dialect, self._message_id)
        copy.number, copy.is_over, copy._is_step_open = self.number, self.is_over, self._is_step_open
        copy._open, copy._id, copy._parts, copy._delta = self._open, self._id, self._parts, self._delta
        copy._tools = {
            call: tool if tool.args is None else tool._replace(args=tool.args.copy())
            for call, tool in self._tools.items()
        }
        return copy

    def step(self, event: Event) -> list[bytes]:
        say = _SAID.get(event.kind)
        chunks = say(self, event) if say else [_data_part(event)]
        self.number += len(chunks)
        return chunks

    def opening(self) -> list[bytes]:
        return [self._start(), _START_STEP] if self._is_step_open else [self._start()]

    def gap(self, gap: Gap) -> list[bytes]:
        if self._dialect.merges:
            return self._taken_back(encode_data({"reason": LOST}))
        # A count names no event: what comes next could not be told from what it had.
        self.is_over = True
        lost = f"{LOST}: a part of this answer was lost; load it again from its beginning."
        return [_error(lost), _finish("error")]

    # -- an attempt ----------------------------------------------------------------------------------------------

    def _queued(self, _: Event) -> list[bytes]:
        return [self._start()]

    def _started(self, _: Event) -> list[bytes]:
        return self._step_open()

    def _restarted(self, event: Event) -> list[bytes]:
        return self._taken_back(event.data)

    def _start(self) -> bytes:
        # No messageMetadata: an app's schema for it would refuse ours.
        return encode_data({"type": "start", "messageId": self._message_id})

    def _step_open(self) -> list[bytes]:
        if self._is_step_open:
            return []
        self._is_step_open = True
        return [_START_STEP]

    def _step_closed(self) -> list[bytes]:
        if not self._is_step_open:
            return []
        self._is_step_open = False
        return [_FINISH_STEP]

    def _taken_back(self, why: bytes) -> list[bytes]:
        if self._dialect.ui < 7:
            # What was said stays: an app shows what follows the last part of this type.
            chunks = [*self._closed(), *self._step_closed(), b'{"type":"data-restart","data":%b}' % why]
        else:
            chunks = [_RESET_STEP] if self._is_step_open else []
            chunks.append(b'{"type":"data-restart","data":%b,"transient":true}' % why)
        self._open = ""
        self._tools = {}
        return chunks

    # -- what it says --------------------------------------------------------------------------------------------

    def _text(self, event: Event) -> list[bytes]:
        return self._said(event, _TEXT)

    def _thought(self, event: Event) -> list[bytes]:
        return self._said(event, _REASONING)

    def _said(self, event: Event, part: str) -> list[bytes]:
        data = orjson.loads(event.data)
        text = data.get("text") if isinstance(data, dict) else None
        if not isinstance(text, str):
            return []
        chunks = [] if self._open == part else self._opened(part)
        # Written once already, as JSON: in nearly every delta there is nothing else.
        is_plain = len(data) == 1 and event.data.startswith(_PLAIN)
        chunks.append(self._delta + (event.data[8:] if is_plain else encode_data(text) + b"}"))
        return chunks

    def _opened(self, part: str) -> list[bytes]:
        chunks = [*self._step_open(), *self._closed()]
        self._parts += 1
        self._open, self._id = part, b"%b%d" % (part[:1].encode(), self._parts)
        self._delta = b'{"type":"%b-delta","id":"%b","delta":' % (part.encode(), self._id)
        return [*chunks, b'{"type":"%b-start","id":"%b"}' % (part.encode(), self._id)]

    def _closed(self) -> list[bytes]:
        if not self._open:
            return []
        end = b'{"type":"%b-end","id":"%b"}' % (self._open.encode(), self._id)
        self._open = ""
        return [end]

    def _cited(self, event: Event) -> list[bytes]:
        data = orjson.loads(event.data)
        chunks = [_data_part(event)]
        if isinstance(data, dict) and isinstance(url := data.get("url"), str):
            self._parts += 1
            source = {"type": "source-url", "sourceId": f"s{self._parts}", "url": url}
            if isinstance(title := data.get("title"), str):
                source["title"] = title
            chunks = [*self._step_open(), encode_data(source), *chunks]
        return chunks

    # -- tools ---------------------------------------------------------------------------------------------------

    def _tool_begun(self, event: Event) -> list[bytes]:
        return self._tool_open(_call(event))

    def _tool_open(self, call: _Call | None) -> list[bytes]:
        """A call that nobody has begun begins with what is said of it first: external producers may leave that out."""
        if call is None or call.id in self._tools:
            return []
        tool = _Tool(call.tool, call.data.get("client") is True)
        if self._streams_input:
            start = {"type": "tool-input-start", "toolCallId": call.id, "toolName": call.tool, **tool.whose}
            if isinstance(title := call.data.get("title"), str):
                start["title"] = title
            begun = [encode_data(start)]
        else:
            begun = [] if tool.is_client else [tool.ready(call.id, None)]
        self._tools[call.id] = tool
        return [*self._step_open(), *self._closed(), *begun]

    @property
    def _streams_input(self) -> bool:
        """While a part has half of its input, ai 5 takes a replay for what comes behind that."""
        return self._dialect.ui != 5

    def _tool_args_piece(self, event: Event) -> list[bytes]:
        call = _call(event)
        piece = call.data.get("partial_json") if call else None
        if call is None or not isinstance(piece, str):
            return []
        chunks = self._tool_open(call)
        tool = self._tools[call.id]
        if tool.has_input:
            return chunks
        if tool.args is None:
            tool = self._tools[call.id] = tool._replace(args=Text())
        assert tool.args is not None
        tool.args.add(piece)
        delta = {"type": "tool-input-delta", "toolCallId": call.id, "inputTextDelta": piece}
        return [*chunks, encode_data(delta)] if self._streams_input else chunks

    def _tool_args(self, event: Event) -> list[bytes]:
        call = _call(event)
        if call is None or "args" not in call.data or call.data.get("complete") is False:
            return []
        return [*self._tool_open(call), *self._tool_input(call.id, call.data["args"])]

    def _tool_progressed(self, event: Event) -> list[bytes]:
        call = _call(event)
        if call is None:
            return []
        said = {name: value for name, value in call.data.items() if name not in ("tool_call_id", "tool")}
        return [*self._tool_ready(call), self._output(call.id, said, preliminary=True)]

    def _tool_ended(self, event: Event) -> list[bytes]:
        call = _call(event)
        if call is None:
            return []
        chunks = [*self._tool_ready(call), self._output(call.id, call.data.get("output"))]
        del self._tools[call.id]
        return chunks

    def _tool_failed(self, event: Event) -> list[bytes]:
        call = _call(event)
        if call is None:
            return []
        why = next((word for name in ("message", "code") if isinstance(word := call.data.get(name), str)), "failed")
        failed = {"type": "tool-output-error", "toolCallId": call.id, "errorText": why}
        chunks = self._tool_ready(call)
        return [*chunks, encode_data({**failed, **self._tools.pop(call.id).whose})]

    def _tool_ready(self, call: _Call) -> list[bytes]:
        """A result needs a call with an input. Of arguments that viewers are not shown, that is null."""
        return [*self._tool_open(call), *self._tool_input(call.id)]

    def _tool_input(self, call_id: str, args: Any = None) -> list[bytes]:
        tool = self._tools[call_id]
        if tool.has_input:
            return []
        if args is None and tool.args:
            args = _parsed(str(tool.args))
        is_said = args is None and not self._streams_input and not tool.is_client
        ready = [] if is_said else [tool.ready(call_id, args)]
        self._tools[call_id] = tool._replace(args=None, has_input=True)
        return ready

    def _output(self, call_id: str, output: Any, *, preliminary: bool = False) -> bytes:
        said = {"type": "tool-output-available", "toolCallId": call_id, "output": output, **self._tools[call_id].whose}
        return encode_data({**said, "preliminary": True} if preliminary else said)

    # -- how it ends ---------------------------------------------------------------------------------------------
    # Always with a `finish`: without one WorkflowChatTransport asks for ever.

    def _done(self, event: Event) -> list[bytes]:
        data = orjson.loads(event.data)
        reason = data.get("stop_reason") if isinstance(data, dict) else None
        inputs = [chunk for call_id in self._tools for chunk in self._tool_input(call_id)]
        ends = [*self._closed(), *inputs, _data_part(event), *self._step_closed()]
        return [*ends, _finish(FINISH_REASONS.get(reason, "other") if isinstance(reason, str) else "other")]

    def _failed(self, event: Event) -> list[bytes]:
        data = orjson.loads(event.data)
        told = [data.get(name) for name in ("message", "code")] if isinstance(data, dict) else []
        why = next((word for word in told if isinstance(word, str) and word), "error")
        return [*self._closed(), _data_part(event), _error(why), _finish("error")]

    def _cancelled(self, event: Event) -> list[bytes]:
        data = orjson.loads(event.data)
        reason = data.get("reason") if isinstance(data, dict) else None
        abort = {"type": "abort", "reason": reason} if isinstance(reason, str) else {"type": "abort"}
        ends = [*self._closed(), _data_part(event), *self._step_closed()]
        return [*ends, encode_data(abort), _finish("other")]


_SAID: dict[str, Callable[[AiSdkFold, Event], list[bytes]]] = {
    TEXT_DELTA: AiSdkFold._text,
    THINKING_DELTA: AiSdkFold._thought,
    QUEUED: AiSdkFold._queued,
    START: AiSdkFold._started,
    RESTART: AiSdkFold._restarted,
    "citation": AiSdkFold._cited,
    "tool_start": AiSdkFold._tool_begun,
    "tool_args_delta": AiSdkFold._tool_args_piece,
    "tool_args": AiSdkFold._tool_args,
    "tool_progress": AiSdkFold._tool_progressed,
    "tool_end": AiSdkFold._tool_ended,
    "tool_error": AiSdkFold._tool_failed,
    DONE: AiSdkFold._done,
    ERROR: AiSdkFold._failed,
    CANCELLED: AiSdkFold._cancelled,
}
"""Of each other kind there is a `data-…` chunk."""


class _Call(NamedTuple):
    id: str
    tool: str
    data: dict[str, Any]


def _call(event: Event) -> _Call | None:
    data = orjson.loads(event.data)
    if not isinstance(data, dict):
        return None
    call_id, tool = data.get("tool_call_id"), data.get("tool")
    return _Call(call_id, tool, data) if isinstance(call_id, str) and isinstance(tool, str) else None


def _parsed(args: str) -> Any:
    """What is no JSON stays the text that it is."""
    try:
        return orjson.loads(args)
    except orjson.JSONDecodeError:
        return args


def _data_part(event: Event) -> bytes:
    """Transient: an app hears of it (onData), and its message keeps nothing that would have to be taken back."""
    kind = event.kind.replace(".", "-").encode()
    return b'{"type":"data-%b","data":%b,"transient":true}' % (kind, event.data)


def _error(text: str) -> bytes:
    return encode_data({"type": "error", "errorText": text})


def _finish(reason: str) -> bytes:
    return encode_data({"type": "finish", "finishReason": reason})
