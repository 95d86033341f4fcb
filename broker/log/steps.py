"""What the steps of the log take and give: the pen, a new stream, an append, a seizure, a page."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from broker.log.event import Event
from broker.log.keys import SCHEMA

WORKER, EXTERNAL = "worker", "external"

LEASE_S = 6.0
"""A worker's lease. Takeover within 10 s (G4) = lease + the sweeper's second + the claim, with room to spare."""

EXTERNAL_LEASE_S = 30.0
"""An external producer's lease: it renews over HTTP, from machines and networks we know nothing of."""

PROGRESS = {
    *("created", "state", "attempt", "lease_until", "epoch", "claim", "claimed_under", "base"),
    *("tail", "events", "bytes", "first_text"),
}
"""Fields of meta that say how far a stream has come. The others say what it is: a restored one has them again."""

PAGE_EVENTS = 500
"""Events a read takes at once: some 100 KiB of deltas, so that a long backlog neither blocks Redis nor fills memory."""

TOMBSTONE = ("schema", "tenant", "state", "created", "finished", "events", "tail", "archived")
"""What is left of an erased stream's meta."""


class Pen(NamedTuple):
    epoch: int
    claim_id: str
    base: int


@dataclass(frozen=True, slots=True)
class NewStream:
    """What a stream is created from. `request` is what the provider gets; external streams have none."""

    sid: str
    tenant: str
    session: str
    producer: str = WORKER
    user: str | None = None
    model: str = ""
    request: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    regenerates: str | None = None
    on_worker_loss: str = "restart"
    abandon_after_s: float | None = None
    idempotency: str | None = None

    def meta(self) -> list[str | bytes]:
        external = self.producer == EXTERNAL
        fields: dict[str, str | bytes] = {
            "schema": str(SCHEMA),
            "tenant": self.tenant,
            "session": self.session,
            "producer": self.producer,
            "model": self.model,
            "request": orjson.dumps(self.request),
            "metadata": orjson.dumps(self.metadata or {}),
            "on_worker_loss": self.on_worker_loss,
            "state": "running" if external else "queued",
            "epoch": "1" if external else "0",
            "attempt": "1" if external else "0",
            "claim": new_claim_id() if external else "",
            "base": "2",
        }
        if self.user is not None:
            fields["user"] = self.user
        if self.regenerates is not None:
            fields["regenerates"] = self.regenerates
        if self.abandon_after_s is not None:
            fields["abandon_after_s"] = str(self.abandon_after_s)
        if self.idempotency is not None:
            fields["idempotency"] = self.idempotency
        return [part for field in fields.items() for part in field]


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
    meta: dict[str, str]

    @property
    def model(self) -> str:
        return self.meta["model"]

    @property
    def request(self) -> dict[str, Any]:
        request: dict[str, Any] = orjson.loads(self.meta["request"])
        return request


class Appended(NamedTuple):
    """`now_ms`: what new events were stamped with. `there_ms`: the stamp of the last one that was there already."""

    tail: int
    now_ms: int
    state: str
    there_ms: int = 0


class Seized(NamedTuple):
    """How a stream ended: by this seizure, or (`already`) before it."""

    state: str
    last_event_id: int
    stopped_after: int
    already: bool


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


def new_sid() -> str:
    """128 random bits: ids are not guessable, and never collide."""
    return secrets.token_hex(16)


def new_claim_id() -> str:
    return secrets.token_hex(8)
