"""Streams that have ended: out of Redis into the archive.

A stream's way, and what a crash after each step leaves:
  the sweeper puts it into le:unarchived, before it leaves le:leases       always in one index or the other
  read its log (settled: older than `archive_after_s`)                     nothing has changed
  archive.add: row and seal in one transaction                             the next run finds it there, and continues
  the head of the chain, outside of the database                           behind; moved on by the next run
  log.start_retention: from here on its keys have a life                   found there again; repeated
  out of its tenant's list (its session's keeps it), out of le:unarchived      repeated

`archive_after_s` is for Redis: what it may still lose of a log (its last second), a writer puts back within a lease;
what the archive holds stays for ever. A log that changes in Redis all the same is not archived twice: the archive
keeps the one that was sealed, and the difference is logged as an error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from broker import traces
from broker.archive.writer import ArchiveWriter, Finished, finished
from broker.errors import ArchiveUnavailable, LeaseHeld, RedisUnavailable, StreamNotFound, WrongType
from broker.log.event import is_terminal
from broker.log.stream_log import StreamLog

logger = logging.getLogger(__name__)

BATCH_STREAMS = 50
BATCH_BYTES = 8 * 2**20
"""The most in one transaction: its rows are in memory, and other writers wait for it."""

AGAIN_S = 30.0
"""When to look again at a stream that cannot be archived now, and at viewers that are still there."""

SCAN_KEYS = 500
"""Keys in one step of a scan, during which Redis serves no other client."""


class EndedStreams:
    def __init__(self, log: StreamLog, archive: ArchiveWriter, *, after_s: float) -> None:
        self._log = log
        self._redis = log.redis
        self._keys = log.keys
        self._archive = archive
        self._after_ms = round(after_s * 1000)

    async def take(self) -> bool:
        """Archive one batch of the streams that are due. True if there may be more."""
        now_ms = await self._log.now_ms()
        due = await self._redis.zrangebyscore(
            self._keys.unarchived, "-inf", now_ms - self._after_ms, start=0, num=BATCH_STREAMS
        )
        streams, size = [], 0
        for sid in map(bytes.decode, due):
            try:
                stream = await self._read(sid, now_ms)
            except RedisUnavailable:
                raise
            except Exception as error:  # one must not keep the others out
                if isinstance(error, WrongType):
                    logger.warning("stream %s: it stays in Redis. %s", sid, error)
                else:
                    logger.exception("stream %s: it could not be archived; it stays in Redis", sid)
                await self._look_again(sid, now_ms)
                continue
            if stream:
                streams.append(stream)
                size += len(stream.row["log"]) + len(stream.row["record"])
            if size > BATCH_BYTES:
                break
        for stream in await self._add(streams, now_ms):
            await self._drop_from_redis(stream, now_ms)
        return len(due) == BATCH_STREAMS

    async def _add(self, streams: Sequence[Finished], now_ms: int) -> Sequence[Finished]:
        """Archive these together; if that fails, each by itself: one must not keep the others out."""
        try:
            if streams:
                with traces.archiving({stream.sid: stream.traceparent for stream in streams}):
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
        """The stream, ready to be archived. None if it cannot be: its entry is removed, or moved on."""
        [meta] = await self._log.read_meta(sid)
        if meta is None or meta.erased is not None:  # gone, or in le:erasing
            await self._forget(sid)
            return None
        if not meta.has_ended:  # Redis lost its ending; it is in le:leases again
            await self._look_again(sid, now_ms)
            return None
        meta = await self._log.requests.of(meta)
        events = await self._log.read_all(sid)
        if not events or not events[-1].is_terminal or events[-1].id != meta.tail:
            logger.error("stream %s: its log does not end where its meta says; it stays in Redis", sid)
            await self._look_again(sid, now_ms)
            return None
        return await asyncio.to_thread(finished, sid, meta, events)

    async def _drop_from_redis(self, stream: Finished, now_ms: int) -> None:
        try:
            with suppress(StreamNotFound):
                await self._log.start_retention(stream.sid, now_ms)
        except LeaseHeld:  # Redis has lost its ending since; a writer puts it back
            await self._look_again(stream.sid, now_ms)
            return
        await self._log.index.leave_to_archive(stream.sid, stream.tenant)
        await self._forget(stream.sid)

    async def _forget(self, sid: str) -> None:
        await self._redis.zrem(self._keys.unarchived, sid)

    async def _look_again(self, sid: str, now_ms: int) -> None:
        await self._redis.zadd(self._keys.unarchived, {sid: now_ms + round(AGAIN_S * 1000)}, xx=True)

    async def sweep(self) -> None:
        """Find what no index names: streams that ended while no archive was set up."""
        found = 0
        async for key in self._redis.scan_iter(match=self._keys.stream("*").meta, count=SCAN_KEYS):
            with suppress(WrongType):  # who reads that stream says so
                found += await self._catch(key.decode())
        if found:
            logger.warning("%d ended streams were not listed for the archive; now they are", found)

    async def _catch(self, key: str) -> bool:
        state, archived, erased, finished_ms, request_of = await self._redis.hmget(  # type: ignore[misc]  # sync or async
            key, ["state", "archived", "erased", "finished", "request_of"]
        )
        if not state or not is_terminal(state.decode()):
            return False
        sid = key.rpartition("{")[2].rpartition("}")[0]
        if erased:
            is_done = archived and await self._redis.ttl(key) != -1  # a life is the last that an erasure gives
            return not is_done and bool(await self._redis.zadd(self._keys.erasing, {sid: int(erased)}, nx=True))
        if archived:
            return False
        if await self._redis.zscore(self._keys.leases, sid) is not None:  # the sweeper is about to list it
            return False
        is_missed = await self._redis.zadd(self._keys.unarchived, {sid: int(finished_ms)}, nx=True)
        if request_of:
            await self._log.requests.hold(request_of.decode(), sid)
        await self._redis.persist(key)
        await self._redis.persist(self._keys.stream(sid).log)
        return bool(is_missed)
