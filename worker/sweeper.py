"""The sweeper finds streams without a living owner. Every worker has one, and any of them takes over what it finds.

A lease lasts LEASE_S. A worker that is stopped, cut off or dead does not renew it (heartbeat.py); once it has expired,
the stream is taken over or ended. No clock but Redis' is needed: the authority is `meta.lease_until`, read and judged
inside the scripts.

A Redis that was away (stopped, full, cut off) comes back with expired leases whose owners live. So a sweeper that could
not reach it for a while first gives every owner two heartbeats.

An agent's stream is taken only where its agent is. Elsewhere it is looked after until a worker of its app takes it
(waiting.py). The races between the two:
- Released by a worker that stops: that worker queues it for its app. For a grace it is left to the queue, or each stop
  of a worker would be announced twice.
- Its agent comes or goes between two looks: each look asks anew, and whoever is wrong by then finds a lease, or the
  queue. A worker whose app has just lost its last process looks after it like any other.
- Taken here, and the process is gone before the run begins: this worker holds the pen, and waits for the next process.
- A worker of an older release of the app, without this agent, finds it in the app's queue: it leaves it to the sweeper
  of one that has the agent (worker.py).

The index `le:leases` only says when to look: at a new stream at once, then at the time that its meta names. So an entry
is never later than the lease it stands for, and neither clocks nor a lost update can hide a stream.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from broker import gauges
from broker.errors import (
    REDIS_AWAY,
    AppendGap,
    LeaseHeld,
    LogHealing,
    RedisUnavailable,
    StreamClosed,
    StreamNotFound,
    WriterSuperseded,
)
from broker.log.burial import bury
from broker.log.event import ERROR, encode_data, is_terminal
from broker.log.meta import Meta
from broker.log.queue import lost
from broker.log.running import Line, Running
from broker.log.seizures import Seizures
from broker.log.stream_log import StreamLog
from worker.attempts import PRODUCER_LOST, WORKER_LOST, may_restart
from worker.heartbeat import HEARTBEAT_S
from worker.waiting import Waiting

logger = logging.getLogger(__name__)

SWEEP_S = 1.0
QUEUED_GRACE_S = 5.0
"""A stream still queued after this may have been lost by the queue: then any worker with room takes it. One that waits
for its turn is left to it: whoever took it here would take it before those of other tenants."""

LOOK_AT_WAITING_S = 30.0
"""Between two looks at a stream that waits where it should: ten thousand of them must not keep the sweepers busy."""

LOOK_AT_SHARED_S = 600.0
"""Between two looks at a shared stream, which may be open for years."""

CREATION_S = 60.0
"""How long one may be without a path: it gets that last, and a fork is copied before."""

OUTAGE_S = 3.0
"""Sweeps follow each other within 1.3 s and some work. A longer gap: Redis was away, or this process stood still."""

SPARE_S = 2 * HEARTBEAT_S
"""In this time every living owner renews its leases once, even if one heartbeat fails."""

SWEEP_BATCH = 100
"""Streams read in one pipeline. What this process does for its own streams waits for a batch, again and again."""

BREATH_S = 0.01
"""Between two batches. Ten thousand that wait take a second longer so, and hold up nothing."""

READ = [
    *("state", "created", "lease_until", "producer", "on_worker_loss", "attempt", "kept", "agent"),
    *("request_of", "erased", "tenant", "webhook"),
    *("path", "expires", "archived"),
]
"""Fields of meta: the whole one may be large."""


class Overdue(NamedTuple):
    """What the sweeper reads of a stream to decide about it. `meta`: of the fields in READ; None if there is none."""

    sid: str
    look_ms: int
    meta: Meta | None


class Sweeper:
    """Every worker has one. `room()` tells whether this worker can run one more; `take(sid, meta)` claims and runs;
    `runs(agent)` tells whether this worker's own app, which is called `app`, has this agent; `on_webhook()` tells that
    one can be delivered."""

    def __init__(
        self,
        log: StreamLog,
        seizures: Seizures,
        *,
        room: Callable[[], bool],
        take: Callable[[str, Meta], Awaitable[object]],
        runs: Callable[[str], bool],
        waiting: Waiting,
        app: str | None = None,
        on_webhook: Callable[[], object] | None = None,
    ) -> None:
        self._log = log
        self._seizures = seizures
        self._room = room
        self._take = take
        self._runs = runs
        self._waiting = waiting
        self._app = app
        self._on_webhook = on_webhook
        self._running = Running(log.redis, log.keys)

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
                logger.warning("Redis is away; nothing was swept", extra=REDIS_AWAY)

    async def sweep(self) -> None:
        """Look once at every stream whose time has come; each look moves its entry on, or removes it."""
        now_ms = await self._log.now_ms()
        full = True
        while full:
            overdue = await self._overdue(now_ms)
            full = len(overdue) == SWEEP_BATCH
            waiting = await self._those_that_wait(overdue, now_ms)
            await self._look_at_all_again(waiting)
            for stream in overdue:
                if stream.sid not in waiting:
                    await self._look_at(stream, now_ms)
            if full:
                await asyncio.sleep(BREATH_S)

    async def _those_that_wait(self, overdue: Sequence[Overdue], now_ms: int) -> dict[str, int]:
        """For their turn or a place, where this worker could run them: with a few commands, however many.

        Returns for each when to look again (ms).
        """
        waiting: dict[str, int] = {}
        perhaps_lost: defaultdict[Line, list[str]] = defaultdict(list)
        for sid, _, meta in overdue:
            with suppress(ValueError):  # unreadable: `_look_at` says so
                if meta and meta.state == "queued" and (meta.agent is None or self._runs(meta.agent)):
                    if now_ms < _queued_until_ms(meta):
                        waiting[sid] = _queued_until_ms(meta)
                    else:
                        perhaps_lost[Line(meta.tenant, None if meta.agent is None else self._app)].append(sid)
        for line, sids in perhaps_lost.items():
            gone = await lost(self._log.redis, self._log.keys, sids, line.app)
            gone -= await self._running.parked(line, sorted(gone))
            again_ms = now_ms + round(LOOK_AT_WAITING_S * 1000)
            waiting |= {sid: again_ms for sid in sids if sid not in gone}
        return waiting

    async def _look_at(self, stream: Overdue, now_ms: int) -> None:
        try:
            await self._decide(stream, now_ms)
        except LeaseHeld as held:  # another sweeper, or the owner itself, was faster
            await self._look_again(stream, held.until_ms)
        except (WriterSuperseded, AppendGap):  # this process stood still, or Redis has just lost something
            await self._look_again(stream, now_ms + round(QUEUED_GRACE_S * 1000))
        except LogHealing as healing:
            await self._look_again(stream, now_ms + round(healing.retry_after_s * 1000))
        except (StreamClosed, StreamNotFound):
            await self._forget(stream, now_ms)
        except RedisUnavailable:
            raise
        except Exception:
            # One unreadable stream must not keep those behind it in the index from being found.
            logger.exception("stream %s: it could not be swept", stream.sid)
            await self._look_again(stream, now_ms + round(QUEUED_GRACE_S * 1000))

    async def _decide(self, stream: Overdue, now_ms: int) -> None:
        meta = stream.meta
        if meta is None:
            await self._forget_if_seen_before(stream, now_ms)
            return
        if meta.path is not None and await self._ends_shared(stream, meta, now_ms):
            return
        lease_until_ms, is_running = meta.lease_until or 0, meta.state == "running"
        is_for_us = meta.agent is None or self._runs(meta.agent)
        if meta.has_ended:
            await self._forget(stream, now_ms)
        elif meta.state == "queued" and (now_ms < _queued_until_ms(meta) or (is_for_us and not self._room())):
            await self._look_again(stream, max(_queued_until_ms(meta), now_ms + round(QUEUED_GRACE_S * 1000)))
        elif is_running and now_ms < lease_until_ms:
            if meta.is_external:
                await self._running.keep_external(meta.tenant, stream.sid, lease_until_ms)
            await self._look_again(stream, lease_until_ms)
        elif meta.is_external:
            await self._end(stream, meta, PRODUCER_LOST, now_ms)
        elif is_running and not may_restart(meta.on_worker_loss, meta.attempt or 0, meta.kept or 0):
            await self._end(stream, meta, WORKER_LOST, now_ms)
        elif meta.agent is not None and not is_for_us:
            await self._look_after(stream, meta.agent, meta, now_ms)
        else:
            await self._take(stream.sid, meta)
            await self._look_again(stream, now_ms + round(self._log.lease_s * 1000))

    async def _ends_shared(self, stream: Overdue, meta: Meta, now_ms: int) -> bool:
        """A stream that nobody holds: its life is over, or no path names it. False: it has ended, and is as others."""
        if meta.erased is not None:
            await self._log.forget_path(stream.sid, meta)  # who erased it may have died before
            return False
        is_over = meta.expires is not None and meta.expires <= now_ms
        is_made = now_ms >= meta.created + round(CREATION_S * 1000)
        if is_over or (is_made and not await self._log.paths.names(meta.tenant, meta.path or "", stream.sid)):
            await bury(self._log, self._seizures, stream.sid, meta)
            await self._look_again(stream, now_ms)
            return True
        if meta.has_ended:
            await self._log.let_path_expire(meta)
            if meta.expires is None:
                return False
            if self._log.is_archived and meta.archived is None:  # as `_forget` does; and it is looked at once more
                await self._log.redis.zadd(self._log.keys.unarchived, {stream.sid: now_ms}, nx=True)
        again_ms = now_ms + round((LOOK_AT_SHARED_S if is_made else CREATION_S) * 1000)
        await self._look_again(stream, min(again_ms, meta.expires or again_ms))
        return True

    async def _look_after(self, stream: Overdue, agent: str, meta: Meta, now_ms: int) -> None:
        is_just_released = stream.look_ms == 0 and not meta.lease_until
        if is_just_released or await self._waiting.look_after(stream.sid, agent, meta, now_ms):
            await self._look_again(stream, now_ms + round(QUEUED_GRACE_S * 1000))
        else:
            await self._forget(stream, now_ms)

    async def _end(self, stream: Overdue, meta: Meta, reason: dict[str, object], now_ms: int) -> None:
        seized = await self._seizures.seize(stream.sid, ERROR, encode_data(reason), only_expired=True)
        if not seized.already:
            # A producer that goes away is a client's affair; a worker that does is the operator's.
            level = logging.INFO if reason is PRODUCER_LOST else logging.WARNING
            gauges.streams_ended.labels(gauges.tenant(meta.tenant), ERROR, str(reason["code"])).inc()
            logger.log(level, "stream %s: ended, because its writer is gone (%s)", stream.sid, reason["code"])
        await self._forget(stream, now_ms)

    async def _overdue(self, now_ms: int) -> list[Overdue]:
        redis, keys = self._log.redis, self._log.keys
        due = await redis.zrangebyscore(keys.leases, "-inf", now_ms, start=0, num=SWEEP_BATCH, withscores=True)
        metas = await self._log.read_fields(READ, *(sid.decode() for sid, _ in due))
        return [Overdue(sid.decode(), int(look_ms), meta) for (sid, look_ms), meta in zip(due, metas, strict=True)]

    async def _look_again(self, stream: Overdue, at_ms: int) -> None:
        await self._look_at_all_again({stream.sid: at_ms})

    async def _look_at_all_again(self, at_ms: Mapping[str, int]) -> None:
        # XX: never bring back an entry that was removed because the stream ended. An ending is written before its entry
        # moves to the front: if that move came before this one, the ending is visible now.
        if not at_ms:
            return
        leases = self._log.keys.leases
        async with self._log.redis.pipeline(transaction=False) as pipe:
            pipe.zadd(leases, at_ms, xx=True)
            for sid in at_ms:
                pipe.hget(self._log.keys.stream(sid).meta, "state")
            _, *states = await pipe.execute(raise_on_error=False)
        for sid, state in zip(at_ms, states, strict=True):
            if isinstance(state, bytes) and is_terminal(state.decode()):
                await self._log.redis.zadd(leases, {sid: 0}, xx=True)

    async def _forget(self, stream: Overdue, now_ms: int) -> None:
        redis, keys = self._log.redis, self._log.keys
        if stream.meta and stream.meta.erased is not None:
            await self._log.hooks.forget(stream.sid)  # who erased it may have died before
        elif stream.meta and stream.meta.webhook is not None and not await self._collect_webhook(stream, now_ms):
            await self._look_again(stream, now_ms)
            return
        if stream.meta and stream.meta.has_ended and (stream.meta.erased is not None or not self._log.is_archived):
            await self._log.requests.let_go(stream.sid, stream.meta)  # else the archiver does, when it has read it
        if self._log.is_archived and stream.meta:  # first: one index or the other always names it
            await redis.zadd(keys.unarchived, {stream.sid: now_ms}, nx=True)
        await redis.zrem(keys.leases, stream.sid)

    async def _collect_webhook(self, stream: Overdue, now_ms: int) -> bool:
        """False: the stream is to be looked at again."""
        [meta] = await self._log.read_meta(stream.sid)
        if meta is None or meta.erased is not None:
            return True
        if not meta.has_ended or not await self._log.hooks.collect(stream.sid, meta, now_ms):
            return False
        if self._on_webhook:
            self._on_webhook()
        return True

    async def _forget_if_seen_before(self, stream: Overdue, now_ms: int) -> None:
        # The index is written before the stream: on the first look (0) the stream may be about to exist. It may even
        # exist by now, so the next look comes when it would come to a new stream.
        if stream.look_ms == 0:
            await self._look_again(stream, now_ms + round(QUEUED_GRACE_S * 1000))
        else:
            await self._forget(stream, now_ms)


def _queued_until_ms(meta: Meta) -> int:
    return meta.created + round(QUEUED_GRACE_S * 1000)
