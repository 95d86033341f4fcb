"""The access record of viewers that have left: out of Redis into the archive."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import orjson

from broker.archive.writer import ArchiveWriter, ViewRecord
from broker.errors import WrongType
from broker.log.access import LOST_AFTER_MS, read_stored
from broker.log.stream_log import StreamLog
from broker.log.views import OTHERS, SETTLE, SUM_LIFE_MS, SUM_UP, VIEW_RECORDS, Script, StoredView, summed
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
    """`limit`: how many records a stream has before further ones are summed up (broker/log/views.py)."""

    def __init__(self, log: StreamLog, archive: ArchiveWriter, *, limit: int = VIEW_RECORDS) -> None:
        self._limit = limit
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
        if not due:
            return False
        closed: list[ViewRecord] = []
        sids = [sid.decode() for sid, _ in due]
        kept = await self._archive.kept_views(sids)
        for sid in sids:
            try:
                stored = await read_stored(self._redis, self._keys, sid, now_ms, lost_after_ms=LOST_AFTER_MS)
            except WrongType as foreign:
                logger.warning("stream %s: its views stay in Redis. %s", sid, foreign)
                continue
            ended = sorted((view for view in stored if "how" in view.record), key=lambda view: view.record["opened"])
            closed += [_view(sid, view.record) for view in await self._bound(sid, ended, kept[sid], now_ms)]
        for start in range(0, len(closed), BATCH_VIEWS):
            await self._add(closed[start : start + BATCH_VIEWS], now_ms)
        for sid, score in due:
            await self._move_on(sid.decode(), score, now_ms)
        return len(due) == BATCH_STREAMS

    async def _bound(
        self, sid: str, ended: Sequence[StoredView], kept: int | None, now_ms: int
    ) -> Sequence[StoredView]:
        """Those that the archive takes now. `kept`: how many it has already; None: the stream was erased.

        The others are summed up, and stay in Redis until their sum has lived for its day.
        """
        limit = self._limit
        taken: list[StoredView] = []
        calls: list[tuple[Script, StoredView, Sequence[str]]] = []
        for view in ended:
            count = 0 if kept is None else kept + len(taken)
            is_over = count >= 2 * limit
            is_one_of_many = "count" in view.record
            if view.since_ms is None and (is_one_of_many or count < limit):
                taken.append(view)
            elif view.since_ms is not None and kept is not None and now_ms - view.since_ms < SUM_LIFE_MS:
                continue
            elif view.since_ms is not None and (view.field == OTHERS or not is_over):
                record = {name: value for name, value in view.record.items() if name != "id"}
                calls.append(
                    (SETTLE, view, (view.record["id"], orjson.dumps(record).decode()))
                )  # the next look takes it
            else:
                counted = view.record.get("count", 1)
                calls.append((SUM_UP, view, summed(view.record, limit, now_ms, count=counted, as_others=is_over)))
        if calls:
            await self._call(sid, calls)
        return taken

    async def _call(self, sid: str, calls: Sequence[tuple[Script, StoredView, Sequence[str]]]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for script in (SETTLE, SUM_UP):
                pipe.script_load(script.text)
            for script, view, args in calls:
                pipe.evalsha(script.sha, 1, self._keys.views_of(sid), view.field, view.value, *args)
            await pipe.execute()

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
