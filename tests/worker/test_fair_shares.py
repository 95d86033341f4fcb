"""Tenants that share a worker: one that has very much to do, and another that asks now and then.

How long the other waits for its first text is measured by `make bench ARGS=tenants`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from arq.constants import in_progress_key_prefix
from redis.asyncio import Redis

import broker.tenants.limits
import worker.places
from broker.log.queue import IN_HAND_S, enqueue, take_out
from broker.log.running import Running
from broker.log.stream_log import StreamLog
from broker.store.connect import connect
from tests.conftest import deployment_in
from tests.rig.deployment import Deployment, until
from tests.rig.streams import grow_old, queued, seize
from tests.worker import test_lease
from worker.sweeper import QUEUED_GRACE_S

FAST = "[[tokens=1 rate=0 ttft_ms=0]]"
FOR_EVER = "[[tokens=3 stall_at=1 rate=0 ttft_ms=0]]"
SLOTS = 10


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder: Path = tmp_path_factory.mktemp("shares")
    with deployment_in(folder, servers=0, LASTEVENT_CONCURRENCY=str(SLOTS)) as deployment:
        yield deployment


@pytest.fixture
async def log(deployment: Deployment) -> AsyncIterator[StreamLog]:
    async with connect(deployment.redis_url) as redis:
        yield StreamLog(redis)


async def start(log: StreamLog, tenant: str, prompt: str) -> str:
    request = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 100}
    sid = await queued(log, tenant=tenant, request=request)
    await enqueue(log.redis, log.keys, sid, tenant=tenant)
    return sid


async def start_many(log: StreamLog, tenant: str, prompt: str, count: int) -> list[str]:
    sids: list[str] = []
    for n in range(0, count, 100):
        sids += await asyncio.gather(*(start(log, tenant, prompt) for _ in range(min(100, count - n))))
    return sids


async def _has_ended(log: StreamLog, sid: str) -> bool:
    [meta] = await log.read_meta(sid)
    return meta is not None and meta.has_ended


async def limit(log: StreamLog, tenant: str, streams_running: int) -> None:
    await log.redis.hset(log.keys.limits, tenant, orjson.dumps({"streams_running": streams_running}))


async def states(log: StreamLog, sids: list[str]) -> list[str]:
    return [found.state for found in await log.read_meta(*sids) if found]


async def _waits(log: StreamLog, count: int) -> bool:
    parked: int = await log.redis.zcard(log.keys.parked("a"))
    return parked == count


async def cancel(log: StreamLog, sid: str) -> None:
    """As a server does."""
    await seize(log, sid, "cancelled", b"{}")
    await Running(log.redis, log.keys).let_go("a", sid)


@pytest.fixture
async def own_log(redis: Redis) -> AsyncIterator[StreamLog]:
    yield StreamLog(redis)
    await redis.flushdb()  # streams that never end are left


standin, start_worker = test_lease.standin, test_lease.start_worker


@pytest.fixture
def starting(start_worker: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(worker.places, "RENEW_S", 0.05)
    return start_worker


async def test_a_tenant_holds_four_fifths_of_the_slots_and_anothers_stream_needs_no_ending(
    own_log: StreamLog, starting: Callable[..., Any]
) -> None:
    log = own_log
    async with starting(concurrency=5):
        sids = await start_many(log, "a", FOR_EVER, 60)
        for _ in range(3):
            sid = await start(log, "b", FAST)
            await until(lambda sid=sid: _has_ended(log, sid), "b's answer")
        await until(lambda: _are(log, sids, running=4), "four of a run")
        await until(lambda: _waits(log, 56), "the others wait")
        assert await _are(log, sids, running=4)


async def _are(log: StreamLog, sids: list[str], **counts: int) -> bool:
    found = await states(log, sids)
    return all(found.count(state) == count for state, count in counts.items())


async def test_a_tenant_at_its_limit_goes_on_in_order_as_its_streams_end(
    own_log: StreamLog, starting: Callable[..., Any]
) -> None:
    log = own_log
    await limit(log, "a", 2)
    async with starting(concurrency=10):
        sids = [await start(log, "a", FOR_EVER) for _ in range(2)]
        await until(lambda: _are(log, sids, running=2), "two run")
        sids += [await start(log, "a", FOR_EVER)]
        await until(lambda: _waits(log, 1), "the third waits")
        sids += [await start(log, "a", FOR_EVER) for _ in range(3)]
        for ended in range(5):
            expected = [*["cancelled"] * ended, *["running"] * min(2, 6 - ended), *["queued"] * (4 - ended)]
            await until(partial(_is, log, sids, expected), f"{ended} have ended")
            await until(partial(_waits, log, max(0, 4 - ended)), "the others wait")
            await cancel(log, sids[ended])
        await cancel(log, sids[5])
        await until(lambda: _has_no_keys(log, "le:parked*", "le:lines"), "nobody waits")


async def _is(log: StreamLog, sids: list[str], expected: list[str]) -> bool:
    return await states(log, sids) == expected


async def _has_no_keys(log: StreamLog, *patterns: str) -> bool:
    return not any([await log.redis.keys(pattern) for pattern in patterns])


async def test_a_cancelled_stream_waits_for_no_place(own_log: StreamLog, starting: Callable[..., Any]) -> None:
    log = own_log
    await limit(log, "a", 1)
    async with starting():
        first = await start(log, "a", FOR_EVER)
        await until(lambda: _are(log, [first], running=1), "one runs")
        second, third = [await start(log, "a", FAST) for _ in range(2)]
        await until(lambda: _waits(log, 2), "the others wait")
        await seize(log, second, "cancelled", b"{}")  # and the server died before it took it out of its line
        await cancel(log, first)
        await until(lambda: _has_ended(log, third), "the one behind it has its turn")


@pytest.mark.parametrize("gone", ["parked:a", "lines", "running:a", "jobs", "*"])
async def test_parked_streams_run_whatever_redis_loses(
    own_log: StreamLog, starting: Callable[..., Any], gone: str
) -> None:
    log = own_log
    await limit(log, "a", 1)
    async with starting():
        sids = [await start(log, "a", FOR_EVER)]
        await until(lambda: _are(log, sids, running=1), "one runs")
        sids += [await start(log, "a", FAST) for _ in range(2)]
        await until(lambda: _waits(log, 2), "the others wait")
        for key in ("parked:a", "lines", "running:a", "jobs"):
            if gone in (key, "*"):
                await log.redis.delete(f"le:{key}")
        await cancel(log, sids[0])
        for sid in sids[1:]:
            await grow_old(log, sid, by_s=QUEUED_GRACE_S)
            await log.redis.zadd(log.keys.leases, {sid: 1}, xx=True)  # the sweeper looks
        await until(lambda: _is(log, sids, ["cancelled", "done", "done"]), "all have run")


async def test_a_limit_that_is_taken_away_frees_those_that_wait(
    own_log: StreamLog, starting: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.tenants.limits, "READ_EVERY_S", 0.05)
    log = own_log
    await limit(log, "default", 1)
    async with starting():
        sids = [await start(log, "default", FOR_EVER) for _ in range(3)]
        await until(lambda: _are(log, sids, running=1, queued=2), "one runs")
        await log.redis.delete(log.keys.limits)
        await until(lambda: _are(log, sids, running=3), "all run")
        await until(lambda: _has_no_keys(log, "le:parked*", "le:lines"), "nobody waits")


async def test_observed_limits_park_nobody(own_log: StreamLog, starting: Callable[..., Any]) -> None:
    log = own_log
    await limit(log, "a", 1)
    async with starting(concurrency=3, limits="observe"):
        sids = [await start(log, "a", FOR_EVER) for _ in range(3)]
        await until(lambda: _are(log, sids, running=3), "all run")


async def test_the_tenant_default_costs_no_command_of_places(own_log: StreamLog, starting: Callable[..., Any]) -> None:
    log = own_log
    async with starting(concurrency=5):
        sids = await start_many(log, "default", FAST, 10)
        await until(lambda: _are(log, sids, done=10), "all have run")
    assert await _has_no_keys(log, "le:running:*", "le:aside:*", "le:parked*", "le:lines")


async def test_what_an_older_server_queued_counts_and_runs(own_log: StreamLog, starting: Callable[..., Any]) -> None:
    """It names no tenant, and scores by the clock."""
    log = own_log
    sid = await start(log, "a", FOR_EVER)
    await take_out(log.redis, log.keys, sid, None)
    await enqueue(log.redis, log.keys, sid)
    async with starting():
        await until(lambda: _is(log, [sid], ["running"]), "it runs")
        await until(lambda: log.redis.zscore(log.keys.running("a"), sid), "it is counted")


async def test_a_killed_workers_places_come_back_and_what_it_had_in_hand_has_its_turn(
    deployment: Deployment, log: StreamLog
) -> None:
    await log.redis.flushdb()
    await limit(log, "a", 2)
    [working] = deployment.workers
    sids = [await start(log, "a", FOR_EVER) for _ in range(2)]
    await until(lambda: _are(log, sids, running=2), "two run")
    sids += [await start(log, "a", FAST) for _ in range(2)]
    await until(lambda: _waits(log, 2), "the others wait")
    working.kill()
    for sid in sids[:2]:
        await seize(log, sid, "cancelled", b"{}")  # nobody gives their places back
    for sid in await log.redis.zrange(log.keys.running("a"), 0, -1):
        await log.redis.zadd(log.keys.running("a"), {sid: 1})  # their time has come
    await enqueue(log.redis, log.keys, sids[2], tenant="a", has_turn=True)
    await log.redis.psetex(in_progress_key_prefix + sids[2], IN_HAND_S * 1000, b"1")  # by arq: longer than we wait
    working.start()
    await until(lambda: _is(log, sids, [*["cancelled"] * 2, *["done"] * 2]), "the others have run")
    await log.redis.flushdb()
