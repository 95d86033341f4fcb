"""One worker at a time archives and erases. Nothing depends on there being only one: it saves the others the work."""

from __future__ import annotations

import secrets

from redis.asyncio import Redis

TURN_MS = 10_000
"""A worker that has not come back within this has lost its turn."""


class Turn:
    def __init__(self, redis: Redis, key: str) -> None:
        self._redis = redis
        self._key = key
        self._name = secrets.token_hex(8)
        self._is_mine = False

    async def take(self) -> bool:
        """Whether it is this worker's, for TURN_MS from now on. To be asked again and again while at work."""
        holder = await self._redis.set(self._key, self._name, nx=True, px=TURN_MS, get=True)
        self._is_mine = holder is None or holder.decode() == self._name
        if self._is_mine:
            await self._redis.pexpire(self._key, TURN_MS)
        return self._is_mine

    async def pass_on(self) -> None:
        """This worker stops, or cannot reach the archive: another one takes the turn before it does again."""
        if self._is_mine:
            self._is_mine = False
            await self._redis.delete(self._key)
