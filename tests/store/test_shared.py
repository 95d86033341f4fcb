"""Who asks the same at the same time gets one answer."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from broker.errors import RedisUnavailable
from broker.log.keys import Keys
from broker.store.connect import connect
from broker.store.shared import Shared
from broker.tenants.limits import TenantLimits
from broker.tenants.revocations import Revocations
from broker.tenants.token import Token

TOKEN = Token("id", "lastevent", "acme", "ann", frozenset({"streams:read"}), 0, 60)


async def test_an_answer_and_a_failure_are_everybody_s_and_who_asks_later_asks_again() -> None:
    shared, answers, asked = Shared(), asyncio.Event(), 0

    async def fail() -> None:
        nonlocal asked
        asked += 1
        await answers.wait()
        raise RedisUnavailable("away")

    several = [asyncio.create_task(shared.ask("a", fail)) for _ in range(5)]
    await asyncio.sleep(0)
    several[0].cancel()
    answers.set()
    told = await asyncio.gather(*several, return_exceptions=True)
    assert [type(one) for one in told] == [asyncio.CancelledError, *[RedisUnavailable] * 4]
    assert (asked, shared.is_asked("a")) == (1, False)
    with pytest.raises(RedisUnavailable):
        await shared.ask("a", fail)
    assert asked == 2


async def test_a_storm_of_reconnects_asks_once_for_limits_and_once_for_what_is_revoked(redis: Redis) -> None:
    limits = TenantLimits(redis, Keys().limits)
    revocations = Revocations(redis, Keys().revoked, Keys().api_keys_changed, longest_s=60)
    await redis.config_resetstat()
    await asyncio.gather(*(limits.of("acme") for _ in range(50)), *(revocations.require_good(TOKEN) for _ in range(50)))
    stats = await redis.info("commandstats")
    assert (stats["cmdstat_hgetall"]["calls"], stats["cmdstat_zrangebyscore"]["calls"]) == (1, 1)


async def test_while_redis_is_away_all_are_told_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    away = connect("unix:///nowhere/s")
    revocations = Revocations(away, Keys().revoked, Keys().api_keys_changed, longest_s=60)
    asked = 0
    read = revocations._read

    async def counted(tenants: list[str]) -> None:
        nonlocal asked
        asked += 1
        await read(tenants)

    monkeypatch.setattr(revocations, "_read", counted)
    told = await asyncio.gather(*(revocations.require_good(TOKEN) for _ in range(50)), return_exceptions=True)
    assert {type(one) for one in told} == {RedisUnavailable}
    assert asked == 1
    await away.aclose()
