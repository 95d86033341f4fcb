"""What events say, for folds: of whatever shape, since external producers write any. Nothing here raises for one."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from broker.dialects.fold import Text
from broker.log.event import CANCELLED, Event, encode_data

TOOL_START, TOOL_ARGS, TOOL_ARGS_DELTA = "tool_start", "tool_args", "tool_args_delta"

MOST_TOKENS = 2**53
"""What is more is no count of tokens."""


def data_of(event: Event) -> dict[str, Any]:
    data = orjson.loads(event.data)
    return data if isinstance(data, dict) else {}


def text_of(data: dict[str, Any], name: str) -> str:
    """ "" if there is none."""
    value = data.get(name)
    return value if isinstance(value, str) else ""


class Failure(NamedTuple):
    """Why there is no answer, or none any more, in our words (docs/API.md, codes of `error`)."""

    code: str
    message: str


RESTARTED = Failure(
    "generation_restarted", "The answer began anew. Send the request again, with the Idempotency-Key that it had."
)
LOST = Failure("log_lost_tail", "A part of the answer is lost. Send the request again, with its Idempotency-Key.")


def failure_of(kind: str, data: dict[str, Any]) -> Failure:
    """Of a terminal event that is not `done`."""
    if kind == CANCELLED:
        reason = text_of(data, "reason")
        return Failure("cancelled", f"The answer was cancelled: {reason}." if reason else "The answer was cancelled.")
    return Failure(text_of(data, "code") or "provider_error", text_of(data, "message") or "The answer failed.")


class Counts(NamedTuple):
    """Tokens, each in one place; of `output`, `thinking` are a part."""

    input: int
    cache_read: int
    cache_creation: int
    output: int
    thinking: int

    @property
    def all_input(self) -> int:
        return self.input + self.cache_read + self.cache_creation


_COUNTED = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "output_tokens",
    "thinking_tokens",
)


def counts_of(data: dict[str, Any]) -> Counts | None:
    """Of a terminal event; None if it does not say."""
    usage = data.get("usage")
    return Counts(*(_count(usage.get(name)) for name in _COUNTED)) if isinstance(usage, dict) else None


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else 0


class Call:
    """A call that the caller must run."""

    __slots__ = ("arguments", "id", "index", "is_whole", "name")

    def __init__(self, index: int, call_id: str, name: str) -> None:
        self.index = index
        self.id = call_id
        self.name = name
        self.arguments = Text()
        """JSON, in pieces."""
        self.is_whole = False

    def copy(self) -> Call:
        copy = Call(self.index, self.id, self.name)
        copy.arguments, copy.is_whole = self.arguments.copy(), self.is_whole
        return copy


class Calls:
    """The calls of an attempt that the caller must run, in their order; what others run is none of them."""

    __slots__ = ("of_id",)

    def __init__(self) -> None:
        self.of_id: dict[str, Call] = {}

    def start(self, data: dict[str, Any], index: int) -> Call | None:
        """Of `tool_start`; None if there is nothing new to run."""
        call_id, name = text_of(data, "tool_call_id"), text_of(data, "tool")
        if data.get("client") is not True or not call_id or not name or call_id in self.of_id:
            return None
        call = self.of_id[call_id] = Call(index, call_id, name)
        return call

    def more(self, data: dict[str, Any]) -> tuple[Call, str] | None:
        """Of `tool_args_delta`: whose it is, and the piece."""
        call, piece = self.of_id.get(text_of(data, "tool_call_id")), text_of(data, "partial_json")
        if call is None or call.is_whole or not piece:
            return None
        call.arguments.add(piece)
        return call, piece

    def end(self, data: dict[str, Any]) -> tuple[Call, str] | None:
        """Of `tool_args`: whose arguments are whole now, and what is missing of them: all, if there were no pieces."""
        call = self.of_id.get(text_of(data, "tool_call_id"))
        if call is None or call.is_whole:
            return None
        call.is_whole = True
        if call.arguments:
            return call, ""
        whole = encode_data(data.get("args", {})).decode()
        call.arguments.add(whole)
        return call, whole

    def copy(self) -> Calls:
        copy = Calls()
        copy.of_id = {call_id: call.copy() for call_id, call in self.of_id.items()}
        return copy
