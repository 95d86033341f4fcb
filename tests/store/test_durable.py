"""What is confirmed is on Redis' disk, as Redis itself says."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from broker.errors import RedisUnavailable
from broker.store import durable
from broker.store.durable import require_durable


async def write(redis: Redis) -> None:
    async with redis.pipeline(transaction=False) as pipe:
        pipe.set("a", "b", ex=60)
        await require_durable(pipe)


@pytest.fixture
async def with_a_file(redis: Redis) -> AsyncIterator[Redis]:
    await redis.config_set("appendonly", "yes")
    yield redis
    await redis.config_set("appendfsync", "everysec")
    await redis.config_set("appendonly", "no")


async def test_a_redis_that_syncs_confirms(with_a_file: Redis) -> None:
    await with_a_file.config_set("appendfsync", "always")
    await write(with_a_file)
    assert await with_a_file.get("a") == b"b"


async def test_what_is_not_on_disk_in_time_is_not_confirmed(
    with_a_file: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_a_file.config_set("appendfsync", "no")
    monkeypatch.setattr(durable, "ON_DISK_MS", 20)
    with pytest.raises(RedisUnavailable, match="disk"):
        await write(with_a_file)


async def test_where_nothing_can_be_confirmed_it_is_written_all_the_same(any_redis: Redis) -> None:
    """No append-only file, or no WAITAOF (Redis 7.0): a revocation answered 503 there, and no server was told of it."""
    await write(any_redis)
    assert await any_redis.get("a") == b"b"
