"""What of a model's turn viewers see, and which calls are in it.

The model calls the agent's tools, and the loop runs them when the turn is complete: their `tool_start` is written then,
with the arguments. Of the calls that a provider runs itself everything is told as it comes.

A sub-agent's text is `agent_text_delta`, never `text_delta`: nobody who listens to that can mix it into the answer. It
and all else that a sub-agent says bear its path; what is not public of it is `internal.…`.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Set
from typing import Any

from broker.log.event import INTERNAL, TEXT_DELTA, TOOL_ARGS_DELTA, is_internal
from broker.log.turn import TOOL_ARGS, TOOL_START
from worker.agents.history import Call, calls_in, text_of
from worker.arguments import Snapshots
from worker.providers.provider import ProviderEvent
from worker.visibility import TOOL_END, TOOL_ERROR, visible

CITATION = "citation"
AGENT_TEXT_DELTA = "agent_text_delta"

OF_TOOLS = frozenset({TOOL_START, TOOL_ARGS, TOOL_ARGS_DELTA, TOOL_END, TOOL_ERROR, "tool_progress"})
"""What of a sub-agent that is not public viewers see all the same: that its tools are at work."""


class Speech:
    """Of one speaker. `path`: '' for the top agent. `show`: of the stream. `hidden`: the tools that are not public.

    `said`: by the turn that is under way, so far.
    """

    def __init__(
        self,
        path: str,
        *,
        show: Set[str] = frozenset(),
        is_public: bool = True,
        hidden: Collection[str] = (),
    ) -> None:
        self.said: list[ProviderEvent] = []
        self._path = path
        self._is_public = is_public or not path
        self._show = show
        self._hidden = hidden
        self._met: set[str] = set()  # ids of calls in earlier turns
        self.begin(0)

    @property
    def text(self) -> str:
        """As viewers read it."""
        return text_of(self.said)

    def begin(self, number: int) -> None:
        """A try of a turn: what another try of it said is forgotten."""
        self.said = []
        self._number = number
        self._ids: dict[str, str] = {}  # of our calls: the model's id → ours
        self._snapshots = Snapshots(is_public="args" in self._show)

    def calls(self) -> list[Call]:
        """Those that are for us to run, as far as they are complete. Their ids are unique among this agent's."""
        found = [call._replace(id=self._ids[call.id]) for call in calls_in(self.said)]
        self._met.update(call.id for call in found)
        return found

    def note_ids(self, ids: Collection[str]) -> None:
        """Of the calls of a turn that the log had."""
        self._met.update(ids)

    def shown(self, kind: str, data: dict[str, Any]) -> Iterator[ProviderEvent]:
        """What is written of what the provider said."""
        self.said.append((kind, data))
        show: Container[str] = self._show
        if (call_id := data.get("tool_call_id")) is not None:
            if kind == TOOL_START and data.get("client") is True:
                self._ids[call_id] = self._unused(call_id)
            if call_id in self._ids:
                if kind not in (TOOL_ARGS, TOOL_ARGS_DELTA):
                    yield from self._snapshots.take(kind, data)
                    return
                if data.get("tool") in self._hidden:
                    show = self._show - {"args"}
                if kind == TOOL_ARGS and "args" not in show:
                    return  # the journal's `internal.tool_args` says them, when the call begins
                data = {**data, "tool_call_id": self._ids[call_id]}
        yield from self._visibly(kind, data, show)
        for event in self._snapshots.take(kind, data):
            yield from self._visibly(*event, show)

    def _unused(self, call_id: str) -> str:
        """Some providers number the calls of each turn anew."""
        return call_id if call_id not in self._met else f"{call_id}.{self._number}"

    def _visibly(self, kind: str, data: dict[str, Any], show: Container[str]) -> Iterator[ProviderEvent]:
        for told, of_it in visible(kind, data, show, ()):
            yield attributed(told, of_it, self._path, is_public=self._is_public)


def attributed(kind: str, data: dict[str, Any], path: str, *, is_public: bool) -> ProviderEvent:
    """An event as the agent of this path says it. `is_public`: whether a sub-agent's words are for viewers."""
    if not path:
        return kind, data
    if kind == TEXT_DELTA:
        kind = AGENT_TEXT_DELTA
    if not (is_public or is_internal(kind) or kind in OF_TOOLS):
        kind = f"{INTERNAL}{kind}"
    return kind, {**data, "agent": path}
