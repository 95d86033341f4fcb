"""Leases: who keeps a stream, who finds one that nobody keeps, and who is let in. Real Valkey, real provider path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Container, Iterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
from arq.connections import ArqRedis
from redis.asyncio import Redis

import worker.dispatch
import worker.heartbeat
import worker.sweeper
from broker.errors import LogHealing, StreamClosed, WriterSuperseded
from broker.log.event import text_since_restart
from broker.log.keys import Keys
from broker.log.meta import EXTERNAL, Meta, new_claim_id
from broker.log.queue import JOB, connect_queue, enqueue
from broker.log.seizures import Seizures
from broker.log.steps import LEASE_S, Claimed
from broker.log.stream_log import StreamLog
from broker.log.writer import GroupCommit, StreamWriter
from broker.settings import Settings
from broker.store.connect import Client
from tests.rig.streams import (
    batch,
    committing,
    ending,
    expire_lease,
    grow_old,
    kinds,
    meta,
    new_stream,
    queued,
    remember,
    running,
    running_through_a_restart,
    seize,
    taken_over,
    text,
)
from worker.heartbeat import HEARTBEAT_S, Heartbeat
from worker.providers.choose import Providers
from worker.standin.server import StandIn
from worker.sweeper import QUEUED_GRACE_S, Sweeper
from worker.waiting import Waiting
from worker.worker import Worker

LIMIT_S = 60.0
WAIT_S = 300.0
FAST = "rate=0 ttft_ms=0"


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis)


@pytest.fixture
async def queue(valkey_url: str) -> AsyncIterator[ArqRedis]:
    queue = connect_queue(valkey_url, Keys())
    yield queue
    await queue.aclose(close_connection_pool=True)


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    standin = StandIn()
    yield standin
    standin.close()


@pytest.fixture
def start_worker(valkey_url: str, standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`async with start_worker(…settings)`: a whole worker in this process, which sweeps and renews without delay."""
    monkeypatch.setattr(worker.sweeper, "SWEEP_S", 0.02)
    monkeypatch.setattr(worker.heartbeat, "HEARTBEAT_S", 0.02)

    @asynccontextmanager
    async def started(**settings: Any) -> AsyncIterator[Worker]:
        asked = Settings(redis_url=valkey_url, worker_drain_s=0, provider_silence_s=LIMIT_S, **settings)
        working = Worker(asked, Providers(asked, standin))
        task = asyncio.create_task(working.run())
        yield working
        working.stop()
        await task

    return started


async def start(log: StreamLog, prompt: str, **fields: Any) -> str:
    request = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 100}
    return await queued(log, request=request, **fields)


async def until(log: StreamLog, sid: str, *states: str) -> list[str]:
    """The stream's kinds once it is in one of the states."""
    async with asyncio.timeout(LIMIT_S):
        while (await meta(log, sid))["state"] not in states:
            pass
    return await kinds(log, sid)


async def ended(log: StreamLog, sid: str) -> list[str]:
    return await until(log, sid, "done", "error", "cancelled")


async def next_look(log: StreamLog, sid: str) -> float | None:
    score: float | None = await log.redis.zscore(log.keys.leases, sid)
    return score


# -- a whole worker ----------------------------------------------------------------------------------------


async def test_a_stream_that_the_queue_lost_is_found_and_run(log: StreamLog, start_worker: Callable[..., Any]) -> None:
    sid = await start(log, f"[[tokens=2 {FAST}]]")
    await grow_old(log, sid, by_s=QUEUED_GRACE_S)
    async with start_worker():
        assert await ended(log, sid) == ["queued", "start", "text_delta", "text_delta", "done"]


async def test_a_dead_workers_stream_is_begun_again_in_a_new_block(
    log: StreamLog, start_worker: Callable[..., Any]
) -> None:
    sid = await start(log, f"[[tokens=2 {FAST}]]")
    dead = await log.claim(sid, new_claim_id(), "dead worker")
    await log.append(batch(dead, 2, *text("half a sen")))
    await expire_lease(log, sid)
    async with start_worker():
        assert await ended(log, sid) == [
            *("queued", "text_delta"),
            *("restart", "start", "text_delta", "text_delta", "done"),
        ]
    events = await log.read_all(sid)
    assert [event.id for event in events][:2] == [1, 2]
    block, place = divmod(events[2].id, 1_000_000)
    assert (block > 0, place) == (True, 1)
    assert not text_since_restart(events).startswith("half a sen")
    with pytest.raises(StreamClosed):
        await log.append(batch(dead, 3, *text("tence")))


async def test_ended_streams_leave_the_index(log: StreamLog, start_worker: Callable[..., Any]) -> None:
    sid = await start(log, f"[[tokens=2 {FAST}]]")
    claimed = await log.claim(sid, new_claim_id(), "worker-1")
    await log.append(batch(claimed, 2, ending()))
    async with start_worker(), asyncio.timeout(LIMIT_S):
        while await next_look(log, sid) is not None:
            pass


async def test_a_worker_keeps_the_lease_of_a_provider_that_is_silent(
    log: StreamLog, start_worker: Callable[..., Any]
) -> None:
    sid = await start(log, f"[[tokens=3 stall_at=2 {FAST}]]")
    async with start_worker() as working:
        await working.take(sid)
        await until(log, sid, "running")
        before = int((await meta(log, sid))["lease_until"])
        async with asyncio.timeout(LIMIT_S):
            while int((await meta(log, sid))["lease_until"]) <= before + 200:
                pass
        assert (await meta(log, sid))["attempt"] == "1"
        await seize(log, sid, "cancelled", b"{}")


async def more_looks(log: StreamLog, count: int) -> None:
    """Until arq has looked at its queue (if there is room), or the sweeper at its index, so many times more."""

    async def looks() -> int:
        return int((await log.redis.info("commandstats"))["cmdstat_zrangebyscore"]["calls"])

    seen = await looks()
    while await looks() < seen + count:
        pass


async def test_no_more_jobs_are_picked_than_there_is_room(
    log: StreamLog, queue: ArqRedis, standin: StandIn, start_worker: Callable[..., Any]
) -> None:
    sids = [await start(log, f"number {n} [[tokens=3 stall_at=1 {FAST}]]") for n in range(12)]
    for sid in sids:
        await enqueue(queue, log.keys, sid)

    async def states() -> list[str]:
        return [found.state for found in await log.read_meta(*sids) if found]

    async with start_worker(concurrency=3), httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(LIMIT_S):
        cancelled = 0
        while cancelled < len(sids):
            while (await states()).count("running") < min(3, len(sids) - cancelled):
                pass
            await more_looks(log, 10)
            assert (await states()).count("running") == min(3, len(sids) - cancelled)
            assert (await http.get(f"{standin.base_url}/open")).json()["open"] <= 3
            for sid, state in zip(sids, await states(), strict=True):
                if state == "running":
                    await seize(log, sid, "cancelled", b"{}")
                    cancelled += 1
    assert await log.redis.zcard(log.keys.jobs) == 0


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_worker_is_woken_by_what_is_queued_and_by_room_for_more(
    log: StreamLog,
    queue: ArqRedis,
    start_worker: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    concurrency: int,
) -> None:
    monkeypatch.setattr(worker.sweeper, "SWEEP_S", LIMIT_S)
    monkeypatch.setattr(worker.dispatch, "IDLE_LOOK_S", LIMIT_S)
    async with start_worker(concurrency=concurrency):
        for count in (1, 4, 1):
            sids = [await start(log, f"[[tokens=1 {FAST}]]") for _ in range(count)]
            for sid in sids:
                await enqueue(queue, log.keys, sid)
            for sid in sids:
                assert await ended(log, sid) == ["queued", "start", "text_delta", "done"]


async def test_a_worker_finds_what_nobody_woke_it_for(
    log: StreamLog, queue: ArqRedis, start_worker: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.sweeper, "SWEEP_S", LIMIT_S)
    async with start_worker():
        for _ in range(2):
            sid = await start(log, f"[[tokens=1 {FAST}]]")
            await queue.enqueue_job(JOB, sid, _job_id=sid)
            assert await ended(log, sid) == ["queued", "start", "text_delta", "done"]


async def test_a_job_delivered_twice_runs_once(
    log: StreamLog, queue: ArqRedis, start_worker: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.sweeper, "SWEEP_S", LIMIT_S)
    sid = await start(log, f"[[tokens=2 {FAST}]]")
    for n in range(3):
        await queue.enqueue_job(JOB, sid, _job_id=f"{sid}-{n}")
    async with start_worker():
        assert await ended(log, sid) == ["queued", "start", "text_delta", "text_delta", "done"]
        async with asyncio.timeout(LIMIT_S):
            while await log.redis.zcard(log.keys.jobs):
                pass
            await more_looks(log, 2)  # arq, cancelled within a WATCH, leaves a connection to the garbage collector
    assert (await meta(log, sid))["attempt"] == "1"


# -- what the sweeper decides ------------------------------------------------------------------------------


class Sweep:
    """A sweeper whose worker takes note of what it is given, and claims it."""

    def __init__(self, log: StreamLog, room: bool = True, agents: Container[str] = (), wait_s: float = WAIT_S) -> None:
        self.taken: list[Claimed] = []
        self._log = log
        seizures = Seizures(log)
        waiting = Waiting(log, seizures, wait_s=wait_s, name="worker-3")
        runs = agents.__contains__
        self._sweeper = Sweeper(log, seizures, room=lambda: room, take=self._take, runs=runs, waiting=waiting)

    async def _take(self, sid: str, _: Meta) -> None:
        self.taken.append(await self._log.claim(sid, new_claim_id(), "worker-2"))

    async def look(self, *sids: str) -> list[str]:
        """Look at what is due, and at these streams, whenever they are. Those that were taken."""
        if sids:
            await self._log.redis.zadd(self._log.keys.leases, dict.fromkeys(sids, 1))
        await self._sweeper.sweep()
        return [claimed.sid for claimed in self.taken]


async def test_what_ends_while_it_is_looked_at_is_looked_at_again_at_once(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = StreamLog(redis, is_archived=True)
    claimed = await running(log)
    sweep = Sweep(log)
    read = sweep._sweeper._overdue

    async def read_and_end(now_ms: int) -> Any:
        found = await read(now_ms)
        await log.append(batch(claimed, 2, ending()))
        return found

    monkeypatch.setattr(sweep._sweeper, "_overdue", read_and_end)
    await sweep.look()
    assert await next_look(log, claimed.sid) == 0
    monkeypatch.undo()
    await sweep.look()
    assert await next_look(log, claimed.sid) is None
    assert await redis.zscore(log.keys.unarchived, claimed.sid) is not None


@pytest.fixture
def sweep(log: StreamLog) -> Sweep:
    return Sweep(log)


async def test_a_stream_that_has_just_been_queued_is_left_to_the_queue(log: StreamLog, sweep: Sweep) -> None:
    sid = await queued(log)
    assert await sweep.look(sid) == []
    due = (await next_look(log, sid) or 0) - await log.now_ms()
    assert QUEUED_GRACE_S * 1000 - 1500 < due <= QUEUED_GRACE_S * 1000


async def test_a_stream_queued_too_long_is_taken_if_there_is_room(log: StreamLog) -> None:
    sid = await queued(log)
    await grow_old(log, sid, by_s=QUEUED_GRACE_S)
    assert await Sweep(log, room=False).look(sid) == []
    assert (await meta(log, sid))["state"] == "queued"
    assert await Sweep(log).look(sid) == [sid]


async def test_a_dead_workers_stream_is_taken_even_without_room(log: StreamLog) -> None:
    claimed = await running(log)
    await expire_lease(log, claimed.sid)
    assert await Sweep(log, room=False).look(claimed.sid) == [claimed.sid]


async def test_a_living_workers_stream_is_looked_at_again_when_its_lease_ends(log: StreamLog, sweep: Sweep) -> None:
    claimed = await running(log)
    assert await sweep.look(claimed.sid) == []
    assert await next_look(log, claimed.sid) == float((await meta(log, claimed.sid))["lease_until"])


async def test_of_two_sweepers_one_takes_a_stream(log: StreamLog) -> None:
    claimed = await running(log)
    await expire_lease(log, claimed.sid)
    one, other = Sweep(log), Sweep(log)
    await asyncio.gather(one.look(claimed.sid), other.look(claimed.sid))
    assert len(one.taken + other.taken) == 1


async def test_who_asked_for_no_restart_gets_an_error_that_may_be_tried_again(log: StreamLog, sweep: Sweep) -> None:
    claimed = await running(log, on_worker_loss="fail")
    await expire_lease(log, claimed.sid)
    assert await sweep.look(claimed.sid) == []
    assert await kinds(log, claimed.sid) == ["queued", "error"]
    last = (await log.read_last(claimed.sid)).data
    assert b'"code":"worker_lost"' in last
    assert b'"recoverable":true' in last
    assert await next_look(log, claimed.sid) is None


async def test_a_stream_waiting_for_its_first_worker_is_run_even_if_it_asked_for_no_restart(
    log: StreamLog, sweep: Sweep
) -> None:
    sid = await queued(log, on_worker_loss="fail")
    await grow_old(log, sid, by_s=QUEUED_GRACE_S)
    assert await sweep.look(sid) == [sid]


async def test_the_third_attempt_is_the_last(log: StreamLog, sweep: Sweep) -> None:
    claimed = await running(log)
    for attempt in (2, 3):
        await expire_lease(log, claimed.sid)
        await sweep.look(claimed.sid)
        assert sweep.taken[-1].attempt == attempt
    await expire_lease(log, claimed.sid)
    await sweep.look(claimed.sid)
    assert len(sweep.taken) == 2
    assert await kinds(log, claimed.sid) == ["queued", "error"]
    assert b'"code":"worker_lost"' in (await log.read_last(claimed.sid)).data


async def test_a_producer_that_is_not_heard_of_ends_its_stream(log: StreamLog, sweep: Sweep) -> None:
    sid = await queued(log, producer=EXTERNAL)
    assert await sweep.look(sid) == []
    assert (await meta(log, sid))["state"] == "running"
    await expire_lease(log, sid)
    assert await sweep.look(sid) == []
    assert b'"code":"producer_lost"' in (await log.read_last(sid)).data
    assert (await meta(log, sid))["state"] == "error"


async def test_a_zombie_adds_nothing_to_what_was_taken_over(log: StreamLog, sweep: Sweep) -> None:
    zombie = await running(log)
    await expire_lease(log, zombie.sid)
    await sweep.look(zombie.sid)
    with pytest.raises(WriterSuperseded):
        await log.append(batch(zombie, 2, *text("brains")))
    assert await kinds(log, zombie.sid) == ["queued"]


async def test_after_a_restart_of_redis_the_sweeper_lets_living_writers_heal_first(redis: Redis) -> None:
    log = StreamLog(redis, lease_s=100_000)
    claimed = await running_through_a_restart(log)
    sweep = Sweep(log)
    assert await sweep.look(claimed.sid) == []
    with pytest.raises(LogHealing):
        await taken_over(log, claimed.sid)
    assert (await next_look(log, claimed.sid) or 0) > await log.now_ms()


async def test_a_stream_about_to_be_created_keeps_its_place_and_one_that_never_was_loses_it(
    log: StreamLog, sweep: Sweep
) -> None:
    await log.redis.zadd(log.keys.leases, {"about to be": 0})
    await sweep.look()
    assert (await next_look(log, "about to be") or 0) > await log.now_ms()
    await sweep.look("about to be")
    assert await next_look(log, "about to be") is None


async def test_a_look_before_its_creation_does_not_put_a_stream_out_of_sight(log: StreamLog, sweep: Sweep) -> None:
    new = new_stream()
    await log.redis.zadd(log.keys.leases, {new.sid: 0})
    await sweep.look()
    await log.create(new)
    assert (await next_look(log, new.sid) or 0) <= await log.now_ms()


async def test_nor_does_one_that_is_noted_only_after_its_creation(log: StreamLog, sweep: Sweep) -> None:
    """The look was before the creation, what came of it is written after: no later than a new stream's own look."""
    await log.redis.zadd(log.keys.leases, {"created meanwhile": 0})
    await sweep.look()
    assert (await next_look(log, "created meanwhile") or 0) <= await log.now_ms() + 1000 * QUEUED_GRACE_S


async def test_a_stream_removed_from_the_index_before_its_creation_is_in_it_again(log: StreamLog, sweep: Sweep) -> None:
    new = new_stream()
    await log.create(new)
    await log.redis.delete(log.keys.leases)
    await log.index.add(new.sid, new.tenant, new.session, await log.now_ms())
    assert await sweep.look() == []
    assert await next_look(log, new.sid) is not None


async def test_a_stream_that_nobody_can_make_sense_of_hides_no_other(log: StreamLog, sweep: Sweep) -> None:
    broken, sound = await queued(log), await running(log)
    await grow_old(log, broken, by_s=QUEUED_GRACE_S)
    await log.redis.hset(log.keys.stream(broken).meta, "epoch", "?")
    await expire_lease(log, sound.sid)
    await log.redis.zadd(log.keys.leases, {broken: 1, sound.sid: 2})
    assert await sweep.look() == [sound.sid]
    assert (await next_look(log, broken) or 0) > await log.now_ms()


async def test_a_sweep_looks_at_more_than_a_batch(
    log: StreamLog, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.sweeper, "SWEEP_BATCH", 3)
    sids = [(await running(log)).sid for _ in range(10)]
    for sid in sids:
        await expire_lease(log, sid)
    assert sorted(await sweep.look(*sids)) == sorted(sids)


# -- the heartbeat -----------------------------------------------------------------------------------------


def heartbeat_of(log: StreamLog, *writers: StreamWriter) -> Heartbeat:
    heartbeat = Heartbeat(log)
    for writer in writers:
        heartbeat.keep(writer)
    return heartbeat


def test_two_heartbeats_may_be_lost_before_a_lease_is() -> None:
    assert LEASE_S >= 3 * HEARTBEAT_S


async def test_a_heartbeat_renews_every_lease_of_its_process(log: StreamLog, commit: GroupCommit) -> None:
    writers = [StreamWriter(commit, await running(log)) for _ in range(3)]
    for writer in writers:
        await expire_lease(log, writer.sid)
    await heartbeat_of(log, *writers).renew()
    for writer in writers:
        assert int((await meta(log, writer.sid))["lease_until"]) > await log.now_ms()
        assert await kinds(log, writer.sid) == ["queued"]


async def test_a_heartbeat_tells_a_writer_that_its_pen_is_gone(log: StreamLog, commit: GroupCommit) -> None:
    sound, fenced, cancelled = [StreamWriter(commit, await running(log)) for _ in range(3)]
    told: list[str] = []
    for name, writer in {"sound": sound, "fenced": fenced, "cancelled": cancelled}.items():
        writer.on_lost = lambda name=name: told.append(name)
    await taken_over(log, fenced.sid)
    await seize(log, cancelled.sid, "cancelled", b"{}")
    heartbeat = heartbeat_of(log, sound, fenced, cancelled)
    await heartbeat.renew()
    await heartbeat.renew()
    assert told == ["fenced", "cancelled"]
    assert isinstance(fenced.lost, WriterSuperseded)
    assert isinstance(cancelled.lost, StreamClosed)


async def test_a_cancel_that_the_subscription_missed_is_found_as_soon_as_there_is_one_again(
    redis: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.heartbeat, "HEARTBEAT_S", 60)
    log = StreamLog(redis)
    async with committing(log) as commit, asyncio.timeout(LIMIT_S):
        writer = StreamWriter(commit, await running(log))
        is_lost = asyncio.Event()
        writer.on_lost = is_lost.set
        await seize(log, writer.sid, "cancelled", b"{}")
        heartbeat = heartbeat_of(log, writer)
        loops = [asyncio.create_task(heartbeat.run()), asyncio.create_task(heartbeat.listen(redis))]
        await is_lost.wait()
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
    assert isinstance(writer.lost, StreamClosed)


@pytest.mark.parametrize("loses_the_claim_too", [False, True])
async def test_a_heartbeat_finds_a_log_that_lost_its_tail_though_nothing_is_written(
    log: StreamLog, commit: GroupCommit, loses_the_claim_too: bool
) -> None:
    sid = await queued(log)
    before_the_claim = await remember(log, sid)
    writer = StreamWriter(commit, await log.claim(sid, new_claim_id(), "worker-1"))
    after_the_claim = await remember(log, sid)
    for word in ("Salt", "bread"):
        writer.write("text_delta", {"text": word})
    await writer.flush()
    before = await log.read_all(sid)
    await (before_the_claim if loses_the_claim_too else after_the_claim)()
    assert len(await log.read_all(sid)) == 1
    await heartbeat_of(log, writer).renew()
    await writer.flush()
    assert await log.read_all(sid) == before


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_a_claim_that_breaks_off_keeps_no_place(
    start_worker: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """It would be renewed for as long as this worker lives, for a stream that runs elsewhere, or nowhere."""
    async with start_worker() as working:
        monkeypatch.setattr(working, "_claim", AsyncMock(side_effect=error))
        with pytest.raises(error):
            await working.take("a-stream", "acme")
        assert not working._places.holds("a-stream")
