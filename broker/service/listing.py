"""Listings: streams and sessions, newest first, in pages.

The index has ids and creation times; everything else is in each stream's meta. So a filter is applied while reading,
and a page looks at SCAN_STREAMS at most: it may hold fewer streams than its limit (or none) and still have a `next`.

What a page costs does not depend on what callers have stored. A filter reads the short fields alone; of what it finds,
as much is read as a page of `max_bytes` shows, and requests only if they are asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from itertools import accumulate, compress, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from broker.log.index import LARGE, RECORD_BYTES, Filter, Part, Place, record_bytes
from broker.log.meta import FIELDS, Meta
from broker.log.rfc3339 import rfc3339
from broker.log.stream_log import StreamLog
from broker.service.totals import totals

if TYPE_CHECKING:
    from broker.archive.reader import ArchiveReader

logger = logging.getLogger(__name__)

SCAN_STREAMS = 1000
"""A page that a filter leaves empty looks at so many streams: 60 ms of this server, then the caller asks again."""

CHUNK_STREAMS = 100
"""Metas in one pipeline: 6 ms at most, for which other viewers wait. (500 take 20 ms, and save a third in all.)"""

SUM_PAGES, SUM_STREAMS = 5, 200
"""Of a session, so many pages of so many streams are summed up: 0.1 s in all, in parts between which others have their
turns. A session may have 10,000 streams; its sum then says that it is not whole."""

FILTERED = ["tenant", "session", "user", "model", "state", "request_of"]
SHOWN = [field.name for field in FIELDS if field.api_name and field.name != "request"] + ["tenant", "ending"]

RUNNING_STREAMS = 200
"""Of a session, so many of its newest streams are looked at for those that run."""

Records = Callable[[Sequence[tuple[str, Meta]]], Awaitable[Sequence[dict[str, Any]]]]


class Found(NamedTuple):
    """A page's streams in Redis and in the archive."""

    places: list[Place]
    following: Place | None
    """Where the next page begins; None: this is the last."""
    live: Mapping[Place, Meta]
    archived: Mapping[Place, Meta]


class Listing:
    """The streams of Redis and, if there is one, of the archive. A stream that is in both is listed once."""

    def __init__(self, log: StreamLog, archive: ArchiveReader | None, *, max_bytes: int) -> None:
        self._log = log
        self._archive = archive
        self._max_bytes = max_bytes

    async def streams(
        self,
        tenant: str,
        which: Filter,
        *,
        limit: int,
        after: str | None,
        records: Records,
        with_requests: bool = False,
    ) -> dict[str, Any]:
        """{"streams": […], "totals": {…}, "next": cursor or null}. `records`: the streams' JSON. Raises BadCursor.

        A page has at most `limit` streams, and at most `max_bytes` of JSON (or one stream). Its totals are those of the
        records as they are shown: no sum tells what a mask hides.
        """
        found = await self._page(tenant, which, limit, Place.decode(after) if after else None, with_requests)
        names = [*SHOWN, "request", "request_of"] if with_requests else SHOWN
        shown = await records(await self._read(found, names, with_requests))
        if not with_requests:  # null would say that there is none
            shown = [{name: value for name, value in one.items() if name != "request"} for one in shown]
        return {"streams": shown, "totals": totals(shown), "next": found.following and found.following.encode()}

    async def session_totals(self, tenant: str, session: str, first_page: Mapping[str, Any]) -> dict[str, Any]:
        """The totals of a session, of how many `streams` they are, and whether it has no more (`is_whole`).

        `first_page`: what `streams` gives of the session, without masks: often that is all of it.
        """
        if first_page["next"] is None:
            return {**first_page["totals"], "streams": len(first_page["streams"]), "is_whole": True}
        endings: list[Mapping[str, Any]] = []
        place: Place | None = None
        for _ in range(SUM_PAGES):
            found = await self._page(tenant, Filter(session=session), SUM_STREAMS, place, with_requests=False)
            read = await self._read(found, ["tenant", "ending"], with_requests=False)
            endings += [_ending(sid, meta) for sid, meta in read]
            place = found.following
            if place is None:
                break
        return {**totals(endings), "streams": len(endings), "is_whole": place is None}

    async def running(self, tenant: str, session: str) -> list[tuple[str, Meta]]:
        """A session's streams that have not ended, of its newest, with the fields that say whose they are."""
        places = await self._log.index.page(self._log.keys.session(tenant, session), None, RUNNING_STREAMS)
        metas = await self._log.read_fields(FILTERED, *(place.member for place in places))
        found = zip((place.member for place in places), metas, strict=True)
        return [(sid, meta) for sid, meta in found if meta and meta.tenant == tenant and not meta.has_ended]

    async def sessions(self, tenant: str, *, limit: int, after: str | None) -> dict[str, Any]:
        """{"sessions": [{"id", "last_stream_at"}], "next": cursor or null}. Raises BadCursor."""
        place = Place.decode(after) if after else None
        key = self._log.keys.sessions(tenant)
        entries = await self._log.index.page(key, place, limit)
        parts = [(entries, entries[-1] if len(entries) == limit else None)]
        if self._archive:
            archived, end = await self._archive.list_sessions(tenant, limit, place)
            parts.append((await self._without_newer(key, archived), end))
        places, following = merge(limit, *parts)
        return {
            "sessions": [{"id": place.member, "last_stream_at": rfc3339(place.score)} for place in places],
            "next": following and following.encode(),
        }

    async def _page(self, tenant: str, which: Filter, limit: int, place: Place | None, with_requests: bool) -> Found:
        live = await self._live(tenant, which, limit, place)
        # Redis first: a stream that leaves it in between is in the archive by then.
        archived = await self._archived(tenant, which, limit, place, with_requests)
        places, following = merge(limit, (live.found, live.end), (archived.found, archived.end))
        fit = await self._fitting(places, live.found, archived.found, with_requests)
        if len(fit) < len(places):
            following = fit[-1]
        return Found(fit, following, live.found, archived.found)

    async def _fitting(
        self, places: list[Place], live: Mapping[Place, Meta], archived: Mapping[Place, Meta], with_requests: bool
    ) -> list[Place]:
        """As many of these as a page has room for, at least one."""
        sizes = {place: record_bytes(meta) for place, meta in archived.items()}
        in_redis = [place for place in places if place not in archived]
        names = [name for name in LARGE if name != "request" or with_requests]
        keys = self._log.keys
        async with self._log.redis.pipeline(transaction=False) as pipe:
            for place in in_redis:
                for name in names:
                    pipe.hstrlen(keys.stream(place.member).meta, name)
                if with_requests:
                    pipe.strlen(keys.stream(live[place].request_of or "").request)
            lengths = iter(await pipe.execute())
        for place in in_redis:
            sizes[place] = RECORD_BYTES + sum(islice(lengths, len(names) + with_requests))
        ends = accumulate(sizes[place] for place in places)
        return [
            place for at, (place, end) in enumerate(zip(places, ends, strict=True)) if not at or end <= self._max_bytes
        ]

    async def _read(self, page: Found, names: list[str], with_requests: bool) -> list[tuple[str, Meta]]:
        """The streams of a page, those of Redis with these fields."""
        in_redis = [place for place in page.places if place not in page.archived]
        metas = await self._log.read_fields(names, *(place.member for place in in_redis))
        there = {place: meta for place, meta in zip(in_redis, metas, strict=True) if meta}  # others have just left
        if Meta.tail.name in names:
            at_tails = await self._log.at_tails({place.member: meta for place, meta in there.items()})
            there = {place: at_tails[place.member] for place in there}
        if with_requests:
            there = dict(zip(there, await self._log.requests.of_each(list(there.values())), strict=True))
        found = {**there, **page.archived}
        return [(place.member, found[place]) for place in page.places if place in found]

    async def _archived(self, tenant: str, which: Filter, limit: int, place: Place | None, with_requests: bool) -> Part:
        if not self._archive:
            return Part({}, None)
        found, end = await self._archive.list_streams(
            tenant, which, limit, place, with_requests=with_requests, max_bytes=self._max_bytes
        )
        orders = await self._log.redis.zrange(self._log.keys.erasing, 0, -1, withscores=True)
        erasing = {sid.decode(): int(at_ms) for sid, at_ms in orders}
        return Part({place: _as_erased(meta, erasing.get(place.member)) for place, meta in found.items()}, end)

    async def _live(self, tenant: str, which: Filter, limit: int, place: Place | None) -> Part:
        log = self._log
        key = log.keys.session(tenant, which.session) if which.session else log.keys.streams(tenant)
        found: dict[Place, Meta] = {}
        scanned = 0
        while True:
            entries = await log.index.page(key, place, CHUNK_STREAMS, which.created_after_ms, which.created_before_ms)
            metas = await log.read_fields(FILTERED, *(entry.member for entry in entries))
            pairs = list(zip(entries, metas, strict=True))
            await log.index.forget(key, [entry.member for entry, meta in pairs if not meta])
            for entry, meta in pairs:
                place = entry
                if meta and meta.tenant == tenant and which.matches(meta):
                    found[entry] = meta
                    if len(found) == limit:
                        return Part(found, place)
            scanned += len(entries)
            if len(entries) < CHUNK_STREAMS:
                return Part(found, None)
            if scanned >= SCAN_STREAMS:
                return Part(found, place)

    async def _without_newer(self, key: str, archived: Sequence[Place]) -> list[Place]:
        """The sessions whose newest stream is the archived one. Redis has listed the others."""
        if not archived:
            return []
        scores = await self._log.redis.zmscore(key, [place.member for place in archived])
        is_newest = [score is None or score <= place.score for place, score in zip(archived, scores, strict=True)]
        return list(compress(archived, is_newest))


def _as_erased(meta: Meta, erased_ms: int | None) -> Meta:
    """The tombstone of a stream that is already erased, though the archive has yet to erase it."""
    return meta if erased_ms is None else meta.erased_at(erased_ms)


def _ending(sid: str, meta: Meta) -> Mapping[str, Any]:
    try:
        ending = meta.ending
    except ValueError:  # something else has written it
        logger.exception("stream %s: its ending cannot be read; a sum leaves it out", sid)
        return {}
    return ending if isinstance(ending, dict) else {}


def merge(limit: int, *parts: tuple[Collection[Place], Place | None]) -> tuple[list[Place], Place | None]:
    """One page from the parts of Redis and the archive, newest first, and where the next page begins (None: no more).

    Each part: its places, and the place through which it was searched (None: to the end). Places of another part beyond
    that one are left for the next page.
    """
    end = max((end for _, end in parts if end), default=None)
    places = sorted({place for places, _ in parts for place in places if end is None or place >= end}, reverse=True)
    return places[:limit], places[limit - 1] if len(places) > limit else end
