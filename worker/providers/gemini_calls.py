"""The tool calls in a Gemini answer: the caller's, whole or argument by argument, and those that the provider runs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import orjson

from broker.log.turn import literal
from worker.providers.failures import failed
from worker.providers.gemini_turn import Turn
from worker.providers.provider import ProviderEvent
from worker.providers.reading import MAX_DEPTH


class _Running(NamedTuple):
    """A tool that the provider runs."""

    call_id: str
    tool: str
    native_id: str | None
    began_s: float


class Calls:
    def __init__(self) -> None:
        self.of_client = 0
        self._ids: set[str] = set()
        self._running: list[_Running] = []
        self._streamed: _Streamed | None = None

    @property
    def is_open(self) -> bool:
        return self._streamed is not None

    def called(self, call: dict[str, Any], part: dict[str, Any], turn: Turn) -> Iterator[ProviderEvent]:
        """The caller's tool, mostly whole at once; of Vertex, if asked so, argument by argument."""
        tool = call.get("name")
        if tool:
            if self._streamed is not None:  # nobody said that it is over
                yield from self._whole(self._streamed)
            call_id = self._id(call.get("id"))
            self.of_client += 1
            native = {key: value for key, value in call.items() if key not in ("args", "partialArgs", "willContinue")}
            native["args"] = {"$lastevent": "input", "tool_call_id": call_id}
            sent_back = {**{name: literal(value) for name, value in part.items()}, "functionCall": native}
            turn.add(sent_back)
            yield "tool_start", {"tool_call_id": call_id, "tool": tool, "client": True}
            streamed = _Streamed(call_id, tool, call.get("args") or {}, sent_back)
        elif self._streamed is None:
            raise failed("provider_bad_answer", said="A call has no name.")
        else:
            streamed = self._streamed
        for one in call.get("partialArgs") or ():
            streamed.put(one)
        if call.get("willContinue"):
            self._streamed = streamed
            return
        self._streamed = None
        yield from self._whole(streamed)

    def leave_out_of(self, turn: Turn) -> None:
        """A call whose arguments were cut off does not go back."""
        if self._streamed is not None:
            turn.drop(self._streamed.sent_back)

    def _whole(self, streamed: _Streamed) -> Iterator[ProviderEvent]:
        if not isinstance(streamed.args, dict):
            raise failed("provider_bad_answer", said="A call's arguments are not an object.")
        named = {"tool_call_id": streamed.call_id, "tool": streamed.tool}
        yield "tool_args_delta", {**named, "partial_json": orjson.dumps(streamed.args).decode()}
        yield "tool_args", {**named, "args": streamed.args, "complete": True}

    def started(self, tool: str, args: Any, native_id: str | None) -> Iterator[ProviderEvent]:
        """The provider runs it."""
        call_id = self._id(native_id)
        self._running.append(_Running(call_id, tool, native_id, time.monotonic()))
        yield "tool_start", {"tool_call_id": call_id, "tool": tool}
        yield "tool_args", {"tool_call_id": call_id, "tool": tool, "args": args, "complete": True}

    def ended(
        self, tool: str, native_id: str | None, output: Any, error: tuple[str, str] | None
    ) -> Iterator[ProviderEvent]:
        """Of the call with its id, else of the first that runs."""
        found = next((one for one in self._running if one.tool == tool and one.native_id == native_id), None)
        found = found or next((one for one in self._running if one.tool == tool), None)
        if found is None:  # nobody said that it began
            yield from self.started(tool, {}, native_id)
            found = self._running[-1]
        self._running.remove(found)
        said = {
            "tool_call_id": found.call_id,
            "tool": tool,
            "duration_ms": round((time.monotonic() - found.began_s) * 1000),
            "output": output,
        }
        if error is None:
            yield "tool_end", said
        else:
            yield "tool_error", {**said, "code": error[0], "message": error[1]}

    def _id(self, given: Any) -> str:
        """The provider's, unless it gave none, or gave it before."""
        call_id = given if isinstance(given, str) and given else ""
        number = len(self._ids)
        while not call_id or call_id in self._ids:
            number += 1
            call_id = f"call_{number}"
        self._ids.add(call_id)
        return call_id


class _Streamed:
    """A call whose arguments come value by value, each with its place in them (Vertex; RFC 9535)."""

    def __init__(self, call_id: str, tool: str, args: Any, sent_back: dict[str, Any]) -> None:
        self.call_id = call_id
        self.tool = tool
        self.args = args
        self.sent_back = sent_back
        self._continues: set[str] = set()  # paths of texts that are not complete

    def put(self, one: dict[str, Any]) -> None:
        path = one["jsonPath"]
        steps = _steps(path)
        into, last = self.args, steps[-1]
        for step, following in pairwise(steps):
            into = _inside(into, step, [] if isinstance(following, int) else {})
        value = _value_of(one)
        if path in self._continues and isinstance(value, str):
            value = _inside(into, last, "") + value
            self._continues.discard(path)
        _set(into, last, value)
        if one.get("willContinue"):
            self._continues.add(path)


_STEP = re.compile(r"""\.([^.\[\]]+)|\[(\d{1,6})\]|\['((?:[^'\\]|\\.)*)'\]|\["((?:[^"\\]|\\.)*)"\]""")


def _steps(path: str) -> list[str | int]:
    steps: list[str | int] = []
    at = 1
    while path.startswith("$") and at < len(path) and (found := _STEP.match(path, at)):
        name, index, quoted, double = found.groups()
        quoted = quoted if quoted is not None else double
        steps.append(int(index) if index else name or re.sub(r"\\(.)", r"\1", quoted or ""))
        at = found.end()
    if at != len(path) or not 0 < len(steps) < MAX_DEPTH:
        raise failed("provider_bad_answer", said="An argument has a place that is not understood.")
    return steps


def _inside(into: Any, step: str | int, empty: Any) -> Any:
    has = step < len(into) if isinstance(step, int) else step in into
    if not has:
        _set(into, step, empty)
    return into[step]


def _set(into: Any, step: str | int, value: Any) -> None:
    if isinstance(step, int) and step == len(into):
        into.append(value)
    else:
        into[step] = value  # a list's index further on raises: lists do not grow by what somebody says


def _value_of(one: dict[str, Any]) -> Any:
    for key in ("stringValue", "numberValue", "boolValue"):
        if key in one:
            return one[key]
    return None if "nullValue" in one else ""
