"""Stage: what a worker says in one stream, in order, and what of it is said again after a restart.

Everything that a worker writes into a stream goes through its stage: a provider's turn, a tool's call, an agent's own
events. It knows which attempt this is, whether `start` is written, and what has been spent.

A *part* is what may turn out to be void: one turn of a model, as long as it is not whole. If it breaks off after
viewers have seen some of it, `restart` takes back everything since `start`; then all that was not of this part is said
again, in fewer events.

Deltas that only operators see are gathered for GATHER_S or GATHER_BYTES, since nobody waits for them. What is gathered
is written before any other event, so the order of a stream is that of the calls; among such deltas, that of each agent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence, Set
from typing import Any

import orjson

from broker.errors import LasteventError
from broker.log.event import INTERNAL, RESTART, SENTENCE, START, STATUS, Event, merge_deltas
from broker.log.steps import Claimed
from broker.log.writer import StreamWriter
from worker.attempts import WORKER_LOST, may_restart
from worker.spending import Spending

logger = logging.getLogger(__name__)

GATHER_S = 0.1
GATHER_BYTES = 1024
"""Of text: a stream has room for 150,000 events, and a model that thinks writes several for each word."""

GATHERED = {
    f"{INTERNAL}thinking_delta": "text",
    f"{INTERNAL}agent_text_delta": "text",
    f"{INTERNAL}tool_args_delta": "partial_json",
}
"""Kind → the member whose pieces are joined. The other members say what a piece belongs to."""

UNREPEATED = frozenset({START, STATUS, SENTENCE, "internal.usage", "internal.trace", "internal.failover"})
"""What is no part of what was said, or comes of itself when that is said again."""


class Part:
    """Events of a stream that stand or fall together: ids in ranges, since other parts may write in between."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._first = self._next = 0

    def add(self, event_id: int) -> None:
        if event_id != self._next:
            self._ranges.append((self._first, self._next))
            self._first = event_id
        self._next = event_id + 1

    def __contains__(self, event_id: int) -> bool:
        return self._first <= event_id < self._next or any(first <= event_id < end for first, end in self._ranges)

    def ids(self) -> set[int]:
        return {event_id for first, end in (*self._ranges, (self._first, self._next)) for event_id in range(first, end)}


Repeated = tuple[str, dict[str, Any], Part | None]


def said_again(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "replayed": True} if kind.startswith("tool_") else data


class _Gathered:
    """Pieces that become one event. `of`: what they belong to."""

    def __init__(self, kind: str, of: dict[str, Any], part: Part | None) -> None:
        self.kind = kind
        self.of = of
        self.part = part
        self.pieces: list[str] = []
        self.size = 0


class Stage:
    """One a stream and worker. `attempt`: as viewers are told it. Any write raises as the writer does."""

    def __init__(self, claimed: Claimed, writer: StreamWriter) -> None:
        self.writer = writer
        self.attempt = claimed.attempt
        self.kept = claimed.meta.kept or 0
        self.spending = Spending(claimed.meta.usage)
        self.has_started = False
        self._on_worker_loss = claimed.meta.on_worker_loss
        self._started_at = 0
        self._void: set[int] = set()
        self._repeated: list[Repeated] = []
        self._gathered: dict[Any, _Gathered] = {}  # by agent: 50 that think at once write 50 events, not thousands
        self._timer: asyncio.TimerHandle | None = None

    # -- writing -----------------------------------------------------------------------------------------

    def write(self, kind: str, data: dict[str, Any], part: Part | None = None) -> None:
        if kind in GATHERED:
            self._gather(kind, data, part)
            return
        if self._gathered:
            self.release()
        self._put(kind, data, part)

    def _put(self, kind: str, data: dict[str, Any], part: Part | None = None) -> None:
        event_id = self.writer.write(kind, data)
        if part is not None:
            part.add(event_id)

    def release(self) -> None:
        """Write what has been gathered."""
        gathered, self._gathered = self._gathered, {}
        if self._timer:
            self._timer.cancel()
            self._timer = None
        for one in gathered.values():
            self._put_gathered(one)

    def _put_gathered(self, gathered: _Gathered) -> None:
        if self.writer.lost or self.writer.closed:
            return
        told = {**gathered.of, GATHERED[gathered.kind]: "".join(gathered.pieces)}
        try:
            self._put(gathered.kind, told, gathered.part)
        except TypeError:  # half of a surrogate pair, say; the answer, of which this is none, goes on
            logger.warning(
                "stream %s: an event of kind %s is left out: JSON cannot hold it", self.writer.sid, gathered.kind
            )

    def _gather(self, kind: str, data: dict[str, Any], part: Part | None) -> None:
        piece, agent = data[GATHERED[kind]], data.get("agent")
        of = {name: value for name, value in data.items() if name != GATHERED[kind]}
        gathered = self._gathered.get(agent)
        if gathered is not None and (gathered.kind, gathered.of, gathered.part) != (kind, of, part):
            self._put_gathered(self._gathered.pop(agent))
            gathered = None
        if gathered is None:
            gathered = self._gathered[agent] = _Gathered(kind, of, part)
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._release_in_time)
        gathered.pieces.append(piece)
        gathered.size += len(piece)
        if gathered.size >= GATHER_BYTES:
            self._put_gathered(self._gathered.pop(agent))

    def _release_in_time(self) -> None:
        self._timer = None
        try:
            self.release()
        except LasteventError:  # a full stream: whoever writes next is told
            return

    async def drain(self) -> None:
        """Backpressure: wait while the log is too far behind."""
        if self.writer.is_behind:
            await self.writer.drain()

    async def flush(self) -> None:
        """Wait until the log has everything that was written."""
        self.release()
        await self.writer.flush()

    # -- attempts ----------------------------------------------------------------------------------------

    @property
    def may_restart(self) -> bool:
        """Whether an attempt is left."""
        return may_restart(None, self.attempt, self.kept)

    @property
    def may_be_taken_over(self) -> bool:
        return may_restart(self._on_worker_loss, self.attempt, self.kept)

    def announce(self) -> None:
        """A takeover is announced at once: what the lost worker sent is void."""
        if self.attempt > 1:
            self.write(RESTART, {"attempt": self.attempt, "reason": WORKER_LOST["code"]})

    def start(self, told: dict[str, Any]) -> None:
        """And say again what stands of what was said before the restart."""
        self._put(START, {**told, "attempt": self.attempt})
        self._started_at = self.writer.tail
        self.has_started = True
        for kind, data, part in self._repeated:
            self._put(kind, said_again(kind, data), part)
        self._repeated = []

    def void(self, part: Part) -> None:
        """What this part said came to nothing: no restart says it again."""
        if any(gathered.part is part for gathered in self._gathered.values()):
            self.release()
        self._void |= part.ids()

    async def restart(self, reason: str) -> None:
        """Take everything back; what is not void is said again at the next `start`."""
        self.release()
        events, void = self.writer.written_since(self._started_at), self._void
        self._void = set()
        self.attempt += 1
        self.has_started = False
        self._put(RESTART, {"attempt": self.attempt, "reason": reason})
        # In a thread: 100,000 events take 0.5 s, in which no other generation would go on.
        self._repeated = await asyncio.to_thread(self._stand, events, void)

    def _stand(self, events: Sequence[Event], void: Set[int]) -> list[Repeated]:
        """What of these events is said again, in fewer."""
        stand = [event for event in events if event.id not in void and event.kind not in UNREPEATED]
        return [(event.kind, orjson.loads(event.data), None) for event in merge_deltas(stand)]
