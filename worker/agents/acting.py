"""A model's text, delta by delta, as thinking, text and calls: what each way of acting in text shares.

Everything revolves around `take`, which shows what is certain and holds back what may still become a marker: never more
than the longest one. However the same text is cut into deltas, the same is shown.

A call that cannot be read is a Call with a `fault`, for the model to read instead of a result. Viewers see nothing of
it (half of a JSON is no answer), operators an `internal.provider`. If the model was cut off, it is not even that: half
of an input may look like a whole one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from broker.log.turn import TOOL_ARGS, TOOL_START
from worker.providers.provider import ProviderEvent, untranslated


class Call(NamedTuple):
    id: str
    name: str
    args: dict[str, Any]
    fault: str = ""
    """Why it cannot be run, for the model."""


class Transform:
    """Of one try of a turn; the next has one of its own."""

    stop_sequences: ClassVar[tuple[str, ...]] = ()
    """At which a provider may stop the model by itself (`stopping`)."""

    def __init__(self, tools: Mapping[str, Mapping[str, Any]], turn: int = 0) -> None:
        """`tools`: name → JSON Schema of its arguments. `turn`: ids of calls are unique in the stream."""
        self.calls: list[Call] = []
        self.is_cut = False
        """It went on where it had to wait. Nothing is taken any more."""
        self._tools = tools
        self._turn = turn
        self._pending = ""
        self._said: list[str] = []
        self._events: list[ProviderEvent] = []
        self._shown: set[str] = set()
        self._is_fresh = True  # the part that is being said has nothing but blanks yet

    @property
    def said(self) -> str:
        """What the model wrote, up to where it was cut: so it goes back to the model in the next turn."""
        return "".join(self._said)

    def take(self, text: str) -> list[ProviderEvent]:
        if self.is_cut:
            return []
        self._said.append(text)
        self._pending += text
        while not self.is_cut and self._step():
            pass
        return self._taken()

    def end(self, *, is_whole: bool = True) -> list[ProviderEvent]:
        """The model has said everything. `is_whole`: it ended by itself."""
        if not self.is_cut:
            self._put(self._pending)
            self._pending = ""
            self._close(is_whole)
        return self._taken()

    def instructions(self, tools: Iterable[tuple[str, str]]) -> str:
        """What tells a model of its tools, (name, description) each: a request for it has none."""
        raise NotImplementedError

    def observation(self, results: Sequence[tuple[Call, str]]) -> str:
        """The results of a turn's calls, as the user's message that the model reads next."""
        raise NotImplementedError

    def _step(self) -> bool:
        """Go on to the next marker. False: none is whole yet."""
        raise NotImplementedError

    def _put(self, text: str) -> None:
        """This belongs to the part that is being said."""
        raise NotImplementedError

    def _close(self, is_whole: bool) -> None:
        """The part that is being said ends with the answer."""
        raise NotImplementedError

    def _show(self, kind: str, text: str) -> None:
        if self._is_fresh:
            text = text.lstrip()
        if not text:
            return
        self._is_fresh = False
        self._shown.add(kind)
        if self._events and self._events[-1][0] == kind:
            text = self._events.pop()[1]["text"] + text
        self._events.append((kind, {"text": text}))

    def _add_call(self, name: str, args: dict[str, Any]) -> None:
        call = Call(self._new_id(), name, args)
        self.calls.append(call)
        told = {"tool_call_id": call.id, "tool": name}
        self._events.append((TOOL_START, {**told, "client": True}))
        self._events.append((TOOL_ARGS, {**told, "args": args, "complete": True}))

    def _add_fault(self, said: str, fault: str, name: str = "") -> None:
        self.calls.append(Call(self._new_id(), name, {}, fault))
        self._note("unreadable_call", said, fault)

    def _new_id(self) -> str:
        return f"text_{self._turn}_{len(self.calls)}"

    def _note(self, what: str, said: str, why: str) -> None:
        self._events.append(untranslated("transform", {"type": what, "said": said, "why": why}))

    def _taken(self) -> list[ProviderEvent]:
        events, self._events = self._events, []
        return events


_FENCE = re.compile(r"```\w*\s*\n(.*?)\n?\s*```", re.DOTALL)


def unfenced(text: str) -> str:
    """Models like to put JSON into a block of code."""
    text = text.strip()
    fenced = _FENCE.fullmatch(text)
    return fenced[1].strip() if fenced else text
