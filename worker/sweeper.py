"""Leases: the heartbeat that keeps this worker's streams, and the sweeper that finds streams without a living owner.

A lease lasts LEASE_S and any append moves it on; the heartbeat renews the silent ones every HEARTBEAT_S. A worker
that is stopped, cut off or dead renews nothing; when its lease has run out, any worker's sweeper takes over.
It needs no clock but Redis': the authority is `meta.lease_until`, read and judged inside the scripts.

A Redis that was away (stopped, full, cut off) comes back with leases that have run out though their owners live. So a
sweeper that could not reach it for a while spares everybody for two heartbeats first.

The index `le:leases` only says when to look: at a new stream at once, then at the time its meta names. So an entry
is never later than the lease it stands for, and neither clocks nor a lost update can hide a stream.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from broker.errors import (
    AppendGap,
    LasteventError,
    LeaseHeld,
    LogHealing,
    RedisUnavailable,
    StreamClosed,
    StreamNotFound,
)
from broker.log.event import ERROR, encode_data, is_terminal
from broker.log.meta import EXTERNAL
from broker.log.seizures import Seizures
from broker.log.stream_log import StreamLog
from broker.log.writer import StreamWriter
from broker.store.errors import translating_redis_errors as from_redis

logger = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
"""A third of a lease: two heartbeats may be lost before the lease is."""

RETRY_S = 0.3

SWEEP_S = 1.0
QUEUED_GRACE_S = 5.0
"""A stream still queued after this was lost by the queue (or waits for room): any worker with room takes it."""

OUTAGE_S = 3.0
"""A sweep follows the other within 1.3 s and some work. Later: Redis was away, or this process stood still."""

SPARE_S = 2 * HEARTBEAT_S

SWEEP_BATCH = 500
MAX_ATTEMPTS = 3

WORKER_LOST = {
    "code": "worker_lost",
    "message": "The worker that ran this generation stopped, and nobody goes on with it. Start it again.",
    "recoverable": True,
}
PRODUCER_LOST = {
    "code": "producer_lost",
    "message": "The producer of this stream has not been heard of; its lease has run out.",
    "recoverable": True,
}


class Heartbeat:
    """Renews the lease of every stream this process writes. A writer that lost its pen learns it here at the latest.

    A writer that has ended its stream is kept for another lease: if Redis loses the ending, it puts it back.
    """

    def __init__(self, log: StreamLog) -> None:
        self._log = log
        self._writers: dict[str, StreamWriter] = {}

    def keep(self, writer: StreamWriter) -> None:
        self._writers[writer.sid] = writer

    def forget(self, writer: StreamWriter) -> None:
        """Nobody writes it any more: its lease may run out."""
        if self._writers.get(writer.sid) is writer:
            del self._writers[writer.sid]

    async def run(self) -> None:
        wait_s = HEARTBEAT_S
        while True:
            await asyncio.sleep(wait_s)
            try:
                await self.renew()
            except RedisUnavailable:
                logger.warning("Redis is away; leases could not be renewed")
                wait_s = RETRY_S  # what ended may have to be put back before anybody else may write
            else:
                wait_s = HEARTBEAT_S

    async def listen(self) -> None:
        """Stop at once what was seized (a cancel), also while its provider is silent.

        Whoever published it has taken the pen; should Redis lose that, it puts it back. So the writer stops here and
        now, and does not ask first: a Redis that came back with less would tell it that its pen still held. What this
        subscription misses, the next heartbeat finds.
        """
        async with self._log.redis.pubsub() as seizures:
            await seizures.subscribe(self._log.keys.seized)
            while True:
                message = await seizures.get_message(ignore_subscribe_messages=True, timeout=HEARTBEAT_S)
                if message and (writer := self._writers.get(message["data"].decode())):
                    writer.lose(StreamClosed("The stream was ended by seizure."))
                    self.forget(writer)

    async def renew(self) -> None:
        writers = list(self._writers.values())
        # No events: these appends only renew. Events travel by the group commit alone, one batch at a time.
        renewals = [writer.batch()._replace(events=()) for writer in writers]
        for writer, sent, outcome in zip(writers, renewals, await self._log.append_many(renewals), strict=True):
            if isinstance(outcome, LasteventError):
                writer.settle(sent, outcome)
            elif sent.first > sent.pen.base and outcome.tail < sent.first - 1:
                # The log has less than it had confirmed: Redis lost its tail, and this writer puts it back.
                writer.settle(sent, AppendGap(outcome.tail))
            if writer.lost or writer.has_kept_its_ending():
                self.forget(writer)


class Overdue(NamedTuple):
    """What the sweeper reads of a stream to decide about it."""

    sid: str
    look_ms: int
    state: str | None
    created_ms: int
    lease_until_ms: int
    producer: str
    on_worker_loss: str
    attempt: int


class Sweeper:
    """Every worker has one. `room()` tells whether this worker can run one more; `take(sid)` claims and runs."""

    def __init__(
        self,
        log: StreamLog,
        seizures: Seizures,
        *,
        room: Callable[[], bool],
        take: Callable[[str], Awaitable[object]],
    ) -> None:
        self._log = log
        self._seizures = seizures
        self._room = room
        self._take = take

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        reached = spare_until = clock()
        while True:
            # Staggered, so that the workers' sweepers do not all find the same streams.
            await asyncio.sleep(SWEEP_S * random.uniform(0.7, 1.3))
            try:
                await self._log.servers.note()
                if clock() - reached > OUTAGE_S:
                    spare_until = clock() + SPARE_S
                reached = clock()
                if clock() >= spare_until:
                    await self.sweep()
            except RedisUnavailable:
                logger.warning("Redis is away; nothing was swept")

    async def sweep(self) -> None:
        """Look once at every stream whose time has come; each look moves its entry on, or removes it."""
        now_ms = await self._log.now_ms()
        full = True
        while full:
            overdue = await self._overdue(now_ms)
            full = len(overdue) == SWEEP_BATCH
            for stream in overdue:
                await self._look_at(stream, now_ms)

    async def _look_at(self, stream: Overdue, now_ms: int) -> None:
        try:
            await self._decide(stream, now_ms)
        except LeaseHeld as held:  # another sweeper, or the owner itself, was faster
            await self._look_again(stream, held.until_ms)
        except LogHealing as healing:
            await self._look_again(stream, now_ms + round(healing.retry_after_s * 1000))
        except (StreamClosed, StreamNotFound):
            await self._forget(stream, now_ms)
        except RedisUnavailable:
            raise
        except Exception:
            # One stream that nobody can make sense of must not keep those behind it in the index from being found.
            logger.exception("stream %s: it could not be swept", stream.sid)
            await self._look_again(stream, now_ms + round(QUEUED_GRACE_S * 1000))

    async def _decide(self, stream: Overdue, now_ms: int) -> None:
        queued_until_ms = stream.created_ms + round(QUEUED_GRACE_S * 1000)
        if stream.state is None:
            await self._forget_if_seen_before(stream, now_ms)
        elif is_terminal(stream.state):
            await self._forget(stream, now_ms)
        elif stream.state == "queued" and (now_ms < queued_until_ms or not self._room()):
            await self._look_again(stream, max(queued_until_ms, now_ms + round(QUEUED_GRACE_S * 1000)))
        elif stream.state == "running" and now_ms < stream.lease_until_ms:
            await self._look_again(stream, stream.lease_until_ms)
        elif stream.producer == EXTERNAL:
            await self._end(stream, PRODUCER_LOST, now_ms)
        elif stream.state == "running" and (stream.on_worker_loss == "fail" or stream.attempt >= MAX_ATTEMPTS):
            await self._end(stream, WORKER_LOST, now_ms)
        else:
            await self._take(stream.sid)
            await self._look_again(stream, now_ms + round(self._log.lease_s * 1000))

    async def _end(self, stream: Overdue, reason: dict[str, object], now_ms: int) -> None:
        seized = await self._seizures.seize(stream.sid, ERROR, encode_data(reason), only_expired=True)
        if not seized.already:
            # A producer that goes away is a client's affair; a worker that does is the operator's.
            level = logging.INFO if stream.producer == EXTERNAL else logging.WARNING
            logger.log(level, "stream %s: ended for its lost writer (%s)", stream.sid, reason["code"])
        await self._forget(stream, now_ms)

    async def _overdue(self, now_ms: int) -> list[Overdue]:
        redis, keys = self._log.redis, self._log.keys
        fields = ["state", "created", "lease_until", "producer", "on_worker_loss", "attempt"]
        with from_redis():
            due = await redis.zrangebyscore(keys.leases, "-inf", now_ms, start=0, num=SWEEP_BATCH, withscores=True)
            async with redis.pipeline(transaction=False) as pipe:
                for sid, _ in due:
                    pipe.hmget(keys.stream(sid.decode()).meta, fields)
                metas = await pipe.execute()
        return [_overdue(sid.decode(), look_ms, meta) for (sid, look_ms), meta in zip(due, metas, strict=True)]

    async def _look_again(self, stream: Overdue, at_ms: int) -> None:
        # XX: never bring back an entry that whoever ended the stream has just removed. And whoever ends it moves its
        # entry to the front, after its ending: if that was before this, the ending is seen now.
        leases = self._log.keys.leases
        with from_redis():
            async with self._log.redis.pipeline(transaction=False) as pipe:
                pipe.zadd(leases, {stream.sid: at_ms}, xx=True)
                pipe.hget(self._log.keys.stream(stream.sid).meta, "state")
                _, state = await pipe.execute()
            if state and is_terminal(state.decode()):
                await self._log.redis.zadd(leases, {stream.sid: 0}, xx=True)

    async def _forget(self, stream: Overdue, now_ms: int) -> None:
        redis, keys = self._log.redis, self._log.keys
        with from_redis():
            if self._log.is_archived and stream.state:  # first: one index or the other always names it
                await redis.zadd(keys.unarchived, {stream.sid: now_ms}, nx=True)
            await redis.zrem(keys.leases, stream.sid)

    async def _forget_if_seen_before(self, stream: Overdue, now_ms: int) -> None:
        # The index is written before the stream: on the first look (0) the stream may be about to exist. It may even
        # exist by now, so the next look comes when it would come to a new stream.
        if stream.look_ms == 0:
            await self._look_again(stream, now_ms + round(QUEUED_GRACE_S * 1000))
        else:
            await self._forget(stream, now_ms)


def _overdue(sid: str, look_ms: float, meta: list[bytes | None]) -> Overdue:
    state, created, lease_until, producer, on_worker_loss, attempt = (
        value.decode() if value else None for value in meta
    )
    return Overdue(
        sid,
        int(look_ms),
        state,
        int(created or 0),
        int(lease_until or 0),
        producer or "",
        on_worker_loss or "restart",
        int(attempt or 0),
    )
