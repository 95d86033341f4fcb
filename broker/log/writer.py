"""StreamWriter numbers events at once; GroupCommit carries the events of all writers of a process to the log.

States of an event: written (it has its id) → in flight → confirmed (Redis has it). A writer keeps all its events from
its pen's base on, in order. `confirmed` is a count: if the log turns out to be shorter, only the count falls. `times`:
the log's stamps of those that it has had, since an event that is put back keeps its first time.

An event goes one of two ways. The short one (scripts/extend.lua) costs Redis two fifths of the whole one (append.lua):
it changes nothing but the log, and asks for nothing but the pen and how many events the log has. A writer takes it for
events that need no more (`_may_extend`) whenever it knows that number, from the answer to its last commit. Sending uses
that knowledge up, whatever comes of it: only an OK gives it back. So what follows a claim, a refusal, an error, a lost
reply or anything that was put back goes the whole way, and so does all that a writer sends whose process has stood
still.
Meanwhile meta's `tail`, `events` and `bytes` are behind; the heartbeat brings them up. It has a short way of its own
(scripts/renew.lua), for writers that know the log.

One commit is in flight at a time. Events written meanwhile are gathered and leave with the next commit, all streams in
one batch, on the client's line (store/line.py). After a commit has begun, events that only carry a text on wait until
PACE_S is over. What begins or ends something does not wait. Races and failure points:
- the reply is lost: the same batch is sent again, the whole way, which skips the events that are there. Each sending,
  also that after NOSCRIPT or to a new server, carries the right to heal that its writers have by then
- Redis is away: the commit is tried again until Redis is back; writers wait in drain()
- Redis lost the tail: AppendGap says from where; the events after it are sent again, under their old ids and times
- Redis lost the whole stream: it is first restored under this pen, then as above
- Redis loses the ending: writers that have ended are kept, and renewed, for another lease (`Heartbeat`)
- Redis is another server: a process may be about to put back an ending, so a new ending waits (LogHealing)
- this process stood still for a lease: others may have taken its streams, and Redis may have lost that. The writer
  continues where its pen is still valid, on the very server that ran its claim; on another one it has no right to heal
- the pen was taken (takeover, cancel): the writer is lost for good; `on_lost` tells its owner at once
- the pen was taken while the provider was counting: the ending has the usage that was in meta by then (`note_usage`)
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from broker import gauges
from broker.errors import (
    REDIS_AWAY,
    AppendGap,
    LasteventError,
    LogHealing,
    StoreUnavailable,
    StreamLimit,
    StreamNotFound,
    WriterSuperseded,
)
from broker.log.event import (
    INTERNAL,
    RESTART,
    TERMINAL,
    TEXT_DELTA,
    THINKING_DELTA,
    TOOL_ARGS_DELTA,
    Event,
    encode_data,
)
from broker.log.pulse import Pulse, now_s
from broker.log.script import GoesWholeWay
from broker.log.steps import Append, Appended, Claimed, Extend, Renew, Unsent, Writing
from broker.log.stream_log import StreamLog
from broker.log.turn import TURN

logger = logging.getLogger(__name__)

T = TypeVar("T")

UNCONFIRMED_EVENTS = 256
"""Unconfirmed events that a stream may always have: enough to fill a commit."""

UNCONFIRMED_BYTES = 64 * 2**20
"""Event data that a process holds while Redis does not accept it (Redis is away, or full): minutes of hundreds of
generations. Above this limit drain() waits, so the providers are read no further."""

BATCH_EVENTS = 256
"""Events of one stream in one commit: a stream that catches up after an outage must not delay the others."""

PACE_S = 0.005
"""Commits of texts that go on begin so far apart: at a few hundred events a second, half as many commits. The reader of
a text does not see 5 ms, a sixth of the time between two deltas. The first commit after a pause is made at once."""

GOES_ON = frozenset(
    {TEXT_DELTA, THINKING_DELTA, TOOL_ARGS_DELTA, INTERNAL + THINKING_DELTA, INTERNAL + TOOL_ARGS_DELTA}
)
"""Kinds of which one carries the one before on, if it is of its kind."""

CHANGES_META = TERMINAL | {RESTART, TURN, INTERNAL + "tool_result"}
"""Kinds with which `append` also changes meta, beside the first text."""

RETRY_S = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Waits between commits while Redis is away; the last one repeats."""


class StreamWriter:
    """Writes one stream under one pen. `lost` is set once no event written here can reach the log any more.

    `on_lost`: called once, when `lost` is set. `vanished`: Redis lost the whole stream, and it must be restored first.
    """

    def __init__(self, commit: GroupCommit, claimed: Claimed) -> None:
        self.sid = claimed.sid
        self.pen = claimed.pen
        self.claimed = claimed
        self.vanished = False
        self.lost: LasteventError | None = None
        self.on_lost: Callable[[], object] | None = None
        self._commit = commit
        self._events: list[Unsent] = []
        self._times: list[int] = []
        self._confirmed = max(0, claimed.tail - claimed.pen.base + 1)
        self._events_in_stream = claimed.events
        self._bytes_in_stream = claimed.bytes
        self._confirmed_bytes: int | None = None  # of all events up to the last confirmed one, as the log counts them
        self._length: int | None = None  # of the log, if its last answer said so and nothing has been sent since
        self._stamp_ms = 0  # of the last event that the log is known to have
        self._has_first_text = claimed.meta.first_text is not None
        self._usage: Callable[[], bytes] | None = None
        self._has_log_a_usage = False
        self._progress = asyncio.Event()
        self._claimed_at_s = now_s()
        self._renewed_at_s = 0.0  # when the last answered renewal of its lease was sent
        self._ended_at_s: float | None = None
        self.closed = False
        if self._confirmed:
            # Only a claim that is repeated after its pen has written can lead here; our claimers never repeat so late.
            raise ValueError("this pen has already written; claim the stream again")

    @property
    def tail(self) -> int:
        """The id of the last event written, confirmed or not."""
        return self.pen.base + len(self._events) - 1

    @property
    def unconfirmed(self) -> int:
        return len(self._events) - self._confirmed

    def write(self, kind: str, data: dict[str, Any]) -> int:
        """Number an event and hand it to the next commit. Returns its id.

        Raises StreamLimit if the stream is full (its terminal event still fits), or the error that lost the pen.
        """
        if self.lost:
            raise self.lost
        if self.closed:
            raise ValueError("the terminal event has been written; no event can follow it")
        encoded = encode_data(data)
        size, log = len(encoded), self._commit.log
        if kind in TERMINAL:
            self.closed = True
        elif self._events_in_stream >= log.max_events or self._bytes_in_stream + size > log.max_bytes:
            raise StreamLimit(f"A stream holds at most {log.max_events} events and {log.max_bytes} bytes.")
        self._events_in_stream += 1
        self._bytes_in_stream += size
        self._commit.unconfirmed_bytes += size
        goes_on = kind in GOES_ON and bool(self._events) and self._events[-1].kind == kind
        self._events.append(Unsent(kind, encoded))
        self._commit.gather(self, may_wait=goes_on)
        return self.pen.base + len(self._events) - 1

    def note_usage(self, usage: Callable[[], bytes]) -> None:
        """Something has been counted, for an ending that somebody else writes. `usage()` is asked at each sending: the
        members that such an ending takes over (`Meta.usage`), JSON as `encode_data` gives it.

        The next events carry it if none has been there yet, so that a cancel amid the first text knows of it.
        Afterwards only the heartbeat does: providers count with every chunk.
        """
        self._usage = usage

    def written_since(self, event_id: int) -> list[Event]:
        """What was written here after this event. Its times are not known."""
        first = max(0, event_id - self.pen.base + 1)
        return [Event(self.pen.base + at, e.kind, e.data, 0) for at, e in enumerate(self._events[first:], first)]

    @property
    def is_behind(self) -> bool:
        """Whether who writes here must `drain` before it writes more."""
        return len(self._events) - self._confirmed > UNCONFIRMED_EVENTS and not self._commit.has_room

    async def drain(self) -> None:
        """Backpressure: wait until the log is not too far behind. Raises the error that lost the pen."""
        await self._until(lambda: not self.is_behind)

    async def flush(self) -> None:
        """Wait until the log has every event written so far. Raises the error that lost the pen."""
        await self._until(lambda: self.unconfirmed == 0)

    async def hold(self, since_s: float) -> None:
        """For what cannot be undone: the pen is still held now, which the log had from this writer at `since_s` (by
        `now_s`) or later.

        The answer of an append says who held the pen then. A process that is stopped with that answer on its way reads
        it when another may have taken over, and would act all the same. Nobody can have, before a lease is over since
        this writer last asked for one (events by the short way ask for none).
        """
        while now_s() - min(since_s, self._renewed_at_s) >= self._commit.log.lease_s:
            since_s = now_s()
            await self._commit.renew(self)
            await self.flush()  # what Redis had lost meanwhile

    async def release(self) -> None:
        """Release the pen: another worker may take over at once.

        Raises StreamNotFound, StreamClosed, WriterSuperseded or RedisUnavailable.
        """
        await self._commit.log.release(self.sid, self.pen)
        self.lose(WriterSuperseded("This writer has released the pen."))

    async def _until(self, enough: Callable[[], bool]) -> None:
        while not enough():
            if self.lost:
                raise self.lost
            self._progress.clear()
            await self._progress.wait()

    # -- for GroupCommit and the heartbeat -------------------------------------------------------------

    def batch(self) -> Append:
        """The next events that the log does not have, at most BATCH_EVENTS. Its way is chosen when it is sent."""
        first = self._confirmed
        pending = self._events[first : first + BATCH_EVENTS]
        # The terminal event of a full stream travels alone: then no limit can refuse it.
        if len(pending) > 1 and pending[-1].kind in TERMINAL and self._is_full():
            pending.pop()
        if first < len(self._times):
            for at, t in enumerate(self._times[first : first + len(pending)]):
                pending[at] = pending[at]._replace(t=t)
        # A writer that has ended its stream says in the ending what was counted.
        return self._append(pending, b"" if self._has_log_a_usage or self.closed or not self._usage else self._usage())

    def renewal(self) -> Append:
        """An append without events, which renews the lease and the usage. Events travel by the group commit alone.

        The usage goes each time, changed or not: Redis may have lost it without any event, and so unnoticed. A takeover
        that has counted nothing yet repeats what it found.
        """
        return self._append((), b"" if self._ended_at_s is not None else self._latest_usage)

    @property
    def _latest_usage(self) -> bytes:
        return self._usage() if self._usage else self.claimed.usage.encode()

    def _append(self, events: Sequence[Unsent], usage: bytes) -> Append:
        return Append(
            self.sid,
            self.pen,
            self.pen.base + self._confirmed,
            events,
            attempt=self.claimed.attempt,
            usage=usage,
            bytes_before=self._confirmed_bytes,
            not_before_ms=self._stamp_ms,
        )

    def _is_full(self) -> bool:
        log = self._commit.log
        return self._events_in_stream > log.max_events or self._bytes_in_stream > log.max_bytes

    def stamped(self, append: Append) -> Append:
        """The append with this writer's present right to heal and, if it carries any, its latest usage: between two
        tries the process may have stood still, and a heartbeat may have carried a later usage."""
        if append.usage:
            append = append._replace(usage=self._latest_usage)
        return append if self.may_heal() else append._replace(claimed_under=self.claimed.server)

    def by_its_way(self, batch: Append) -> Writing:
        """The batch as it is sent now: the short way if it may go there, else the whole way, `stamped`."""
        length, self._length = self._length, None
        now_ms = self._commit.log.clock.now_ms()
        if length is None or now_ms is None or not self._may_extend(batch) or not self.may_heal():
            return self.stamped(batch)
        t = max(now_ms, self._stamp_ms)
        return Extend(self.sid, self.pen.claim_id, length, t, batch.first, batch.events)

    def renewed(self, renewal: Append) -> Writing:
        """A renewal as it is sent now: the short way if this writer knows the log, else the whole way, `stamped`.

        It adds nothing to the log, so what is known of that stays known.
        """
        stamped = self.stamped(renewal)
        length, size = self._length, self._confirmed_bytes
        if length is None or size is None or self.closed or stamped.claimed_under:
            return stamped
        tail = self.pen.base + self._confirmed - 1
        return Renew(self.sid, self.pen.claim_id, stamped.lease_s, stamped.usage, length, tail, size)

    def _may_extend(self, batch: Append) -> bool:
        """Whether these are new events that change nothing but the log."""
        if not batch.events or batch.events[0].t is not None or batch.usage:  # those that are put back come first
            return False
        kinds = {event.kind for event in batch.events}
        return CHANGES_META.isdisjoint(kinds) and (self._has_first_text or TEXT_DELTA not in kinds)

    def has_kept_its_ending(self) -> bool:
        """Whether the ending has been in the log for a lease, so that it will stay. Asked after an answered renewal."""
        if self._ended_at_s is None or self.unconfirmed:
            return False
        return now_s() - self._ended_at_s >= self._commit.log.lease_s

    def may_heal(self) -> bool:
        """Whether this process has run without a break since its claim, so that it may put events back."""
        return not self._commit.pulse.stood_still_since(self._claimed_at_s)

    def settle(self, sent: Append, outcome: Appended | LasteventError) -> None:
        """Apply the outcome of a batch or a renewal."""
        if self.lost:
            return
        if isinstance(outcome, Appended):
            self._confirm(sent, outcome)
        elif isinstance(outcome, AppendGap):
            logger.warning("stream %s: the log lost its tail after %d; putting it back", self.sid, outcome.tail)
            self._confirm_to(outcome.tail)
            self._forget_the_log()
        elif isinstance(outcome, LogHealing):
            self._commit.gather_later(self, outcome.retry_after_s)
            return
        elif isinstance(outcome, GoesWholeWay):
            self._forget_the_log()
        elif isinstance(outcome, StreamNotFound) and self.may_heal():
            logger.warning("stream %s: it is gone; putting it back if Redis lost it", self.sid)
            self.vanished = True
            self._confirm_to(0)
            self._forget_the_log()
            self._commit.gather(self)
        else:
            if isinstance(outcome, WriterSuperseded):
                gauges.fenced_writes.inc()
            self.lose(outcome)
        if self.unconfirmed and not self.lost:
            is_in_time = isinstance(outcome, Appended) and len(sent.events) < BATCH_EVENTS
            self._commit.gather(self, may_wait=is_in_time and not self.closed)
        self._progress.set()

    def settle_renewal(self, sent: Append, outcome: Appended | LasteventError) -> None:
        """Take in what became of a renewal. A log that is shorter than confirmed lost its tail, which is sent again."""
        if isinstance(outcome, LasteventError):
            self.settle(sent, outcome)
            return
        self._note_renewal(outcome)
        if sent.first > sent.pen.base and outcome.tail < sent.first - 1:
            self.settle(sent, AppendGap(outcome.tail))

    def lose(self, why: LasteventError) -> None:
        if self.lost:
            return  # a heartbeat and a commit may both find out; the owner is notified once
        self.lost = why
        self._commit.unconfirmed_bytes -= _size(self._events[self._confirmed :])
        self._progress.set()
        if self.on_lost:
            self.on_lost()

    def _forget_the_log(self) -> None:
        """Redis may have lost anything of it: the next answer says what there is."""
        self._length, self._confirmed_bytes, self._has_first_text = None, None, False

    def _confirm(self, sent: Append, outcome: Appended) -> None:
        # If the batch was already there (its first reply was lost), its stamp is the one that it got then.
        stamp = outcome.there_ms or max(outcome.now_ms, sent.not_before_ms)
        self._stamp_ms = max(stamp, outcome.now_ms, sent.not_before_ms)
        self._note_renewal(outcome)
        self._has_first_text = self._has_first_text or any(event.kind == TEXT_DELTA for event in sent.events)
        new = sent.first - self.pen.base + len(sent.events) - len(self._times)
        self._times += [stamp] * new
        # The log's tail counts, also when it is below what was confirmed: then the log lost events, and they go again.
        self._confirm_to(outcome.tail)
        # Without an event of its own in the log, it would write its first ones by the short way.
        self._length = outcome.length if self._confirmed else None
        if outcome.bytes is not None:
            self._confirmed_bytes = outcome.bytes
        if sent.usage:
            self._has_log_a_usage = True
        if self.closed and self.unconfirmed == 0 and self._ended_at_s is None:
            self._ended_at_s = now_s()

    def _note_renewal(self, outcome: Appended) -> None:
        if outcome.renewed_at_s is not None:
            self._renewed_at_s = max(self._renewed_at_s, outcome.renewed_at_s)

    def _confirm_to(self, tail: int) -> None:
        before, self._confirmed = self._confirmed, max(0, tail - self.pen.base + 1)
        if self._confirmed == before + 1:  # as models speak
            added = len(self._events[before].data)
        elif self._confirmed >= before:
            added = _size(self._events[before : self._confirmed])
        else:
            gauges.healed_events.inc(before - self._confirmed)
            added = -_size(self._events[self._confirmed : before])
        if self._confirmed_bytes is not None:
            self._confirmed_bytes += added
        self._commit.unconfirmed_bytes -= added


def _size(events: list[Unsent]) -> int:
    return sum([len(event.data) for event in events])


class GroupCommit:
    """The one loop of a process that carries every writer's events to the log, one batch at a time."""

    def __init__(self, log: StreamLog) -> None:
        self.log = log
        self.pulse = Pulse(log.lease_s)
        self.unconfirmed_bytes = 0
        self._dirty: dict[StreamWriter, None] = {}  # a set that keeps its order: first come, first served
        self._wake = asyncio.Event()
        self._is_pausing = False
        self._pause: asyncio.TimerHandle | None = None

    @property
    def has_room(self) -> bool:
        return self.unconfirmed_bytes <= UNCONFIRMED_BYTES

    def gather(self, writer: StreamWriter, *, may_wait: bool = False) -> None:
        """This writer has events for the next commit. `may_wait`: for the pace."""
        self._dirty[writer] = None
        if not (may_wait and self._is_pausing):
            self._wake.set()

    def _begin_pause(self) -> None:
        if self._pause:
            self._pause.cancel()
        self._is_pausing = True
        self._pause = asyncio.get_running_loop().call_later(PACE_S, self._end_pause)

    def _end_pause(self) -> None:
        self._is_pausing = False
        if self._dirty:
            self._wake.set()

    def gather_later(self, writer: StreamWriter, wait_s: float) -> None:
        asyncio.get_running_loop().call_later(wait_s, self.gather, writer)

    async def run(self) -> None:
        """Commit for ever. Only cancellation ends this."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._begin_pause()
            writers, self._dirty = list(self._dirty), {}
            try:
                await self._commit(writers)
            except BaseException:
                # The next run must find these writers: one that writes nothing more would otherwise wait for ever.
                self._dirty = dict.fromkeys([*writers, *self._dirty])
                self._wake.set()
                raise

    async def _commit(self, writers: list[StreamWriter]) -> None:
        for writer in writers:
            if writer.vanished:
                await self._restore(writer)
        batches = [writer.batch() for writer in writers if not writer.lost]
        writers = [writer for writer in writers if not writer.lost]
        if not writers:
            return
        began_s = time.monotonic()
        outcomes = await self._append(writers, batches)
        gauges.append_seconds.observe(time.monotonic() - began_s)
        gauges.appended_events.inc(sum([len(batch.events) for batch in batches]))
        for writer, sent, outcome in zip(writers, batches, outcomes, strict=True):
            writer.settle(sent, outcome)

    async def renew(self, writer: StreamWriter) -> None:
        """Raises the error that lost the pen."""
        sent, outcome = writer.renewal(), None
        while outcome is None or isinstance(outcome, GoesWholeWay):
            [outcome] = await self._until_answered(lambda: self.log.append_many(lambda: [writer.renewed(sent)]))
            writer.settle_renewal(sent, outcome)
        if writer.lost:
            raise writer.lost

    async def _restore(self, writer: StreamWriter) -> None:
        try:
            await self._until_answered(lambda: self._restore_once(writer))
        except LasteventError as refused:
            writer.lose(refused)
        # Also when Redis refused it: if the stream vanishes again, its writer may put it back again.
        writer.vanished = False

    async def _restore_once(self, writer: StreamWriter) -> None:
        if not writer.may_heal():
            raise StreamNotFound("The stream is gone, and this process stood still: others may have held it since.")
        await self.log.restore(writer.claimed)
        logger.warning("stream %s: it is back, and its events follow", writer.sid)

    async def _append(self, writers: list[StreamWriter], batches: list[Append]) -> list[Appended | LasteventError]:
        # A retry sends the very same batches: that makes it harmless.
        def by_their_ways() -> list[Writing]:
            return [writer.by_its_way(batch) for writer, batch in zip(writers, batches, strict=True)]

        return await self._until_answered(lambda: self.log.append_many(by_their_ways))

    async def _until_answered(self, step: Callable[[], Awaitable[T]]) -> T:
        tries = 0
        while True:
            try:
                return await step()
            except StoreUnavailable:
                wait_s = RETRY_S[min(tries, len(RETRY_S) - 1)]
                if tries % 20 == len(RETRY_S):
                    waiting = self.unconfirmed_bytes
                    logger.warning("Redis is away; %d bytes wait to be written", waiting, extra=REDIS_AWAY)
                tries += 1
                await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))
