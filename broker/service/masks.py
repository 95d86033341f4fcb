"""Masks: they hide parts of a stream from callers who may not see everything. Functions on events and records.

A TOML file declares them:

    [[mask]]
    name = "e-mail"
    pattern = '[\\w.+-]{1,64}@[\\w.-]{1,255}'   # a regular expression, applied to every text
    [[mask]]
    name = "card"
    path = "metadata.customer.card"         # of the record, or (data.…) of each event; * is any key or index

A pattern is applied to every text (also keys and numbers), and to the text as a person reads it: text, thinking and
each tool call's arguments, each joined over all deltas since the last restart, so that a match may span deltas; and
sentences likewise, since a long one is told in parts. Where deltas of several agents are woven into one another, each
agent's are joined by themselves too; and where some of them are internal and others public, all of them and either by
themselves. Each character of a match becomes █, so that events keep their ids and lengths. A value found by its path
becomes █████.

Patterns are the operator's own, and some take for ever on some texts. A Watch ends what takes too long. All of this is
meant to run in a thread: masking.py.
"""

from __future__ import annotations

import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import is_
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import orjson
import regex

from broker.errors import MasksTooSlow
from broker.log.event import (
    INTERNAL,
    RESTART,
    SENTENCE,
    TEXT_DELTA,
    THINKING_DELTA,
    TOOL_ARGS_DELTA,
    Event,
    encode_data,
)
from broker.service.record import OURS

CLIENT_SUPPLIED = ("user_agent", "forwarded_for", "address")
"""The fields of a viewer's record that come from its client."""

Container = TypeVar("Container", dict[str, Any], list[Any])

LIMIT_S = 5.0
"""CPU for one stream, all texts and patterns together: a pattern that takes longer backtracks without end, and holds a
thread meanwhile. For one pattern, a MB of prose takes some milliseconds; of matches, or of small values, a second."""

WORK_S, REST_S = 0.001, 0.000_2
"""Python in another thread has the loop wait for the interpreter's lock, 5 ms each time that it comes back from a call.
A thread that rests so often gives it the lock at once."""

BLOCK = "█"
HIDDEN = BLOCK * 5

DELTAS = {
    TEXT_DELTA: "text",
    SENTENCE: "text",
    THINKING_DELTA: "text",
    "agent_text_delta": "text",
    TOOL_ARGS_DELTA: "partial_json",
}
"""Kinds whose texts are joined before a pattern is applied, internal or not, and the field that holds each piece."""

GLUES = {SENTENCE: ("", " ")}
"""What may have been between two pieces and is in neither of them. Of other kinds nothing was."""


SPANS = 1000
"""Matches hidden at a time: 0.2 ms. A text of nothing but matches may have some 200 000."""


class Unwanted(Exception):
    """Nobody waits for this masking any more."""


class Watch:
    """Over one stream's masking, in the thread that does it, which asks before each value whether to go on.

    `limit_s`: of this thread's CPU. `is_unwanted`: nobody waits for it any more.
    """

    def __init__(self, limit_s: float = LIMIT_S, is_unwanted: Callable[[], bool] = lambda: False) -> None:
        self._is_unwanted = is_unwanted
        self._rested_s = time.thread_time()
        self._end_s = self._rested_s + limit_s

    def go_on(self) -> float:
        """The CPU left, in seconds. Raises MasksTooSlow or Unwanted."""
        now_s = time.thread_time()
        if self._is_unwanted():
            raise Unwanted
        if now_s >= self._end_s:
            raise _too_slow()
        if now_s - self._rested_s >= WORK_S:
            self._rested_s = now_s
            time.sleep(REST_S)
        return self._end_s - now_s

    def hide(self, pattern: regex.Pattern[str], text: str) -> str:
        """The text with each character of each match hidden. The interpreter's lock is free while `regex` searches."""
        # regex measures its timeout by the CPU of the whole process: beside other work it gives up sooner, never later.
        limit_s = self.go_on()
        spans: list[tuple[int, int]] = []
        try:
            for found in pattern.finditer(text, timeout=limit_s, concurrent=True):
                self.go_on()
                spans.append(found.span())
        except TimeoutError:
            raise _too_slow() from None
        return self._with_blocks(text, sorted(spans)) if spans else text  # sorted: a pattern may search backwards

    def _with_blocks(self, text: str, spans: Sequence[tuple[int, int]]) -> str:
        done: list[str] = []
        end = 0
        for some in range(0, len(spans), SPANS):  # the lock is held while pieces are joined
            self.go_on()
            pieces: list[str] = []
            for start, following in spans[some : some + SPANS]:
                pieces += (text[end:start], BLOCK * (following - start))
                end = following
            done.append("".join(pieces))
        return "".join((*done, text[end:]))


def _too_slow() -> MasksTooSlow:
    return MasksTooSlow("The masks take too long on this stream. Bound the repetitions in their patterns.")


class BadMasks(Exception):
    """The file of masks cannot be used. The message says why."""


class Mask(NamedTuple):
    name: str
    pattern: regex.Pattern[str] | None = None
    path: tuple[str, ...] = ()


class Redactor:
    """Applies masks; `names`: theirs. Each method leaves what it gets as it is. Raises MasksTooSlow or Unwanted."""

    def __init__(self, masks: Sequence[Mask]) -> None:
        self.names = [mask.name for mask in masks]
        self._patterns = [mask.pattern for mask in masks if mask.pattern]
        self._paths = [mask.path for mask in masks if mask.path]

    def mask_events(self, events: Sequence[Event], watch: Watch) -> list[Event]:
        """The events with masks applied; ids, kinds and times are unchanged."""
        data, masked = [], []
        for event in events:
            value = orjson.loads(event.data)
            data.append(value)
            masked.append(self._masked(value, watch))
        for pieces in _texts(events, data):
            self._mask_across(pieces, data, masked, watch)
        return [_with_data(event, value, watch) for event, value in zip(events, masked, strict=True)]

    def mask_record(self, record: dict[str, Any], watch: Watch) -> dict[str, Any]:
        """A stream's record as JSON. Patterns are not applied to fields whose content no caller chose (OURS)."""
        for path in self._paths:
            record = _hidden(record, path, watch)
        return {name: value if name in OURS else self._mapped(value, watch) for name, value in record.items()}

    def mask_view(self, view: dict[str, Any], watch: Watch) -> dict[str, Any]:
        """A viewer's record as JSON: patterns are applied to what came from its client."""
        return {name: self._mapped(value, watch) if name in CLIENT_SUPPLIED else value for name, value in view.items()}

    def _masked(self, value: Any, watch: Watch) -> Any:
        for path in self._paths:
            value = _hidden({"data": value}, path, watch)["data"]
        return self._mapped(value, watch)

    def _mapped(self, value: Any, watch: Watch) -> Any:
        """The value with every text in it masked, also keys; a number becomes a text if its digits change."""
        watch.go_on()
        if isinstance(value, str):
            return self._text(value, watch)
        if isinstance(value, dict):
            return _kept(value, {self._text(name, watch): self._mapped(inner, watch) for name, inner in value.items()})
        if isinstance(value, list):
            return _kept(value, [self._mapped(inner, watch) for inner in value])
        if isinstance(value, int | float) and not isinstance(value, bool):
            digits = str(value)
            masked = self._text(digits, watch)
            return value if masked == digits else masked
        return value

    def _text(self, text: str, watch: Watch) -> str:
        for pattern in self._patterns:
            text = watch.hide(pattern, text)
        return text

    def _mask_across(self, pieces: Sequence[_Piece], data: Sequence[Any], masked: list[Any], watch: Watch) -> None:
        """Hide the matches in the joined text, in addition to what is hidden already."""
        joined = self._text("".join(piece.of(data) + piece.glue for piece in pieces), watch)
        start = 0
        for piece in pieces:
            watch.go_on()
            end = start + len(piece.of(data))
            if isinstance(masked[piece.at], dict):
                already = masked[piece.at].get(piece.field, "")
                masked[piece.at] = {**masked[piece.at], piece.field: _either(joined[start:end], already)}
            start = end + len(piece.glue)


def _either(one: str, other: str) -> str:
    if len(one) != len(other) or BLOCK not in one:  # another length: a path hid the whole value
        return other
    return "".join(BLOCK if BLOCK in pair else pair[0] for pair in zip(one, other, strict=True))


def _with_data(event: Event, value: Any, watch: Watch) -> Event:
    watch.go_on()
    return event._replace(data=encode_data(value))


class _Piece(NamedTuple):
    """A part of a joined text: the index of its event, and the field of its data."""

    at: int
    field: str
    glue: str = ""

    def of(self, data: Sequence[Any]) -> str:
        text: str = data[self.at][self.field]
        return text


def load_masks(path: Path) -> Redactor:
    """The masks of a TOML file. Raises BadMasks."""
    try:
        entries = tomllib.loads(path.read_text())["mask"]
        return Redactor([_mask(entry) for entry in entries])
    except OSError as error:
        raise BadMasks(f"{path} cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        detail = f"{path} must be a list of [[mask]] tables, each with name and pattern, or name and path ({error})"
        raise BadMasks(detail) from None
    except regex.error as error:
        raise BadMasks(f"{path}: a pattern is not a regular expression ({error})") from None


def _mask(entry: dict[str, str]) -> Mask:
    if unknown := entry.keys() - {"name", "pattern", "path"}:
        raise KeyError(f"unknown: {', '.join(sorted(unknown))}")
    if ("pattern" in entry) == ("path" in entry):
        raise KeyError("pattern or path")
    if "path" in entry:
        return Mask(entry["name"], path=tuple(entry["path"].removeprefix("$.").split(".")))
    return Mask(entry["name"], regex.compile(entry["pattern"]))


def _texts(events: Sequence[Event], data: Sequence[Any]) -> Iterable[list[_Piece]]:
    """The texts of a log as readers may join its deltas, from restart to restart."""
    texts: dict[tuple[str, ...], list[_Piece]] = defaultdict(list)
    for at, (event, value) in enumerate(zip(events, data, strict=True)):
        if event.kind == RESTART:
            yield from _each_once(texts.values())
            texts.clear()
        field = DELTAS.get(event.kind.removeprefix(INTERNAL))
        if field and isinstance(value, dict) and isinstance(value.get(field), str):
            for glue in GLUES.get(event.kind, ("",)):
                piece = _Piece(at, field, glue)
                for text in _texts_of(event.kind, value):
                    texts[*text, glue].append(piece)
    yield from _each_once(texts.values())


def _texts_of(kind: str, value: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    """Which joined texts a delta is a piece of: its kind's (a tool call's by itself) in the order of the log, which a
    reader who knows no agents joins; and its agent's. A delta that names no agent is the main agent's. Of each there is
    one as operators read it, and one as users do, or as they do not.
    """
    bare = kind.removeprefix(INTERNAL)
    call, agent = _name(value, "tool_call_id") if bare == TOOL_ARGS_DELTA else "", _name(value, "agent")
    for name in (bare, "of all"), (kind, ""):
        yield *name, call
        yield *name, call, agent


def _name(value: dict[str, Any], field: str) -> str:
    """Numbers and texts alike: 1 and "1" are shown as one agent."""
    return "" if value.get(field) is None else str(value[field])


def _each_once(texts: Iterable[list[_Piece]]) -> Iterable[list[_Piece]]:
    """A text that one agent wrote alone is the same in both orders."""
    return {tuple(pieces): pieces for pieces in texts}.values()


def _hidden(value: Any, path: Sequence[str], watch: Watch) -> Any:
    """The value, with everything that the path leads to hidden."""
    watch.go_on()
    if not path:
        return HIDDEN
    step, rest = path[0], path[1:]
    if isinstance(value, dict):
        return _kept(
            value,
            {name: _hidden(inner, rest, watch) if step in ("*", name) else inner for name, inner in value.items()},
        )
    if isinstance(value, list):
        return _kept(
            value,
            [_hidden(inner, rest, watch) if step in ("*", str(at)) else inner for at, inner in enumerate(value)],
        )
    return value


def _kept(value: Container, masked: Container) -> Container:
    """The value itself if nothing in it was masked: the cycle collector stops everybody while it walks what is new."""
    if len(masked) == len(value) and all(map(is_, _parts(masked), _parts(value))):
        return value
    return masked


def _parts(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return chain(value, value.values()) if isinstance(value, dict) else value
