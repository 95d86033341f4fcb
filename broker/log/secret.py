"""The secret that signs tokens where none is configured: random, made by the first server, shared through Redis.

It is of no use to who can read Redis, since every stream is there too. Redis may lose it: then a server that knows it
puts it back, and where a newer one was made meanwhile, that server signs with the new one and accepts both.
"""

from __future__ import annotations

import asyncio
import secrets

from redis.asyncio import Redis

from broker.log.keys import Keys

CHECK_S = 30.0
"""Redis loses it at a failover or a restart, at the most; until it is back, only servers that start could differ."""


class SharedSecret:
    """`known`: the one to sign with, then those that this process has signed with before. Empty until Redis answers."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self.known: tuple[bytes, ...] = ()
        self._redis = redis
        self._key = keys.secret

    async def run(self) -> None:
        """Load it, and look after it for ever. Only cancellation ends this, or RedisUnavailable."""
        while True:
            await self.load()
            await asyncio.sleep(CHECK_S)

    async def load(self) -> None:
        """Raises RedisUnavailable."""
        mine = self.known[0] if self.known else secrets.token_hex(32).encode()
        # One step: of two servers that start together, both get what the first of them has set.
        there = await self._redis.set(self._key, mine, nx=True, get=True) or mine
        self.known = tuple(dict.fromkeys([there, *self.known]))
