"""Who did what, for callers: deeds of Redis and, if there is one, of the archive, newest first, in pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker.log.deeds import Deeds, Which
from broker.log.index import Place
from broker.service.listing import merge
from broker.service.record import deed_json

if TYPE_CHECKING:
    from broker.archive.reader import ArchiveReader

SCAN_DEEDS = 10_000
"""A page that its filter leaves empty reads so many in Redis: 40 ms of this server, then the caller asks again."""


class Acts:
    """A deed that is in both is shown once: it has one id."""

    def __init__(self, deeds: Deeds, archive: ArchiveReader | None) -> None:
        self._deeds = deeds
        self._archive = archive

    async def page(self, tenant: str, which: Which, *, limit: int, after: str | None) -> dict[str, Any]:
        """{"deeds": […], "next": cursor or null}. Raises BadCursor."""
        place = Place.decode(after) if after else None
        live, end = await self._live(tenant, which, limit, place)
        parts = [(live, end)]
        if self._archive:  # after Redis: what leaves that in between is here
            parts.append(await self._archive.deeds(tenant, which, limit, place))
        places, following = merge(limit, *parts)
        found = {at: record for part, _ in parts for at, record in part.items()}
        return {"deeds": [deed_json(found[at]) for at in places], "next": following and following.encode()}

    async def _live(
        self, tenant: str, which: Which, limit: int, place: Place | None
    ) -> tuple[dict[Place, dict[str, Any]], Place | None]:
        tops = [top_ms for top_ms in (place.score if place else None, which.before_ms) if top_ms is not None]
        found: dict[Place, dict[str, Any]] = {}
        scanned = 0
        async for page in self._deeds.newest(min(tops, default=None)):
            for one in page:
                is_in_time = (place is None or one.place < place) and one.at >= (which.after_ms or 0)
                if one.deed.tenant == tenant and is_in_time and which.matches(one.deed):
                    found[one.place] = one.record()
            scanned += len(page)
            last_ms = page[-1].at if page else 0
            newest = sorted(found, reverse=True)[:limit]
            # Deeds of one millisecond are in the order of their ids: it is read to its end.
            if len(newest) == limit and newest[-1].score > last_ms:
                return {at: found[at] for at in newest}, newest[-1]
            if scanned >= SCAN_DEEDS and page:
                end = Place(last_ms + 1, "")
                return {at: record for at, record in found.items() if at >= end}, end
            if which.after_ms is not None and last_ms < which.after_ms:
                break
        newest = sorted(found, reverse=True)[:limit]
        return {at: found[at] for at in newest}, newest[-1] if len(newest) == limit else None
