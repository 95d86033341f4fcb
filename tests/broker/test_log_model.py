"""The log beside a model of it that fits on a page: whatever anybody does in whatever order, both say the same.

Workers claim, write, repeat themselves, renew and end; leases run out; cancels come from anywhere. The model is the
protocol in plain words; the log is the scripts. After each step the log's events are the model's, their ids are
unique and grow, and there is at most one terminal event, at the end.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import pairwise

import fakeredis
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import AppendGap, LasteventError, LeaseHeld, StreamClosed, WriterSuperseded
from broker.event import TERMINAL
from broker.log import Append, Claimed, Pen, StreamLog, Unsent
from tests.streams import expire_lease, grow_old, new_stream

BLOCK = 1_000_000
SID = "s1"


@dataclass
class Model:
    """One stream, so young that each block is the one behind its tail."""

    state: str = "queued"
    pen: Pen = Pen(0, "", 2)  # noqa: RUF009 - immutable
    expired: bool = True
    attempt: int = 0
    events: list[tuple[int, str]] = field(default_factory=lambda: [(1, "queued")])

    @property
    def tail(self) -> int:
        return self.events[-1][0]

    def next_block(self) -> int:
        return ((self.tail - 1) // BLOCK + 1) * BLOCK + 1

    def claim(self, claim_id: str) -> Pen:
        if self.state in TERMINAL:
            raise StreamClosed
        if claim_id == self.pen.claim_id:
            return self.pen
        if self.state == "running" and not self.expired:
            raise LeaseHeld(0)
        base = self.next_block() if self.pen.epoch else self.tail + 1
        self.pen = Pen(self.pen.epoch + 1, claim_id, base)
        self.state, self.expired, self.attempt = "running", False, self.attempt + 1
        return self.pen

    def append(self, pen: Pen, first: int, kinds: list[str]) -> tuple[int, str]:
        new = kinds
        if pen == self.pen:
            new = kinds[max(0, self.tail - first + 1) :] if first >= pen.base else kinds
            there = kinds[: len(kinds) - len(new)]
            if there != [kind for n, kind in self.events if first <= n < first + len(there)]:
                raise StreamClosed if self.state in TERMINAL else WriterSuperseded
            if not new:
                self.expired = self.expired and self.state in TERMINAL
                return self.tail, self.state
        if self.state in TERMINAL:
            raise StreamClosed
        if pen != self.pen:
            raise WriterSuperseded
        self.expired = False
        start = first + len(kinds) - len(new)
        if start != max(self.tail + 1, pen.base):
            raise AppendGap(self.tail)
        self.events += enumerate(new, start)
        if new[-1] in TERMINAL:
            self.state = new[-1]
        return self.tail, self.state

    def seize(self, claim_id: str, kind: str, *, only_expired: bool) -> tuple[str, int, bool]:
        if self.state in TERMINAL:
            return self.state, self.tail, self.pen.claim_id != claim_id
        if only_expired and self.state == "running" and not self.expired:
            raise LeaseHeld(0)
        ending = self.next_block()
        self.pen = Pen(self.pen.epoch + 1, claim_id, ending)
        self.state = kind
        self.events.append((ending, kind))
        return kind, ending, False


class Both:
    """The log and its model, and three workers who each remember what they claimed and last sent."""

    def __init__(self, log: StreamLog) -> None:
        self.log = log
        self.model = Model()
        self.claimed: dict[int, Claimed] = {}
        self.sent: dict[int, Append] = {}
        self.claims = 0

    async def claim(self, worker: int, again: bool) -> None:
        previous = self.claimed.get(worker)
        if not (again and previous):
            self.claims += 1
        claim_id = previous.pen.claim_id if again and previous else f"claim-{self.claims}"
        claimed = await self._same(self.log.claim(SID, claim_id, f"worker-{worker}"), self.model.claim, claim_id)
        if claimed:
            assert (claimed.pen, claimed.tail, claimed.attempt) == (self.model.pen, self.model.tail, self.model.attempt)
            self.claimed[worker] = claimed

    async def append(self, worker: int, back: int, kinds: list[str]) -> None:
        """Write from `back` events before (or after) where the log ends."""
        if claimed := self.claimed.get(worker):
            first = max(1, max(claimed.pen.base, self.model.tail + 1) - back)
            self.sent[worker] = Append(SID, claimed.pen, first, [Unsent(kind, b"{}") for kind in kinds])
            await self.send(worker)

    async def send(self, worker: int) -> None:
        """What this worker sent last, once (or once again)."""
        if append := self.sent.get(worker):
            kinds = [event.kind for event in append.events]
            appended = await self._same(
                self.log.append(append), lambda: self.model.append(append.pen, append.first, kinds)
            )
            if appended:
                assert (appended.tail, appended.state) == (self.model.tail, self.model.state)

    async def renew(self, worker: int) -> None:
        if claimed := self.claimed.get(worker):
            append = Append(SID, claimed.pen, claimed.pen.base, ())
            await self._same(self.log.append(append), lambda: self.model.append(claimed.pen, claimed.pen.base, []))

    async def expire(self) -> None:
        if self.model.state == "running":
            await expire_lease(self.log, SID)
            self.model.expired = True

    async def seize(self, claim_id: str, kind: str, only_expired: bool) -> None:
        seized = await self._same(
            self.log.seize(SID, kind, b"{}", claim_id=claim_id, only_expired=only_expired),
            lambda: self.model.seize(claim_id, kind, only_expired=only_expired),
        )
        if seized:
            assert (seized.state, seized.last_event_id) == (self.model.state, self.model.tail)

    async def _same(self, step, in_the_model, *args):  # type: ignore[no-untyped-def]
        """Do it to both. The value of the log's step; None if both refused, for the same reason."""
        expected: type[LasteventError] | None = None
        try:
            in_the_model(*args)
        except LasteventError as refused:
            expected = type(refused)
        [outcome] = await asyncio.gather(step, return_exceptions=True)
        assert expected == (type(outcome) if isinstance(outcome, BaseException) else None), outcome
        await self._compare()
        return None if expected else outcome

    async def _compare(self) -> None:
        events = [(event.id, event.kind) for event in await self.log.read_all(SID)]
        assert events == self.model.events
        assert all(a < b for (a, _), (b, _) in pairwise(events))
        endings = [n for n, (_, kind) in enumerate(events, 1) if kind in TERMINAL]
        assert endings in ([], [len(events)])
        page = await self.log.read_page(SID, self.model.tail)
        assert (page.state, page.tail) == (self.model.state, self.model.tail)
        assert bool(endings) == (page.state in TERMINAL)


WORKERS = st.integers(1, 3)
KINDS = st.lists(st.sampled_from(["text_delta", "status"]), max_size=3)
ENDINGS = st.sampled_from(sorted(TERMINAL))
BATCHES = KINDS.filter(bool) | st.tuples(KINDS, ENDINGS).map(lambda batch: [*batch[0], batch[1]])
STEPS = st.one_of(
    st.tuples(st.just("claim"), WORKERS, st.booleans()),
    st.tuples(st.just("append"), WORKERS, st.just(0), KINDS.filter(bool)),
    st.tuples(st.just("append"), WORKERS, st.integers(-2, 4), BATCHES),
    st.tuples(st.just("send"), WORKERS),
    st.tuples(st.just("renew"), WORKERS),
    st.tuples(st.just("expire")),
)
SEIZURES = st.tuples(st.just("seize"), st.sampled_from("abc"), ENDINGS, st.booleans())


async def _compare_with_the_model(steps: list[tuple[object, ...]]) -> None:
    redis = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
    both = Both(StreamLog(redis))
    await both.log.create(new_stream(SID))
    await grow_old(both.log, SID, by_s=-3600)  # however slow this machine is
    for name, *args in steps:
        await getattr(both, str(name))(*args)
    await redis.aclose()


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=25), st.lists(STEPS | SEIZURES, max_size=8))
def test_the_log_does_what_its_model_does(before: list[tuple[object, ...]], after: list[tuple[object, ...]]) -> None:
    asyncio.run(_compare_with_the_model([*before, *after]))
