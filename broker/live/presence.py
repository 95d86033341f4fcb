"""Who follows a stream now: read by one for all who ask, and watched (log/presence.py says what that is).

A stream that somebody watches has one task in this process, however many watch it. It reads the records when the
subscription of the stream's channel was made, and from then on applies what servers announce, at most once a second.
One loop looks each second which servers give signs of life.

The states of a watched stream:

    unread ──the subscription is made, or a second went by without──► known ──an announcement──► known, and told
    known ──the subscription is made anew, or an announcement has more than it names──► unread

The races, and why each is closed:
- an announcement comes while the records are read: it waits, and is applied to what was read
- Redis was away, and no server could give a sign of life: for GRACE_S after its return those that lived before are not
  taken for dead. (Whoever only asks may be told of fewer in that time.)
- a server speaks that the last look did not find, since it has just started: what it announces is a sign of life
- a watcher is slow: it is told the difference to what it was told last, and nothing is queued for it
- the last watcher leaves while the records are read: the task ends with it
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis

from broker.errors import StoreUnavailable
from broker.live.hub import Hub
from broker.log.keys import Keys
from broker.log.presence import MANY, SILENT_AFTER_MS, Announcement, Here, Names, Seen, notice, shown

logger = logging.getLogger(__name__)

NOTICE_S = 1.0
"""At most one notice a stream in this time, and one reading of its records."""

LOOK_S = 1.0
"""How often it is asked which servers live."""

GRACE_S = 2.0
"""After Redis was away: by then each server has given its sign of life, one a second."""

SUBSCRIBED_S = 1.0
"""A watcher is told what there is after so long, though the subscription is not made."""

AGAIN_S = 0.5
"""Redis is away while a stream is watched: how often it is asked again."""

FAILED_S = 10.0
"""Something else than that went wrong: how often it is tried again."""

READINGS = 8
"""Streams that are read at a time, when a new subscription has all that are watched read anew."""

PAGE_RECORDS = 500
"""Records in one answer of Redis, some 0.3 MB, between two of which others have their turns."""

SHARED_RECORDS = 100
"""A reading of more is everybody's for a second, some 4 ms: who asks again and again does not have it repeated."""

Alive = Collection[str]
"""The servers that gave a sign of life lately."""


class Presence:
    """Of one process."""

    def __init__(self, redis: Redis, keys: Keys, hub: Hub) -> None:
        self._redis = redis
        self._keys = keys
        self._hub = hub
        self._asked: dict[str, asyncio.Task[tuple[Seen, bool]]] = {}
        self._watched: dict[str, _Watched] = {}
        self._alive: Alive = frozenset()
        self._heard_at_s: dict[str, float] = {}
        self._grace_until_s = 0.0
        self._turns = asyncio.Semaphore(READINGS)

    async def of(self, sid: str, *, is_one_of_many: bool = False) -> Seen:
        """Who follows this stream. Raises RedisUnavailable or WrongType.

        What is watched here is known. Else all who ask at the same time share one reading, and for a second one of more
        than SHARED_RECORDS, or of a stream that is asked for as one of many.
        """
        watched = self._watched.get(sid)
        if watched and watched.seen is not None:
            return watched.seen
        if sid not in self._asked:
            task = self._asked[sid] = asyncio.create_task(self._ask(sid), name="presence")
            task.add_done_callback(lambda task: self._answered(sid, task, stays=is_one_of_many))
        asked = self._asked[sid]
        seen, _ = asked.result() if asked.done() else await asyncio.shield(asked)
        return seen

    async def _ask(self, sid: str) -> tuple[Seen, bool]:
        """And whether that stays for a second."""
        here, records = await self._read(sid)
        return here.seen((await self._living()).__contains__), records > SHARED_RECORDS

    def _answered(self, sid: str, task: asyncio.Task[tuple[Seen, bool]], *, stays: bool) -> None:
        if not task.cancelled() and task.exception() is None and (stays or task.result()[1]):
            asyncio.get_running_loop().call_later(NOTICE_S, self._asked.pop, sid, None)
        else:
            del self._asked[sid]

    async def watch(self, sid: str, names: Callable[[], Names]) -> AsyncGenerator[dict[str, Any], None]:
        """Notices for one caller, at most one a second: first the whole (`shown`), then what has changed (`notice`).

        `names`: what the caller may see, which a new credential may change: then it is told the whole again.
        It does not end by itself, and it waits while Redis is away. Close it (aclosing).
        """
        watched = self._join(sid)
        told: tuple[Seen, Names] | None = None
        try:
            while True:
                changed, seen = watched.changed, watched.seen
                sees = names()
                if seen is not None and (told is None or seen is not told[0]):
                    if told is None or told[1] is not sees:
                        said: dict[str, Any] | None = shown(seen, sees)
                    else:
                        said = notice(told[0], seen, sees)
                    told = seen, sees
                    if said is not None:
                        yield said
                        await asyncio.sleep(NOTICE_S)
                await changed.wait()
        finally:
            self._leave(watched)

    async def run(self) -> None:
        """See servers die and come back, for those who watch. Ends only by cancellation."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._watched:
                await self.look()

    async def look(self) -> None:
        began_s = time.monotonic()
        was_alive = self._alive
        try:
            self._alive = await self._living()
        except StoreUnavailable:
            self._grace_until_s = time.monotonic() + GRACE_S
            return
        now_s = time.monotonic()
        if now_s - began_s > LOOK_S:  # it was away, and the answer waited for it
            self._grace_until_s = now_s + GRACE_S
        if now_s < self._grace_until_s:
            self._alive = {*self._alive, *was_alive}
        if self._forget_silent(now_s) or self._alive != was_alive:
            for watched in self._watched.values():
                watched.wake()

    def _forget_silent(self, now_s: float) -> bool:
        silent = [name for name, at_s in self._heard_at_s.items() if (now_s - at_s) * 1000 > SILENT_AFTER_MS]
        for server in silent:
            del self._heard_at_s[server]
        return bool(silent)

    def _lives(self, server: str) -> bool:
        return server in self._alive or server in self._heard_at_s

    # -- what is watched -----------------------------------------------------------------------------------------

    def _join(self, sid: str) -> _Watched:
        watched = self._watched.get(sid)
        if watched is None:
            watched = self._watched[sid] = _Watched(sid)
            watched.task = asyncio.create_task(self._keep(watched), name="presence")
        watched.watchers += 1
        return watched

    def _leave(self, watched: _Watched) -> None:
        watched.watchers -= 1
        if not watched.watchers:
            del self._watched[watched.sid]
            watched.task.cancel()

    async def _keep(self, watched: _Watched) -> None:
        """What is known of a watched stream, up to date. Ends only by cancellation."""
        with self._hub.listen(self._keys.presence_of(watched.sid), watched.hear):
            await watched.heard_within(SUBSCRIBED_S)
            while True:
                try:
                    await self._update(watched)
                except StoreUnavailable:
                    watched.is_stale = True
                    await asyncio.sleep(AGAIN_S)
                except Exception:
                    watched.is_stale = True
                    logger.exception("stream %s: who is present cannot be read; it is tried again", watched.sid)
                    await asyncio.sleep(FAILED_S)
                else:
                    await asyncio.sleep(NOTICE_S)
                    await watched.heard.wait()

    async def _update(self, watched: _Watched) -> None:
        watched.heard.clear()
        if watched.is_stale:
            async with self._turns:
                watched.is_stale = False
                watched.said.clear()  # what was announced until now is in the records
                watched.here, _ = await self._read(watched.sid)
                self._alive = {*self._alive, *await self._living()}  # perhaps nobody has looked lately
        said, watched.said = watched.said, []
        now_s = time.monotonic()
        for announcement in said:
            self._heard_at_s[announcement.server] = now_s
            watched.here.apply(announcement)
        watched.see(watched.here.seen(self._lives))

    # -- Redis ---------------------------------------------------------------------------------------------------

    async def _read(self, sid: str) -> tuple[Here, int]:
        """And how many records there were, of open connections and of closed ones. The first MANY are parsed at once,
        in some ms; further ones in a thread.
        """
        here, key, redis = Here(), self._keys.views_of(sid), self._redis
        fields: list[bytes] = await redis.hkeys(key)  # type: ignore[misc]  # redis-py's types are those of both clients
        for start in range(0, len(fields), PAGE_RECORDS):
            some = fields[start : start + PAGE_RECORDS]
            values: list[bytes | None] = await redis.hmget(key, some)  # type: ignore[misc]
            found = [(field, value) for field, value in zip(some, values, strict=True) if value is not None]
            if start >= MANY:
                await asyncio.to_thread(here.take, found)
            else:
                here.take(found)
        here.take_crowds(await redis.hgetall(self._keys.crowd_of(sid)))  # type: ignore[misc]
        return here, len(fields)

    async def _living(self) -> Alive:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrange(self._keys.tiers, 0, -1, withscores=True)
            (seconds, microseconds), servers = await pipe.execute()
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        return {server.decode() for server, at_ms in servers if at_ms >= now_ms - SILENT_AFTER_MS}


class _Watched:
    """A stream, and what is known of it. `is_stale`: its records must be read."""

    def __init__(self, sid: str) -> None:
        self.sid = sid
        self.watchers = 0
        self.task: asyncio.Task[None]
        self.here = Here()
        self.seen: Seen | None = None
        self.changed = asyncio.Event()
        self.heard = asyncio.Event()
        self.is_stale = True
        self.said: list[Announcement] = []

    def hear(self, message: bytes | None) -> None:
        """As Hub.listen gives it."""
        if message is None:
            self.is_stale = True
            self.said.clear()
        else:
            try:
                said = Announcement.decode(message)
            except ValueError:
                logger.warning("stream %s: something else than presence was announced", self.sid)
                return
            self.is_stale = self.is_stale or said.has_more
            self.said.append(said)
        self.heard.set()

    async def heard_within(self, limit_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self.heard.wait()

    def wake(self) -> None:
        self.heard.set()

    def see(self, seen: Seen) -> None:
        if seen != self.seen:
            self.seen = seen
            changed, self.changed = self.changed, asyncio.Event()
            changed.set()
