"""Deeds: out of Redis into the archive. One that is in both for a moment is the same one, by its id."""

from __future__ import annotations

from broker.archive.writer import ArchiveWriter
from broker.log.deeds import BATCH, Deeds
from broker.log.stream_log import StreamLog

DEEDS_SETTLE_MS = 2000
"""Redis may still lose its last second: younger ones are left to settle."""


class MovedDeeds:
    def __init__(self, log: StreamLog, archive: ArchiveWriter) -> None:
        self._log = log
        self._archive = archive
        self._deeds = Deeds(log.redis, log.keys, retention_s=log.retention_s, is_archived=True)

    async def take(self) -> bool:
        """Archive one batch. True if there may be more."""
        now_ms = await self._log.now_ms()
        found = await self._deeds.oldest(now_ms - DEEDS_SETTLE_MS)
        if found:
            await self._archive.add_deeds(found, now_ms)
            await self._deeds.remove(found)
        return len(found) == BATCH
