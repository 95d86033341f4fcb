"""The index of streams and sessions."""

from __future__ import annotations

import base64
import binascii
import re
from typing import NamedTuple

from redis.asyncio import Redis

from broker.errors import BadCursor
from broker.store.errors import from_redis

_FORM = re.compile(r"(?P<score>0|[1-9][0-9]{0,14}):(?P<member>[^\0]+)", re.ASCII)


class Filter(NamedTuple):
    session: str | None = None
    user: str | None = None
    model: str | None = None
    state: str | None = None
    created_after_ms: int | None = None
    created_before_ms: int | None = None

    def matches(self, meta: dict[str, str]) -> bool:
        return (
            (self.session is None or meta.get("session") == self.session)
            and (self.user is None or meta.get("user") == self.user)
            and (self.model is None or meta.get("model") == self.model)
            and (self.state is None or meta["state"] == self.state)
        )


class Place(NamedTuple):
    """Where a page ends: the score and member of its last entry. Entries may go; a place stays valid."""

    score: int
    member: str

    def encode(self) -> str:
        return base64.urlsafe_b64encode(f"{self.score}:{self.member}".encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Place:
        try:
            raw = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4)).decode()
            found = _FORM.fullmatch(raw)
            if not found:
                raise ValueError
            return cls(int(found["score"]), found["member"])
        except (ValueError, binascii.Error, UnicodeError):
            raise BadCursor("The cursor of a listing is the `next` of the page before it.") from None


class Part(NamedTuple):
    """What Redis, or the archive, has for a page."""

    found: dict[Place, dict[str, str]]
    end: Place | None
    """As far as was looked, whether what stands there is among `found` or not; None: to the end."""


async def page(
    redis: Redis, key: str, after: Place | None, count: int, min_ms: int | None = None, max_ms: int | None = None
) -> list[Place]:
    """Entries of an index, newest first, after a place. Entries of one millisecond are in reverse order of names."""
    tops = [top_ms for top_ms in (after.score if after else None, max_ms) if top_ms is not None]
    entries: list[Place] = []
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
            places = [Place(int(score), member.decode()) for member, score in rows]
            entries += [place for place in places if after is None or place < after]
            offset += len(rows)
            if len(rows) < count:
                break
    return entries[:count]


async def forget(redis: Redis, key: str, members: list[str]) -> None:
    """Streams whose retention is over leave the index when somebody comes across them."""
    if members:
        with from_redis():
            await redis.zrem(key, *members)
