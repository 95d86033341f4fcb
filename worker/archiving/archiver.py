"""The archiver: takes what has ended out of Redis into the archive. Every worker has one; one at a time is at work.

A finished stream's way, and what a crash after each step leaves:
  the sweeper puts it into le:unarchived, before it leaves le:leases      in one index or the other, always
  read its log (settled: older than `archive_after_s`)                    nothing has changed
  archive.add: row and seal in one transaction                            the next run finds it there, and goes on
  the head of the chain, outside of the database                          behind; moved on by the next run
  log.start_retention: from here on its keys have a life                           found there again; repeated
  out of the listings, out of le:unarchived                               repeated

`archive_after_s` is for Redis: what it may still lose of a log (its last second), a writer puts back within a lease;
what the archive holds stays for ever. A log that Redis has changed all the same is not archived twice: the archive's
is the one that was sealed, and the difference is an error in the worker's log.

Erasures come first, by le:erasing: the server has erased in Redis, and says so to everybody until the archive has too.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis

from broker.archive.writer import ArchiveWriter, Erasure, Finished, ViewRecord, finished
from broker.errors import (
    ArchiveUnavailable,
    LeaseHeld,
    RedisUnavailable,
    StreamNotFound,
    StreamRunning,
)
from broker.log.access import LOST_AFTER_MS, read_views
from broker.log.event import is_terminal
from broker.log.stream_log import StreamLog
from broker.store.errors import translating_redis_errors as from_redis

logger = logging.getLogger(__name__)

ARCHIVE_S = 1.0
BATCH_STREAMS = 50
BATCH_VIEWS = 500
BATCH_BYTES = 8 * 2**20
"""What a transaction takes: its rows are in memory, and others wait for it."""

AGAIN_S = 30.0
"""When to look again at a stream that cannot be archived now, and at viewers that are still there."""

TURN_MS = 10_000
"""A worker that has not come back for so long has lost its turn."""

VIEWS_SETTLE_MS = 2000
RETENTION_S = 60.0
SWEEP_S = 3600.0
SCAN_KEYS = 500

_UNLIST_IF_UNCHANGED = """
if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then
  return redis.call('ZREM', KEYS[1], ARGV[1])
end
return 0
"""


class Archiver:
    """`retention_s(tenant)`: how long the archive keeps content; None for ever."""

    def __init__(
        self,
        log: StreamLog,
        archive: ArchiveWriter,
        *,
        after_s: float,
        retention_s: Callable[[str], float | None],
    ) -> None:
        self._log = log
        self._redis: Redis = log.redis
        self._keys = log.keys
        self._archive = archive
        self._after_ms = round(after_s * 1000)
        self._retention_s = retention_s
        self._name = secrets.token_hex(8)
        self._is_mine = False

    async def run(self) -> None:
        """Archive for ever. Ends only by cancellation."""
        try:
            await self._run()
        finally:
            with suppress(RedisUnavailable):
                await self._pass_turn_on()

    async def _run(self) -> None:
        chores = _Chores({self.sweep: SWEEP_S, self._archive.settle_heads: RETENTION_S, self.expire: RETENTION_S})
        while True:
            is_busy = False
            try:
                if await self._has_turn():
                    await chores.do_what_is_due()
                    is_busy = await self.archive_once()
            except ArchiveUnavailable as away:
                logger.warning("the archive is away (%s); Redis keeps what has ended", _cause(away))
                await self._pass_turn_on()
            await asyncio.sleep(0 if is_busy else ARCHIVE_S)

    async def archive_once(self) -> bool:
        """Take one batch of everything. True if there may be more."""
        more = [await self._erase(), await self._take_streams(), await self._take_views()]
        return any(more)

    async def _has_turn(self) -> bool:
        """One of the workers is enough. Nothing depends on there being one only: it saves the others the work."""
        with from_redis():
            holder = await self._redis.set(self._keys.archiver, self._name, nx=True, px=TURN_MS, get=True)
            self._is_mine = holder is None or holder.decode() == self._name
            if self._is_mine:
                await self._redis.pexpire(self._keys.archiver, TURN_MS)
        return self._is_mine

    async def _pass_turn_on(self) -> None:
        """This worker ends, or its way to the archive is broken: others look before it does again."""
        if self._is_mine:
            self._is_mine = False
            with from_redis():
                await self._redis.delete(self._keys.archiver)

    # -- streams ---------------------------------------------------------------------------------------------

    async def _take_streams(self) -> bool:
        now_ms = await self._log.now_ms()
        with from_redis():
            due = await self._redis.zrangebyscore(
                self._keys.unarchived, "-inf", now_ms - self._after_ms, start=0, num=BATCH_STREAMS
            )
        streams, size = [], 0
        for sid in map(bytes.decode, due):
            if stream := await self._read(sid, now_ms):
                streams.append(stream)
                size += len(stream.row["log"]) + len(stream.row["record"])
            if size > BATCH_BYTES:
                break
        for stream in await self._add(streams, now_ms):
            await self._let_go(stream, now_ms)
        return len(due) == BATCH_STREAMS

    async def _add(self, streams: Sequence[Finished], now_ms: int) -> Sequence[Finished]:
        """Archive these together; if that cannot be, each by itself: one must not keep the others out."""
        try:
            if streams:
                await self._archive.add(streams, now_ms)
        except (ArchiveUnavailable, RedisUnavailable):
            raise
        except Exception:
            if len(streams) > 1:
                return [added for stream in streams for added in await self._add([stream], now_ms)]
            logger.exception("stream %s: it could not be archived; it stays in Redis", streams[0].sid)
            await self._look_again(streams[0].sid, now_ms)
            return []
        return streams

    async def _read(self, sid: str, now_ms: int) -> Finished | None:
        """The stream, ready to be archived. None if it is not to be: its entry is removed, or moved on."""
        [meta] = await self._log.read_meta(sid)
        if meta is None or meta.erased is not None:  # gone, or in le:erasing
            await self._forget(sid)
            return None
        if not meta.has_ended:  # Redis lost its ending; it is in le:leases again
            await self._look_again(sid, now_ms)
            return None
        events = await self._log.read_all(sid)
        if not events or not events[-1].is_terminal or events[-1].id != meta.tail:
            logger.error("stream %s: its log does not end as its meta says; it stays in Redis", sid)
            await self._look_again(sid, now_ms)
            return None
        try:
            return await asyncio.to_thread(finished, sid, meta, events)
        except Exception:
            logger.exception("stream %s: it could not be archived; it stays in Redis", sid)
            await self._look_again(sid, now_ms)
            return None

    async def _let_go(self, stream: Finished, now_ms: int) -> None:
        try:
            with suppress(StreamNotFound):
                await self._log.start_retention(stream.sid, now_ms)
        except LeaseHeld:  # Redis has lost its ending since, which is put back
            await self._look_again(stream.sid, now_ms)
            return
        await self._log.index.remove(stream.sid, stream.tenant, stream.row["session"])
        await self._forget(stream.sid)

    async def _forget(self, sid: str) -> None:
        with from_redis():
            await self._redis.zrem(self._keys.unarchived, sid)

    async def _look_again(self, sid: str, now_ms: int) -> None:
        with from_redis():
            await self._redis.zadd(self._keys.unarchived, {sid: now_ms + round(AGAIN_S * 1000)}, xx=True)

    async def sweep(self) -> None:
        """Find what no index names: streams that ended while no archive was set up."""
        found = 0
        with from_redis():
            async for key in self._redis.scan_iter(match=self._keys.stream("*").meta, count=SCAN_KEYS):
                found += await self._catch(key.decode())
        if found:
            logger.warning("%d streams had ended without being on their way into the archive; now they are", found)

    async def _catch(self, key: str) -> bool:
        state, archived, erased, finished_ms = await self._redis.hmget(  # type: ignore[misc]  # sync or async
            key, ["state", "archived", "erased", "finished"]
        )
        if not state or not is_terminal(state.decode()):
            return False
        sid = key.rpartition("{")[2].rpartition("}")[0]
        if erased:
            is_done = archived and await self._redis.ttl(key) != -1  # a life is the last that an erasure gives
            return not is_done and bool(await self._redis.zadd(self._keys.erasing, {sid: int(erased)}, nx=True))
        if archived:
            return False
        if await self._redis.zscore(self._keys.leases, sid) is not None:  # the sweeper is about to
            return False
        is_missed = await self._redis.zadd(self._keys.unarchived, {sid: int(finished_ms)}, nx=True)
        await self._redis.persist(key)
        await self._redis.persist(self._keys.stream(sid).log)
        return bool(is_missed)

    # -- erasures --------------------------------------------------------------------------------------------

    async def _erase(self) -> bool:
        now_ms = await self._log.now_ms()
        with from_redis():
            orders = await self._redis.zrange(self._keys.erasing, 0, BATCH_STREAMS - 1, withscores=True)
        sids = [sid.decode() for sid, _ in orders]
        metas = await self._log.read_meta(*sids)
        pairs = zip(sids, metas, strict=True)
        erasures = [Erasure(sid, meta) for sid, meta in pairs if meta and meta.erased is not None]
        if erasures:
            await self._archive.erase(erasures, now_ms)
        for erasure in erasures:
            with suppress(StreamNotFound):
                await self._log.start_retention(erasure.sid, now_ms)
        # An order is given before the erasure: where that never came, its server has died, and its client knows.
        stale = [sid for sid, since_ms in orders if since_ms < now_ms - AGAIN_S * 1000]
        if done := {erasure.sid for erasure in erasures} | set(stale):
            with from_redis():
                await self._redis.zrem(self._keys.erasing, *done)
        return len(done) == BATCH_STREAMS

    async def expire(self) -> None:
        """Erase what the archive has kept for as long as it is to be."""
        now_ms = await self._log.now_ms()
        for tenant in await self._archive.tenants():
            if (kept_s := self._retention_s(tenant)) is not None:
                before_ms = now_ms - round(kept_s * 1000)
                is_full = True
                while is_full:
                    sids = await self._archive.expire(tenant, before_ms, now_ms, BATCH_STREAMS)
                    await self._expire_in_redis(sids, now_ms)
                    is_full = len(sids) == BATCH_STREAMS

    async def _expire_in_redis(self, sids: Sequence[str], now_ms: int) -> None:
        """Redis' own retention may be the longer one."""
        for sid, meta in zip(sids, await self._log.read_meta(*sids), strict=True):
            if meta and meta.erased is None:
                with suppress(StreamNotFound, StreamRunning):
                    await self._log.erase(sid, meta, now_ms)
                    await self._log.start_retention(sid, now_ms)

    # -- viewers ---------------------------------------------------------------------------------------------

    async def _take_views(self) -> bool:
        now_ms = await self._log.now_ms()
        await self._note_dead_servers(now_ms)
        with from_redis():
            due = await self._redis.zrangebyscore(
                self._keys.views, "-inf", now_ms - VIEWS_SETTLE_MS, start=0, num=BATCH_STREAMS, withscores=True
            )
        closed: list[ViewRecord] = []
        for sid in [sid.decode() for sid, _ in due]:
            records = await read_views(self._redis, self._keys, sid, now_ms, lost_after_ms=LOST_AFTER_MS)
            closed += [_view(sid, record) for record in records if "how" in record]
        for start in range(0, len(closed), BATCH_VIEWS):
            await self._take(closed[start : start + BATCH_VIEWS], now_ms)
        for sid, score in due:
            await self._move_on(sid.decode(), score, now_ms)
        return len(due) == BATCH_STREAMS

    async def _take(self, views: Sequence[ViewRecord], now_ms: int) -> None:
        await self._archive.add_views(views, now_ms)
        with from_redis():
            async with self._redis.pipeline(transaction=False) as pipe:
                for view in views:
                    pipe.hdel(self._keys.views_of(view.sid), view.id)
                await pipe.execute()

    async def _move_on(self, sid: str, score: float, now_ms: int) -> None:
        """Out of the index, unless somebody is still there or has just come."""
        with from_redis():
            if await self._redis.exists(self._keys.views_of(sid)):
                again_ms = now_ms + round(AGAIN_S * 1000)
                await self._redis.zadd(self._keys.views, {sid: again_ms}, xx=True)
            else:
                await self._redis.eval(_UNLIST_IF_UNCHANGED, 1, self._keys.views, sid, f"{score:.0f}")  # type: ignore[misc]

    async def _note_dead_servers(self, now_ms: int) -> None:
        with from_redis():
            dead = await self._redis.zrangebyscore(self._keys.tiers, "-inf", now_ms - LOST_AFTER_MS)
            for server in dead:
                if await self._redis.zrem(self._keys.tiers, server):
                    logger.warning(
                        "server %s ended without a word: its viewers' records are closed for it, and what it had not "
                        "written yet, at most its last second's, is lost",
                        server.decode(),
                    )


class _Chores:
    """What is done now and then: at the start, and again when its time has come."""

    def __init__(self, every_s: dict[Callable[[], Awaitable[object]], float]) -> None:
        self._every_s = every_s
        self._due_s = dict.fromkeys(every_s, 0.0)

    async def do_what_is_due(self) -> None:
        for chore, every_s in self._every_s.items():
            if time.monotonic() >= self._due_s[chore]:
                await chore()
                self._due_s[chore] = time.monotonic() + every_s


def _view(sid: str, record: dict[str, Any]) -> ViewRecord:
    tenant = record.pop("tenant")
    return ViewRecord(record.pop("id"), tenant, sid, record)


def _cause(error: BaseException) -> str:
    return type(error.__cause__).__name__
