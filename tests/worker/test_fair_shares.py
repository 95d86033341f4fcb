"""Tenants that share a worker: one that has very much to do, and another that asks now and then."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from broker.log.keys import Keys
from broker.log.queue import enqueue
from broker.log.stream_log import StreamLog
from broker.store.connect import connect
from tests.conftest import deployment_in
from tests.rig.deployment import Deployment, until
from tests.rig.long import LONG
from tests.rig.streams import queued

SHORT = "[[tokens=3 rate=0 ttft_ms=300]]"
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


async def cancel_all(log: StreamLog, sids: list[str]) -> None:
    """Nothing of them is left for the next test."""
    await log.redis.flushdb()
    del sids


async def first_text_ms(log: StreamLog, tenant: str) -> float:
    """From its creation, by Redis' clock; how late this process looks plays no part."""
    sid = await start(log, tenant, SHORT)
    await until(lambda: _has_ended(log, sid), "it has ended")
    events = await log.read_all(sid)
    return next(event.t for event in events if event.kind == "text_delta") - events[0].t


async def _has_ended(log: StreamLog, sid: str) -> bool:
    [meta] = await log.read_meta(sid)
    return meta is not None and meta.has_ended


async def samples(log: StreamLog, tenant: str, count: int) -> list[float]:
    found = []
    for _ in range(count):
        found.append(await first_text_ms(log, tenant))
        await asyncio.sleep(0.2)
    return sorted(found)


def told(name: str, found: list[float]) -> str:
    return f"{name}: median {statistics.median(found):.0f} ms, p95 {found[int(len(found) * 0.95)]:.0f} ms"


@pytest.mark.skipif(not LONG, reason="minutes: make long")
@pytest.mark.parametrize("limit", [None, 5])
async def test_ten_thousand_of_one_do_not_delay_anothers_first_text(log: StreamLog, limit: int | None) -> None:
    if limit:
        await log.redis.hset(log.keys.limits, "a", orjson.dumps({"streams_running": limit}))
    await samples(log, "b", 5)
    alone = await samples(log, "b", 40)
    await start_many(log, "a", SHORT, 10_000)
    beside = await samples(log, "b", 40)
    left = await log.redis.zcard(log.keys.jobs) + await log.redis.zcard(log.keys.parked("a"))
    print(told("alone", alone), told("beside", beside), f"{left} of a still wait")
    assert left > 1000
    assert statistics.median(beside) <= 1.5 * statistics.median(alone)
    await log.redis.flushdb()
