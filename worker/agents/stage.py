"""The stage of an agent's stream: several speak at once, and what they finish is kept.

A turn of one agent may break off after viewers have seen some of it, while others go on. Then `restart` takes back what
all have said, `start` follows at once, and all but the broken turn is said again: what is said again of a turn that is
still under way belongs to that turn, so it can become void in its turn. What others say while the old events are put
together is held back, and follows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence, Set
from functools import reduce
from typing import Any
from weakref import WeakSet

import orjson

from broker.log.event import TEXT_DELTA, Event, is_internal
from broker.log.steps import Claimed
from broker.log.writer import StreamWriter
from worker.agents.joining import add_joined
from worker.agents.journal import USAGE, is_progress
from worker.spending import summed
from worker.stage import UNREPEATED, Part, Repeated, Stage


class AgentStage(Stage):
    """`told`: what `start` says."""

    def __init__(self, claimed: Claimed, writer: StreamWriter, told: dict[str, Any]) -> None:
        super().__init__(claimed, writer)
        self._told = told
        self._parts: WeakSet[Part] = WeakSet()
        self._held: list[Repeated] | None = None
        self._void_meanwhile: list[Part] = []
        self._restarting = asyncio.Lock()
        self._usages: dict[str, Mapping[str, Any]] = {}  # of sub-agents, by their paths
        self.first_text_at_s: float | None = None
        """Of the answer, by the clock of time.monotonic."""

    def write(self, kind: str, data: dict[str, Any], part: Part | None = None) -> None:
        if self._held is not None:
            self._held.append((kind, data, part))
            return
        super().write(kind, data, part)
        if kind == USAGE:
            self.count_usage(data.get("agent", ""), data["usage"])
        if is_progress(kind, data):  # append.lua notes the attempt in meta
            self.kept = self.attempt
        elif kind == TEXT_DELTA and self.first_text_at_s is None:
            self.first_text_at_s = time.monotonic()

    def _put(self, kind: str, data: dict[str, Any], part: Part | None = None) -> None:
        if part is not None:
            self._parts.add(part)
        super()._put(kind, data, part)

    def count_usage(self, path: str, usage: Mapping[str, Any]) -> None:
        """Of a try, which was paid for: also one of an earlier attempt."""
        self._usages[path] = summed(self._usages.get(path, {}), usage)

    def usage_of(self, path: str) -> dict[str, Any]:
        """Of a sub-agent and those that it ran, in tokens; {} if nothing was counted."""
        within = [usage for whose, usage in self._usages.items() if whose == path or whose.startswith(f"{path}/")]
        return reduce(summed, within, {})

    async def flush(self) -> None:
        async with self._restarting:
            self.release()
        await super().flush()

    def begin(self) -> None:
        self.start(self._told)

    def void(self, part: Part) -> None:
        super().void(part)
        if self._held is not None:
            self._void_meanwhile.append(part)

    async def restart(self, reason: str, *, repeats: bool = True) -> None:
        """`repeats`: what is not void is said again, at once. Without it everybody begins anew."""
        # Who asks may be cancelled alone, by an interrupt or its own time limit: the others need `start`, and what
        # they have said meanwhile.
        restarting = asyncio.ensure_future(self._restart(reason, repeats=repeats))
        restarting.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(restarting)

    async def _restart(self, reason: str, *, repeats: bool) -> None:
        async with self._restarting:
            self.release()
            self._held = []
            try:
                if not repeats:
                    self._started_at = self.writer.tail
                await super().restart(reason)
                self.begin()
            finally:
                held, self._held = self._held, None
            for kind, data, part in held:
                self.write(kind, data, part)
            # It has just been said again, under other ids: the next restart leaves it out.
            void, self._void_meanwhile = self._void_meanwhile, []
            for part in void:
                self.void(part)

    def _stand(self, events: Sequence[Event], void: Set[int]) -> list[Repeated]:
        parts = list(self._parts)
        said: list[Repeated] = []
        for event in events:
            # What operators alone see is in the log already, and the journal reads all of it.
            if event.id in void or event.kind in UNREPEATED or is_internal(event.kind):
                continue
            part = next((part for part in parts if event.id in part), None)
            add_joined(said, event.kind, orjson.loads(event.data), part)
        return said
