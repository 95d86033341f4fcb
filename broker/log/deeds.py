"""Deeds: who did what to streams, keys, tokens and limits. Reading is in the access record (access.py), not here.

They lie in one Redis stream (le:deeds) until a worker has moved them into the archive. `note` is for what is frequent:
a loop writes it once a second, many at a time, and nobody waits. A server that is killed loses at most its last
second's; while Redis is away they wait, and those that do not fit are counted (`lost`). `record` is for what is rare
and must not be forgotten: it returns when Redis has it on disk, and its act is answered afterwards.

Without an archive they live as long as streams do. A deed's time is Redis' time at which it was written.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from broker.log.erasures import person
from broker.log.index import Place
from broker.log.keys import Keys
from broker.store.durable import require_durable

logger = logging.getLogger(__name__)

CREATED, REGENERATED, CANCELLED, APPROVED = "created", "regenerated", "cancelled", "approved"
MINTED = "minted"
WEBHOOK_SENT = "webhook_sent"
"""What is noted. A page that opens has a token made: it would wait for the disk, half a second."""
ERASED, ERASURE_ORDERED = "erased", "erasure_ordered"
REVOKED = "revoked"
KEY_MADE, KEY_REVOKED, LIMITS_SET = "key_made", "key_revoked", "limits_set"
"""What is recorded."""

FLUSH_S = 1.0
BATCH = 500
"""In one pipeline, as access.py."""

MAX_WAITING = 50_000
"""Deeds that wait while Redis is away: some 20 MB at most."""


class Deed(NamedTuple):
    """`who`: as in the access record. `stream`: its id. `detail`: no content, and no secret; under `user` the person
    whom the deed concerns, if that is not `who`: erasing that person finds it by this.
    """

    tenant: str
    who: str
    what: str
    stream: str | None = None
    address: str | None = None
    request_id: str | None = None
    detail: Mapping[str, Any] | None = None

    @property
    def person(self) -> str | None:
        """Whom it is by or about, as `user:…`."""
        concerned = (self.detail or {}).get("user")
        if isinstance(concerned, str):
            return person(concerned)
        return self.who if self.who.startswith("user:") else None


class Which(NamedTuple):
    """Which deeds a page has; None: any. Times are in ms, inclusive."""

    what: str | None = None
    who: str | None = None
    stream: str | None = None
    after_ms: int | None = None
    before_ms: int | None = None

    def matches(self, deed: Deed) -> bool:
        """Apart from its time."""
        return (
            (self.what is None or deed.what == self.what)
            and (self.who is None or deed.who == self.who)
            and (self.stream is None or deed.stream == self.stream)
        )


class Written(NamedTuple):
    """A deed in Redis. `entry`: its id there. `at`: ms."""

    entry: str
    id: str
    at: int
    deed: Deed

    @property
    def place(self) -> Place:
        return Place(self.at, self.id)

    def record(self) -> dict[str, Any]:
        """As it is shown and archived; all but the tenant."""
        deed = self.deed._asdict()
        del deed["tenant"]
        return {"id": self.id, "at": self.at, **deed}


class Deeds:
    """`lost`: how many found no room."""

    def __init__(self, redis: Redis, keys: Keys, *, retention_s: float, is_archived: bool) -> None:
        self._redis = redis
        self._keys = keys
        self._life_ms = None if is_archived else round(retention_s * 1000)
        self._waiting: deque[tuple[str, Deed]] = deque()
        self.lost = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def note(self, deed: Deed) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self.lost += 1
            logger.error(
                "deeds are lost: %d wait for Redis, and there is room for no more (lost so far: %d)",
                *(MAX_WAITING, self.lost),
                extra={"lasting": "deeds are lost"},
            )
            return
        self._waiting.append((_new_id(), deed))

    async def record(self, deed: Deed) -> None:
        """Raises RedisUnavailable; the deed may stand nevertheless."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.execute_command(*self._command(_new_id(), deed))
            self._let_live(pipe)
            await require_durable(pipe)

    async def run(self) -> None:
        """Write for ever. Only cancellation ends this, or RedisUnavailable."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        """Write all that wait. Raises RedisUnavailable; they then keep waiting. One that was written all the same
        is archived once, by its id."""
        while self._waiting:
            batch = [self._waiting[at] for at in range(min(BATCH, len(self._waiting)))]
            async with self._redis.pipeline(transaction=False) as pipe:
                for deed_id, deed in batch:
                    pipe.execute_command(*self._command(deed_id, deed))
                self._let_live(pipe)
                await pipe.execute()
            for _ in batch:
                self._waiting.popleft()

    def _command(self, deed_id: str, deed: Deed) -> list[Any]:
        # Without an archive what is older than the retention goes with each deed that comes.
        bound = [] if self._life_ms is None else ["MINID", "~", round(time.time() * 1000) - self._life_ms]
        return ["XADD", self._keys.deeds, *bound, "*", "id", deed_id, "d", orjson.dumps(deed._asdict())]

    def _let_live(self, pipe: Pipeline) -> None:
        if self._life_ms is not None:
            pipe.pexpire(self._keys.deeds, self._life_ms)

    # -- what is there -------------------------------------------------------------------------------------

    async def newest(self, before_ms: int | None = None) -> AsyncIterator[list[Written]]:
        """All of them, the newest first, in pages."""
        top = "+" if before_ms is None else str(before_ms)
        while entries := await self._redis.xrevrange(self._keys.deeds, top, "-", count=BATCH):
            yield _readable(entries)
            top = f"({entries[-1][0].decode()}"

    async def oldest(self, until_ms: int) -> list[Written]:
        """A batch of those that were written until then."""
        entries = await self._redis.xrange(self._keys.deeds, "-", until_ms, count=BATCH)
        found = _readable(entries)
        if len(found) < len(entries):  # they would be in the way for ever
            kept = {one.entry for one in found}
            await self._redis.xdel(self._keys.deeds, *(entry for entry, _ in entries if entry.decode() not in kept))
        return found

    async def remove(self, deeds: Collection[Written]) -> None:
        if deeds:
            await self._redis.xdel(self._keys.deeds, *(deed.entry for deed in deeds))

    async def forget(self, tenant: str, sids: Collection[str], who: str | None) -> None:
        """Those about these streams, and those by or about this person."""
        async for page in self.newest():
            await self.remove(
                [
                    one
                    for one in page
                    if one.deed.tenant == tenant and (one.deed.stream in sids or (who and one.deed.person == who))
                ]
            )


def _new_id() -> str:
    """Deeds that are written in one millisecond keep the order in which a server noted them."""
    return f"{time.time_ns():016x}{secrets.token_hex(8)}"


def _readable(entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> list[Written]:
    found = []
    for name, fields in entries:
        try:
            held = orjson.loads(fields[b"d"])
            deed = Deed(**{field: held[field] for field in Deed._fields if field in held})
            entry = name.decode()
            found.append(Written(entry, fields[b"id"].decode(), int(entry.partition("-")[0]), deed))
        except (ValueError, KeyError, TypeError):
            logger.error("an entry of %s is no deed: something else has written it", name.decode())  # noqa: TRY400 - it says all
    return found
