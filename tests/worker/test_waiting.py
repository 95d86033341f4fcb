"""An agent's stream where its agent is not: viewers are told, its app's queue has it, and it does not wait for ever."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from broker.log.agents import Agents, Announced
from broker.log.meta import new_claim_id
from broker.log.seizures import Seizures
from broker.log.steps import Claimed
from broker.log.stream_log import StreamLog
from tests.rig.streams import batch, expire_lease, grow_old, kinds, meta, queued, remember, running, text
from tests.worker.test_lease import WAIT_S, Sweep
from worker.attempts import MAX_ATTEMPTS
from worker.sweeper import QUEUED_GRACE_S
from worker.waiting import FOUND_S, Waiting

SHOP = Announced("shop", None, [], [])
QUEUE = "le:jobs:shop"


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis)


@pytest.fixture
def elsewhere(log: StreamLog) -> Sweep:
    return Sweep(log)


async def announced(log: StreamLog, *, ago_s: float = 0) -> None:
    """By a worker of the app, which has said nothing since."""
    await Agents(log.redis, log.keys).announce({"support": SHOP})
    entry = orjson.loads(await log.redis.hget(log.keys.agents, "support"))
    entry["at"] -= round(ago_s * 1000)
    await log.redis.hset(log.keys.agents, "support", orjson.dumps(entry))


async def of_an_agent(log: StreamLog, sid: str) -> str:
    await log.redis.hset(log.keys.stream(sid).meta, "agent", "support")
    return sid


async def waits(log: StreamLog) -> list[str]:
    return [sid.decode() for sid in await log.redis.zrange(QUEUE, 0, -1)]


async def lost(log: StreamLog, **fields: Any) -> str:
    """A stream of an agent, whose worker died after it had said something."""
    claimed = await running(log, **fields)
    await of_an_agent(log, claimed.sid)
    await log.append(batch(claimed, 2, *text("half a sen")))
    await expire_lease(log, claimed.sid)
    return claimed.sid


async def last(log: StreamLog, sid: str) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads((await log.read_last(sid)).data)
    return found


async def test_where_its_agent_is_a_lost_stream_is_taken_like_any_other(log: StreamLog) -> None:
    sid = await lost(log)
    assert await Sweep(log, agents={"support"}).look(sid) == [sid]


async def test_elsewhere_its_viewers_are_told_at_once_and_its_app_has_it(log: StreamLog, elsewhere: Sweep) -> None:
    await announced(log)
    sid = await lost(log)
    assert await elsewhere.look(sid) == []
    assert await kinds(log, sid) == ["queued", "text_delta", "restart"]
    assert await last(log, sid) == {"attempt": 2, "reason": "worker_lost"}
    assert await waits(log) == [sid]
    claimed = await log.claim(sid, new_claim_id(), "a worker of the app")
    assert claimed.attempt == 2, "which is the attempt that was announced"


async def test_they_are_told_once_however_often_it_is_found(log: StreamLog, elsewhere: Sweep) -> None:
    sid = await lost(log)
    await asyncio.gather(*(Sweep(log).look(sid) for _ in range(3)))
    for _ in range(3):
        await elsewhere.look(sid)
    await log.claim(sid, new_claim_id(), "a worker of the app, which dies before it begins")
    await expire_lease(log, sid)
    await elsewhere.look(sid)
    assert (await kinds(log, sid)).count("restart") == 1


async def test_a_worker_that_was_slow_to_claim_tells_nothing_again(
    log: StreamLog, redis: Redis, elsewhere: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    sid = await lost(log)
    slow = StreamLog(redis)
    claim = slow.claim

    async def after_another_has_told_them(*claiming: Any) -> Claimed:
        await elsewhere.look(sid)
        return await claim(*claiming)

    monkeypatch.setattr(slow, "claim", after_another_has_told_them)
    await Sweep(slow).look(sid)
    assert await kinds(log, sid) == ["queued", "text_delta", "restart"]
    assert (await meta(log, sid))["attempt"] == "1"
    assert (await Sweep(log, agents={"support"}).look(sid)) == [sid], "and it can be taken at once"


async def test_a_notice_that_redis_lost_is_given_again(log: StreamLog, elsewhere: Sweep) -> None:
    sid = await lost(log)
    roll_back = await remember(log, sid)
    await elsewhere.look(sid)
    await roll_back()
    assert await kinds(log, sid) == ["queued", "text_delta"]
    await elsewhere.look(sid)
    assert await kinds(log, sid) == ["queued", "text_delta", "restart"]


async def test_a_worker_that_stopped_in_the_middle_of_it_is_followed_by_the_next(
    log: StreamLog, elsewhere: Sweep
) -> None:
    await announced(log)
    sid = await lost(log)
    await log.claim(sid, new_claim_id(), "worker-4, which dies here")
    assert await elsewhere.look(sid) == []
    assert await waits(log) == []
    await expire_lease(log, sid)
    await elsewhere.look(sid)
    assert (await kinds(log, sid)).count("restart") == 1
    assert await waits(log) == [sid]


async def test_what_a_stopping_worker_released_is_left_to_the_queue_for_a_grace(
    log: StreamLog, elsewhere: Sweep
) -> None:
    claimed = await running(log)
    await of_an_agent(log, claimed.sid)
    await log.append(batch(claimed, 2, *text("half a sen")))
    await log.release(claimed.sid, claimed.pen)
    assert await elsewhere.look() == []
    assert await kinds(log, claimed.sid) == ["queued", "text_delta"]
    due = (await log.redis.zscore(log.keys.leases, claimed.sid)) - await log.now_ms()
    assert QUEUED_GRACE_S * 1000 - 1500 < due <= QUEUED_GRACE_S * 1000
    await elsewhere.look(claimed.sid)
    assert await kinds(log, claimed.sid) == ["queued", "text_delta", "restart"]


async def test_attempts_without_progress_are_counted_everywhere_alike(log: StreamLog, elsewhere: Sweep) -> None:
    sid = await lost(log)
    for attempt in range(2, MAX_ATTEMPTS + 1):
        await elsewhere.look(sid)
        claimed = await log.claim(sid, new_claim_id(), "a worker of the app")
        assert claimed.attempt == attempt
        await log.append(batch(claimed, claimed.pen.base, *text("again"))._replace(attempt=attempt))
        await expire_lease(log, sid)
    await elsewhere.look(sid)
    assert (await last(log, sid))["code"] == "worker_lost"


async def test_an_attempt_with_progress_is_not_counted(log: StreamLog, elsewhere: Sweep) -> None:
    sid = await lost(log)
    await log.redis.hset(log.keys.stream(sid).meta, mapping={"attempt": MAX_ATTEMPTS, "kept": 1})
    await elsewhere.look(sid)
    assert (await kinds(log, sid))[-1] == "restart"


async def test_who_asked_for_no_restart_gets_an_error_elsewhere_too(log: StreamLog, elsewhere: Sweep) -> None:
    sid = await lost(log, on_worker_loss="fail")
    await elsewhere.look(sid)
    assert (await last(log, sid))["code"] == "worker_lost"


async def test_a_queued_one_is_left_to_its_app_and_put_into_its_queue_if_that_lost_it(log: StreamLog) -> None:
    await announced(log)
    sid = await of_an_agent(log, await queued(log))
    await grow_old(log, sid, by_s=QUEUED_GRACE_S)
    assert await Sweep(log, room=False).look(sid) == []
    assert await waits(log) == [sid]
    assert await kinds(log, sid) == ["queued"]


async def test_while_a_worker_of_the_app_lives_a_stream_waits_for_room_there(log: StreamLog, elsewhere: Sweep) -> None:
    await announced(log)
    sid = await of_an_agent(log, await queued(log))
    await grow_old(log, sid, by_s=10 * WAIT_S)
    await elsewhere.look(sid)
    assert (await meta(log, sid))["state"] == "queued"


@pytest.mark.parametrize("ago_s", [None, WAIT_S + 1])
async def test_where_nobody_has_the_agent_a_queued_stream_ends(
    log: StreamLog, elsewhere: Sweep, ago_s: float | None
) -> None:
    if ago_s is not None:
        await announced(log, ago_s=ago_s)
    sid = await of_an_agent(log, await queued(log))
    await grow_old(log, sid, by_s=WAIT_S - 5)
    await elsewhere.look(sid)
    assert (await meta(log, sid))["state"] == "queued"
    await grow_old(log, sid, by_s=6)
    await elsewhere.look(sid)
    assert (await last(log, sid))["code"] == "no_worker"
    assert await waits(log) == []
    assert await log.redis.zscore(log.keys.leases, sid) is None


async def test_and_a_lost_one_so_long_after_its_viewers_were_told(log: StreamLog) -> None:
    sid = await lost(log)
    await grow_old(log, sid, by_s=10 * WAIT_S)
    await Sweep(log).look(sid)
    assert (await kinds(log, sid))[-1] == "restart"
    impatient = Sweep(log, wait_s=0)
    await impatient.look(sid)
    assert (await last(log, sid))["code"] == "no_worker"


async def test_nobody_ends_what_a_worker_of_the_app_has_just_taken(log: StreamLog, elsewhere: Sweep) -> None:
    sid = await of_an_agent(log, await queued(log))
    await grow_old(log, sid, by_s=WAIT_S + 1)
    await log.redis.zadd(log.keys.leases, {sid: 1})
    [found] = await elsewhere._sweeper._overdue(await log.now_ms())
    claimed = await log.claim(sid, new_claim_id(), "a worker of the app")
    await elsewhere._sweeper._look_at(found, await log.now_ms())
    await log.append(batch(claimed, 2, *text("Hello")))
    assert await kinds(log, sid) == ["queued", "text_delta"]


async def test_what_was_just_found_is_counted_once_and_forgotten_when_it_is_found_no_more(
    log: StreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, now_s = Waiting(log, Seizures(log), wait_s=WAIT_S, name="worker-3"), 100.0
    monkeypatch.setattr("worker.waiting.time", SimpleNamespace(monotonic=lambda: now_s))
    for sid in ("a", "b", "a"):
        waiting._note(sid)
    assert waiting.overdue() == 2
    now_s += FOUND_S - 1
    waiting._note("a")
    now_s += 1
    assert waiting.overdue() == 1
    waiting._note("c")
    assert waiting.overdue() == 2
    assert list(waiting._found_s) == ["a", "c"]
