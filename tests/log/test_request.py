"""Requests: each is kept once, as long as a stream needs it and no longer, whoever dies between two steps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from broker.errors import RedisUnavailable, StreamExpired
from broker.log import script
from broker.log.meta import Meta, NewStream, new_claim_id
from broker.log.request import FOR_NOW_S, Requests
from broker.log.steps import Claimed
from broker.log.stream_log import StreamLog
from tests.rig.long import LONG
from tests.rig.streams import PROMPT, batch, ending, expire_lease, meta, new_stream, queued, sweeper

RETENTION_S = 500
FOR_EVER = -1


@pytest.fixture
def log(any_redis: Any) -> StreamLog:
    return StreamLog(any_redis, retention_s=RETENTION_S)


@pytest.fixture
async def archived_log(redis: Redis) -> AsyncIterator[StreamLog]:
    """Its archiver never comes."""
    yield StreamLog(redis, retention_s=RETENTION_S, is_archived=True)
    await redis.flushdb()


async def whole(log: StreamLog, sid: str) -> Meta:
    [found] = await log.read_meta(sid)
    assert found
    return found


async def regenerated(log: StreamLog, sid: str) -> str:
    new = NewStream.again(sid, await whole(log, sid))
    await log.create(new)
    return new.sid


async def claim(log: StreamLog, sid: str) -> Claimed:
    return await log.claim(sid, new_claim_id(), "worker-1")


async def end(log: StreamLog, sid: str) -> None:
    claimed = await claim(log, sid)
    await log.append(batch(claimed, claimed.pen.base, ending()))


async def erase(log: StreamLog, sid: str) -> None:
    await log.erase(sid, await whole(log, sid), 7, by="anyone")


async def sweep(log: StreamLog) -> None:
    """A sweeper looks at whatever is in its index."""
    for sid in await log.redis.zrange(log.keys.leases, 0, -1):
        await log.redis.zadd(log.keys.leases, {sid: 1})  # not 0: it may be a stream that never came

    async def take(_: str, __: Meta) -> None:
        raise AssertionError("there is no room")

    await sweeper(log, take).sweep()


async def request_keys(log: StreamLog) -> list[str]:
    found = [key.decode() async for key in log.redis.scan_iter()]
    return sorted(key for key in found if key.endswith((":request", ":holders")))


async def life_s(log: StreamLog, sid: str) -> float:
    """Of the request that this stream keeps, and of its holders."""
    keys = log.keys.stream(sid)
    lives = {await log.redis.ttl(key) for key in (keys.request, keys.holders)}
    assert max(lives) - min(lives) <= 1
    return min(lives)


# -- once ------------------------------------------------------------------------------------------------


async def test_a_request_is_kept_once_however_often_it_is_run_again(log: StreamLog) -> None:
    first = await queued(log)
    second = await regenerated(log, first)
    third = await regenerated(log, second)
    assert [(await whole(log, sid)).request_of for sid in (first, second, third)] == [first] * 3
    assert (await whole(log, third)).regenerates == second
    assert await request_keys(log) == [f"le:{{{first}}}:holders", f"le:{{{first}}}:request"]
    for sid in (first, second, third):
        assert "request" not in await meta(log, sid)
        assert (await claim(log, sid)).meta.request == PROMPT


async def test_a_regenerate_of_a_request_of_1_mb_takes_less_than_5_kb_of_redis(redis: Redis) -> None:
    log = StreamLog(redis)
    sid = await queued(log, request={"messages": "x" * 10**6})
    before = (await redis.info("memory"))["used_memory"]
    again = NewStream.again(sid, await whole(log, sid))
    regenerates = 2000 if LONG else 200
    for _ in range(regenerates):
        await log.create(replace(again, sid=new_stream().sid))
    assert (await redis.info("memory"))["used_memory"] - before < regenerates * 5000


async def test_an_external_stream_has_no_request(log: StreamLog) -> None:
    sid = await queued(log, producer="external", request=None, model="")
    assert await request_keys(log) == []
    assert (await log.requests.of(await whole(log, sid))).request is None


async def test_a_first_stream_costs_no_round_trip_more_and_one_that_shares_costs_one(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, sent = StreamLog(redis), []
    first, second, third = [await queued(log) for _ in range(3)]  # the scripts are loaded
    await claim(log, third)
    shared = NewStream.again(first, await whole(log, first))
    await log.create(replace(shared, sid="loads the script"))
    connection = redis.connection_pool.connection_class
    send = connection.send_packed_command

    async def counted(self: AbstractConnection, *args: Any, **options: Any) -> None:
        sent.append(args)
        await send(self, *args, **options)

    monkeypatch.setattr(connection, "send_packed_command", counted)

    async def round_trips(step: Awaitable[object]) -> int:
        sent.clear()
        await step
        return len(sent)

    assert await round_trips(log.create(new_stream())) == 3
    assert await round_trips(claim(log, second)) == 1
    assert await round_trips(log.create(shared)) == 4
    assert await round_trips(claim(log, shared.sid)) == 2


# -- as long as it is needed -----------------------------------------------------------------------------


async def test_a_request_lives_as_long_as_its_last_stream(log: StreamLog) -> None:
    first = await queued(log)
    second = await regenerated(log, first)
    await end(log, first)
    await sweep(log)
    assert await life_s(log, first) > RETENTION_S
    await log.redis.delete(log.keys.stream(first).meta)  # its retention is over
    await log.redis.zadd(log.keys.stream(first).holders, {first: 1})
    third = await regenerated(log, second)
    assert (await claim(log, third)).meta.request == PROMPT
    await end(log, second)
    await sweep(log)
    assert await life_s(log, first) > RETENTION_S
    await expire_lease(log, third)
    await end(log, third)
    await sweep(log)
    assert 0 < await life_s(log, first) <= RETENTION_S


async def test_with_an_archive_a_request_stays_until_each_of_its_streams_is_archived(archived_log: StreamLog) -> None:
    log = archived_log
    first = await queued(log)
    second = await regenerated(log, first)
    for sid in (first, second):
        await end(log, sid)
        await sweep(log)
    assert await life_s(log, first) == FOR_EVER
    await log.start_retention(first, 9)
    assert await life_s(log, first) == FOR_EVER
    await log.start_retention(second, 9)
    assert 0 < await life_s(log, first) <= RETENTION_S


# -- and no longer ---------------------------------------------------------------------------------------


async def test_an_erasure_takes_the_request_unless_another_stream_needs_it(log: StreamLog) -> None:
    first = await queued(log)
    second = await regenerated(log, first)
    await end(log, first)
    await erase(log, first)
    assert (await log.requests.of(await whole(log, first))).request is None
    assert (await claim(log, second)).meta.request == PROMPT
    await expire_lease(log, second)
    await end(log, second)
    await erase(log, second)
    assert await request_keys(log) == []


async def test_what_shares_a_request_that_is_gone_is_not_created(log: StreamLog) -> None:
    first = await queued(log)
    await end(log, first)
    new = NewStream.again(first, await whole(log, first))
    await erase(log, first)
    with pytest.raises(StreamExpired):
        await log.create(new)
    assert await log.read_meta(new.sid) == [None]
    assert await request_keys(log) == []


async def test_a_hold_before_a_creation_that_never_came_ends_by_itself(archived_log: StreamLog) -> None:
    log = archived_log
    first = await queued(log)
    assert await log.requests.hold_for_now(first, "never")
    await end(log, first)
    await erase(log, first)
    assert 0 < await life_s(log, first) <= FOR_NOW_S


async def test_a_sweeper_completes_an_erasure_whose_process_died(log: StreamLog) -> None:
    first = await queued(log)
    await end(log, first)

    async def dies(*_: object) -> None:
        raise ConnectionError

    log.requests.let_go, let_go = dies, log.requests.let_go  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        await erase(log, first)
    log.requests.let_go = let_go  # type: ignore[method-assign]
    assert await request_keys(log)
    await sweep(log)
    assert await request_keys(log) == []


# -- Redis lost it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
async def test_a_stream_that_vanished_whole_comes_back_with_its_request(log: StreamLog, which: int) -> None:
    first = await queued(log)
    sids = [first, await regenerated(log, first)]
    claimed = await claim(log, sids[which])
    await log.redis.flushdb()
    await log.restore(replace(claimed, server="one before"))
    assert "request" not in await meta(log, sids[which])
    assert (await log.requests.of(await whole(log, sids[which]))).request == PROMPT
    assert await life_s(log, first) > RETENTION_S
    await expire_lease(log, sids[which])
    await log.append(batch(claimed, 2, ending()))
    await erase(log, sids[which])
    assert await request_keys(log) == []


# -- an older release's streams ----------------------------------------------------------------------------


async def old_form(log: StreamLog) -> str:
    """As a server of an older release creates it."""
    sid = await queued(log)
    keys = log.keys.stream(sid)
    await log.redis.hset(keys.meta, "request", orjson.dumps(PROMPT))
    await log.redis.hdel(keys.meta, "request_of")
    await log.redis.delete(keys.request, keys.holders)
    return sid


async def test_a_stream_whose_meta_has_the_request_runs_and_comes_back_and_is_run_again(log: StreamLog) -> None:
    sid = await old_form(log)
    claimed = await claim(log, sid)
    assert claimed.meta.request == PROMPT
    again = await regenerated(log, sid)
    assert (await whole(log, again)).request_of == again
    assert (await claim(log, again)).meta.request == PROMPT
    await log.redis.flushdb()
    await log.restore(replace(claimed, server="one before"))
    assert (await log.requests.of(await whole(log, sid))).request == PROMPT
    assert await request_keys(log) == []


# -- every order, and every death --------------------------------------------------------------------------

Step = Callable[[], Awaitable[object]]


def interleavings(*lengths: int) -> Iterator[tuple[int, ...]]:
    """Every order in which these may take so many steps each, in which each may die before any of its steps."""
    if not any(lengths):
        yield ()
    for who, length in enumerate(lengths):
        if length:
            rest = [other - (at == who) for at, other in enumerate(lengths)]
            for order in interleavings(*rest):
                yield (who, *order)


def orders(*lengths: int) -> set[tuple[int, ...]]:
    cut = product(*(range(length + 1) for length in lengths))
    return {order for counts in cut for order in interleavings(*counts)}


async def take_steps(order: Sequence[int], *who: Sequence[Step]) -> None:
    at = [0] * len(who)
    for each in order:
        await who[each][at[each]]()
        at[each] += 1


class Race:
    """`regenerate` of a stream that is erased meanwhile, and a worker: each step on its own, as they take them."""

    def __init__(self, log: StreamLog, first: str, known: Meta) -> None:
        self.log, self.first, self.known = log, first, known
        self.new = NewStream.again(first, known)
        self.is_held = False

    def creator(self) -> list[Step]:
        return [self.hold_for_now, self.create, self.hold, self.list]

    async def hold_for_now(self) -> None:
        self.is_held = await self.log.requests.hold_for_now(self.first, self.new.sid)

    async def create(self) -> None:
        if self.is_held:
            held_ms = self.log.requests.held_ms
            step = script.create(self.new.sid, None, None, None, held_ms, self.new.own_request, self.new.fields())
            await self.log._scripts.run(step)

    async def hold(self) -> None:
        if self.is_held:
            await self.log.requests.hold(self.first, self.new.sid)

    async def list(self) -> None:
        if self.is_held:
            await self.log.index.add(self.new.sid, "t", "s", 1)

    def eraser(self) -> list[Step]:
        return [self.order, self.bury, self.let_go]

    async def order(self) -> None:
        if self.log.is_archived:
            await self.log.redis.zadd(self.log.keys.erasing, {self.first: 1})
        await self.log.redis.zadd(self.log.keys.leases, {self.first: 0})

    async def bury(self) -> None:
        life_ms = 0 if self.log.is_archived else RETENTION_S * 1000
        await self.log._scripts.run(script.erase(self.first, 7, life_ms, self.known.tombstone()))

    async def let_go(self) -> None:
        await self.log.requests.let_go(self.first, self.known.erased_at(7))

    def worker(self) -> list[Step]:
        return [self.run_and_sweep]

    async def run_and_sweep(self) -> None:
        await self.run()
        await self.sweep()

    async def run(self) -> None:
        """The new stream, from its claim to its end."""
        [found] = await self.log.read_meta(self.new.sid)
        if found and not found.has_ended:
            claimed = await claim(self.log, self.new.sid)
            assert claimed.meta.request == PROMPT
            await self.log.append(batch(claimed, claimed.pen.base, ending()))

    async def sweep(self) -> None:
        """The sweeper, and the archiver's erasures."""
        await sweep(self.log)
        for sid in await self.log.redis.zrange(self.log.keys.erasing, 0, -1):
            if (await whole(self.log, sid.decode())).erased is not None:
                await self.log.start_retention(sid.decode(), 9)

    async def whoever_lives_goes_on(self) -> None:
        await self.log.redis.zadd(self.log.keys.leases, {self.new.sid: 0}, nx=True)  # `create` does that before all
        await self.run_and_sweep()


@pytest.mark.parametrize("is_archived", [False, True])
async def test_no_stream_lacks_its_request_and_none_is_left_of_erased_ones_in_every_order_with_every_death(
    redis: Redis, is_archived: bool
) -> None:
    log = StreamLog(redis, retention_s=RETENTION_S, is_archived=is_archived)
    created = 0
    for order in sorted(orders(4, 3, 1))[:: 1 if LONG else 15]:
        await redis.flushdb()
        first = await queued(log)
        await end(log, first)
        race = Race(log, first, await whole(log, first))
        await take_steps(order, race.creator(), race.eraser(), race.worker())
        await race.whoever_lives_goes_on()
        [new] = await log.read_meta(race.new.sid)
        if new:
            created += 1
            assert (await log.requests.of(new)).request == PROMPT, order
            await erase(log, race.new.sid)
        if 0 < order.count(1) < 3:
            await erase(log, first)  # whose client got no answer, and so repeats it
        if order.count(1):
            kept = await request_keys(log)
            assert not (new and kept), order
            assert not kept or 0 < await life_s(log, first) <= FOR_NOW_S, order
    assert created
    await redis.flushdb()


async def test_a_large_request_passes_no_script_and_lives_as_long_as_its_stream(redis: Redis) -> None:
    log = StreamLog(redis)
    large = {**PROMPT, "system": "x" * 2 * 2**20}
    sid = await queued(log, request=large)
    assert await redis.ttl(log.keys.stream(sid).request) > 86_400, "no longer the hour for which it was stored"
    claimed = await log.claim(sid, new_claim_id(), "worker-1")
    assert claimed.meta.request == large


async def test_a_large_request_that_redis_lost_starts_nothing(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    log = StreamLog(redis)
    new = new_stream(request={**PROMPT, "system": "x" * 2 * 2**20})
    store = Requests.store

    async def store_and_lose(requests: Requests, sid: str, request: bytes) -> bytes:
        stored = await store(requests, sid, request)
        await redis.delete(log.keys.stream(sid).request)
        return stored

    monkeypatch.setattr(Requests, "store", store_and_lose)
    with pytest.raises(RedisUnavailable):
        await log.create(new)
    assert await log.read_meta(new.sid) == [None]
