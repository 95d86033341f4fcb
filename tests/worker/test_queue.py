"""The queue: no clock but Redis' matters, and who came first is first."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable

import pytest
import redis as blocking
from arq.connections import ArqRedis
from redis.asyncio import Redis

from broker.log.keys import Keys
from broker.log.queue import connect_queue, enqueue
from tests.rig.deployment import Deployment, Process, until
from tests.rig.proxy import proxy_to
from worker.sweeper import QUEUED_GRACE_S

SKEW_S = 60.0

# As on a host whose clock is wrong. In a process of its own, before arq takes the function.
SKEWED_WORKER = """
import runpy, time
right = time.time
time.time = lambda: right() + {skew_s}
runpy.run_module("worker", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
async def queue(redis: Redis, valkey_url: str) -> AsyncIterator[ArqRedis]:
    queue = connect_queue(valkey_url, Keys())
    yield queue
    await queue.aclose(close_connection_pool=True)


def test_a_worker_whose_clock_is_behind_starts_at_once(own_deployment: Callable[..., Deployment]) -> None:
    deployment = own_deployment(servers=1, workers=0)
    program = SKEWED_WORKER.format(skew_s=-SKEW_S)
    worker = Process("skewed", [sys.executable, "-c", program], deployment.environment, deployment.folder)
    deployment.workers.append(worker)
    worker.start()
    deployment.wait_until_ended(deployment.create("[[tokens=1 rate=0 ttft_ms=0]]"))  # it is up
    sid = deployment.create("[[tokens=1 rate=0 ttft_ms=0]]")
    assert deployment.wait_until_ended(sid)["state"] == "done"
    with blocking.Redis.from_url(deployment.redis_url) as client:
        created, started = client.hmget(f"le:{{{sid}}}:meta", "created", "started")
    assert int(started) - int(created) < QUEUED_GRACE_S * 1000  # then a sweeper would find it


async def test_streams_wait_in_the_order_of_their_arrival(redis: Redis, queue: ArqRedis) -> None:
    sids = [f"{n:032x}" for n in reversed(range(20))]
    for sid in sids:
        await enqueue(queue, Keys(), sid)
    assert await redis.zrange(Keys().jobs, 0, -1) == [sid.encode() for sid in sids]
    await redis.flushdb()


async def test_a_stream_waits_once_in_its_first_place(redis: Redis, queue: ArqRedis) -> None:
    for sid in ("a", "b", "a"):
        await enqueue(queue, Keys(), sid)
    assert await redis.zrange(Keys().jobs, 0, -1) == [b"a", b"b"]
    await redis.flushdb()


async def test_an_apps_streams_wait_in_a_queue_of_their_own(redis: Redis, queue: ArqRedis) -> None:
    await enqueue(queue, Keys(), "plain")
    await enqueue(queue, Keys(), "an agent's", app="shop")
    await enqueue(redis, Keys(), "another's", app="shop")  # any client will do
    assert await redis.zrange("le:jobs", 0, -1) == [b"plain"]
    assert await redis.zrange("le:jobs:shop", 0, -1) == [b"an agent's", b"another's"]
    await redis.flushdb()


async def test_the_order_is_redis_clock_and_to_every_worker_long_past(redis: Redis, queue: ArqRedis) -> None:
    await enqueue(queue, Keys(), "a")
    [(_, score)] = await redis.zrange(Keys().jobs, 0, -1, withscores=True)
    now_s, _ = await redis.time()
    assert now_s - 60 < score <= now_s + 1  # seconds, where arq compares with milliseconds
    await redis.flushdb()


async def test_a_pipeline_that_is_cancelled_while_it_is_left_returns_its_connection(
    redis: Redis, valkey_url: str
) -> None:
    async with proxy_to(valkey_url) as proxy:
        queue = connect_queue(proxy.url, Keys(), connections=1)

        async def look_at_a_job_that_another_worker_has() -> None:  # as arq does
            async with queue.pipeline(transaction=True) as pipe:
                await pipe.watch("arq:in-progress:a")
                proxy.hold()

        looking = asyncio.create_task(look_at_a_job_that_another_worker_has())
        await until(lambda: proxy.held, "it says UNWATCH, and is not answered")
        looking.cancel()
        await asyncio.wait([looking])
        assert looking.cancelled()
        del looking
        gc.collect()  # redis-py warns of a pipeline that has a connection, and a warning is an error here
        proxy.release()
        assert await queue.ping()
        await queue.aclose(close_connection_pool=True)
