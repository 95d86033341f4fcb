"""A tool's arguments while a model still says them: what is there so far, as JSON that a page can show.

A `tool_args` with `complete` false behind some of the deltas. Not behind each: to parse 37 KB of arguments at each of
its deltas holds the worker's loop, which all its streams share, for 0.7 s. Parsed whenever they have grown by half,
they cost a millisecond, and what is written of them is at most three times the arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jiter
import orjson

from broker.log.event import TOOL_ARGS_DELTA
from broker.log.turn import TOOL_ARGS, TOOL_START

FIRST_AT = 64
"""Bytes. What is shorter is whole before anybody has read a part of it."""
GROWTH = 1.5
"""1 + 1/1.5 + 1/1.5² … = 3: whatever their length, so many times the arguments are parsed in all."""
SHARE = 3
"""So many times the arguments may be written in all. Numbers grow: `1e15` is written as 1000000000000000.0."""

_OF_NUMBERS = b"0123456789+-.eE"
"""Half of a text is a beginning of it, half of a number another number: 5 of 500. In a text it costs a few letters."""

ProviderEvent = tuple[str, dict[str, Any]]


class Snapshots:
    """Of one try of a turn. `is_public`: whether all calls' arguments are shown (`show` has args).

    The calls of a client's own tools are public anyway. Of all others nothing is parsed, and nothing kept.
    """

    def __init__(self, is_public: bool) -> None:
        self._is_public = is_public
        self._calls: dict[str, _Growing] = {}

    def take(self, kind: str, data: dict[str, Any]) -> Iterator[ProviderEvent]:
        """What is to be written behind this event of the provider's."""
        if kind == TOOL_START:
            if self._is_public or data.get("client"):
                self._calls[data["tool_call_id"]] = _Growing()
        elif kind == TOOL_ARGS:
            self._calls.pop(data["tool_call_id"], None)
        elif kind == TOOL_ARGS_DELTA and (call := self._calls.get(data["tool_call_id"])):
            args = call.add(data["partial_json"])
            if args is not None:
                told = {"tool_call_id": data["tool_call_id"], "tool": data["tool"]}
                yield TOOL_ARGS, {**told, "args": args, "complete": False}


class _Growing:
    """The arguments of one call."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._next_at = float(FIRST_AT)
        self._told = b""  # what was said last
        self._told_bytes = 0

    def add(self, piece: str) -> Any:
        """What is there so far. None: it is not yet time to look, or nothing was found that is new and may be told."""
        self._text += piece.encode(errors="replace")
        if len(self._text) < self._next_at:
            return None
        self._next_at = len(self._text) * GROWTH
        try:
            said = bytes(self._text).rstrip(_OF_NUMBERS)
            args = jiter.from_json(said, partial_mode="trailing-strings", allow_inf_nan=False)
            told = orjson.dumps(args)
        except (ValueError, TypeError):  # no JSON, which its end will tell; or a number that is none elsewhere
            return None
        if told == self._told or self._told_bytes + len(told) > SHARE * len(self._text):
            return None
        self._told = told
        self._told_bytes += len(told)
        return args
