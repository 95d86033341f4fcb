"""Which Redis server a process talks to, and since when that one is in use: what the boot rule stands on.

A server that took over from another (a restart, a promoted replica) may have lost the end of every log. For one lease
nothing is claimed or seized then, so that living writers put back what was lost first; for two thirds of it nobody
writes a *new* ending. The lease runs from when the first process met the server, which `le:servers` keeps.

A server that ended with everything on its disk has lost nothing (the embedded one, stopped cleanly). The next one has
another name, so that pens jump and no claim is repeated, but it *succeeds* the one before, and nobody waits for it.

A script that has to know says NEW_SERVER when it runs on a server that this process has not met; `calling` notes the
server and calls again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from redis.asyncio import Redis

from broker.errors import LogHealing, RedisUnavailable
from broker.log.keys import Keys
from broker.log.script import NewServer, Seen

T = TypeVar("T")

SERVERS_KEPT = 8
SERVERS_LIFE_S = 7 * 86_400
TRIES = 3
TOO_MANY_SERVERS = "Redis is changing servers too often. Try again shortly."

ENDINGS_WAIT = 2 / 3
"""Of a lease: two heartbeats and looks, in which whoever keeps an ending that Redis lost puts it back. A new ending
waits for that, and is still there before anybody may claim."""

RETURN_LEASES = 2
"""Leases in which a stream that Redis lost may come back: its writer may have stood still for almost one of them."""


class Servers:
    def __init__(self, redis: Redis, keys: Keys, *, lease_s: float) -> None:
        self._redis = redis
        self._key = keys.servers
        self._lease_ms = round(lease_s * 1000)
        self.seen = Seen()

    async def now_ms(self) -> int:
        """Redis' clock, the only one that decides anything."""
        seconds, microseconds = await self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def note(self) -> None:
        """Note since when this server is in use: a lease later, streams of the one before it may be claimed."""
        server = await self._this()
        if server != self.seen.server:
            await self.meet(server)

    async def meet(self, server: str) -> None:
        """This process talks to another server than before."""
        now_ms = await self.now_ms()
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(self._key, {server: now_ms}, nx=True)
            if self.seen.server:  # one that has lost everything must not be taken for the first
                pipe.zadd(self._key, {self.seen.server: self.seen.since_ms}, nx=True)
            pipe.zremrangebyrank(self._key, 0, -1 - SERVERS_KEPT)
            pipe.expire(self._key, SERVERS_LIFE_S)
            pipe.zscore(self._key, server)
            *_, since_ms = await pipe.execute()
        self.seen = Seen(server, int(since_ms))

    async def succeed(self, ended: str, ended_ms: int) -> bool:
        """This server has all that the one had which ended then. True: it counts as settled, and nobody waits.

        False, and nothing is changed, if that one is not the last that anybody has met, or if it had not settled
        itself: what was to be put back then may still come. The first of all had nothing to wait for.
        """
        server, now_ms = await self._this(), await self.now_ms()
        settling_ms = round(RETURN_LEASES * self._lease_ms)
        last = await self._redis.zrevrange(self._key, 0, 1, withscores=True)
        if not last or last[0][0].decode() != ended:
            return False
        since_ms, is_first = int(last[0][1]), len(last) == 1
        if now_ms < ended_ms or not (is_first or since_ms + settling_ms <= ended_ms):
            return False
        since_ms = min(since_ms + 1, now_ms - settling_ms)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(self._key, {ended: since_ms - 1}, lt=True)  # also a first one that was short comes before this
            pipe.zadd(self._key, {server: since_ms}, nx=True)
            pipe.zremrangebyrank(self._key, 0, -1 - SERVERS_KEPT)
            pipe.expire(self._key, SERVERS_LIFE_S)
            await pipe.execute()
        return True

    async def calling(self, step: Callable[[Seen], Awaitable[T]]) -> T:
        """Call a step that must know since when this server is in use. Raises RedisUnavailable if it keeps changing."""
        for _ in range(TRIES):
            try:
                return await step(self.seen)
            except NewServer as new:
                await self.meet(new.server)
        raise RedisUnavailable(TOO_MANY_SERVERS)

    async def require_settled(self, leases: float) -> None:
        """Raises LogHealing within so many leases after a change of servers: what is not there may be put back."""
        await self.note()
        wait_ms = self.seen.since_ms + leases * self._lease_ms - await self.now_ms()
        if wait_ms <= 0:
            return
        is_another = await self._redis.zcard(self._key) > 1
        if is_another:
            raise LogHealing(wait_ms / 1000)

    async def _this(self) -> str:
        return server_of(await self._redis.info("server", "replication"))  # type: ignore[arg-type]  # it is *args

    @property
    def endings_from_ms(self) -> int:
        """From when on a stream of another server may get a new ending."""
        return self.seen.since_ms + round(ENDINGS_WAIT * self._lease_ms)


def server_of(info: Mapping[str, Any]) -> str:
    """The server's name as the scripts make it (prelude.lua) of what INFO says."""
    return str(info.get("run_id", ""))[:16] + str(info.get("master_replid", ""))[:16]
