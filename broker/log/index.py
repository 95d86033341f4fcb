"""The index: which streams and sessions there are, newest first, by tenant and by session.

It holds ids and creation times; everything else is in each stream's meta. An entry may outlive its stream: a reader
that finds such an entry removes it.
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
    """Which streams a listing has; None: any. The creation times are inclusive."""

    session: str | None = None
    user: str | None = None
    model: str | None = None
    state: str | None = None
    created_after_ms: int | None = None
    created_before_ms: int | None = None

    def matches(self, meta: Meta) -> bool:
        """Whether a stream passes, apart from its creation time: the index has that."""
        return (
            (self.session is None or meta.session == self.session)
            and (self.user is None or meta.user == self.user)
            and (self.model is None or meta.model == self.model)
            and (self.state is None or meta.state == self.state)
        )


class Place(NamedTuple):
    """Where a page ends: the score and member of its last entry. It stays valid when that entry is removed."""

    score: int
    member: str

    def encode(self) -> str:
        """The `next` of a page: base64url (RFC 4648, section 5) without padding, opaque to callers."""
        return base64.urlsafe_b64encode(f"{self.score}:{self.member}".encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Place:
        """The place of a page's `next`. Raises BadCursor."""
        try:
            raw = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4)).decode()
            found = _FORM.fullmatch(raw)
            if not found:
                raise ValueError
            return cls(int(found["score"]), found["member"])
        except (ValueError, binascii.Error, UnicodeError):
            raise BadCursor("The cursor of a listing must be the `next` of the page before it.") from None


RECORD_BYTES = 3 * 1024
"""What the JSON of a record takes at most beside LARGE: its names may have 200 characters each."""

ROSTER = 200
"""So many streams of a session are read at a time, by each of its followers."""

LARGE = ("metadata", "ending", "request")
"""Fields of meta as long as their authors like. Listings read those that they show, and no more than a page holds."""


def record_bytes(meta: Meta) -> int:
    """At least what the stream's record takes as JSON."""
    return RECORD_BYTES + sum(len(meta.fields.get(name, "").encode()) for name in LARGE)


class Part(NamedTuple):
    """The streams that Redis, or the archive, has for a page."""

    found: dict[Place, Meta]
    end: Place | None
    """The place through which the search went, whether its entry is in `found` or not; None: to the end."""


class Index:
    """The entries in Redis. An entry stays for the retention and LISTING_SLACK_S after its stream's creation."""

    def __init__(self, redis: Redis, keys: Keys, *, retention_s: float) -> None:
        self._redis = redis
        self._keys = keys
        self._listed_s = round(retention_s + LISTING_SLACK_S)

    async def begin(self, sid: str, tenant: str, session: str) -> None:
        """Before a stream is created: a sweeper will look at it, and its listings can be written.

        Raises WrongType if something else has written one of them: the stream would run, and its caller would be told
        that it did not begin.
        """
        keys = self._keys
        async with self._redis.pipeline(transaction=False) as pipe:
            for listing in (keys.streams(tenant), keys.sessions(tenant), keys.session(tenant, session)):
                pipe.zcard(listing)
            pipe.zadd(keys.leases, {sid: 0}, nx=True)
            await pipe.execute()

    async def add(self, sid: str, tenant: str, session: str, created_ms: int) -> None:
        """List a stream, and its session. Harmless to repeat."""
        keys = self._keys
        listings = (
            (keys.streams(tenant), sid),
            (keys.session(tenant, session), sid),
            (keys.sessions(tenant), session),  # after its stream: see remove
        )
        async with self._redis.pipeline(transaction=False) as pipe:
            # A sweeper may have looked twice before the stream existed, and removed its entry in le:leases.
            pipe.zadd(keys.leases, {sid: created_ms}, lt=True)
            for key, member in listings:
                pipe.zadd(key, {member: created_ms})
                pipe.zremrangebyscore(key, "-inf", created_ms - self._listed_s * 1000)
                pipe.expire(key, self._listed_s)
            pipe.publish(keys.session(tenant, session), sid)  # who follows the session reads its list
            await pipe.execute()

    async def remove(self, sid: str, tenant: str, session: str) -> None:
        """Take a stream out of the listings in Redis: from now on only the archive may list it."""
        keys = self._keys
        of_session = keys.session(tenant, session)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zrem(keys.streams(tenant), sid)
            pipe.zrem(of_session, sid)
            pipe.exists(of_session)
            *_, has_others = await pipe.execute()
        if not has_others:
            await self._redis.zrem(keys.sessions(tenant), session)
            # A new stream enters its session's list first, and the list of sessions afterwards. So whichever entry of
            # the session was removed here, the stream that it stood for is seen now.
            for _, created_ms in await self._redis.zrange(of_session, 0, 0, desc=True, withscores=True):
                await self._redis.zadd(keys.sessions(tenant), {session: created_ms}, gt=True)
                await self._redis.expire(keys.sessions(tenant), self._listed_s)

    async def leave_to_archive(self, sid: str, tenant: str) -> None:
        """The archive lists it from now on, beside its session: whoever follows that finds it there until its retention
        is over, and long enough after an absence. Its session stays listed too; the archive lists the same.
        """
        await self._redis.zrem(self._keys.streams(tenant), sid)

    async def roster(self, tenant: str, session: str, since_ms: int) -> list[tuple[int, str]]:
        """(created, sid) of a session's newest ROSTER streams, and of all since then."""
        key = self._keys.session(tenant, session)
        rows = await self._redis.zrange(key, 0, ROSTER - 1, desc=True, withscores=True)
        if len(rows) == ROSTER and rows[-1][1] >= since_ms:
            rows = await self._redis.zrangebyscore(key, since_ms, "+inf", withscores=True)
        return [(int(score), member.decode()) for member, score in rows]

    async def page(
        self, key: str, after: Place | None, count: int, min_ms: int | None = None, max_ms: int | None = None
    ) -> list[Place]:
        """Up to `count` entries of a key after a place, newest first; those of one millisecond in reverse name order.

        `min_ms`, `max_ms`: only entries with such scores, inclusive.
        """
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
        """Remove entries whose streams are gone (their retention is over), as a reader has just found."""
        if members:
            await self._redis.zrem(key, *members)
