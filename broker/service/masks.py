"""Masks: what is laid over a stream for those who may not see everything. Pure functions over events and records.

A TOML file says what:

    [[mask]]
    name = "e-mail"
    pattern = '[\\w.+-]{1,64}@[\\w.-]{1,255}'   # a regular expression, found in every text
    [[mask]]
    name = "card"
    path = "metadata.customer.card"         # of the record, or (data.…) of each event; * is any key or index

A pattern is looked for in every text (key, number), and in text as a person reads it: text, thinking, and each tool
call's arguments, joined over all deltas since the last restart, so that no delta's border hides a match. Each character
of a match becomes █, so that events keep their places and lengths; a value found by its path becomes █████ as a whole.

Patterns are the operator's own, and some take for ever on some texts: `regex` runs them without the interpreter's lock,
and gives up after a while.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import regex

from broker.errors import MasksTooSlow
from broker.log.event import RESTART, Event, encode_data
from broker.service.record import OURS

CLIENT_SUPPLIED = ("user_agent", "forwarded_for", "address")

LIMIT_S = 5.0
"""For one pattern in one text."""

BLOCK = "█"
HIDDEN = BLOCK * 5

DELTAS = {"text_delta": "text", "thinking_delta": "text", "tool_args_delta": "partial_json"}
"""Kinds whose texts are read joined, and where each has its piece."""


class BadMasks(Exception):
    """The file of masks cannot be used. The message says why."""


class Mask(NamedTuple):
    name: str
    pattern: regex.Pattern[str] | None = None
    path: tuple[str, ...] = ()


class Redactor:
    def __init__(self, masks: Sequence[Mask]) -> None:
        self.names = [mask.name for mask in masks]
        self._patterns = [mask.pattern for mask in masks if mask.pattern]
        self._paths = [mask.path for mask in masks if mask.path]

    def mask_events(self, events: Sequence[Event]) -> list[Event]:
        """The same events, under the same ids, kinds and times. Raises MasksTooSlow; meant for a thread."""
        data = [orjson.loads(event.data) for event in events]
        masked = [self._masked({"data": value})["data"] for value in data]
        for pieces in _texts(events, data):
            self._mask_across(pieces, data, masked)
        return [event._replace(data=encode_data(value)) for event, value in zip(events, masked, strict=True)]

    def mask_record(self, record: dict[str, Any]) -> dict[str, Any]:
        """A stream's record as the API shows it. Patterns leave alone what it is found by, and what is not theirs."""
        for path in self._paths:
            record = _hidden(record, path)
        return {name: value if name in OURS else _mapped(value, self.mask_text) for name, value in record.items()}

    def mask_view(self, view: dict[str, Any]) -> dict[str, Any]:
        """A viewer's record: its client chose some of the texts."""
        return {name: self.mask_text(text) if name in CLIENT_SUPPLIED and text else text for name, text in view.items()}

    def _masked(self, value: Any) -> Any:
        for path in self._paths:
            value = _hidden(value, path)
        return _mapped(value, self.mask_text)

    def mask_text(self, text: str) -> str:
        """Raises MasksTooSlow."""
        try:
            for pattern in self._patterns:
                text = pattern.sub(lambda found: BLOCK * len(found[0]), text, timeout=LIMIT_S, concurrent=True)
        except TimeoutError:
            raise MasksTooSlow("A mask's pattern takes too long on this text. Bound its repetitions.") from None
        return text

    def _mask_across(self, pieces: Sequence[_Piece], data: Sequence[Any], masked: list[Any]) -> None:
        """Hide what is found in the joined text, beside what was found in each piece alone."""
        joined = self.mask_text("".join(piece.of(data) for piece in pieces))
        start = 0
        for piece in pieces:
            end = start + len(piece.of(data))
            if isinstance(masked[piece.at], dict):
                alone = masked[piece.at].get(piece.field, "")
                masked[piece.at] = {**masked[piece.at], piece.field: _either(joined[start:end], alone)}
            start = end


def _either(one: str, other: str) -> str:
    if len(one) != len(other):  # a path hides it as a whole
        return other
    return "".join(BLOCK if BLOCK in pair else pair[0] for pair in zip(one, other, strict=True))


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
    """The joined texts of a log: each kind's (a tool call's by itself), from restart to restart."""
    texts: dict[tuple[str, str], list[_Piece]] = defaultdict(list)
    for at, (event, value) in enumerate(zip(events, data, strict=True)):
        if event.kind == RESTART:
            yield from texts.values()
            texts = defaultdict(list)
        field = DELTAS.get(event.kind)
        if field and isinstance(value, dict) and isinstance(value.get(field), str):
            call = str(value.get("tool_call_id")) if event.kind == "tool_args_delta" else ""
            texts[event.kind, call].append(_Piece(at, field))
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
    """The value, with every text in it changed: keys, too, and a number if its digits are."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): _mapped(inner, change) for name, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner, change) for inner in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        digits = str(value)
        return value if change(digits) == digits else change(digits)
    return value
