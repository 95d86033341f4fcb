"""Limits: what a run, its sub-agents and its session may do, and that nothing is counted twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any, NamedTuple, cast

import pytest
from redis.asyncio import Redis

import lastevent
import worker.agents.caps
from broker.errors import RedisUnavailable
from broker.log.keys import Keys
from broker.store.connect import Client
from worker.agents.caps import SESSION_S, Allowance, LimitReached, Limits, Session

LIMIT_S = 60.0


class Ceiling(NamedTuple):
    max_turns: int | None = None
    max_tool_calls: int | None = None
    session_tool_calls: int | None = None
    session_cost_usd: float | None = None


def session(redis: Redis, sid: str = "sid", name: str = "s") -> Session:
    return Session(cast(Client, redis), Keys(), "t", name, sid)


# -- limits -------------------------------------------------------------------------------------------------


def test_settings_are_ceilings_over_what_an_agent_allows_itself() -> None:
    assert Limits.announced({}, Ceiling()) == Limits()
    assert Limits()._asdict() == asdict(lastevent.Limits()), "an agent's own have the same defaults"
    said = {"turns": 3, "session_cost_usd": 0.5, "what a later release says": 1}
    assert Limits.announced(said, Ceiling()) == Limits(turns=3, session_cost_usd=0.5)
    lower = Limits.announced(said, Ceiling(2, 5, 7, 0.1))
    assert (lower.turns, lower.tool_calls, lower.session_tool_calls, lower.session_cost_usd) == (2, 5, 7, 0.1)
    higher = Limits.announced(said, Ceiling(20, 50, None, 9.0))
    assert (higher.turns, higher.tool_calls, higher.session_tool_calls) == (3, 20, None)
    assert higher.session_cost_usd == 0.5


# -- a run --------------------------------------------------------------------------------------------------


async def test_sub_agents_share_what_their_parent_has_left() -> None:
    parent = Allowance(Limits(turns=3, tool_calls=2))
    first, second = (parent.within(Limits(turns=2)) for _ in range(2))
    first.take_turn()
    first.take_turn()
    with pytest.raises(LimitReached) as own:
        first.take_turn()
    assert not parent.includes(own.value.of)
    second.take_turn()
    with pytest.raises(LimitReached) as shared:
        second.take_turn()
    assert parent.includes(shared.value.of)
    assert shared.value.code == "too_many_turns"
    assert await first.take_call("a") is None
    assert await second.take_call("b") is None
    assert not parent.has_calls
    assert "This run has made all" in (await parent.take_call("c") or "")


async def test_a_call_that_an_earlier_attempt_began_counts_and_is_not_refused() -> None:
    allowance = Allowance(Limits(tool_calls=1))
    for _ in range(2):
        allowance.count_call()
    assert await allowance.take_call("a") is not None


# -- time ---------------------------------------------------------------------------------------------------


async def test_a_run_has_so_many_seconds() -> None:
    allowance = Allowance(Limits(seconds=0.01))
    with pytest.raises(LimitReached) as reached:
        async with allowance.time():
            await asyncio.Event().wait()
    assert reached.value.code == "agent_failed"
    assert "0.01 s" in reached.value.message


async def test_a_time_out_of_something_within_is_its_own() -> None:
    with pytest.raises(TimeoutError):
        async with Allowance(Limits()).time():
            raise TimeoutError


async def test_waiting_for_a_person_takes_no_time_of_it_nor_of_its_parent() -> None:
    parent = Allowance(Limits(seconds=LIMIT_S))
    child = parent.within(Limits(seconds=LIMIT_S))

    def ends_at() -> list[float | None]:
        return [one._clock.timeout.when() for one in (parent, child) if one._clock.timeout]

    async with parent.time(), child.time():
        before = ends_at()
        with child.untimed():
            with child.untimed():
                assert ends_at() == [None, None]
            assert ends_at() == [None, None], "one still waits"
            await asyncio.sleep(0.01)
        assert all(then and now and now > then for then, now in zip(before, ends_at(), strict=True))


# -- a session ----------------------------------------------------------------------------------------------


async def test_the_calls_of_a_session_are_counted_once_each_whatever_stream_and_attempt(redis: Redis) -> None:
    limits = Limits(session_tool_calls=3)
    for _attempt in range(2):
        one, other = (Allowance(limits, session(redis, sid)) for sid in ("1", "2"))
        assert [await one.take_call("1/a"), await one.take_call("1/b"), await other.take_call("2/a")] == 3 * [None]
    assert "This session has made all" in (await Allowance(limits, session(redis, "3")).take_call("3/a") or "")
    assert await Allowance(limits, session(redis, "3", "another")).take_call("3/a") is None
    assert await Allowance(Limits(), session(redis, "3")).take_call("3/b") is None, "it has no such limit"
    assert await cast(Any, redis).smembers("le:calls:t:s") == {b"1/a", b"1/b", b"2/a"}
    assert SESSION_S - 60 < await redis.ttl("le:calls:t:s") <= SESSION_S


async def test_calls_at_once_do_not_all_find_the_last_place(redis: Redis) -> None:
    limits = Limits(session_tool_calls=5)
    sids = map(str, range(20))
    taken = await asyncio.gather(*(Allowance(limits, session(redis, sid)).take_call(f"{sid}/a") for sid in sids))
    assert taken.count(None) == 5


async def test_a_session_that_has_used_its_money_asks_for_no_turn(redis: Redis) -> None:
    limits = Limits(session_cost_usd=0.5)
    one, other = (Allowance(limits, session(redis, sid)) for sid in ("1", "2"))
    await one.spend(0.2)
    await one.note_cost(0.2)
    await one.note_cost(0.2)  # again: it is this stream's sum
    await other.note_cost(0.299999)
    await one.spend(0.2)
    await other.note_cost(0.3)
    with pytest.raises(LimitReached) as reached:
        await one.spend(0.2)
    assert reached.value.code == "budget_exceeded"
    assert await cast(Any, redis).hgetall("le:cost:t:s") == {b"1": b"200000", b"2": b"300000"}
    assert SESSION_S - 60 < await redis.ttl("le:cost:t:s") <= SESSION_S


async def test_a_cost_that_is_not_known_is_said_once(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    allowance = Allowance(Limits(session_cost_usd=0.5), session(redis))
    for _ in range(2):
        await allowance.spend(None)
    assert [record.message.partition(". ")[2] for record in caplog.records] == [
        "Give its model a price in LASTEVENT_MODELS_FILE."
    ]


async def test_without_a_limit_of_its_session_nothing_is_asked_of_redis() -> None:
    class Nobody:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    allowance = Allowance(Limits(), Session(cast(Client, Nobody()), Keys(), "t", "s", "sid"))
    await allowance.spend(1.0)
    await allowance.note_cost(1.0)
    assert await allowance.take_call("a") is None


@pytest.fixture
async def away(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[str]]:
    """Redis is away for the next calls of these names."""
    missing: list[str] = []
    execute: Any = redis.execute_command

    async def execute_command(*args: Any, **options: Any) -> Any:
        if args[0] in missing:
            missing.remove(args[0])
            raise RedisUnavailable("Redis is away")
        return await execute(*args, **options)

    monkeypatch.setattr(redis, "execute_command", execute_command)
    monkeypatch.setattr(worker.agents.caps, "RETRY_S", 0.0)
    yield missing
    assert not missing


async def test_a_call_waits_until_redis_is_back(redis: Redis, away: list[str]) -> None:
    away += ["EVAL", "EVAL"]
    async with asyncio.timeout(LIMIT_S):
        assert await Allowance(Limits(session_tool_calls=1), session(redis)).take_call("a") is None
