"""Masks: they hide parts of a stream from callers who may not see everything. Pure functions on events and records.

A TOML file declares them:

    [[mask]]
    name = "e-mail"
    pattern = '[\\w.+-]{1,64}@[\\w.-]{1,255}'   # a regular expression, applied to every text
    [[mask]]
    name = "card"
    path = "metadata.customer.card"         # of the record, or (data.…) of each event; * is any key or index

A pattern is applied to every text (also keys and numbers), and to the text as a person reads it: text, thinking and
each tool call's arguments, each joined over all deltas since the last restart, so that a match may span deltas. Each
character of a match becomes █, so that events keep their ids and lengths. A value found by its path becomes █████.

Patterns are the operator's own, and some take for ever on some texts. `regex` runs them without the interpreter's lock
and gives up after LIMIT_S.
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
"""The fields of a viewer's record that come from its client."""

LIMIT_S = 5.0
"""For one pattern on one text: a pattern that takes longer backtracks without end, and holds a thread meanwhile."""

BLOCK = "█"
HIDDEN = BLOCK * 5

DELTAS = {"text_delta": "text", "thinking_delta": "text", "tool_args_delta": "partial_json"}
"""Kinds whose texts are joined before a pattern is applied, and the field that holds each piece."""


class BadMasks(Exception):
    """The file of masks cannot be used. The message says why."""


class Mask(NamedTuple):
    name: str
    pattern: regex.Pattern[str] | None = None
    path: tuple[str, ...] = ()


class Redactor:
    """Applies masks. Each method returns a copy and raises MasksTooSlow. `names`: the masks' names."""

    def __init__(self, masks: Sequence[Mask]) -> None:
        self.names = [mask.name for mask in masks]
        self._patterns = [mask.pattern for mask in masks if mask.pattern]
        self._paths = [mask.path for mask in masks if mask.path]

    def mask_events(self, events: Sequence[Event]) -> list[Event]:
        """The events with masks applied; ids, kinds and times are unchanged. Meant to run in a thread."""
        data = [orjson.loads(event.data) for event in events]
        masked = [self._masked({"data": value})["data"] for value in data]
        for pieces in _texts(events, data):
            self._mask_across(pieces, data, masked)
        return [event._replace(data=encode_data(value)) for event, value in zip(events, masked, strict=True)]

    def mask_record(self, record: dict[str, Any]) -> dict[str, Any]:
        """A stream's record as JSON. Patterns are not applied to fields whose content no caller chose (OURS)."""
        for path in self._paths:
            record = _hidden(record, path)
        return {name: value if name in OURS else _mapped(value, self.mask_text) for name, value in record.items()}

    def mask_view(self, view: dict[str, Any]) -> dict[str, Any]:
        """A viewer's record as JSON: patterns are applied to what came from its client."""
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
        """Hide the matches in the joined text, in addition to the matches in each piece alone."""
        joined = self.mask_text("".join(piece.of(data) for piece in pieces))
        start = 0
        for piece in pieces:
            end = start + len(piece.of(data))
            if isinstance(masked[piece.at], dict):
                alone = masked[piece.at].get(piece.field, "")
                masked[piece.at] = {**masked[piece.at], piece.field: _either(joined[start:end], alone)}
            start = end


def _either(one: str, other: str) -> str:
    if len(one) != len(other):  # a path hid the whole value
        return other
    return "".join(BLOCK if BLOCK in pair else pair[0] for pair in zip(one, other, strict=True))


class _Piece(NamedTuple):
    """A part of a joined text: the index of its event, and the field of its data."""

    at: int
    field: str

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
    """The value, with everything that the path leads to hidden."""
    if not path:
        return HIDDEN
    step, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {name: _hidden(inner, rest) if step in ("*", name) else inner for name, inner in value.items()}
    if isinstance(value, list):
        return [_hidden(inner, rest) if step in ("*", str(at)) else inner for at, inner in enumerate(value)]
    return value


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every text in it changed, also keys; a number becomes a text if its digits change."""
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
