"""Masks: what is laid over a stream for those who may not see everything. Pure functions over events and records.

A TOML file says what:

    [[mask]]
    name = "e-mail"
    pattern = '[\\w.+-]+@[\\w-]+\\.[\\w.]+'       # a regular expression, found in every text
    [[mask]]
    name = "card"
    path = "metadata.customer.card"            # a value of the record, or (data.…) of each event; * is any key or index

A pattern is looked for in text as a person reads it: joined over all deltas since the last restart, so that no
delta's border hides a match. Each character of a match becomes █, so that events keep their places and lengths; a value
found by its path becomes █████ as a whole. Patterns are the operator's own: they run as they are.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from broker.event import RESTART, Event, encode_data

OURS = frozenset(
    {
        *("id", "state", "producer", "model", "provider", "attempt", "last_event_id", "events_url", "regenerates"),
        *("created_at", "started_at", "first_text_at", "finished_at", "archived_at", "erased_at", "usage"),
    }
)
BLOCK = "█"
HIDDEN = BLOCK * 5

DELTAS = {"text_delta": "text", "thinking_delta": "text", "tool_args_delta": "partial_json"}
"""Kinds whose texts are read joined, and where each has its piece."""


class BadMasks(Exception):
    """The file of masks cannot be used. The message says why."""


class Mask(NamedTuple):
    name: str
    pattern: re.Pattern[str] | None = None
    path: tuple[str, ...] = ()


class Redactor:
    def __init__(self, masks: Sequence[Mask]) -> None:
        self.names = [mask.name for mask in masks]
        self._patterns = [mask.pattern for mask in masks if mask.pattern]
        self._paths = [mask.path for mask in masks if mask.path]

    def mask_events(self, events: Sequence[Event]) -> list[Event]:
        """The same events, under the same ids, kinds and times."""
        data = [orjson.loads(event.data) for event in events]
        for at, value in enumerate(data):
            data[at] = self._masked({"data": value})["data"]
        for pieces in _texts(events, data):
            self._mask_across(pieces, data)
        return [event._replace(data=encode_data(value)) for event, value in zip(events, data, strict=True)]

    def mask_record(self, record: dict[str, Any]) -> dict[str, Any]:
        """A stream's record as the API shows it. Patterns leave alone what it is found by, and what is not theirs."""
        for path in self._paths:
            record = _hidden(record, path)
        return {name: value if name in OURS else _mapped(value, self.mask_text) for name, value in record.items()}

    def _masked(self, value: Any) -> Any:
        for path in self._paths:
            value = _hidden(value, path)
        return _mapped(value, self.mask_text)

    def mask_text(self, text: str) -> str:
        for pattern in self._patterns:
            text = pattern.sub(lambda found: BLOCK * len(found[0]), text)
        return text

    def _mask_across(self, pieces: Sequence[_Piece], data: list[Any]) -> None:
        joined = "".join(piece.of(data) for piece in pieces)
        masked = self.mask_text(joined)
        if masked == joined:
            return
        start = 0
        for piece in pieces:
            end = start + len(piece.of(data))
            data[piece.at] = {**data[piece.at], piece.field: masked[start:end]}
            start = end


class _Piece(NamedTuple):
    """A part of a joined text: which event, and which of its fields."""

    at: int
    field: str

    def of(self, data: Sequence[Any]) -> str:
        text: str = data[self.at][self.field]
        return text


def load_masks(path: Path) -> Redactor:
    """Raises BadMasks."""
    try:
        entries = tomllib.loads(path.read_text())["mask"]
        return Redactor([_mask(entry) for entry in entries])
    except OSError as error:
        raise BadMasks(f"{path} cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise BadMasks(f"{path} is no list of [[mask]] tables, each with name, and pattern or path ({error})") from None
    except re.error as error:
        raise BadMasks(f"{path}: the pattern {error.pattern!r} is no regular expression ({error.msg})") from None


def _mask(entry: dict[str, str]) -> Mask:
    if unknown := entry.keys() - {"name", "pattern", "path"}:
        raise KeyError(f"unknown: {', '.join(sorted(unknown))}")
    if ("pattern" in entry) == ("path" in entry):
        raise KeyError("pattern or path")
    if "path" in entry:
        return Mask(entry["name"], path=tuple(entry["path"].removeprefix("$.").split(".")))
    return Mask(entry["name"], re.compile(entry["pattern"]))


def _texts(events: Sequence[Event], data: Sequence[Any]) -> Iterable[list[_Piece]]:
    """The joined texts of a log: each kind's (a tool call's by itself), from restart to restart."""
    texts: dict[tuple[str, str], list[_Piece]] = defaultdict(list)
    for at, (event, value) in enumerate(zip(events, data, strict=True)):
        if event.kind == RESTART:
            yield from texts.values()
            texts = defaultdict(list)
        field = DELTAS.get(event.kind)
        if field and isinstance(value, dict) and isinstance(value.get(field), str):
            texts[event.kind, str(value.get("tool_call_id"))].append(_Piece(at, field))
    yield from texts.values()


def _hidden(value: Any, path: Sequence[str]) -> Any:
    """The value, with what the path leads to hidden."""
    if not path:
        return HIDDEN
    step, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {name: _hidden(inner, rest) if step in ("*", name) else inner for name, inner in value.items()}
    if isinstance(value, list):
        return [_hidden(inner, rest) if step in ("*", str(at)) else inner for at, inner in enumerate(value)]
    return value


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The value, with every text in it changed; keys stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name: _mapped(inner, change) for name, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner, change) for inner in value]
    return value
