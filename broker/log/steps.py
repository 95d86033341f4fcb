"""The values that the log's steps take and return: the pen, a claim, an append, a seizure, a page.

All times (`t`, `…_ms`) are ms since 1970 by Redis' clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from broker.log.event import Event
from broker.log.meta import Meta

LEASE_S = 6.0
"""A worker's lease. Takeover within 10 s (G4) = lease + the sweeper's second + the claim, with room to spare."""

EXTERNAL_LEASE_S = 30.0
"""An external producer's lease. The producer renews it over HTTP, from machines and networks unknown to us."""

PAGE_EVENTS = 500
"""Events in one read: some 100 KiB of deltas, so that a long backlog neither blocks Redis nor fills memory."""


class Pen(NamedTuple):
    """The right to write a stream. `epoch`: the fencing token. `base`: the first event id that it may use."""

    epoch: int
    claim_id: str
    base: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """A stream that a worker has claimed, as it was then. `server`: the Redis server that ran the claim.

    `events`, `bytes`: how many events the stream had, and the bytes of their data.
    """

    sid: str
    pen: Pen
    tail: int
    attempt: int
    events: int
    bytes: int
    server: str
    meta: Meta

    @property
    def usage(self) -> str:
        """What the writers before had counted, JSON as in meta. Empty: nothing."""
        return self.meta.fields.get("usage", "")


class Appended(NamedTuple):
    """`now_ms`: Redis' time, the stamp of the new events unless the append asked for a later one. `there_ms`: the stamp
    of the last event that was already there. `length`, `bytes`: how many events the log has, and the size of their
    data; None: not known. `renewed_at_s`: when what renewed the lease was sent (`pulse.now_s`); None: nothing did."""

    tail: int
    now_ms: int
    state: str
    there_ms: int = 0
    length: int | None = None
    bytes: int | None = None
    renewed_at_s: float | None = None


class Seized(NamedTuple):
    """How a stream ended: by this seizure, or (`already`) before it. `epoch`, `t`: of the terminal event.

    `stopped_after`: the id of the last event before the terminal one. `data`: of the terminal event, as this seizure
    wrote it; empty if `already`.
    """

    state: str
    last_event_id: int
    stopped_after: int
    already: bool
    epoch: int
    t: int
    data: bytes


class Seizure(NamedTuple):
    """A terminal event written by taking the pen, with all that is needed to put it back (`id` 0: it is new).

    A new one takes over the usage of the stream; one that is put back has it in its `data`.
    """

    sid: str
    claim_id: str
    kind: str
    data: bytes
    id: int = 0
    epoch: int = 0
    t: int = 0


class Producer(NamedTuple):
    """One request of a producer. `epoch`: its session; `number`: of the request within that, from 0."""

    id: str
    epoch: int
    number: int


class Produce(NamedTuple):
    """What is asked of a shared stream. `events`: kind, data. `seq`: a Stream-Seq, or ''. `closes`: behind them.

    `life_ms`: how long the stream lives from its last use on; None: its life does not depend on its use.
    """

    sid: str
    events: Sequence[tuple[str, bytes]]
    producer: Producer | None = None
    seq: str = ""
    closes: bool = False
    life_ms: int | None = None


class Produced(NamedTuple):
    """`tail`: the id of the last event before the ending. `number`: the producer's last that is in the log; None
    without a producer. `was_there`: this request was, so nothing was added.
    """

    tail: int
    state: str
    number: int | None
    was_there: bool


class Page(NamedTuple):
    """The events after a cursor that one read returned, and the stream's state and tail when it was read.

    `present`: the cursor's own event is in the log (or the cursor is 0). `more`: the log has further events.
    """

    state: str
    tail: int
    present: bool
    events: list[Event]
    more: bool


class Unsent(NamedTuple):
    """An event on its way to the log. `t` is set if the event was there before and is being put back."""

    kind: str
    data: bytes
    t: int | None = None


class Append(NamedTuple):
    """`first`: the id of the first event (0: the next one). `attempt`: as the pen's claim counted it.

    `claimed_under`: the server that ran the claim; only a writer whose process has stood still gives it.
    `usage`: what an ending by seizure is to take over from now on (meta.py). Empty: as before.
    `bytes_before`: the size of all events before `first`, counted from an answer on; None: the step counts.
    `not_before_ms`: no new event is stamped with an earlier time.
    """

    sid: str
    pen: Pen
    first: int
    events: Sequence[Unsent]
    lease_s: float = LEASE_S
    attempt: int = 1
    claimed_under: str = ""
    usage: bytes = b""
    bytes_before: int | None = None
    not_before_ms: int = 0


class Extend(NamedTuple):
    """An append by the short way: of new events that change nothing but the log.

    `length`: how many events the log has, by the writer's last answer. `t`: of these ones.
    """

    sid: str
    claim_id: str
    length: int
    t: int
    first: int
    events: Sequence[Unsent]


class Renew(NamedTuple):
    """A renewal by the short way. `usage`: as in `Append`. `length`, `tail`, `bytes`: of the log, by the writer's last
    answer."""

    sid: str
    claim_id: str
    lease_s: float
    usage: bytes
    length: int
    tail: int
    bytes: int


Writing = Append | Extend | Renew
"""What a writer sends, by its way."""
