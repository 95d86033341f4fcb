"""What the steps of the log take and give: the pen, a new stream, an append, a seizure, a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from broker.log.event import Event
from broker.log.meta import Meta

LEASE_S = 6.0
"""A worker's lease. Takeover within 10 s (G4) = lease + the sweeper's second + the claim, with room to spare."""

EXTERNAL_LEASE_S = 30.0
"""An external producer's lease: it renews over HTTP, from machines and networks we know nothing of."""

PAGE_EVENTS = 500
"""Events a read takes at once: some 100 KiB of deltas, so that a long backlog neither blocks Redis nor fills memory."""


class Pen(NamedTuple):
    epoch: int
    claim_id: str
    base: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """A stream in a worker's hands, as it was when claimed, under which server."""

    sid: str
    pen: Pen
    tail: int
    attempt: int
    events: int
    bytes: int
    server: str
    meta: Meta


class Appended(NamedTuple):
    """`now_ms`: what new events were stamped with. `there_ms`: the stamp of the last one that was there already."""

    tail: int
    now_ms: int
    state: str
    there_ms: int = 0


class Seized(NamedTuple):
    """How a stream ended: by this seizure, or (`already`) before it. `epoch`, `t`: of its ending."""

    state: str
    last_event_id: int
    stopped_after: int
    already: bool
    epoch: int
    t: int


class Seizure(NamedTuple):
    """A terminal event that was written by taking the pen, and what it takes to put it back (`id` 0: it is new)."""

    sid: str
    claim_id: str
    kind: str
    data: bytes
    id: int = 0
    epoch: int = 0
    t: int = 0


class Page(NamedTuple):
    """The events after a cursor, as far as one read goes, and the stream's state when it was read.

    `present`: the cursor's own event is in the log (or the cursor is 0).
    """

    state: str
    tail: int
    present: bool
    events: list[Event]
    more: bool


class Unsent(NamedTuple):
    """An event on its way to the log. `t` is set when it was there before and is being put back."""

    kind: str
    data: bytes
    t: int | None = None


class Append(NamedTuple):
    """`attempt`: as the pen's claim counted it. `claimed_under`: the server, from a writer that has stood still."""

    sid: str
    pen: Pen
    first: int
    events: Sequence[Unsent]
    lease_s: float = LEASE_S
    attempt: int = 1
    claimed_under: str = ""
