"""Erasures: those that were ordered, and those that the archive's retention asks for.

An order lies in Redis (le:erasing): the server has erased the stream there, and answers every reader as if the
archive had erased it too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from broker.archive.writer import ArchiveWriter, Erasure
from broker.errors import StreamNotFound, StreamRunning
from broker.log.event import OURSELVES
from broker.log.stream_log import StreamLog
from worker.archiving.streams import AGAIN_S, BATCH_STREAMS


class Erasures:
    """`retention_s(tenant)`: how long the archive keeps content; None for ever."""

    def __init__(self, log: StreamLog, archive: ArchiveWriter, *, retention_s: Callable[[str], float | None]) -> None:
        self._log = log
        self._redis = log.redis
        self._keys = log.keys
        self._archive = archive
        self._retention_s = retention_s

    async def carry_out(self) -> bool:
        """One batch of the orders in le:erasing. True if there may be more."""
        now_ms = await self._log.now_ms()
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
        # An order precedes its erasure: where the erasure never came, the server died, and its client got no answer.
        stale = [sid for sid, since_ms in orders if since_ms < now_ms - AGAIN_S * 1000]
        if done := {erasure.sid for erasure in erasures} | set(stale):
            await self._redis.zrem(self._keys.erasing, *done)
        return len(done) == BATCH_STREAMS

    async def expire(self) -> None:
        """Erase content older than its tenant's retention."""
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
        await self._log.hooks.forget(*sids)
        for sid, meta in zip(sids, await self._log.read_meta(*sids), strict=True):
            if meta and meta.erased is None:
                with suppress(StreamNotFound, StreamRunning):
                    await self._log.erase(sid, meta, now_ms, by=OURSELVES)
                    await self._log.start_retention(sid, now_ms)
