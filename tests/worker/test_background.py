"""Every background task has an owner that notices its death; here each of them is killed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from redis.asyncio import Redis

import broker.process.loops
import broker.web.tier
from broker.log.stream_log import StreamLog
from broker.settings import Settings
from broker.web.app import Tier
from tests.rig.streams import kinds, meta, queued, seize
from worker.main import work
from worker.providers.choose import Providers
from worker.standin.server import StandIn
from worker.worker import Worker

LIMIT_S = 20
WORKERS_LOOPS = (
    *("pulse", "group commit", "heartbeat", "seizure listener", "seizures", "abandonment"),
    *("sweeper", "dispatch", "queue listener"),
)
TIERS_LOOPS = ("hub", "heartbeats", "seizures")
PROMPT = {"messages": [{"role": "user", "content": "[[tokens=2 rate=0 ttft_ms=0]]"}], "max_tokens": 100}


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def _restart_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.process.loops, "RESTART_S", (0.01,))


@pytest.fixture
def standin() -> Any:
    standin = StandIn()
    yield standin
    standin.close()


@asynccontextmanager
async def a_worker(redis_url: str, standin: StandIn) -> AsyncIterator[tuple[Worker, asyncio.Task[None]]]:
    settings = Settings(redis_url=redis_url, worker_drain_s=0, provider_silence_s=LIMIT_S)
    working = Worker(settings, Providers(settings, standin))
    task = asyncio.create_task(working.run(), name="worker")
    async with asyncio.timeout(LIMIT_S):
        await _started(*WORKERS_LOOPS)
        yield working, task
        working.stop()
        await task


async def _until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)


async def _started(*names: str) -> None:
    await _until(lambda: all(_inner(name) for name in names))


def _task(name: str) -> asyncio.Task[Any] | None:
    return next((task for task in asyncio.all_tasks() if task.get_name() == name), None)


def _inner(name: str) -> Any:
    """The coroutine that `for_ever` runs for this loop, once it waits for something."""
    task = _task(name)
    loop = getattr(task.get_coro(), "cr_await", None) if task else None
    return loop if getattr(loop, "cr_await", None) is not None else None


def _is_asking_redis(name: str) -> bool:
    """Who is killed there hangs up first, and does not die at once."""
    coroutine = _inner(name)
    while hasattr(coroutine, "cr_await"):
        if "/redis/" in coroutine.cr_code.co_filename:
            return True
        coroutine = coroutine.cr_await
    return False


def _kill(name: str) -> None:
    """An exception out of nowhere, where the loop waits. Its task, which still waits there, finds it dead."""
    task: Any = _task(name)
    waits_for = task._fut_waiter
    with pytest.raises(Killed):
        _inner(name).throw(Killed())
    if not waits_for.done():
        waits_for.set_result(None)


async def _runs_a_generation(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        log = StreamLog(redis)
        sid = await queued(log, request=PROMPT, abandon_after_s=60)
        created = int((await meta(log, sid))["created"]) - 10_000
        await redis.hset(log.keys.stream(sid).meta, "created", str(created))  # queued so long that a sweeper takes it
        while (await meta(log, sid))["state"] != "done":  # noqa: ASYNC110 - Redis is asked
            await asyncio.sleep(0.01)
        assert await kinds(log, sid) == ["queued", "start", "text_delta", "text_delta", "done"]


@pytest.mark.parametrize(
    "name", [name for name in WORKERS_LOOPS if name not in ("seizure listener", "queue listener", "dispatch")]
)
async def test_a_loop_of_a_worker_that_dies_is_started_again(
    valkey_url: str, standin: StandIn, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_worker(valkey_url, standin) as (_, running):
        await _until(lambda: _inner(name) and not _is_asking_redis(name))
        _kill(name)
        await _until(lambda: f"the {name} loop failed; it is started again" in caplog.text)
        await _started(name)
        await _runs_a_generation(valkey_url)
        assert not running.done()


async def test_listeners_whose_connections_break_listen_again(valkey_url: str, redis: Redis, standin: StandIn) -> None:
    async with a_worker(valkey_url, standin):
        while len(before := await _subscribers(redis)) != 2:
            pass
        await redis.client_kill_filter(_type="pubsub")
        while len(await _subscribers(redis) - before) != 2:
            pass


async def _subscribers(redis: Redis) -> set[str]:
    return {client["id"] for client in await redis.client_list() if client["sub"] == "1"}


async def test_a_dispatch_whose_arq_dies_is_started_again(
    valkey_url: str, standin: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_worker(valkey_url, standin):
        dispatch: Any = _task("dispatch")
        await _until(lambda: isinstance(dispatch._fut_waiter, asyncio.Task))
        arq = dispatch._fut_waiter
        arq.cancel()
        await asyncio.wait([arq])
        await _until(lambda: "within the dispatch loop was cancelled" in caplog.text)
        await _until(lambda: dispatch._fut_waiter is not None and isinstance(dispatch._fut_waiter, asyncio.Task))


@pytest.mark.parametrize("name", WORKERS_LOOPS)
async def test_a_worker_whose_loop_is_gone_for_good_ends(
    valkey_url: str, standin: StandIn, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_worker(valkey_url, standin) as (working, running):
        task = _task(name)
        assert task
        task.cancel()
        await running
        assert working.has_failed
    assert f"the {name} loop is gone" in caplog.text


@pytest.mark.parametrize("name", TIERS_LOOPS)
async def test_a_server_whose_loop_is_gone_for_good_drains_and_ends(
    valkey_url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()
    monkeypatch.setattr(broker.web.tier, "_end_this_process", ended.set)
    tier = Tier(Settings(redis_url=valkey_url))
    async with asyncio.timeout(LIMIT_S), tier.running(FastAPI()):
        await _started(name)
        task = _task(name)
        assert task
        task.cancel()
        await ended.wait()


async def test_a_hub_that_fails_subscribes_again(valkey_url: str, caplog: pytest.LogCaptureFixture) -> None:
    tier = Tier(Settings(redis_url=valkey_url))
    async with asyncio.timeout(LIMIT_S), tier.running(FastAPI()), Redis.from_url(valkey_url) as redis:  # noqa: SIM117
        async with tier.hub.join("s") as topic:
            await _until(lambda: topic.version)
            before = topic.version
            await redis.publish(tier.log.keys.stream("s").live, "no batch")
            await _until(lambda: topic.version not in (0, before))
    assert "something else than events was published" in caplog.text


async def test_a_generation_that_dies_loses_its_lease(
    valkey_url: str, redis: Redis, standin: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    log = StreamLog(redis)
    silent = {"messages": [{"role": "user", "content": "[[stall_at=0]]"}], "max_tokens": 100}
    async with a_worker(valkey_url, standin) as (working, _):
        sid = await queued(log, request=silent)
        await working.take(sid)
        task = _task(f"generation {sid}")
        assert task
        task.cancel()
        await asyncio.wait([task])
        await log.redis.hset(log.keys.stream(sid).meta, "lease_until", "1")
        await working._heartbeat.renew()
        assert (await meta(log, sid))["lease_until"] == "1", "nobody renews what nobody writes"
        await seize(log, sid, "cancelled", b"{}")
        await log.redis.delete(log.keys.leases)


async def test_a_worker_whose_stand_in_dies_ends_to_be_started_again(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[StandIn] = []
    monkeypatch.setattr("worker.main.StandIn", lambda: started.append(StandIn()) or started[0])
    task = asyncio.create_task(work(Settings(redis_url=valkey_url, worker_drain_s=0, standin=True)))
    async with asyncio.timeout(LIMIT_S):
        await _started(*WORKERS_LOOPS)
        started[0]._server.should_exit = True
        assert await task is False


def test_a_failure_is_told_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Or nobody would know why a loop was started again."""

    async def main() -> None:
        async def fail() -> None:
            raise Killed

        task = asyncio.create_task(broker.process.loops.for_ever("failing", fail))
        await _until(lambda: "Killed" in caplog.text)
        task.cancel()
        await asyncio.wait([task])

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert "the failing loop failed; it is started again" in caplog.text
