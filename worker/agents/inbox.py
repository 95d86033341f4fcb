"""What an agent is told while it runs: taken in order, written into the log, and taken again after a takeover.

An input is in Redis' list until the log has it (`inputs.py`); an `input` event names its entry, since a worker may die
between the two. Inputs that an attempt before this one took come first here, and are said again.
"""

from __future__ import annotations

import asyncio
from typing import Any

from broker.log.inputs import BEGINNING
from worker.agents.caps import until_answered
from worker.agents.inputs import Inputs
from worker.agents.journal import INPUT, Journal
from worker.stage import Stage


class Inbox:
    """One a stream. `taken`: in this attempt, in order, each {"text"} or {"data"}."""

    def __init__(self, stage: Stage, inputs: Inputs, journal: Journal) -> None:
        self.taken: list[dict[str, Any]] = []
        self._sid = journal.sid
        self._stage = stage
        self._inputs = inputs
        self._earlier = list({data.get("input_id", at): data for at, data in enumerate(journal.inputs)}.values())
        self._ids = {data.get("input_id") for data in self._earlier}
        self._after = BEGINNING
        self._taking = asyncio.Lock()
        self._listening = asyncio.Lock()

    def take_again(self, count: int) -> list[dict[str, Any]]:
        """Those of the log, until there are `count` in all."""
        again = self._earlier[len(self.taken) : count]
        for data in again:
            self._stage.write(INPUT, {**data, "replayed": True})
        self.taken += again
        return again

    async def take(self) -> list[dict[str, Any]]:
        """All that there are."""
        async with self._taking:  # who waits for the same reply of Redis must not write it twice
            return await self._take()

    async def _take(self) -> list[dict[str, Any]]:
        new = self.take_again(len(self._earlier))
        if entries := await self._waiting():
            for entry in entries:
                if entry.id not in self._ids:
                    data = {**entry.data, "input_id": entry.id}
                    self._stage.write(INPUT, data)
                    self.taken.append(data)
                    new.append(data)
            self._after = entries[-1].id
            await self._stage.flush()
            ids = [entry.id for entry in entries]
            await until_answered(lambda: self._inputs.taken(self._sid, *ids), f"stream {self._sid}: an input waits")
        return new

    async def at(self, index: int) -> dict[str, Any]:
        """That one of them, counted from 0, as soon as there is one."""
        while len(self.taken) <= index:
            async with self._listening:  # sub-agents listen too
                if len(self.taken) <= index and not await self.take() and len(self.taken) <= index:
                    await self._inputs.next(self._sid, self._after)
        return self.taken[index]

    async def holds_more(self) -> bool:
        """Whether `take` would give anything."""
        return len(self.taken) < len(self._earlier) or any(one.id not in self._ids for one in await self._waiting())

    async def interrupted(self) -> None:
        """Wait for a person who interrupts."""
        after = self._after
        while not (entry := await self._inputs.next(self._sid, after)).data.get("interrupt"):
            after = entry.id

    async def _waiting(self) -> list[Any]:
        what = f"stream {self._sid}: what its agent is told is read when it is back"
        return await until_answered(lambda: self._inputs.waiting(self._sid, self._after), what)
