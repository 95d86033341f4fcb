"""How much a tenant may have: what is set for it, over what the settings say; and how often it may start streams."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from broker.errors import RateLimited, RedisUnavailable
from broker.log.keys import Keys
from broker.process.logs import ABOUT
from broker.store.connect import Client, connect
from broker.tenants.creations import Creations
from broker.tenants.enforcement import Enforcement
from broker.tenants.limits import READ_EVERY_S, Limits, TenantLimits

GIVEN = Limits(creations_per_minute=600, streams_running=500, viewers=50, models=("fast",), max_tokens=1000)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


# -- what counts ---------------------------------------------------------------------------------------------


async def test_what_is_set_for_a_tenant_counts_over_the_settings(redis: Redis) -> None:
    limits = TenantLimits(redis, Keys().limits, GIVEN)
    await limits.set("acme", {"creations_per_minute": 7, "weight": 2, "agents": ["support"]})
    acme = await limits.of("acme")
    assert acme == Limits(7, 500, 50, 2, ("fast",), 1000, ("support",))
    assert await limits.of("other") == GIVEN
    await limits.set("acme", {"creations_per_minute": None, "agents": None})
    assert await limits.of("acme") == Limits(600, 500, 50, 2, ("fast",), 1000)
    assert await limits.all_set() == {"acme": Limits(weight=2)}
    await limits.set("acme", {"weight": None})
    assert not await redis.exists(Keys().limits)


async def test_the_tenant_default_has_only_the_limits_of_models_unless_others_are_set_for_it(redis: Redis) -> None:
    limits = TenantLimits(redis, Keys().limits, GIVEN)
    assert await limits.of("default") == Limits(models=("fast",), max_tokens=1000)
    await limits.set("default", {"viewers": 3})
    assert (await limits.of("default")).viewers == 3
    await limits.set("default", {"viewers": None})


async def test_a_change_counts_on_every_server_within_five_seconds(redis: Redis) -> None:
    clock = Clock()
    here, there = TenantLimits(redis, Keys().limits, GIVEN, clock), TenantLimits(redis, Keys().limits, GIVEN)
    assert (await here.of("acme")).weight is None
    await there.set("acme", {"weight": 9})
    assert (await here.of("acme")).weight is None
    clock.now_s = READ_EVERY_S
    assert (await here.of("acme")).weight == 9
    await there.set("acme", {"weight": None})


async def test_while_redis_is_away_the_last_known_limits_count(redis: Redis) -> None:
    clock = Clock()
    limits = TenantLimits(redis, Keys().limits, GIVEN, clock)
    await limits.set("acme", {"weight": 9})
    assert (await limits.of("acme")).weight == 9
    await limits.set("acme", {"weight": None})
    limits._redis = away = connect("unix:///nowhere/s")
    clock.now_s = READ_EVERY_S
    assert (await limits.of("acme")).weight == 9
    with pytest.raises(RedisUnavailable):
        await TenantLimits(away, Keys().limits).of("acme")
    await away.aclose()


@pytest.mark.parametrize(
    "stored", [b"no JSON", b"[]", b"null", b'{"weight": -1}', b'{"weight": true}', b'{"speed": 9}']
)
async def test_limits_that_cannot_be_read_are_as_if_none_were_set(redis: Redis, stored: bytes) -> None:
    await redis.hset(Keys().limits, mapping={"acme": stored, b"\xff": b"{}", "fine": b'{"weight": 2}'})  # type: ignore[misc]
    limits = TenantLimits(redis, Keys().limits, GIVEN)
    assert await limits.of("acme") == GIVEN
    assert (await limits.of("fine")).weight == 2
    await redis.delete(Keys().limits)


async def test_a_limit_of_a_newer_release_takes_none_of_the_others_away(redis: Redis) -> None:
    await redis.hset(Keys().limits, "acme", '{"speed": 9, "weight": 2}')  # type: ignore[misc]
    assert (await TenantLimits(redis, Keys().limits, GIVEN).of("acme")).weight == 2
    await redis.delete(Keys().limits)


@pytest.mark.parametrize(
    ("tenant", "values"),
    [
        ("Acme", {"weight": 1}),
        ("acme", {"speed": 1}),
        ("acme", {"weight": 0}),
        ("acme", {"weight": 1001}),
        ("acme", {"viewers": 1.5}),
        ("acme", {"viewers": True}),
        ("acme", {"viewers": "1"}),
        ("acme", {"models": []}),
        ("acme", {"models": "fast"}),
        ("acme", {"agents": ["a,b"]}),
        ("acme", {"agents": ["a b"]}),
    ],
)
async def test_what_is_no_limit_is_not_set(redis: Redis, tenant: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"name|limit|number"):
        await TenantLimits(redis, Keys().limits).set(tenant, values)
    assert not await redis.exists(Keys().limits)


# -- creations -----------------------------------------------------------------------------------------------


def creations(client: Client, per_minute: int, *, observes: bool = False) -> tuple[Creations, Enforcement]:
    enforcement = Enforcement(observes=observes)
    limits = TenantLimits(client, Keys().limits, Limits(creations_per_minute=per_minute))
    return Creations(client, Keys().rates, limits, enforcement), enforcement


async def test_a_tenant_starts_so_many_streams_a_minute_and_others_theirs(redis: Client) -> None:
    (one, refused), (two, _) = creations(redis, 3), creations(redis, 3)
    for server in (one, two, one):
        await server.count("acme")
    for server in (one, two):
        with pytest.raises(RateLimited) as limited:
            await server.count("acme")
        assert limited.value.limit == "creations_per_minute"
        assert 1 <= (limited.value.retry_after_s or 0) <= 60
    await one.count("other")
    for _ in range(5):
        await one.count("default")
    assert refused.counts == {"creations_per_minute": 1}


async def test_a_large_limit_is_asked_for_in_hundredths_and_is_met(redis: Client) -> None:
    server, _ = creations(redis, 250)
    before = (await redis.info("commandstats")).get("cmdstat_evalsha", {"calls": 0})["calls"]
    for _ in range(250):
        await server.count("acme")
    assert (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"] - before == 125
    with pytest.raises(RateLimited):
        await server.count("acme")


async def test_a_burst_is_counted_as_what_it_starts(redis: Client) -> None:
    server, _ = creations(redis, 600)
    await asyncio.gather(*(server.count("acme") for _ in range(200)))
    for _ in range(400):
        await server.count("acme")
    with pytest.raises(RateLimited):
        await server.count("acme")


async def test_counters_are_under_our_prefix_and_live_for_two_minutes(redis: Client) -> None:
    await creations(redis, 3)[0].count("acme")
    [name] = await redis.keys("*")
    assert name.startswith(b"le:rates:{acme/")
    assert 0 < await redis.ttl(name) <= 120


async def test_a_refusing_redis_says_so_in_our_words(redis: Client) -> None:
    away = connect("unix:///nowhere/s")
    server = Creations(away, Keys().rates, TenantLimits(redis, Keys().limits, GIVEN), Enforcement())
    with pytest.raises(RedisUnavailable):
        await server.count("acme")
    await away.aclose()


async def test_observed_creations_are_counted_and_none_is_refused(redis: Client) -> None:
    server, enforcement = creations(redis, 2, observes=True)
    for _ in range(5):
        await server.count("acme")
    assert enforcement.counts == {"creations_per_minute": 3}


async def test_the_line_of_what_was_observed_is_about_no_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.tenants.enforcement.LOG_EVERY_S", 0.0)
    observed, said = Enforcement(observes=True), asyncio.Event()
    about: list[object] = []

    def log() -> None:
        about.append(ABOUT.get()())
        said.set()

    monkeypatch.setattr(observed, "log", log)
    token = ABOUT.set(lambda: {"key": "abc"})
    assert not observed.refuses("viewers_per_tenant")
    await said.wait()
    ABOUT.reset(token)
    assert about == [{}]
