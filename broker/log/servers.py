"""Which Redis server a process talks to, and since when that server has been in use: the basis of the boot rule.

A server that took over from another (a restart, a promoted replica) may have lost the end of every log. The boot rule:
for one lease no stream is claimed or seized, so that live writers can put back lost events first; for two thirds of
that lease no *new* ending is written. The lease starts when the first process meets the server; `le:servers` keeps
that time.

A server that ended with everything on its disk has lost nothing (the embedded one, stopped cleanly). Its successor has
another name, so pens jump and no claim is repeated; but nobody waits for it.

A script that needs that time answers NEW_SERVER when it runs on a server that this process has not met. `calling` then
notes the server and calls the script again.
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
"""A process asks for the current server and the one before it; eight leave room for a series of restarts."""

SERVERS_LIFE_S = 7 * 86_400
"""Far longer than any lease: an entry matters for two leases, but the key must not stay for ever."""

TRIES = 3
"""A call meets a new server once. More than that means that Redis changes servers faster than a round trip."""

TOO_MANY_SERVERS = "Redis is changing servers too often. Try again shortly."

ENDINGS_WAIT = 2 / 3
"""Of a lease: time for two heartbeats and two looks, in which a lost ending is put back by the process that keeps it.
A new ending waits for that, and is still written before any process may claim the stream."""

RETURN_LEASES = 2
"""Leases in which a stream that Redis lost may come back: its writer may have stood still for almost one of them."""


class Servers:
    """`seen`: the server that this process met last."""

    def __init__(self, redis: Redis, keys: Keys, *, lease_s: float) -> None:
        self._redis = redis
        self._key = keys.servers
        self._lease_ms = round(lease_s * 1000)
        self.seen = Seen()

    async def now_ms(self) -> int:
        """Redis' clock, in ms since 1970: the only clock that decides anything."""
        seconds, microseconds = await self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def note(self) -> None:
        """Note since when this server has been in use: a lease later, streams of an earlier one may be claimed."""
        server = await self._this()
        if server != self.seen.server:
            await self.meet(server)

    async def meet(self, server: str) -> None:
        """This process talks to another server than before: learn since when it has been in use."""
        now_ms = await self.now_ms()
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(self._key, {server: now_ms}, nx=True)
            if self.seen.server:  # a server that has lost everything must not be taken for the first one
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
        """Call a step that needs to know since when this server has been in use.

        Raises RedisUnavailable if the server keeps changing, and whatever the step raises.
        """
        for _ in range(TRIES):
            try:
                return await step(self.seen)
            except NewServer as new:
                await self.meet(new.server)
        raise RedisUnavailable(TOO_MANY_SERVERS)

    async def require_settled(self, leases: float) -> None:
        """Raises LogHealing for so many leases after a change of servers: a missing key may still be put back."""
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
        """From when on (ms) a stream created under another server may get a new ending."""
        return self.seen.since_ms + round(ENDINGS_WAIT * self._lease_ms)


def server_of(info: Mapping[str, Any]) -> str:
    """The server's name as the scripts form it (prelude.lua), from the fields of INFO."""
    return str(info.get("run_id", ""))[:16] + str(info.get("master_replid", ""))[:16]
