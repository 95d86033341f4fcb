"""The index: which streams and sessions there are, newest first, by tenant and by session.

It has ids and creation times; the rest stands in each stream's meta. Entries may outlive their stream: a reader that
comes across one removes it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import NamedTuple

from redis.asyncio import Redis

from broker.errors import BadCursor
from broker.log.keys import LISTING_SLACK_S, Keys
from broker.log.meta import Meta

_FORM = re.compile(r"(?P<score>0|[1-9][0-9]{0,14}):(?P<member>[^\0]+)", re.ASCII)


class Filter(NamedTuple):
    session: str | None = None
    user: str | None = None
    model: str | None = None
    state: str | None = None
    created_after_ms: int | None = None
    created_before_ms: int | None = None

    def matches(self, meta: Meta) -> bool:
        return (
            (self.session is None or meta.session == self.session)
            and (self.user is None or meta.user == self.user)
            and (self.model is None or meta.model == self.model)
            and (self.state is None or meta.state == self.state)
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
            raise BadCursor("The cursor of a listing must be the `next` of the page before it.") from None


class Part(NamedTuple):
    """What Redis, or the archive, has for a page of streams."""

    found: dict[Place, Meta]
    end: Place | None
    """As far as was looked, whether what stands there is among `found` or not; None: to the end."""


class Index:
    """Its entries in Redis. They stay for a stream's retention and LISTING_SLACK_S after its creation."""

    def __init__(self, redis: Redis, keys: Keys, *, retention_s: float) -> None:
        self._redis = redis
        self._keys = keys
        self._listed_s = round(retention_s + LISTING_SLACK_S)

    async def add(self, sid: str, tenant: str, session: str, created_ms: int) -> None:
        keys = self._keys
        listings = (
            (keys.streams(tenant), sid),
            (keys.session(tenant, session), sid),
            (keys.sessions(tenant), session),  # after its stream: see remove
        )
        async with self._redis.pipeline(transaction=False) as pipe:
            # A sweeper may have looked twice between the entry in le:leases and the stream, and have removed it.
            pipe.zadd(keys.leases, {sid: created_ms}, lt=True)
            for key, member in listings:
                pipe.zadd(key, {member: created_ms})
                pipe.zremrangebyscore(key, "-inf", created_ms - self._listed_s * 1000)
                pipe.expire(key, self._listed_s)
            await pipe.execute()

    async def remove(self, sid: str, tenant: str, session: str) -> None:
        """Take a stream out of the listings here: the archive lists it, or nobody does."""
        keys = self._keys
        of_session = keys.session(tenant, session)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zrem(keys.streams(tenant), sid)
            pipe.zrem(of_session, sid)
            pipe.exists(of_session)
            *_, has_others = await pipe.execute()
        if not has_others:
            await self._redis.zrem(keys.sessions(tenant), session)
            # A new stream is listed in its session first, and then the session: whichever entry of the session
            # was removed here, the stream behind it is seen now.
            for _, created_ms in await self._redis.zrange(of_session, 0, 0, desc=True, withscores=True):
                await self._redis.zadd(keys.sessions(tenant), {session: created_ms}, gt=True)
                await self._redis.expire(keys.sessions(tenant), self._listed_s)

    async def page(
        self, key: str, after: Place | None, count: int, min_ms: int | None = None, max_ms: int | None = None
    ) -> list[Place]:
        """Entries of a key, newest first, after a place. Entries of one millisecond are in reverse order of names."""
        tops = [top_ms for top_ms in (after.score if after else None, max_ms) if top_ms is not None]
        entries: list[Place] = []
        offset = 0
        while len(entries) < count:
            rows = await self._redis.zrevrangebyscore(
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

    async def forget(self, key: str, members: Sequence[str]) -> None:
        """Streams whose retention is over leave a key when a reader comes across them."""
        if members:
            await self._redis.zrem(key, *members)
