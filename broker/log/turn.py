"""The assistant's message of an answer, as the next request gives it back to a model. Pure functions.

A turn that is more than one text has an event `internal.turn`, whose `native` is the turn in its provider's own form:
signatures and calls go back as they came, or the provider refuses them. What other events hold already is not repeated
in it but referred to, since most of a log would be there twice:

    {"$lastevent": "text", "characters": 12}         the next 12 characters (code points) of the answer's text_delta
    {"$lastevent": "thinking", "characters": 12}     likewise of its thinking_delta, or internal.thinking_delta
    {"$lastevent": "args", "tool_call_id": "c1"}     the joined partial_json of that call, a string
    {"$lastevent": "input", "tool_call_id": "c1"}    its parsed arguments, tool_args.args
    {"$lastevent": "literal", "value": …}            this value as it is: it has a key that looks like a reference

Thinking and arguments count under both of their names, public or internal. While viewers have seen nothing of a try
that fails, no `restart` takes it back: its `internal.trace` does, which voids what it thought.

What bears an `agent` is an agent's: its calls were answered within its own run, and in the conversation nothing is left
of it but its text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import orjson

from broker.errors import LogDamaged
from broker.log.event import INTERNAL, RESTART, TEXT_DELTA, THINKING_DELTA, TOOL_ARGS_DELTA, Event

TOOL_START, TOOL_ARGS, TURN, TRACE = "tool_start", "tool_args", "internal.turn", "internal.trace"

_PUBLIC_NAMES = {INTERNAL + kind: kind for kind in (THINKING_DELTA, TOOL_ARGS_DELTA, TOOL_ARGS)}

MAKE_A_MESSAGE = frozenset(
    {RESTART, TEXT_DELTA, TOOL_START, TURN, TRACE, *_PUBLIC_NAMES, *_PUBLIC_NAMES.values()},
)
"""All other events of a log add nothing to the message."""

REFERENCE = "$lastevent"

NATIVE_BLOCKS = "anthropic"
"""The kind of provider (`form`, or else its name) whose own form is that of `content`: text and calls in blocks."""

TEXTS = {TEXT_DELTA: "text", THINKING_DELTA: "thinking"}


def literal(value: Any) -> Any:
    """A provider's or a tool's own JSON as it may stand in `native`, whatever keys it has."""
    return {REFERENCE: "literal", "value": value} if any(_references(value)) else value


def message(events: Iterable[Event]) -> dict[str, Any]:
    """{"role": "assistant", "content": [blocks], "native": {"provider", "model", "content"}} of an answer.

    `content` is for any model: text, and the calls that the caller must run ({"type": "tool_use", "id", "name",
    "input"}). `native` is for the model that said it; absent if that would be the same. Anthropic's native blocks are
    the `content` itself. A call of a turn that was not said to its end is left out: no provider takes a call back
    without its result. Raises LogDamaged.
    """
    answer = _Answer()
    for event in events:
        if event.kind == RESTART:
            answer = _Answer()
        elif event.kind in MAKE_A_MESSAGE and isinstance(data := orjson.loads(event.data), dict):
            answer.take(_PUBLIC_NAMES.get(event.kind, event.kind), data)
    return answer.message()


class _Turn(NamedTuple):
    provider: str
    form: str
    model: str
    content: Any


class _Answer:
    """What has been said since the last restart."""

    def __init__(self) -> None:
        self._blocks: list[list[str] | dict[str, Any]] = []  # for any model: the pieces of a text, or a call
        self._turns: list[_Turn] = []
        self._new: dict[str, list[str]] = {"text": [], "thinking": []}  # since the last turn's end
        self._calls: dict[str, dict[str, Any]] = {}  # for the caller to run, of a turn that has not ended
        self._pieces: dict[str, list[str]] = defaultdict(list)
        self._inputs: dict[str, Any] = {}

    def take(self, kind: str, data: dict[str, Any]) -> None:
        """`kind`: by its public name."""
        if "agent" in data and kind != TEXT_DELTA:
            return
        if kind in TEXTS:
            if isinstance(text := data.get("text"), str):
                self._say(TEXTS[kind], text)
        elif kind == TURN:
            self._end_turn(data)
        elif kind == TRACE:
            self._forget_try()
        elif isinstance(call_id := data.get("tool_call_id"), str):
            self._take_call(kind, call_id, data)

    def message(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"role": "assistant", "content": list(self._for_any_model())}
        if len({(turn.provider, turn.model) for turn in self._turns}) != 1:
            return shown
        provider, form, model, content = self._turns[0]
        native = {"provider": provider, "model": model}
        if form == NATIVE_BLOCKS:
            blocks = [block for turn in self._turns for block in turn.content]
            return {**shown, "content": [*blocks, *_text_block(self._new["text"])], "native": native}
        if len(self._turns) > 1 or any(self._new["text"]):
            return shown  # only Anthropic's forms can be put one behind the other
        return {**shown, "native": {**native, "content": content}}

    def _for_any_model(self) -> Iterator[dict[str, Any]]:
        for block in self._blocks:
            if isinstance(block, list):
                yield from _text_block(block)
            elif block["id"] not in self._calls:
                yield block

    def _say(self, what: str, text: str) -> None:
        self._new[what].append(text)
        if what == "text":
            last = self._blocks[-1] if self._blocks else None
            if isinstance(last, list):
                last.append(text)
            else:
                self._blocks.append([text])

    def _take_call(self, kind: str, call_id: str, data: dict[str, Any]) -> None:
        if kind == TOOL_START and data.get("client") is True:
            self._calls[call_id] = {"type": "tool_use", "id": call_id, "name": data.get("tool")}
            self._blocks.append(self._calls[call_id])
        elif kind == TOOL_ARGS_DELTA and isinstance(piece := data.get("partial_json"), str):
            self._pieces[call_id].append(piece)
        elif kind == TOOL_ARGS and data.get("complete") is True:
            self._inputs[call_id] = data.get("args")
            if call_id in self._calls:
                self._calls[call_id]["input"] = data.get("args")

    def _forget_try(self) -> None:
        """It failed. Text that it had shown stays if no `restart` follows: then the answer ended with it."""
        self._new["thinking"] = []
        self._pieces.clear()
        self._inputs.clear()

    def _end_turn(self, data: dict[str, Any]) -> None:
        native = data.get("native")
        provider, model = _text_in(data, "provider"), _text_in(data, "model")
        form = _text_in(data, "form") if "form" in data else provider
        if not isinstance(native, list | dict):
            raise _damaged()
        if form == NATIVE_BLOCKS and not isinstance(native, list):
            raise _damaged()
        texts = {what: "".join(pieces) for what, pieces in self._new.items()}
        asked = sum(_characters(one) for one in _references(native) if one[REFERENCE] == "text")
        # Turns before this one that were one text each have no event of their own: their text comes first.
        earlier = len(texts["text"]) - asked if form == NATIVE_BLOCKS else 0
        at = {"text": max(earlier, 0), "thinking": 0}
        content = self._resolved(native, texts, at)
        if earlier > 0:
            content = [*_text_block([texts["text"][:earlier]]), *content]
        self._turns.append(_Turn(provider, form, model, content))
        for call_id in [call_id for call_id, call in self._calls.items() if "input" in call]:
            del self._calls[call_id]
        self._new = {"text": [], "thinking": []}

    def _resolved(self, value: Any, texts: dict[str, str], at: dict[str, int]) -> Any:
        if isinstance(value, list):
            return [self._resolved(inner, texts, at) for inner in value]
        if not isinstance(value, dict):
            return value
        if REFERENCE not in value:
            return {name: self._resolved(inner, texts, at) for name, inner in value.items()}
        return self._referred(value, texts, at)

    def _referred(self, reference: dict[str, Any], texts: dict[str, str], at: dict[str, int]) -> Any:
        what, call_id = (
            name if isinstance(name, str) else "" for name in (reference[REFERENCE], reference.get("tool_call_id"))
        )
        if what == "literal" and "value" in reference:
            return reference["value"]
        if what in texts:
            start = at[what]
            at[what] = start + _characters(reference)
            if at[what] > len(texts[what]):
                raise _damaged()
            return texts[what][start : at[what]]
        if what == "input" and call_id in self._inputs:
            return self._inputs[call_id]
        if what == "args" and call_id in self._pieces:
            return "".join(self._pieces[call_id])
        if what == "args" and call_id in self._inputs:  # they came at once
            return orjson.dumps(self._inputs[call_id]).decode()
        raise _damaged()


def _references(value: Any) -> Iterator[dict[str, Any]]:
    """The references in a value, in order; none inside another."""
    if isinstance(value, list):
        for inner in value:
            yield from _references(inner)
    elif isinstance(value, dict):
        if REFERENCE in value:
            yield value
        else:
            for inner in value.values():
                yield from _references(inner)


def _characters(reference: dict[str, Any]) -> int:
    count = reference.get("characters")
    if type(count) is not int or count < 0:
        raise _damaged()
    return count


def _text_block(pieces: Iterable[str]) -> list[dict[str, Any]]:
    """None for a blank text: no provider takes that."""
    text = "".join(pieces)
    return [{"type": "text", "text": text}] if text.strip() else []


def _text_in(data: dict[str, Any], name: str) -> str:
    if not isinstance(text := data.get(name), str):
        raise _damaged()
    return text


def _damaged() -> LogDamaged:
    return LogDamaged(
        "An internal.turn of this stream refers to what is not in its log, so its message cannot be put together. "
        "The log itself can be read (/events, /text, /export); with an archive, /verify says whether it was changed."
    )
