"""The tool calls of a Chat Completions answer: which piece belongs to which call, and what each becomes.

The wire says `index` for that. Ollama gave every call index 0, Gemini gives none, older servers neither an index nor an
id, DashScope repeats an id as "", vLLM once made a new id for each piece; and some send arguments as an object.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import orjson

from broker.log.turn import literal
from worker.providers.provider import ProviderEvent
from worker.providers.reading import parse

_KNOWN = {"index", "id", "type", "function", "custom"}
_OWN = {"name", "arguments", "input"}


class _Call:
    def __init__(self, call_id: str, own_id: str | None, kind: str) -> None:
        self.id = call_id
        self.own_id = own_id
        self.kind = kind
        """function, custom (its input is a text, not JSON), or function_call: before there were tools."""
        self.name: str | None = None
        self.pieces: list[str] = []
        self.unknown: dict[str, Any] = {}
        self.settled_at: int | None = None  # how many pieces there were when its arguments were told

    def arguments(self) -> Any:
        """Raises ValueError while they are not whole."""
        text = "".join(self.pieces)
        if self.kind == "custom":
            return text
        return parse(text.encode() or b"{}")

    @property
    def is_whole(self) -> bool:
        """An object, whole. It is asked with each piece, so it does not parse what cannot be."""
        if not self.pieces or not self.pieces[-1].rstrip().endswith("}"):
            return False
        try:
            self.arguments()
        except ValueError:
            return False
        return True

    def starts(self, name: str) -> Iterator[ProviderEvent]:
        self.name = name
        yield "tool_start", {"tool_call_id": self.id, "tool": name, "client": True}
        for piece in self.pieces:
            yield self._delta(piece)

    def goes_on(self, piece: str) -> Iterator[ProviderEvent]:
        self.pieces.append(piece)
        if self.name is not None:
            yield self._delta(piece)

    def _delta(self, piece: str) -> ProviderEvent:
        return "tool_args_delta", {"tool_call_id": self.id, "tool": self.name, "partial_json": piece}

    def native(self) -> dict[str, Any]:
        said = {"$lastevent": "args", "tool_call_id": self.id} if self.pieces else "{}"
        if self.kind == "custom":
            body = {"custom": {"name": self.name, "input": said if self.pieces else ""}}
        else:
            body = {"function": {"name": self.name, "arguments": said}}
        return {
            "id": self.id,
            "type": self.kind,
            **body,
            **{name: literal(value) for name, value in self.unknown.items()},
        }


class Calls:
    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[Any, _Call] = {}
        self._by_own_id: dict[str, _Call] = {}
        self._ids: set[str] = set()

    @property
    def any(self) -> bool:
        return bool(self._calls)

    def take(self, piece: dict[str, Any]) -> tuple[list[ProviderEvent], dict[str, Any] | None]:
        """One item of a delta's `tool_calls`: its events, and what there is no kind for."""
        said = piece.get("custom") or piece.get("function") or {}
        name, text = said.get("name") or None, _text(said.get("arguments", said.get("input")))
        if not isinstance(name, str | None) or not isinstance(piece.get("id"), str | None):
            raise TypeError("a call whose name or id is no text")
        call = self._of(piece, name, text)
        events: list[ProviderEvent] = []
        if name and call.name is None:
            events.extend(call.starts(name))
        if text:
            events.extend(call.goes_on(text))
        unknown = {key: value for key, value in piece.items() if key not in _KNOWN and value is not None}
        call.unknown.update(unknown)  # Gemini refuses a call without its `extra_content`
        if inner := {key: value for key, value in said.items() if key not in _OWN and value is not None}:
            unknown["function"] = inner
        return events, {"id": call.id, **unknown} if unknown else None

    def _of(self, piece: dict[str, Any], name: str | None, text: str) -> _Call:
        index, own_id = piece.get("index"), piece.get("id") or None
        if index is not None:
            call = self._by_index.get(index)
        elif own_id is not None:
            call = self._by_own_id.get(own_id)
        else:
            call = self._calls[-1] if self._calls else None
        if call is None and self._calls and own_id is None and name is None:
            call = self._calls[-1]
        if call is None or _begins_another(call, own_id, name, text, index is None):
            call = self._new(own_id, piece)
            if index is not None:
                self._by_index[index] = call
        return call

    def _new(self, own_id: str | None, piece: dict[str, Any]) -> _Call:
        kind = piece.get("type")
        if kind != "function_call":
            kind = "custom" if piece.get("custom") else "function"
        call_id = own_id if own_id is not None and own_id not in self._ids else self._free_id()
        call = _Call(call_id, own_id, kind)
        self._calls.append(call)
        self._ids.add(call_id)
        if own_id is not None:
            self._by_own_id[own_id] = call
        return call

    def _free_id(self) -> str:
        number = len(self._calls)
        while f"call_{number}" in self._ids:
            number += 1
        return f"call_{number}"

    def settle(self, *, at_the_end: bool) -> Iterator[ProviderEvent]:
        """The arguments that are whole and have not been told."""
        for call in self._calls:
            if call.name is None or call.settled_at == len(call.pieces):
                continue
            if not (at_the_end or call.is_whole or call.kind == "custom" or not call.pieces):
                continue
            with suppress(ValueError):
                args = call.arguments()
                call.settled_at = len(call.pieces)
                yield "tool_args", {"tool_call_id": call.id, "tool": call.name, "args": args, "complete": True}

    def fault(self) -> str | None:
        """What is wrong with a call, now that all has been said."""
        for call in self._calls:
            if call.name is None:
                return "The model provider's answer has a tool call without a name."
            if call.settled_at != len(call.pieces):
                return "The model provider's answer has a tool call whose arguments are not JSON."
        return None

    def whole(self) -> Iterator[dict[str, Any]]:
        """As they go back. One that was cut off does not: nobody will answer it."""
        return (call.native() for call in self._calls if call.settled_at == len(call.pieces))


def _begins_another(call: _Call, own_id: str | None, name: str | None, text: str, by_order: bool) -> bool:
    """Whether a piece is not of the call that its index (or its id, or its place) points to.

    A call has a name, so a piece without one goes on with what was there, whatever id it has (vLLM). With another id it
    begins another (Ollama). With the same or none it is either a server that repeats the name with each piece, or the
    next call, which is said only once this one is whole.
    """
    if name is None or call.name is None:
        return False
    if own_id is not None and call.own_id is not None and own_id != call.own_id:
        return True
    if by_order and own_id is None and not call.pieces:
        return name != call.name
    return bool(text) and call.is_whole


def _text(arguments: Any) -> str:
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
