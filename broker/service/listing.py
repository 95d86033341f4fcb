"""Listings: streams and sessions, newest first, in pages.

The index has ids and creation times; the rest stands in each stream's meta. So a filter is applied while reading,
and a page looks at SCAN_STREAMS at most: it may hold fewer streams than asked for (or none) and still say `next`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from typing import TYPE_CHECKING, Any

from broker.log.index import Filter, Part, Place, forget, page
from broker.log.steps import TOMBSTONE
from broker.log.stream_log import StreamLog
from broker.service.record import rfc3339
from broker.store.errors import from_redis

if TYPE_CHECKING:
    from broker.archive.reader import ArchiveReader

SCAN_STREAMS = 1000
CHUNK_STREAMS = 100

Record = Callable[[dict[str, str], str], dict[str, Any]]


class Listing:
    """What Redis has, and (if there is an archive) what that has; what is in both, on its way, is listed once."""

    def __init__(self, log: StreamLog, archive: ArchiveReader | None) -> None:
        self._log = log
        self._archive = archive

    async def streams(
        self, tenant: str, which: Filter, *, limit: int, after: str | None, record: Record
    ) -> dict[str, Any]:
        """{"streams": […], "next": cursor or null}. Raises BadCursor."""
        place = Place.decode(after) if after else None
        live = await self._live(tenant, which, limit, place)
        # Redis first: what leaves it in between is in the archive by then.
        archived = await self._archived(tenant, which, limit, place)
        found = live.found | archived.found
        places, following = _merge(limit, live, archived)
        streams = [record(found[place], place.member) for place in places]
        return {"streams": streams, "next": following and following.encode()}

    async def sessions(self, tenant: str, *, limit: int, after: str | None) -> dict[str, Any]:
        """{"sessions": [{"id", "last_stream_at"}], "next": cursor or null}. Raises BadCursor."""
        place = Place.decode(after) if after else None
        key = self._log.keys.sessions(tenant)
        entries = await page(self._log.redis, key, place, limit)
        parts = [Part({entry: {} for entry in entries}, entries[-1] if len(entries) == limit else None)]
        if self._archive:
            archived = await self._archive.list_sessions(tenant, limit, place)
            parts.append(await self._without_newer(key, archived))
        places, following = _merge(limit, *parts)
        return {
            "sessions": [{"id": place.member, "last_stream_at": rfc3339(str(place.score))} for place in places],
            "next": following and following.encode(),
        }

    async def _archived(self, tenant: str, which: Filter, limit: int, place: Place | None) -> Part:
        if not self._archive:
            return Part({}, None)
        found, end = await self._archive.list_streams(tenant, which, limit, place)
        with from_redis():
            orders = await self._log.redis.zrange(self._log.keys.erasing, 0, -1, withscores=True)
        erasing = {sid.decode(): str(int(at_ms)) for sid, at_ms in orders}
        return Part({place: _tombstone(meta, erasing.get(place.member)) for place, meta in found.items()}, end)

    async def _live(self, tenant: str, which: Filter, limit: int, place: Place | None) -> Part:
        log = self._log
        key = log.keys.session(tenant, which.session) if which.session else log.keys.streams(tenant)
        found: dict[Place, dict[str, str]] = {}
        scanned = 0
        while True:
            entries = await page(log.redis, key, place, CHUNK_STREAMS, which.created_after_ms, which.created_before_ms)
            metas = await log.read_meta(*(entry.member for entry in entries))
            pairs = list(zip(entries, metas, strict=True))
            await forget(log.redis, key, [entry.member for entry, meta in pairs if not meta])
            for entry, meta in pairs:
                place = entry
                if meta and meta["tenant"] == tenant and which.matches(meta):
                    found[entry] = meta
                    if len(found) == limit:
                        return Part(found, place)
            scanned += len(entries)
            if len(entries) < CHUNK_STREAMS:
                return Part(found, None)
            if scanned >= SCAN_STREAMS:
                return Part(found, place)

    async def _without_newer(self, key: str, archived: Part) -> Part:
        """Sessions whose newest stream is the archived one: the others have been listed by Redis."""
        if not archived.found:
            return archived
        with from_redis():
            scores = await self._log.redis.zmscore(key, [place.member for place in archived.found])
        is_newest = [score is None or score <= place.score for place, score in zip(archived.found, scores, strict=True)]
        return archived._replace(found=dict(compress(archived.found.items(), is_newest)))


def _tombstone(meta: dict[str, str], erased_ms: str | None) -> dict[str, str]:
    """What is left of a stream that is erased already, though the archive has still to follow."""
    if erased_ms is None:
        return meta
    return {**{name: meta[name] for name in TOMBSTONE if name in meta}, "erased": meta.get("erased", erased_ms)}


def _merge(limit: int, *parts: Part) -> tuple[list[Place], Place | None]:
    """A page of what Redis and the archive have, newest first, and where the next one begins; None: there is none.

    Each was looked through as far as its `end`: what the other has beyond that has its turn on the next page.
    """
    end = max((part.end for part in parts if part.end), default=None)
    places = sorted({place for part in parts for place in part.found if end is None or place >= end}, reverse=True)
    return places[:limit], places[limit - 1] if len(places) > limit else end
