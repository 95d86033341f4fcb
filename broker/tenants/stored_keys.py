"""The API keys in Redis: a hash, id → JSON (keyring.py), and a channel that tells each server of a change.

A key that is revoked stays, without its digest: the hash is never empty again, so no server ever takes a Redis that had
keys for one that has none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

from broker.errors import KeyNotFound
from broker.store.connect import Client
from broker.store.durable import Kept, write_durably
from broker.tenants.keyring import ApiKey

LOOK_AGAIN_S = 5.0
"""A message may be lost: what was revoked is cut within 10 s all the same."""

Know = Callable[[Mapping[bytes, bytes]], Mapping[str, ApiKey]]
"""Keyring.know: what Redis has → what it should have."""


class Put(Enum):
    """What putting a key back did."""

    NEW = "put back"
    REVOKED = "revoked"
    THERE = "there already"
    OTHER = "left as it is in Redis, which has another secret for it"


class StoredKeys:
    """`name`, `channel`: the hash and the channel. All of it raises RedisUnavailable."""

    def __init__(self, redis: Client, name: str, channel: str) -> None:
        self._redis: Any = redis
        self._name = name
        self._channel = channel
        self._reading = asyncio.Lock()

    async def read(self) -> Mapping[bytes, bytes]:
        found: Mapping[bytes, bytes] = await self._redis.hgetall(self._name)
        return found

    async def tell(self, know: Know) -> Mapping[str, ApiKey]:
        """What Redis has now, to who keeps it. One at a time: an older answer could come last."""
        async with self._reading:
            return know(await self.read())

    async def are_none(self) -> bool:
        return not await self._redis.hlen(self._name)

    async def add(self, key: ApiKey) -> Kept:
        """A new one."""
        return await self._write({key.id: key})

    async def revoke(self, key_id: str) -> tuple[ApiKey, Kept]:
        """For good; one that is revoked stays as it is. Raises KeyNotFound."""
        kept = await self._redis.hget(self._name, key_id)
        try:
            key = ApiKey.from_json(key_id, kept or b"")
        except ValueError:
            raise KeyNotFound(
                "There is no API key with this id. `lastevent keys list` shows those that there are."
            ) from None
        if key.revoked is None:
            key = key.revoked_at(int(time.time()))
        return key, await self._write({key_id: key})  # also one that is: it may not be on disk yet

    async def put_back(self, keys: Iterable[ApiKey]) -> tuple[dict[str, Put], Kept]:
        """What of these is missing. What is there stays, unless the one given is revoked: either word counts."""
        there = await self.read()
        did, written = {}, {}
        for key in keys:
            did[key.id] = _what_to_do(key, there.get(key.id.encode()))
            if did[key.id] in (Put.NEW, Put.REVOKED):
                written[key.id] = key
        return did, await self._write(written)

    async def look(self, know: Know, then: Callable[[], object]) -> None:
        """Read them, and again and again for ever, and put back what Redis has lost. `then` is called after each look,
        also one in vain: a key ends at its time whether Redis is there or not.
        """
        while True:
            try:
                lost = await self.tell(know)
            finally:
                then()
            if lost:
                await self._write(lost)
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _write(self, keys: Mapping[str, ApiKey]) -> Kept:
        async with self._redis.pipeline(transaction=False) as pipe:
            if keys:
                pipe.hset(self._name, mapping={key_id: key.to_json() for key_id, key in keys.items()})
                pipe.publish(self._channel, b",".join(key_id.encode() for key_id in keys))
            return await write_durably(pipe)


def _what_to_do(key: ApiKey, there: bytes | None) -> Put:
    if there is None:
        return Put.NEW
    try:
        found = ApiKey.from_json(key.id, there)
    except ValueError:
        return Put.OTHER
    if key.revoked is not None and found.revoked is None:
        return Put.REVOKED
    is_same = found.revoked is not None or found.digest == key.digest
    return Put.THERE if is_same else Put.OTHER
