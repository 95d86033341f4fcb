"""Fair shares: whose stream a worker finds first, of several tenants'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import arq.worker
import fakeredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from broker.log.keys import Keys
from broker.log.queue import (
    CLAIM_S,
    IN_HAND_S,
    JOB,
    JOB_TIMEOUT_S,
    SHARES_KEPT_S,
    connect_queue,
    enqueue,
    lost,
    take_out,
)

KEYS = Keys()


async def queue_of(redis: Redis, tenants: str | Sequence[str], **weights: float) -> None:
    """Their streams, called <tenant><number>, arrive in this order."""
    seen: Counter[str] = Counter()
    for tenant in tenants:
        seen[tenant] += 1
        await enqueue(redis, KEYS, f"{tenant}{seen[tenant]}", tenant=tenant, weight=weights.get(tenant, 1))


async def order(redis: Redis) -> list[str]:
    return [sid.decode() for sid in await redis.zrange(KEYS.jobs, 0, -1)]


async def done(redis: Redis, sid: str) -> None:
    """As arq does when a job has ended."""
    await redis.zrem(KEYS.jobs, sid)
    await redis.delete(f"arq:job:{sid}")


async def test_anothers_stream_waits_behind_one_of_a_thousand(redis: Redis) -> None:
    await queue_of(redis, ["a"] * 1000)
    await queue_of(redis, "bb")
    ordered = await order(redis)
    assert ordered.index("b1") <= 2
    assert ordered.index("b2") <= 4
    await redis.flushdb()


async def test_a_tenant_that_comes_late_does_not_get_what_it_missed(redis: Redis) -> None:
    await queue_of(redis, ["a"] * 50)
    for n in range(1, 21):
        await done(redis, f"a{n}")
    await queue_of(redis, ["b"] * 10)
    assert Counter(sid[0] for sid in (await order(redis))[:10])["b"] <= 6
    await redis.flushdb()


async def test_a_weight_is_a_share(redis: Redis) -> None:
    await queue_of(redis, ["a"] * 60 + ["b"] * 60, a=3)
    first = Counter(sid[0] for sid in (await order(redis))[:40])
    assert 28 <= first["a"] <= 32
    await redis.flushdb()


async def test_nobody_owes_turns_once_nobody_waits(redis: Redis) -> None:
    await queue_of(redis, ["a"] * 100)
    for n in range(1, 101):
        await done(redis, f"a{n}")
    await enqueue(redis, KEYS, "b", tenant="b")
    assert await redis.exists(KEYS.shares(None)) == 0
    [(_, score)] = await redis.zrange(KEYS.jobs, 0, -1, withscores=True)
    now_s, _ = await redis.time()
    assert now_s - 60 < score <= now_s + 1
    await redis.flushdb()


async def test_tenants_whose_turn_has_passed_are_not_kept(redis: Redis) -> None:
    await enqueue(redis, KEYS, "first", tenant="first")
    for n in range(1000):  # each comes when the one before it is done
        await enqueue(redis, KEYS, f"s{n}", tenant=f"t{n}")
        await redis.zremrangebyrank(KEYS.jobs, 0, 0)
        assert await redis.hlen(KEYS.shares(None)) <= 128
    assert 0 < await redis.ttl(KEYS.shares(None)) <= SHARES_KEPT_S
    await redis.flushdb()


async def test_a_stream_whose_place_in_the_queue_is_lost_can_be_queued_again(redis: Redis) -> None:
    await queue_of(redis, "aa")
    await redis.zrem(KEYS.jobs, "a1")  # its job is there
    await enqueue(redis, KEYS, "a1", tenant="a")
    assert await order(redis) == ["a2", "a1"]
    await redis.flushdb()


async def test_lost_are_those_that_are_not_queued_or_in_a_dead_workers_hand(redis: Redis) -> None:
    await queue_of(redis, "aaa")
    await redis.psetex("arq:in-progress:a2", 60_000, "1")
    await take_out(redis, KEYS, "a3", None)
    assert await lost(redis, KEYS, ["a1", "a2", "a3"], None) == {"a2", "a3"}
    await redis.flushdb()


@pytest.mark.parametrize(("held_s", "is_let_go"), [(CLAIM_S - 1, False), (CLAIM_S + 1, True)])
async def test_what_a_worker_died_with_in_its_hand_another_takes_once_it_is_queued_again(
    redis: Redis, held_s: int, is_let_go: bool
) -> None:
    await queue_of(redis, "a")
    await redis.psetex("arq:in-progress:a1", (IN_HAND_S - held_s) * 1000, "1")
    await enqueue(redis, KEYS, "a1", tenant="a", has_turn=True)
    assert await redis.exists("arq:in-progress:a1") == (not is_let_go)
    assert await order(redis) == ["a1"]
    await redis.flushdb()


async def test_a_job_is_in_hand_for_as_long_as_arq_says(redis: Redis) -> None:
    worker = arq.worker.Worker(
        [arq.worker.func(queue_of, name=JOB)], redis_pool=redis, job_timeout=JOB_TIMEOUT_S, handle_signals=False
    )
    assert worker.in_progress_timeout_s == IN_HAND_S


@pytest.mark.parametrize("tenant", ["default", "acme"])
async def test_a_job_says_whose_it_is_to_those_who_ask(redis: Redis, valkey_url: str, tenant: str) -> None:
    """An older worker reads the members it knows: the stream is still its one argument."""
    queue = connect_queue(valkey_url, KEYS)
    await enqueue(queue, KEYS, "a", tenant=tenant)
    job = await redis.get("arq:job:a")
    read = queue.job_deserializer(job)  # type: ignore[misc]
    assert read["a"] == ["a"]
    assert read["k"] == ({} if tenant == "default" else {"tenant": tenant})
    assert (b"tenant" in job) == (tenant != "default")
    await queue.aclose(close_connection_pool=True)
    await redis.flushdb()


Steps = list[str]


@given(st.lists(st.sampled_from(["a", "b", "c", "take", "take"]), max_size=120))
async def test_whatever_comes_a_tenant_keeps_its_order_and_waits_for_no_more_than_its_share(steps: Steps) -> None:
    async with fakeredis.FakeAsyncRedis() as redis:
        waiting: dict[str, list[str]] = {}
        overtaken: dict[str, Counter[str]] = {}  # of each that is first of its tenant: who was taken since
        for n, step in enumerate(steps):
            if step != "take":
                sid = f"{step}{n:03d}"
                await enqueue(redis, KEYS, sid, tenant=step)
                line = waiting.setdefault(step, [])
                line.append(sid)
                if len(line) == 1:
                    overtaken[step] = Counter()
            elif ordered := await order(redis):
                taken = ordered[0]
                tenant = taken[0]
                assert waiting[tenant].pop(0) == taken
                overtaken[tenant] = Counter()
                await done(redis, taken)
                for other, line in waiting.items():
                    if line and other != tenant:
                        overtaken[other][tenant] += 1
                        assert overtaken[other][tenant] <= 2, "another of equal weight had two turns, and then one more"


@given(st.integers(2, 60), st.integers(0, 60))
async def test_with_one_tenant_the_order_is_that_of_arrival(count: int, taken: int) -> None:
    async with fakeredis.FakeAsyncRedis() as redis:
        for n in range(count):
            await enqueue(redis, KEYS, f"{n:03d}")
            if n == taken:
                await done(redis, "000")
        ordered = await order(redis)
        assert ordered == sorted(ordered)
