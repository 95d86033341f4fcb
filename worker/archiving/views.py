"""The access record of viewers that have left: out of Redis into the archive."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from broker.archive.writer import ArchiveWriter, ViewRecord
from broker.log.access import LOST_AFTER_MS, read_views
from broker.log.stream_log import StreamLog
from worker.archiving.streams import AGAIN_S, BATCH_STREAMS

logger = logging.getLogger(__name__)

BATCH_VIEWS = 500
"""The most in one transaction: other writers wait for it."""

VIEWS_SETTLE_MS = 2000
"""Redis may still lose its last second: younger records are left to settle."""

_UNLIST_IF_UNCHANGED = """
if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then
  return redis.call('ZREM', KEYS[1], ARGV[1])
end
return 0
"""


class Views:
    def __init__(self, log: StreamLog, archive: ArchiveWriter) -> None:
        self._log = log
        self._redis = log.redis
        self._keys = log.keys
        self._archive = archive

    async def take(self) -> bool:
        """Archive one batch of the records of viewers that have left. True if there may be more."""
        now_ms = await self._log.now_ms()
        await self._note_dead_servers(now_ms)
        due = await self._redis.zrangebyscore(
            self._keys.views, "-inf", now_ms - VIEWS_SETTLE_MS, start=0, num=BATCH_STREAMS, withscores=True
        )
        closed: list[ViewRecord] = []
        for sid in [sid.decode() for sid, _ in due]:
            records = await read_views(self._redis, self._keys, sid, now_ms, lost_after_ms=LOST_AFTER_MS)
            closed += [_view(sid, record) for record in records if "how" in record]
        for start in range(0, len(closed), BATCH_VIEWS):
            await self._add(closed[start : start + BATCH_VIEWS], now_ms)
        for sid, score in due:
            await self._move_on(sid.decode(), score, now_ms)
        return len(due) == BATCH_STREAMS

    async def _add(self, views: Sequence[ViewRecord], now_ms: int) -> None:
        await self._archive.add_views(views, now_ms)
        async with self._redis.pipeline(transaction=False) as pipe:
            for view in views:
                pipe.hdel(self._keys.views_of(view.sid), view.id)
            await pipe.execute()

    async def _move_on(self, sid: str, score: float, now_ms: int) -> None:
        """Out of the index, unless a viewer is still connected or has just come."""
        if await self._redis.exists(self._keys.views_of(sid)):
            again_ms = now_ms + round(AGAIN_S * 1000)
            await self._redis.zadd(self._keys.views, {sid: again_ms}, xx=True)
        else:
            await self._redis.eval(_UNLIST_IF_UNCHANGED, 1, self._keys.views, sid, f"{score:.0f}")  # type: ignore[misc]

    async def _note_dead_servers(self, now_ms: int) -> None:
        dead = await self._redis.zrangebyscore(self._keys.tiers, "-inf", now_ms - LOST_AFTER_MS)
        for server in dead:
            if await self._redis.zrem(self._keys.tiers, server):
                logger.warning(
                    "server %s ended without closing its viewers' records: they are closed for it, and those it had "
                    "not written yet, at most its last second's, are lost",
                    server.decode(),
                )


def _view(sid: str, record: dict[str, Any]) -> ViewRecord:
    tenant = record.pop("tenant")
    return ViewRecord(record.pop("id"), tenant, sid, record)
