"""What is confirmed is on Redis' disk, as Redis itself says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from broker.errors import RedisUnavailable
from broker.store import confirmed
from broker.store.confirmed import Kept, write, write_confirmed
from broker.store.connect import connect

pytestmark = pytest.mark.anyio
SET = ("SET", "a", "b", "EX", 60)


@pytest.fixture
async def with_a_file(redis: Redis) -> AsyncIterator[Redis]:
    await redis.config_set("appendonly", "yes")
    yield redis
    await redis.config_set("appendfsync", "everysec")
    await redis.config_set("appendonly", "no")


async def test_a_redis_that_syncs_confirms(with_a_file: Redis) -> None:
    await with_a_file.config_set("appendfsync", "always")
    assert await write(with_a_file, SET) is Kept.ON_DISK
    assert await with_a_file.get("a") == b"b"


async def test_what_is_not_on_disk_in_time_is_not_confirmed(
    with_a_file: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_a_file.config_set("appendfsync", "no")
    monkeypatch.setattr(confirmed, "CONFIRM_MS", 20)
    with pytest.raises(RedisUnavailable, match="disk"):
        await write_confirmed(with_a_file, SET)


async def test_without_a_file_there_is_nothing_to_wait_for(any_redis: Any) -> None:
    await write_confirmed(any_redis, SET)
    assert await any_redis.get("a") == b"b"


async def test_a_redis_that_may_not_be_asked_is_believed(redis: Redis, valkey_url: str) -> None:
    await redis.acl_setuser("quiet", enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-waitaof"])
    quiet = connect(valkey_url.replace("unix://", "unix://quiet:x@"))
    try:
        assert await write(quiet, SET) is Kept.NO_FILE
    finally:
        await quiet.aclose()
        await redis.acl_deluser("quiet")


async def test_a_redis_that_takes_no_writes_says_so(redis: Redis) -> None:
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisUnavailable, match="maxmemory"):
            await write_confirmed(redis, SET)
    finally:
        await redis.config_set("maxmemory", 0)
