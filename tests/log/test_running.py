"""Places: how many streams of a tenant run at once, and whose turn it is. In real Valkey: its clock ends them."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from broker.log.keys import Keys
from broker.log.queue import enqueue
from broker.log.running import PLACE_S, Line, Places, Running, share_of

KEYS = Keys()
PLAIN, SHOP = Line("a"), Line("a", "shop")
TWO = Places(2)


@pytest.fixture
def running(redis: Redis) -> Running:
    return Running(redis, KEYS)


async def end_all(redis: Redis, key: str) -> None:
    """As if their time had come."""
    for sid in await redis.zrange(key, 0, -1):
        await redis.zadd(key, {sid: 1})


async def test_beyond_the_limit_streams_are_parked_in_the_order_of_their_arrival(
    redis: Redis, running: Running
) -> None:
    answers = [await running.take_slot(PLAIN, sid, TWO) for sid in ("z", "y", "x", "w")]
    assert answers == [True, True, False, False]
    assert await running.next(PLAIN, TWO) == []
    await running.let_go("a", "z")
    assert await running.next(PLAIN, TWO) == ["x"]
    assert await running.take_slot(PLAIN, "x", TWO)
    await running.let_go("a", "x", "y")
    assert await running.next(PLAIN, TWO) == ["w"]
    await redis.flushdb()


async def test_a_newcomer_overtakes_nobody(redis: Redis, running: Running) -> None:
    for sid in ("a1", "a2", "a3"):
        await running.take_slot(PLAIN, sid, TWO)
    await running.let_go("a", "a1")
    assert await running.take_slot(PLAIN, "a4", TWO) is None  # there is a place, and a3 has its turn
    assert await running.take_slot(PLAIN, "a3", TWO)
    await redis.flushdb()


async def test_a_place_may_be_asked_for_twice(redis: Redis, running: Running) -> None:
    for sid in ("a1", "a2", "a1", "a2"):
        assert await running.take_slot(PLAIN, sid, TWO)
    await redis.flushdb()


async def test_places_that_nobody_renews_come_back_by_themselves(redis: Redis, running: Running) -> None:
    for sid in ("a1", "a2", "a3"):
        await running.take_slot(PLAIN, sid, TWO)
    assert 0 < await redis.ttl(KEYS.running("a")) <= 60
    await end_all(redis, KEYS.running("a"))
    assert await running.next(PLAIN, TWO) == ["a3"]
    await redis.flushdb()


async def test_a_renewal_puts_back_what_redis_lost(redis: Redis, running: Running) -> None:
    await running.keep("a", ["a1", "a2"])
    assert await running.take_slot(PLAIN, "a3", TWO) is False
    until_ms = await redis.zscore(KEYS.running("a"), "a1")
    now_s, _ = await redis.time()
    assert 0 < until_ms / 1000 - now_s <= PLACE_S + 1
    await redis.flushdb()


async def test_a_takeover_is_counted_and_not_refused(redis: Redis, running: Running) -> None:
    for sid in ("a1", "a2"):
        await running.take_slot(PLAIN, sid, TWO)
    assert await running.take_slot(PLAIN, "lost", TWO, is_owed=True)
    await running.let_go("a", "a1")
    assert await running.take_slot(PLAIN, "a3", TWO) is False
    await redis.flushdb()


async def test_external_streams_count_and_are_refused(redis: Redis, running: Running) -> None:
    assert await running.take("a", "x1", 2)
    assert await running.take_slot(PLAIN, "a1", TWO)
    assert not await running.take("a", "x2", 2)
    assert await running.take("a", "x1", 2)  # it has its place
    assert await running.take_slot(PLAIN, "a2", TWO) is False
    await running.let_go("a", "x1")
    assert await running.next(PLAIN, TWO) == ["a2"]
    await redis.flushdb()


async def test_what_takes_no_slot_counts_against_the_limit_alone(redis: Redis, running: Running) -> None:
    places = Places(most=3, slots=1)
    await running.take_slot(PLAIN, "a1", places)
    assert await running.take_slot(PLAIN, "a2", places) is False
    await running.keep("a", [], ["a1"])  # it waits for a person
    assert await running.take_slot(PLAIN, "a2", places)
    assert await running.take_slot(PLAIN, "a1", places)  # it goes on
    await redis.flushdb()


async def test_an_external_streams_place_lasts_as_long_as_its_lease_is_renewed(redis: Redis, running: Running) -> None:
    await running.take("a", "x1", 1)
    await running.keep_external("a", "x1", 5_000_000_000_000)
    assert await redis.zscore(KEYS.aside("a"), "x1") == 5_000_000_010_000
    await running.keep_external("a", "never had one", 5_000_000_000_000)
    assert await redis.zcard(KEYS.aside("a")) == 1
    await redis.flushdb()


async def test_an_app_without_a_worker_holds_up_nobody_else(redis: Redis, running: Running) -> None:
    await running.take_slot(PLAIN, "a1", Places(1))
    await running.take_slot(SHOP, "agent", Places(1))
    await running.take_slot(PLAIN, "a2", Places(1))
    assert set(await running.lines()) == {PLAIN, SHOP}
    await running.let_go("a", "a1")
    assert await running.next(PLAIN, Places(1)) == ["a2"]
    assert await running.take_slot(PLAIN, "a2", Places(1))
    await redis.flushdb()


async def test_an_ended_stream_leaves_its_line_and_an_empty_line_the_list(redis: Redis, running: Running) -> None:
    for sid in ("a1", "a2", "a3"):
        await running.take_slot(PLAIN, sid, Places(1))
    await running.let_go("a", "a2")
    assert await running.parked(PLAIN, ["a1", "a2", "a3"]) == {"a3"}
    await running.let_go("a", "a3")
    assert await running.lines() == []
    await redis.flushdb()


async def test_where_others_are_parked_a_new_stream_is_parked_without_a_worker(redis: Redis, running: Running) -> None:
    for sid in ("a1", "a2"):
        await running.take_slot(PLAIN, sid, Places(1))
    await enqueue(redis, KEYS, "a3", tenant="a")
    await enqueue(redis, KEYS, "a3", tenant="a")
    await enqueue(redis, KEYS, "a2", tenant="a", has_turn=True)
    await enqueue(redis, KEYS, "b1", tenant="b")
    assert await redis.zrange(KEYS.jobs, 0, -1) == [b"a2", b"b1"]
    assert await redis.zrange(KEYS.parked("a"), 0, -1) == [b"a2", b"a3"]
    await redis.flushdb()


async def test_all_workers_slots_are_counted_as_long_as_they_live(redis: Redis, running: Running) -> None:
    assert await running.slots_of_all("one", 10) == 10
    assert await running.slots_of_all("two", 5) == 15
    assert await running.slots_of_all("one", 10) == 15
    await running.leave("two", 5)
    assert await running.slots_of_all("one", 10) == 10
    assert [share_of(slots) for slots in (1, 2, 5, 10, 500)] == [1, 1, 4, 8, 400]
    await redis.flushdb()


class _Tenant:
    """Streams of one tenant among workers that take, die, end and forget, and those that wake them.

    Who begins leaves a place to each that came before it, whatever order the queue has made of them.
    """

    def __init__(self, running: Running, most: int) -> None:
        self.running, self.places, self.most = running, Places(most), most
        self.queued: list[str] = []
        self.held: list[str] = []
        self.come: set[str] = set()
        self.begun: set[str] = set()

    async def step(self, step: str, at: int) -> None:
        match step:
            case "new":
                self.queued.append(f"{at:03d}")
                self.come.add(f"{at:03d}")
            case "pick" if self.queued:
                sid = self.queued.pop(0)
                if await self.running.take_slot(PLAIN, sid, self.places):
                    self.held.append(sid)
                    self.begun.add(sid)
                    assert len(self.held) + len([other for other in self.come - self.begun if other < sid]) <= self.most
            case "end" if self.held:
                await self.running.let_go("a", self.held.pop(at % len(self.held)))
            case "look":
                self.queued += [sid for sid in await self.running.next(PLAIN, self.places) if sid not in self.queued]


@given(st.integers(1, 3), st.lists(st.sampled_from(["new", "new", "pick", "pick", "end", "look"]), max_size=80))
def test_whatever_happens_all_run_and_nobody_takes_the_place_of_who_came_before(
    valkey_url: str, most: int, steps: list[str]
) -> None:
    async def run() -> None:
        async with Redis.from_url(valkey_url) as redis:
            await redis.flushdb()
            tenant = _Tenant(Running(redis, KEYS), most)
            for at, step in enumerate(steps):
                await tenant.step(step, at)
            for _ in range(steps.count("new") + 1):  # and then each gets its turn
                for step in ["look", *["pick"] * (len(tenant.queued) + most), *["end"] * most]:
                    await tenant.step(step, 0)
            assert tenant.begun == tenant.come
            assert await redis.keys("le:parked*") == await redis.keys("le:lines") == []
            await redis.flushdb()

    asyncio.run(run())
