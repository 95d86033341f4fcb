"""Anthropic Messages (POST /v1/messages): the events of an answer, or the whole message.

Its clients have no cursor: they read an attempt from its beginning. What it has said they cannot take back, so a
`restart` behind anything shown is an error and the end. A new connection begins at the last restart there is.

Blocks of text and of thinking follow one another. A call's block stays open until its arguments are whole, since a
model may write several calls at once: clients go by the index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from broker.dialects.fold import Facts, Text
from broker.dialects.parts import read_arguments
from broker.dialects.said import (
    LOST,
    RESTARTED,
    TOOL_ARGS,
    TOOL_ARGS_DELTA,
    TOOL_START,
    Call,
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

NAME = "messages"

_STOP_REASONS = frozenset(
    ("end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal", "model_context_window_exceeded")
)
"""The SDKs' types have no other."""

_TYPES = {
    "provider_overloaded": "overloaded_error",
    "provider_rate_limited": "rate_limit_error",
    "provider_refused": "invalid_request_error",
    "invalid_input": "invalid_request_error",
}

_PING = b'event: ping\ndata: {"type":"ping"}\n\n'

_NOTHING = Counts(0, 0, 0, 0, 0)

_TEXT, _THINKING = "text", "thinking"
_DELTAS = {
    _TEXT: b'{"type":"text_delta","text":',
    _THINKING: b'{"type":"thinking_delta","thinking":',
}


@dataclass(frozen=True)
class Messages:
    """A payload is a whole frame: it has the name of its event."""

    name: ClassVar[str] = NAME
    content_type: ClassVar[str] = CONTENT_TYPE
    heartbeat: ClassVar[bytes] = _PING
    end: ClassVar[bytes] = b""
    merges: ClassVar[bool] = False
    needs_request: ClassVar[bool] = False

    def begin(self, facts: Facts) -> MessagesFold:
        return MessagesFold(facts)

    def frame(self, payload: bytes, event_id: int, index: int) -> bytes:
        return payload


class Block:
    """One of text or of thinking."""

    __slots__ = ("kind", "text")

    def __init__(self, kind: str, text: Text) -> None:
        self.kind = kind
        self.text = text

    def copy(self) -> Block:
        return Block(self.kind, self.text.copy())


class MessagesFold:
    """`failure`: why there is no answer. `is_done`: there is one."""

    __slots__ = (
        *("_blocks", "_calls", "_ending", "_facts", "_is_open"),
        *("failure", "is_done", "is_over", "number"),
    )

    def __init__(self, facts: Facts) -> None:
        self.number = 0
        self.is_over = False
        self.is_done = False
        self.failure: Failure | None = None
        self._facts = facts
        self._begin_attempt()

    def _begin_attempt(self) -> None:
        self._blocks: list[Block | str] = []
        """Those that were begun, by their index; of a call its id."""
        self._is_open = False
        """The last one, if it is no call."""
        self._calls = Calls()
        self._ending: dict[str, Any] = {}
        """Of `done`: stop_reason, stop_sequence and the tokens."""

    def copy(self) -> MessagesFold:
        copy = MessagesFold.__new__(MessagesFold)
        copy.number, copy.is_done, copy.failure = self.number, self.is_done, self.failure
        copy.is_over = False  # that was of the step before it
        copy._facts, copy._ending, copy._is_open = self._facts, self._ending, self._is_open
        copy._blocks = [block if isinstance(block, str) else block.copy() for block in self._blocks]
        copy._calls = self._calls.copy()
        return copy

    # -- events ----------------------------------------------------------------------------------------------------

    def step(self, event: Event) -> list[bytes]:
        self.is_over = False
        say = _SAYS.get(event.kind)
        return say(self, event.kind, data_of(event)) if say else []

    def opening(self) -> list[bytes]:
        message = {**self._named(), "content": [], **_stop(None, None), "usage": _usage_json(_NOTHING)}
        return [_frame({"type": "message_start", "message": message}), _PING]

    def gap(self, gap: Gap) -> list[bytes]:
        self.is_over = True
        return [_frame(error_json(LOST))]

    def _begin(self, _: str, __: dict[str, Any]) -> list[bytes]:
        return self.opening()

    def _say_text(self, _: str, data: dict[str, Any]) -> list[bytes]:
        return self._say(_TEXT, text_of(data, "text"))

    def _say_thought(self, _: str, data: dict[str, Any]) -> list[bytes]:
        return self._say(_THINKING, text_of(data, "text"))

    def _say(self, kind: str, text: str) -> list[bytes]:
        if not text:
            return []
        begun = [] if self._is_open and self._open_block.kind == kind else self._open(kind)
        self._open_block.text.add(text)
        delta = b"%b%b}" % (_DELTAS[kind], encode_data(text))
        begun.append(_delta(len(self._blocks) - 1, delta))
        return begun

    @property
    def _open_block(self) -> Block:
        block = self._blocks[-1]
        assert isinstance(block, Block)
        return block

    def _open(self, kind: str) -> list[bytes]:
        frames = self._close()
        self._blocks.append(Block(kind, Text()))
        self._is_open = True
        return [*frames, self._started(_block_json(kind, ""))]

    def _close(self) -> list[bytes]:
        if not self._is_open:
            return []
        self._is_open = False
        return [_stopped(len(self._blocks) - 1)]

    def _start_call(self, _: str, data: dict[str, Any]) -> list[bytes]:
        if not (call := self._calls.start(data, len(self._blocks))):
            return []
        frames = self._close()
        self._blocks.append(call.id)
        return [*frames, self._started(_call_json(call, {}))]

    def _say_arguments(self, _: str, data: dict[str, Any]) -> list[bytes]:
        more = self._calls.more(data)
        return [_arguments(*more)] if more else []

    def _end_call(self, _: str, data: dict[str, Any]) -> list[bytes]:
        if not (end := self._calls.end(data)):
            return []
        call, missing = end
        return [*([_arguments(call, missing)] if missing else []), _stopped(call.index)]

    def _restart(self, _: str, __: dict[str, Any]) -> list[bytes]:
        self.is_over = bool(self._blocks)
        self._begin_attempt()
        return [_frame(error_json(RESTARTED))] if self.is_over else []

    def _end(self, _: str, data: dict[str, Any]) -> list[bytes]:
        self.is_done = True
        self._ending = {**self._stop_of(data), "counts": counts_of(data) or _NOTHING}
        open_calls = [_stopped(call.index) for call in self._calls.of_id.values() if not call.is_whole]
        counts: Counts = self._ending["counts"]
        delta = {"type": "message_delta", "delta": self._stop_json(), "usage": _delta_usage_json(counts)}
        return [*open_calls, *self._close(), _frame(delta), _frame({"type": "message_stop"})]

    def _stop_of(self, data: dict[str, Any]) -> dict[str, Any]:
        known = [text_of(data, name) for name in ("stop_reason", "provider_stop_reason")]
        otherwise = "tool_use" if self._calls.of_id and not known[0] else "end_turn"
        reason = next((word for word in known if word in _STOP_REASONS), otherwise)
        return {"reason": reason, "sequence": text_of(data, "stop_sequence") or None}

    def _stop_json(self) -> dict[str, Any]:
        return _stop(self._ending.get("reason"), self._ending.get("sequence"))

    def _fail(self, kind: str, data: dict[str, Any]) -> list[bytes]:
        self.failure = failure_of(kind, data)
        return [_frame(error_json(self.failure))]

    def _started(self, block: dict[str, Any]) -> bytes:
        return _frame({"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": block})

    # -- the whole answer --------------------------------------------------------------------------------------------

    def answer(self) -> dict[str, Any]:
        """The message of an attempt that has ended."""
        content = [
            self._whole_call(self._calls.of_id[block])
            if isinstance(block, str)
            else _block_json(block.kind, str(block.text))
            for block in self._blocks
        ]
        usage = _usage_json(self._ending.get("counts", _NOTHING))
        return {**self._named(), "content": content, **self._stop_json(), "usage": usage}

    def _whole_call(self, call: Call) -> dict[str, Any]:
        given = read_arguments(str(call.arguments))
        return _call_json(call, given if isinstance(given, dict) else {"input": given})

    def _named(self) -> dict[str, Any]:
        return {
            "id": f"msg_{self._facts.sid}",
            "type": "message",
            "role": "assistant",
            "model": self._facts.model,
        }


_SAYS: dict[str, Callable[[MessagesFold, str, dict[str, Any]], list[bytes]]] = {
    QUEUED: MessagesFold._begin,
    TEXT_DELTA: MessagesFold._say_text,
    THINKING_DELTA: MessagesFold._say_thought,
    TOOL_START: MessagesFold._start_call,
    TOOL_ARGS_DELTA: MessagesFold._say_arguments,
    TOOL_ARGS: MessagesFold._end_call,
    RESTART: MessagesFold._restart,
    DONE: MessagesFold._end,
    ERROR: MessagesFold._fail,
    CANCELLED: MessagesFold._fail,
}


def error_json(failure: Failure) -> dict[str, Any]:
    """An error within a stream, and as the answer instead of one."""
    # There is no field for a code: it stands in the message.
    error = {"type": _TYPES.get(failure.code, "api_error"), "message": f"{failure.code}: {failure.message}"}
    return {"type": "error", "error": error, "request_id": None}


def _frame(event: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), encode_data(event))


def _delta(index: int, delta: bytes) -> bytes:
    return b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":%b}\n\n' % (
        index,
        delta,
    )


def _arguments(call: Call, piece: str) -> bytes:
    return _delta(call.index, b'{"type":"input_json_delta","partial_json":%b}' % encode_data(piece))


def _stopped(index: int) -> bytes:
    return b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % index


def _block_json(kind: str, text: str) -> dict[str, Any]:
    if kind == _THINKING:
        return {"type": kind, "thinking": text, "signature": ""}
    return {"type": kind, "text": text, "citations": None}


def _call_json(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": given, "caller": {"type": "direct"}}


def _stop(reason: str | None, sequence: str | None) -> dict[str, Any]:
    return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": None, "container": None}


def _delta_usage_json(counts: Counts) -> dict[str, Any]:
    return {
        "input_tokens": counts.input,
        "cache_creation_input_tokens": counts.cache_creation,
        "cache_read_input_tokens": counts.cache_read,
        "output_tokens": counts.output,
        "output_tokens_details": {"thinking_tokens": counts.thinking},
        "server_tool_use": None,
    }


def _usage_json(counts: Counts) -> dict[str, Any]:
    return {**_delta_usage_json(counts), "cache_creation": None, "inference_geo": None, "service_tier": None}
