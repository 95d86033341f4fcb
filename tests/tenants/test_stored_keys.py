"""API keys in Redis: what is written, what Redis says of its disk, and how a server hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import pytest

from broker.errors import KeyNotFound
from broker.store.durable import Kept
from broker.tenants import stored_keys
from broker.tenants.keyring import ApiKey, Keyring, new_key, parsed
from broker.tenants.stored_keys import Put, StoredKeys
from tests.rig.deployment import until

READING = frozenset({"streams:read"})
NAME, CHANNEL = "le:keys", "le:keys:changed"

pytestmark = pytest.mark.anyio


async def keys_of(stored: StoredKeys) -> dict[str, ApiKey]:
    return {key.id: key for key in parsed(await stored.read())}


async def test_what_is_made_is_there_and_what_is_revoked_stays_as_a_tombstone(any_redis: Any) -> None:
    stored = StoredKeys(any_redis, NAME, CHANNEL)
    assert await stored.are_none()
    key, secret = new_key("acme", READING, name="web")
    await stored.add(key)
    assert await keys_of(stored) == {key.id: key}
    revoked, _ = await stored.revoke(key.id)
    again, _ = await stored.revoke(key.id)
    assert again == revoked
    assert await keys_of(stored) == {key.id: revoked}
    assert not await stored.are_none()
    everything = repr(await any_redis.hgetall(NAME))
    assert secret.rpartition("_")[2] not in everything
    assert key.digest.hex() not in everything
    for unknown in ("aaaaaaaaaaaa", "", "*"):
        with pytest.raises(KeyNotFound):
            await stored.revoke(unknown)


async def test_without_an_append_only_file_nothing_is_promised(any_redis: Any) -> None:
    key, _ = new_key("acme", READING)
    assert await StoredKeys(any_redis, NAME, CHANNEL).add(key) in (Kept.NO_FILE, Kept.CANNOT_TELL)


async def test_with_an_append_only_file_what_is_answered_is_on_disk(redis: Any) -> None:
    await redis.config_set("appendonly", "yes")
    try:
        await until(lambda: _has_rewritten(redis), "the file is begun")
        key, _ = new_key("acme", READING)
        assert await StoredKeys(redis, NAME, CHANNEL).add(key) is Kept.ON_DISK
    finally:
        await redis.config_set("appendonly", "no")


async def _has_rewritten(redis: Any) -> bool:
    return not (await redis.info("persistence"))["aof_rewrite_in_progress"]


async def test_keys_are_put_back_and_putting_them_back_again_changes_nothing(any_redis: Any) -> None:
    stored = StoredKeys(any_redis, NAME, CHANNEL)
    (good, _), (bad, _), (there, _) = (new_key("acme", READING) for _ in range(3))
    backup = [good, bad.revoked_at(7), there]
    await stored.add(there)
    did, _ = await stored.put_back(backup)
    assert did == {good.id: Put.NEW, bad.id: Put.NEW, there.id: Put.THERE}
    assert await keys_of(stored) == {key.id: key for key in backup}
    did, _ = await stored.put_back(backup)
    assert set(did.values()) == {Put.THERE}
    assert await keys_of(stored) == {key.id: key for key in backup}


async def test_a_key_that_is_revoked_on_either_side_is_revoked(any_redis: Any) -> None:
    stored = StoredKeys(any_redis, NAME, CHANNEL)
    (here, _), (there, _), (other, _) = (new_key("acme", READING) for _ in range(3))
    for key in (here, there, other):
        await stored.add(key)
    await stored.revoke(here.id)
    stranger = ApiKey(other.id, "acme", READING, b"\x01" * 32, created=other.created)
    did, _ = await stored.put_back([here, there.revoked_at(7), stranger])
    assert did == {here.id: Put.THERE, there.id: Put.REVOKED, other.id: Put.OTHER}
    found = await keys_of(stored)
    assert [found[key.id].revoked is not None for key in (here, there, other)] == [True, True, False]
    assert found[other.id] == other


async def test_a_change_is_seen_though_nobody_has_told_of_it(redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_keys, "LOOK_AGAIN_S", 0.02)
    ring, stored, thens = Keyring(), StoredKeys(redis, NAME, CHANNEL), []
    key, secret = new_key("acme", READING)
    task = asyncio.create_task(stored.look(ring.know, lambda: thens.append(ring.is_good(key.id))))
    try:
        await until(lambda: thens, "it has looked once")
        await redis.hset(NAME, key.id, key.to_json())
        await until(lambda: ring.find(secret), "the key is known")
        await stored.revoke(key.id)
        await until(lambda: not ring.find(secret), "and not any more")
        await until(lambda: thens[-1] is False, "who cuts is told")
        assert True in thens
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_revocation_that_redis_has_lost_is_put_back(redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_keys, "LOOK_AGAIN_S", 0.02)
    ring, stored = Keyring(), StoredKeys(redis, NAME, CHANNEL)
    key, _ = new_key("acme", READING)
    await stored.add(key)
    ring.know(await stored.read())
    revoked, _ = await stored.revoke(key.id)
    ring.know(await stored.read())
    await redis.hset(NAME, key.id, key.to_json())
    task = asyncio.create_task(stored.look(ring.know, lambda: None))
    try:
        await until(lambda: _has(stored, revoked), "it is revoked again")
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _has(stored: StoredKeys, key: ApiKey) -> bool:
    return await keys_of(stored) == {key.id: key}


async def test_expired_keys_are_looked_for_though_redis_is_away() -> None:
    class Away(StoredKeys):
        async def read(self) -> Mapping[bytes, bytes]:
            raise ConnectionError

    looked: list[None] = []
    with pytest.raises(ConnectionError):
        await Away(cast(Any, None), NAME, CHANNEL).look(Keyring().know, lambda: looked.append(None))
    assert looked
