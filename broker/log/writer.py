"""StreamWriter gives ids at once; GroupCommit carries what the writers of a process have gathered to the log.

States of an event: written (it has its id) → in flight → confirmed (Redis has it). A writer keeps all of them
from its pen's base on, in order: confirmed is a count, and a log that turns out shorter only lowers it.

One commit is in flight at a time. What is written meanwhile is gathered and goes out with the next, all streams
in one pipeline; nothing waits on a timer. Races and failure points:
- the reply is lost: the same batch goes again, and the script skips what is there
- Redis is away: the commit is tried again until it is back; writers wait in drain()
- Redis lost the tail: AppendGap says from where; events from there go again, under their old ids and times
- Redis lost the whole stream: it is restored under this pen first, then as above
- Redis loses the ending: writers that have ended are kept, and renewed, for another lease (`Heartbeat`)
- Redis is another server: somebody may be about to put back an ending; a new one waits until that is over (LogHealing)
- this process stood still for a lease: others may have taken its streams, and Redis may have lost that. It goes on
  where its pen still holds, under the very server that it claimed from; under another one it has no right to heal
- the pen was taken (takeover, cancel): the writer is lost for good; `on_lost` tells its owner at once
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from broker.errors import (
    AppendGap,
    LasteventError,
    LogHealing,
    StoreUnavailable,
    StreamLimit,
    StreamNotFound,
    WriterSuperseded,
)
from broker.log.event import TERMINAL, encode_data
from broker.log.steps import (
    Append,
    Appended,
    Claimed,
    Unsent,
)
from broker.log.stream_log import StreamLog

logger = logging.getLogger(__name__)

T = TypeVar("T")

UNCONFIRMED_EVENTS = 256
"""What a stream may always have under way: enough to fill a pipeline."""

UNCONFIRMED_BYTES = 64 * 2**20
"""What a process keeps of events that Redis has not taken yet (it is away, or full): minutes of hundreds of
generations. Beyond it drain() waits, and so slows the providers, which are read no further."""

BATCH_EVENTS = 256
"""Events of one stream in one commit: a stream that catches up after an outage must not hold up the others."""

RETRY_S = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Waits between commits that find no Redis; the last one repeats."""


PULSE_S = 0.5


class StreamWriter:
    """Writes one stream under one pen. `lost` is set once nothing written here can reach the log any more."""

    def __init__(self, commit: GroupCommit, claimed: Claimed) -> None:
        self.sid = claimed.sid
        self.pen = claimed.pen
        self.claimed = claimed
        self.vanished = False
        self.lost: LasteventError | None = None
        self.on_lost: Callable[[], object] | None = None
        self._commit = commit
        self._events: list[Unsent] = []
        self._confirmed = max(0, claimed.tail - claimed.pen.base + 1)
        self._events_in_stream = claimed.events
        self._bytes_in_stream = claimed.bytes
        self._progress = asyncio.Event()
        self._claimed_at_s = _now_s()
        self._ended_at_s: float | None = None
        self.closed = False
        if self._confirmed:
            # Only a claim repeated after its pen has written could find this; our claimers never repeat so late.
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

        Raises StreamLimit if the stream is full (its ending still fits), or why the pen was lost.
        """
        if self.lost:
            raise self.lost
        if self.closed:
            raise ValueError("the terminal event has been written; no event can follow it")
        encoded = encode_data(data)
        if kind in TERMINAL:
            self.closed = True
        else:
            self._require_room(len(encoded))
        self._events_in_stream += 1
        self._bytes_in_stream += len(encoded)
        self._commit.unconfirmed_bytes += len(encoded)
        self._events.append(Unsent(kind, encoded))
        self._commit.gather(self)
        return self.tail

    async def drain(self) -> None:
        """Backpressure: wait until the log is not too far behind. Raises why the pen was lost."""
        await self._until(lambda: self.unconfirmed <= UNCONFIRMED_EVENTS or self._commit.has_room)

    async def flush(self) -> None:
        """Wait until the log has everything written so far. Raises why the pen was lost."""
        await self._until(lambda: self.unconfirmed == 0)

    async def release(self) -> None:
        """Give up the pen: another worker may go on at once. Raises why it was lost already."""
        await self._commit.log.release(self.sid, self.pen)
        self.lose(WriterSuperseded("This writer has released the pen."))

    async def _until(self, enough: Callable[[], bool]) -> None:
        while not enough():
            if self.lost:
                raise self.lost
            self._progress.clear()
            await self._progress.wait()

    def _require_room(self, size: int) -> None:
        log = self._commit.log
        if self._is_over_limit(events=1, size=size):
            raise StreamLimit(f"A stream holds at most {log.max_events} events and {log.max_bytes} bytes.")

    def _is_over_limit(self, *, events: int = 0, size: int = 0) -> bool:
        log = self._commit.log
        return self._events_in_stream + events > log.max_events or self._bytes_in_stream + size > log.max_bytes

    # -- for GroupCommit and the heartbeat -------------------------------------------------------------

    def batch(self) -> Append:
        """What the log does not have yet, as far as one commit takes it. Empty: it only renews the lease."""
        first = self._confirmed
        pending = self._events[first : first + BATCH_EVENTS]
        # The ending of a full stream travels alone: then no limit can refuse it.
        if len(pending) > 1 and pending[-1].kind in TERMINAL and self._is_over_limit():
            pending.pop()
        return self.stamped(Append(self.sid, self.pen, self.pen.base + first, pending, attempt=self.claimed.attempt))

    def stamped(self, append: Append) -> Append:
        """With this writer's right to heal as it is now: the process may have stood still between two tries."""
        return append._replace(claimed_under="" if self.may_heal() else self.claimed.server)

    def has_kept_its_ending(self) -> bool:
        """Whether a renewal that is answered now came a lease after the ending was there: it will stay."""
        if self._ended_at_s is None or self.unconfirmed:
            return False
        return _now_s() - self._ended_at_s >= self._commit.log.lease_s

    def may_heal(self) -> bool:
        return not self._commit.pulse.stood_still_since(self._claimed_at_s)

    def settle(self, sent: Append, outcome: Appended | LasteventError) -> None:
        """Take in what became of a batch or a renewal."""
        if self.lost:
            return
        if isinstance(outcome, Appended):
            self._confirm(sent, outcome)
        elif isinstance(outcome, AppendGap):
            logger.warning("stream %s: the log lost its tail after %d; putting it back", self.sid, outcome.tail)
            self._confirm_to(outcome.tail)
        elif isinstance(outcome, LogHealing):
            self._commit.gather_later(self, outcome.retry_after_s)
            return
        elif isinstance(outcome, StreamNotFound) and self.may_heal():
            logger.warning("stream %s: it is gone; putting it back if Redis lost it", self.sid)
            self.vanished = True
            self._confirm_to(0)
            self._commit.gather(self)
        else:
            self.lose(outcome)
        if self.unconfirmed and not self.lost:
            self._commit.gather(self)
        self._progress.set()

    def lose(self, why: LasteventError) -> None:
        if self.lost:
            return  # a heartbeat and a commit may both learn it; the owner is told once
        self.lost = why
        self._commit.unconfirmed_bytes -= _size(self._events[self._confirmed :])
        self._progress.set()
        if self.on_lost:
            self.on_lost()

    def _confirm(self, sent: Append, outcome: Appended) -> None:
        # A healed event keeps its first time: remember what the log stamped these with. Of a batch that was there
        # already (the reply had been lost), that is what it was stamped with then.
        stamp = outcome.there_ms or outcome.now_ms
        start = sent.first - self.pen.base
        for at in range(start, start + len(sent.events)):
            if self._events[at].t is None:
                self._events[at] = self._events[at]._replace(t=stamp)
        # The log's word, also when it is less than was confirmed: then its tail was lost, and goes again.
        self._confirm_to(outcome.tail)
        if self.closed and self.unconfirmed == 0 and self._ended_at_s is None:
            self._ended_at_s = _now_s()

    def _confirm_to(self, tail: int) -> None:
        before, self._confirmed = self._confirmed, max(0, tail - self.pen.base + 1)
        low, high = sorted((before, self._confirmed))
        size = _size(self._events[low:high])
        self._commit.unconfirmed_bytes += -size if self._confirmed > before else size


def _size(events: list[Unsent]) -> int:
    return sum(len(event.data) for event in events)


def _now_s() -> float:
    """A clock that also runs while the machine is suspended, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Pulse:
    """Notices that this process has stood still for a lease: stopped by a signal, or its machine suspended.

    Whether Redis answered does not matter here: while it is away for everybody, nobody can take a stream.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._beat_s = self._stood_still_at_s = _now_s()

    async def run(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(PULSE_S)

    def stood_still_since(self, moment_s: float) -> bool:
        self._look()  # whoever asks may be the first to run again
        return self._stood_still_at_s > moment_s

    def _look(self) -> None:
        now_s = _now_s()
        if now_s - self._beat_s > self._lease_s:
            logger.warning("this process stood still for %.0f s; its leases may have run out", now_s - self._beat_s)
            self._stood_still_at_s = now_s
        self._beat_s = now_s


class GroupCommit:
    """One a process: a loop that carries every writer's events to the log, one pipeline at a time."""

    def __init__(self, log: StreamLog) -> None:
        self.log = log
        self.pulse = Pulse(log.lease_s)
        self.unconfirmed_bytes = 0
        self._dirty: dict[StreamWriter, None] = {}  # a set that keeps its order: first come, first served
        self._wake = asyncio.Event()

    @property
    def has_room(self) -> bool:
        return self.unconfirmed_bytes <= UNCONFIRMED_BYTES

    def gather(self, writer: StreamWriter) -> None:
        self._dirty[writer] = None
        self._wake.set()

    def gather_later(self, writer: StreamWriter, wait_s: float) -> None:
        asyncio.get_running_loop().call_later(wait_s, self.gather, writer)

    async def run(self) -> None:
        """Commit for ever. Ends only by cancellation."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            writers, self._dirty = list(self._dirty), {}
            try:
                await self._commit(writers)
            except BaseException:
                # Whoever runs this again must find them: a writer with nothing new to say would wait for ever.
                self._dirty = dict.fromkeys([*writers, *self._dirty])
                self._wake.set()
                raise

    async def _commit(self, writers: list[StreamWriter]) -> None:
        for writer in writers:
            if writer.vanished:
                await self._restore(writer)
        batches = [writer.batch() for writer in writers if not writer.lost]
        writers = [writer for writer in writers if not writer.lost]
        for writer, sent, outcome in zip(writers, batches, await self._append(writers, batches), strict=True):
            writer.settle(sent, outcome)

    async def _restore(self, writer: StreamWriter) -> None:
        try:
            await self._until_answered(lambda: self._restore_once(writer))
        except LasteventError as refused:
            writer.lose(refused)
        # Also when it was refused: a stream that vanishes once more finds a writer that may put it back once more.
        writer.vanished = False

    async def _restore_once(self, writer: StreamWriter) -> None:
        if not writer.may_heal():
            raise StreamNotFound("The stream is gone, and this process stood still: others may have held it since.")
        await self.log.restore(writer.claimed)
        logger.warning("stream %s: it is back, and its events follow", writer.sid)

    async def _append(self, writers: list[StreamWriter], batches: list[Append]) -> list[Appended | LasteventError]:
        # The very same batches each time: that is what makes a retry harmless.
        return await self._until_answered(
            lambda: self.log.append_many(
                [writer.stamped(batch) for writer, batch in zip(writers, batches, strict=True)]
            )
        )

    async def _until_answered(self, step: Callable[[], Awaitable[T]]) -> T:
        tries = 0
        while True:
            try:
                return await step()
            except StoreUnavailable:
                wait_s = RETRY_S[min(tries, len(RETRY_S) - 1)]
                if tries % 20 == len(RETRY_S):
                    logger.warning("Redis is away; %d bytes wait to be written", self.unconfirmed_bytes)
                tries += 1
                await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))
