"""Listings: streams and sessions, newest first, in pages.

The index has ids and creation times; the rest stands in each stream's meta. So a filter is applied while reading,
and a page looks at SCAN_STREAMS at most: it may hold fewer streams than asked for (or none) and still say `next`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from redis.asyncio import Redis

from broker.errors import BadCursor, from_redis
from broker.keys import Keys
from broker.log import StreamLog
from broker.record import rfc3339

SCAN_STREAMS = 1000
CHUNK_STREAMS = 100

Record = Callable[[dict[str, str], str], dict[str, Any]]


_PLACE = re.compile(r"(?P<score>0|[1-9][0-9]{0,14}):(?P<member>.+)", re.ASCII | re.DOTALL)


class Filter(NamedTuple):
    session: str | None = None
    user: str | None = None
    state: str | None = None
    created_after_ms: int | None = None
    created_before_ms: int | None = None

    def matches(self, meta: dict[str, str]) -> bool:
        return (
            (self.session is None or meta["session"] == self.session)
            and (self.user is None or meta.get("user") == self.user)
            and (self.state is None or meta["state"] == self.state)
        )


class _Place(NamedTuple):
    """Where a page ends: the score and member of its last entry. Entries may go; a place stays valid."""

    score: int
    member: str

    def encode(self) -> str:
        return base64.urlsafe_b64encode(f"{self.score}:{self.member}".encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> _Place:
        try:
            raw = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4)).decode()
            found = _PLACE.fullmatch(raw)
            if not found:
                raise ValueError
            return cls(int(found["score"]), found["member"])
        except (ValueError, binascii.Error, UnicodeError):
            raise BadCursor("The cursor of a listing is the `next` of the page before it.") from None


async def list_streams(
    log: StreamLog, tenant: str, which: Filter, *, limit: int, after: str | None, record: Record
) -> dict[str, Any]:
    """{"streams": […], "next": cursor or null}. Raises BadCursor."""
    key = log.keys.session(tenant, which.session) if which.session else log.keys.streams(tenant)
    place = _Place.decode(after) if after else None
    streams: list[dict[str, Any]] = []
    scanned = 0
    while True:
        entries = await _page(log.redis, key, place, CHUNK_STREAMS, which.created_after_ms, which.created_before_ms)
        metas = await log.read_meta(*(entry.member for entry in entries))
        await _forget(log.redis, key, [entry.member for entry, meta in zip(entries, metas, strict=True) if not meta])
        for entry, meta in zip(entries, metas, strict=True):
            place = entry
            if meta and meta["tenant"] == tenant and which.matches(meta):
                streams.append(record(meta, entry.member))
                if len(streams) == limit:
                    return {"streams": streams, "next": place.encode()}
        scanned += len(entries)
        if len(entries) < CHUNK_STREAMS:
            return {"streams": streams, "next": None}
        if scanned >= SCAN_STREAMS and place:
            return {"streams": streams, "next": place.encode()}


async def list_sessions(redis: Redis, keys: Keys, tenant: str, *, limit: int, after: str | None) -> dict[str, Any]:
    """{"sessions": [{"id", "last_stream_at"}], "next": cursor or null}. Raises BadCursor."""
    entries = await _page(redis, keys.sessions(tenant), _Place.decode(after) if after else None, limit)
    return {
        "sessions": [{"id": entry.member, "last_stream_at": rfc3339(str(entry.score))} for entry in entries],
        "next": entries[-1].encode() if len(entries) == limit else None,
    }


async def _page(
    redis: Redis, key: str, after: _Place | None, count: int, min_ms: int | None = None, max_ms: int | None = None
) -> list[_Place]:
    """Entries of an index, newest first, after a place. Entries of one millisecond are in reverse order of names."""
    tops = [top_ms for top_ms in (after.score if after else None, max_ms) if top_ms is not None]
    entries: list[_Place] = []
    offset = 0
    with from_redis():
        while len(entries) < count:
            rows = await redis.zrevrangebyscore(
                key,
                min(tops, default="+inf"),
                "-inf" if min_ms is None else min_ms,
                start=offset,
                num=count,
                withscores=True,
            )
            places = [_Place(int(score), member.decode()) for member, score in rows]
            entries += [place for place in places if after is None or place < after]
            offset += len(rows)
            if len(rows) < count:
                break
    return entries[:count]


async def _forget(redis: Redis, key: str, members: list[str]) -> None:
    """Streams whose retention is over leave the index when somebody comes across them."""
    if members:
        with from_redis():
            await redis.zrem(key, *members)
