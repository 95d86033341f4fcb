"""A worker hears what its agents are told: at once, also what it missed, and after Redis was away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

import worker.agents.inputs
from broker.errors import RedisUnavailable
from broker.log.stream_log import StreamLog
from tests.rig.streams import LIMIT_S, queued
from worker.agents.inputs import Inputs
from worker.agents.journal import Decision

YES = Decision(approve=True, reason="", by="key:1")
REFUSED = Decision(approve=False, reason="Nobody decided in time.", by="lastevent")


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis)


@pytest.fixture
async def inputs(redis: Redis, log: StreamLog, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Inputs]:
    """It listens, and looks by itself only when the test has long failed."""
    monkeypatch.setattr(worker.agents.inputs, "LOOK_S", LIMIT_S)
    listening = Inputs(redis, log.keys)
    loop = asyncio.create_task(listening.listen())
    while not (await redis.pubsub_numsub(log.keys.input))[0][1]:  # noqa: ASYNC110 - Redis is asked
        await asyncio.sleep(0)
    try:
        async with asyncio.timeout(LIMIT_S):
            yield listening
    finally:
        loop.cancel()
        await asyncio.wait([loop])
    assert not listening._waiting, "nobody waits any more, and nothing is kept of who did"


async def waits(inputs: Inputs, sid: str) -> None:
    while not (waiting := inputs._waiting.get(sid)) or any(woken.is_set() for woken in waiting):  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_who_waits_hears_of_its_own_stream_at_once(inputs: Inputs, log: StreamLog) -> None:
    sids = [await queued(log) for _ in range(3)]
    waiting = {sid: asyncio.create_task(inputs.next(sid)) for sid in sids}
    for sid in sids:
        await waits(inputs, sid)
    told = {sid: await log.inputs.tell(sid, {"text": sid}) for sid in sids[:2]}
    assert {sid: await waiting[sid] for sid in sids[:2]} == told
    assert not waiting[sids[2]].done()
    waiting[sids[2]].cancel()
    await asyncio.wait(waiting.values())


async def test_what_came_before_is_there_and_each_is_given_once(inputs: Inputs, log: StreamLog) -> None:
    sid = await queued(log)
    told = [await log.inputs.tell(sid, {"text": text}) for text in "abc"]
    assert await inputs.waiting(sid) == told
    first = await inputs.next(sid)
    assert [first, await inputs.next(sid, first.id)] == told[:2]
    await inputs.taken(sid, told[0].id, told[1].id)
    assert await inputs.waiting(sid) == told[2:]
    assert await inputs.waiting(sid, told[2].id) == []


async def test_a_decision_is_heard_by_who_asked_and_inputs_are_none(inputs: Inputs, log: StreamLog) -> None:
    sid = await queued(log)
    for approval_id in ("a1", "a2"):
        await inputs.ask(sid, approval_id, {"tool": "refund"})
    deciding = asyncio.create_task(inputs.decided(sid, "a2"))
    await waits(inputs, sid)
    await log.inputs.tell(sid, {"text": "yes"})
    await log.inputs.decide(sid, "a1", REFUSED._asdict())
    await log.inputs.decide(sid, "a2", YES._asdict())
    assert await deciding == YES
    assert [entry.data for entry in await inputs.waiting(sid)] == [{"text": "yes"}]


async def test_who_gives_up_waiting_learns_of_a_decision_that_came_first(inputs: Inputs, log: StreamLog) -> None:
    sid = await queued(log)
    for approval_id in ("a1", "a2"):
        await inputs.ask(sid, approval_id, {})
    await log.inputs.decide(sid, "a1", YES._asdict())
    assert await inputs.decide(sid, "a1", REFUSED) == YES
    assert await inputs.decide(sid, "a2", REFUSED) == REFUSED
    assert (await log.inputs.decide(sid, "a2", YES._asdict())).data == REFUSED._asdict()


async def test_what_was_published_while_the_subscription_broke_is_found(
    inputs: Inputs, log: StreamLog, redis: Redis
) -> None:
    sid = await queued(log)
    waiting = asyncio.create_task(inputs.next(sid))
    await waits(inputs, sid)
    await redis.xadd(log.keys.stream(sid).inputs, {"k": "input", "d": '{"text":"unheard"}'})
    await redis.client_kill_filter(_type="pubsub")
    assert (await waiting).data == {"text": "unheard"}


async def test_without_any_subscription_it_looks_by_itself(
    log: StreamLog, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.agents.inputs, "LOOK_S", 0.01)
    sid = await queued(log)
    deaf = Inputs(redis, log.keys)
    waiting = asyncio.create_task(deaf.next(sid))
    await waits(deaf, sid)
    told = await log.inputs.tell(sid, {"text": "a"})
    async with asyncio.timeout(LIMIT_S):
        assert await waiting == told


async def test_who_waits_outlasts_redis(
    inputs: Inputs, log: StreamLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker.agents.inputs, "LOOK_S", 0.01)
    sid = await queued(log)
    told = await log.inputs.tell(sid, {"text": "a"})
    read, failures = inputs._list.read, [RedisUnavailable("away")] * 3

    async def away(*asked: str) -> object:
        if failures:
            raise failures.pop()
        return await read(*asked)

    monkeypatch.setattr(inputs._list, "read", away)
    assert await inputs.next(sid) == told
    assert "read when Redis is back" in caplog.text
