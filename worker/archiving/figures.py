"""How much waits, for the gauges: asked of Redis by the worker whose turn it is to archive.

They are forgotten when they are no longer known: another worker has the turn, or Redis is away. While the archive is
away, the workers have the turn one after the other, and each of them knows.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import NamedTuple

from broker import gauges
from broker.archive.writer import ArchiveWriter
from broker.log.stream_log import StreamLog

LOOK_S = 5.0
KNOWN_S = 15.0
"""So long after a look it is still believed."""

BATCH_STREAMS = 500


class _Seen(NamedTuple):
    at_s: float
    unarchived: int
    lag_s: float
    states: Counter[str]
    used_ratio: float | None


class Figures:
    def __init__(self, log: StreamLog, archive: ArchiveWriter, *, after_s: float) -> None:
        self._log = log
        self._redis = log.redis
        self._keys = log.keys
        self._after_ms = round(after_s * 1000)
        self._seen: _Seen | None = None
        gauges.unarchived.source = lambda: (seen := self._known()) and seen.unarchived
        gauges.archive_lag_seconds.source = lambda: (seen := self._known()) and seen.lag_s
        gauges.streams.source = lambda: (seen := self._known()) and seen.states
        gauges.store_used_ratio.source = lambda: (seen := self._known()) and seen.used_ratio
        gauges.head_behind.source = lambda: self._known() and len(archive.behind)

    async def look(self) -> None:
        """Raises RedisUnavailable."""
        now_ms = await self._log.now_ms()
        oldest = await self._redis.zrange(self._keys.unarchived, 0, 0, withscores=True)
        due_ms = [since_ms + self._after_ms for _, since_ms in oldest]
        memory = await self._redis.info("memory")
        most = memory.get("maxmemory")
        self._seen = _Seen(
            unarchived=int(await self._redis.zcard(self._keys.unarchived)),
            lag_s=max(0.0, *(now_ms - at_ms for at_ms in due_ms), 0.0) / 1000,
            states=await self._states(),
            used_ratio=memory["used_memory"] / most if most else None,
            at_s=time.monotonic(),
        )

    async def _states(self) -> Counter[str]:
        """Of the streams that have not ended. All of these are in one index, and none in it has for long."""
        states = Counter({"queued": 0, "running": 0})
        sids = [sid.decode() for sid in await self._redis.zrange(self._keys.leases, 0, -1)]
        for start in range(0, len(sids), BATCH_STREAMS):
            metas = await self._log.read_fields(["state"], *sids[start : start + BATCH_STREAMS])
            states.update(meta.state for meta in metas if meta and not meta.has_ended)
        return states

    def _known(self) -> _Seen | None:
        seen = self._seen
        return seen if seen and time.monotonic() - seen.at_s < KNOWN_S else None
