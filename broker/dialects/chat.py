"""OpenAI Chat Completions (POST /v1/chat/completions): chunks of an answer, or the whole one.

Its clients have no cursor: they read an attempt from its beginning. What it has said they cannot take back, so a
`restart` behind anything shown is an error and the end. A new connection begins at the last restart there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from broker.dialects.fold import Facts, Text
from broker.dialects.said import (
    LOST,
    RESTARTED,
    TOOL_ARGS,
    TOOL_ARGS_DELTA,
    TOOL_START,
    Calls,
    Counts,
    Failure,
    counts_of,
    data_of,
    failure_of,
    text_of,
)
from broker.dialects.sse import CONTENT_TYPE, Gap
from broker.log.event import (
    CANCELLED,
    DONE,
    ERROR,
    QUEUED,
    RESTART,
    TEXT_DELTA,
    THINKING_DELTA,
    Event,
    encode_data,
)

NAME = "chat"

_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
}

_TYPES = {
    "provider_rate_limited": "rate_limit_error",
    "provider_refused": "invalid_request_error",
    "invalid_input": "invalid_request_error",
}


@dataclass(frozen=True)
class Chat:
    """`include_usage`: the request's stream_options. Then the tokens stand in a last chunk, and null in the others."""

    include_usage: bool = False

    name: ClassVar[str] = NAME
    content_type: ClassVar[str] = CONTENT_TYPE
    heartbeat: ClassVar[bytes] = b": ping\n\n"
    end: ClassVar[bytes] = b"data: [DONE]\n\n"
    merges: ClassVar[bool] = False
    needs_request: ClassVar[bool] = False

    def begin(self, facts: Facts) -> ChatFold:
        return ChatFold(facts, include_usage=self.include_usage)

    def frame(self, payload: bytes, event_id: int, index: int) -> bytes:
        return b"data: %b\n\n" % payload


class ChatFold:
    """`failure`: why there is no answer. `is_done`: there is one."""

    __slots__ = (
        *("_calls", "_facts", "_finish", "_head", "_is_shown", "_tail", "_text", "_thoughts", "_usage"),
        *("failure", "is_done", "is_over", "number"),
    )

    def __init__(self, facts: Facts, *, include_usage: bool) -> None:
        self.number = 0
        self.is_over = False
        self.is_done = False
        self.failure: Failure | None = None
        self._facts = facts
        self._head = b'{%b,"choices":[' % encode_data(self._named("chat.completion.chunk"))[1:-1]
        self._tail = b'],"usage":null}' if include_usage else b"]}"
        self._begin_attempt()

    def _begin_attempt(self) -> None:
        self._is_shown = False
        self._text = Text()
        self._thoughts = Text()
        self._calls = Calls()
        self._finish = "stop"
        self._usage: Counts | None = None

    def copy(self) -> ChatFold:
        copy = ChatFold.__new__(ChatFold)
        copy.number, copy.is_done, copy.failure = self.number, self.is_done, self.failure
        copy.is_over = False  # that was of the step before it
        copy._facts, copy._head, copy._tail = self._facts, self._head, self._tail
        copy._is_shown, copy._finish, copy._usage = self._is_shown, self._finish, self._usage
        copy._text, copy._thoughts, copy._calls = self._text.copy(), self._thoughts.copy(), self._calls.copy()
        return copy

    # -- chunks ----------------------------------------------------------------------------------------------------

    def step(self, event: Event) -> list[bytes]:
        self.is_over = False
        say = _SAYS.get(event.kind)
        return say(self, event.kind, data_of(event)) if say else []

    def opening(self) -> list[bytes]:
        return [self._chunk(b'{"role":"assistant","content":""}')]

    def gap(self, gap: Gap) -> list[bytes]:
        self.is_over = True
        return [error_json(LOST)]

    def _begin(self, _: str, __: dict[str, Any]) -> list[bytes]:
        return self.opening()

    def _say_text(self, _: str, data: dict[str, Any]) -> list[bytes]:
        if not (text := text_of(data, "text")):
            return []
        self._is_shown = True
        self._text.add(text)
        return [self._chunk(b'{"content":%b}' % encode_data(text))]

    def _say_thought(self, _: str, data: dict[str, Any]) -> list[bytes]:
        if not (text := text_of(data, "text")):
            return []
        self._is_shown = True
        self._thoughts.add(text)
        return [self._chunk(b'{"reasoning_content":%b}' % encode_data(text))]

    def _start_call(self, _: str, data: dict[str, Any]) -> list[bytes]:
        if not (call := self._calls.start(data, len(self._calls.of_id))):
            return []
        self._is_shown = True
        function = {"name": call.name, "arguments": ""}
        return self._of_call({"index": call.index, "id": call.id, "type": "function", "function": function})

    def _say_arguments(self, kind: str, data: dict[str, Any]) -> list[bytes]:
        more = self._calls.more(data) if kind == TOOL_ARGS_DELTA else self._calls.end(data)
        if not more or not more[1]:
            return []
        return self._of_call({"index": more[0].index, "function": {"arguments": more[1]}})

    def _of_call(self, call: dict[str, Any]) -> list[bytes]:
        return [self._chunk(encode_data({"tool_calls": [call]}))]

    def _restart(self, _: str, __: dict[str, Any]) -> list[bytes]:
        self.is_over = self._is_shown
        self._begin_attempt()
        return [error_json(RESTARTED)] if self.is_over else []

    def _end(self, _: str, data: dict[str, Any]) -> list[bytes]:
        self.is_done = True
        otherwise = "tool_calls" if self._calls.of_id and "stop_reason" not in data else "stop"
        self._finish = _FINISH_REASONS.get(text_of(data, "stop_reason"), otherwise)
        self._usage = counts_of(data)
        last = [self._chunk(b"{}", b'"%b"' % self._finish.encode())]
        if self._usage and self._tail != b"]}":
            last.append(b'%b],"usage":%b}' % (self._head, encode_data(_usage_json(self._usage))))
        return last

    def _fail(self, kind: str, data: dict[str, Any]) -> list[bytes]:
        self.failure = failure_of(kind, data)
        return [error_json(self.failure)]

    def _chunk(self, delta: bytes, finish: bytes = b"null") -> bytes:
        choice = b'{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}' % (delta, finish)
        return b"%b%b%b" % (self._head, choice, self._tail)

    # -- the whole answer --------------------------------------------------------------------------------------------

    def answer(self) -> dict[str, Any]:
        """The `chat.completion` of an attempt that has ended. `usage` is missing if nobody has counted."""
        message: dict[str, Any] = {"role": "assistant", "content": str(self._text) or None, "refusal": None}
        message["annotations"] = []
        if self._thoughts:
            message["reasoning_content"] = str(self._thoughts)
        if self._calls.of_id:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": str(call.arguments)}}
                for call in self._calls.of_id.values()
            ]
        elif message["content"] is None:
            message["content"] = ""
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish}
        usage = {"usage": _usage_json(self._usage)} if self._usage else {}
        return {**self._named("chat.completion"), "choices": [choice], **usage}

    def _named(self, kind: str) -> dict[str, Any]:
        created = self._facts.created_ms // 1000
        return {"id": f"chatcmpl-{self._facts.sid}", "object": kind, "created": created, "model": self._facts.model}


_SAYS: dict[str, Callable[[ChatFold, str, dict[str, Any]], list[bytes]]] = {
    QUEUED: ChatFold._begin,
    TEXT_DELTA: ChatFold._say_text,
    THINKING_DELTA: ChatFold._say_thought,
    TOOL_START: ChatFold._start_call,
    TOOL_ARGS_DELTA: ChatFold._say_arguments,
    TOOL_ARGS: ChatFold._say_arguments,
    RESTART: ChatFold._restart,
    DONE: ChatFold._end,
    ERROR: ChatFold._fail,
    CANCELLED: ChatFold._fail,
}


def error_json(failure: Failure) -> bytes:
    """An error within a stream, and as the answer instead of one."""
    kind = _TYPES.get(failure.code, "server_error")
    return encode_data({"error": {"message": failure.message, "type": kind, "param": None, "code": failure.code}})


def _usage_json(counts: Counts) -> dict[str, Any]:
    return {
        "prompt_tokens": counts.all_input,
        "completion_tokens": counts.output,
        "total_tokens": counts.all_input + counts.output,
        "prompt_tokens_details": {"cached_tokens": counts.cache_read},
        "completion_tokens_details": {"reasoning_tokens": counts.thinking},
    }
