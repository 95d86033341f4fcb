"""The log's steps, one rule of scripts/*.lua a test, on each server they must work on."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import pytest
from redis.asyncio import Redis

from broker.errors import (
    AppendGap,
    LeaseHeld,
    LogHealing,
    RedisUnavailable,
    StreamClosed,
    StreamLimit,
    StreamNotFound,
    WriterSuperseded,
)
from broker.log.event import encode_data, from_published
from broker.log.meta import EXTERNAL
from broker.log.script import Seen
from broker.log.steps import (
    EXTERNAL_LEASE_S,
    Append,
    Claimed,
    Pen,
    Unsent,
)
from broker.log.stream_log import StreamLog
from broker.store.connect import connect
from tests.rig.streams import (
    batch,
    ending,
    expire_lease,
    grow_old,
    ids,
    kinds,
    meta,
    new_stream,
    queued,
    remember,
    running,
    running_through_a_restart,
    seize,
    survive_a_restart_of_redis,
    taken_over,
    text,
)

SECOND_BLOCK = 1_000_001
NOBODY = "no such stream"
RETENTION_MS = 86_400_000


@pytest.fixture
def log(any_redis: Any) -> StreamLog:
    return StreamLog(any_redis)


@pytest.fixture
def real_log(redis: Redis) -> StreamLog:
    return StreamLog(redis)


def renewal(claimed: Claimed, lease_s: float = 6.0) -> Append:
    return Append(claimed.sid, claimed.pen, claimed.pen.base, (), lease_s)


async def lease_left_ms(log: StreamLog, sid: str) -> int:
    return int((await meta(log, sid))["lease_until"]) - await log.now_ms()


# -- create ------------------------------------------------------------------------------------------------


async def test_a_new_stream_waits_and_holds_event_1(log: StreamLog) -> None:
    before = await log.now_ms()
    sid = await queued(log)
    [event] = await log.read_all(sid)
    assert event[:3] == (1, "queued", b"{}")
    assert before <= event.t <= await log.now_ms()
    found = await meta(log, sid)
    assert (found["state"], found["epoch"], found["tail"], found["attempt"]) == ("queued", "0", "1", "0")
    assert found["created"] == str(event.t)
    assert "lease_until" not in found


async def test_creating_a_stream_again_changes_nothing(log: StreamLog) -> None:
    new = new_stream()
    assert await log.create(new)
    claimed = await log.claim(new.sid, "claim-1", "worker-1")
    await log.append(batch(claimed, 2, *text("Salt")))
    before = await meta(log, new.sid)
    assert not await log.create(new)
    assert await meta(log, new.sid) == before
    assert await ids(log, new.sid) == [1, 2]


async def test_a_new_stream_is_in_the_sweepers_index_and_in_the_listings(log: StreamLog) -> None:
    sid = await queued(log)
    created = float((await meta(log, sid))["created"])
    assert await log.redis.zscore(log.keys.leases, sid) == 0
    assert await log.redis.zscore(log.keys.streams("t"), sid) == created
    assert await log.redis.zscore(log.keys.session("t", "s"), sid) == created
    assert await log.redis.zscore(log.keys.sessions("t"), "s") == created


async def test_a_stream_that_leaves_the_listings_takes_its_session_along_but_not_one_that_goes_on(
    real_log: StreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, zrem = real_log, real_log.redis.zrem
    await log.index.remove(await queued(log), "t", "s")
    assert await log.redis.zscore(log.keys.sessions("t"), "s") is None
    sid = await queued(log)

    async def zrem_when_another_has_come(*args: Any) -> Any:
        await queued(log)
        return await zrem(*args)

    monkeypatch.setattr(log.redis, "zrem", zrem_when_another_has_come)
    await log.index.remove(sid, "t", "s")
    [(_, created_ms)] = await log.redis.zrange(log.keys.session("t", "s"), 0, -1, withscores=True)
    assert await log.redis.zscore(log.keys.sessions("t"), "s") == created_ms


async def test_an_external_stream_runs_from_the_start_under_its_producers_lease(log: StreamLog) -> None:
    sid = await queued(log, producer=EXTERNAL)
    found = await meta(log, sid)
    assert (found["state"], found["epoch"], found["attempt"], found["base"]) == ("running", "1", "1", "2")
    assert 0 < await lease_left_ms(log, sid) <= EXTERNAL_LEASE_S * 1000
    pen = Pen(1, found["claim"], 2)
    assert (await log.append(Append(sid, pen, 2, text("Salt")))).tail == 2


# -- claim -------------------------------------------------------------------------------------------------


async def test_the_first_claim_goes_on_after_the_tail(log: StreamLog) -> None:
    sid = await queued(log)
    claimed = await log.claim(sid, "claim-1", "worker-1")
    assert claimed.pen == Pen(1, "claim-1", 2)
    assert (claimed.tail, claimed.attempt, claimed.events, claimed.bytes) == (1, 1, 1, 2)
    assert claimed.meta.model == "anthropic/some-model"
    assert claimed.meta.request == new_stream().request
    found = await meta(log, sid)
    assert (found["state"], found["worker"]) == ("running", "worker-1")
    assert 0 < await lease_left_ms(log, sid) <= 6000


async def test_the_same_claim_again_is_answered_with_the_same_pen(log: StreamLog) -> None:
    sid = await queued(log)
    first = await log.claim(sid, "claim-1", "worker-1")
    again = await log.claim(sid, "claim-1", "worker-1")
    assert (again.pen, again.tail, again.attempt) == (first.pen, first.tail, first.attempt)
    assert (await meta(log, sid))["attempt"] == "1"


async def test_a_living_writers_stream_cannot_be_claimed(log: StreamLog) -> None:
    claimed = await running(log)
    with pytest.raises(LeaseHeld) as held:
        await log.claim(claimed.sid, "claim-2", "worker-2")
    assert str(held.value.until_ms) == (await meta(log, claimed.sid))["lease_until"]


async def test_an_expired_lease_is_taken_over_at_the_start_of_a_new_block(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("Salt")))
    second = await taken_over(log, claimed.sid)
    assert (second.pen.epoch, second.pen.base, second.tail, second.attempt) == (2, SECOND_BLOCK, 2, 2)
    assert (await log.append(batch(second, SECOND_BLOCK, *text("bread")))).tail == SECOND_BLOCK
    assert await ids(log, claimed.sid) == [1, 2, SECOND_BLOCK]


async def test_each_takeover_jumps_a_block(log: StreamLog) -> None:
    claimed = await running(log)
    bases = []
    for _ in range(3):
        claimed = await taken_over(log, claimed.sid)
        bases.append(claimed.pen.base)
        await log.append(batch(claimed, claimed.pen.base, *text("again")))
    assert bases == [1_000_001, 2_000_001, 3_000_001]


async def test_a_takeover_jumps_beyond_any_block_that_time_has_allowed(log: StreamLog) -> None:
    claimed = await running(log)
    await grow_old(log, claimed.sid, by_s=13)
    assert (await taken_over(log, claimed.sid)).pen.base == 14_000_001


@pytest.mark.parametrize(("tail", "base"), [(1_000_000, 1_000_001), (1_000_001, 2_000_001), (5_999_999, 6_000_001)])
async def test_a_block_begins_after_a_million(log: StreamLog, tail: int, base: int) -> None:
    claimed = await running(log)
    await log.redis.hset(log.keys.stream(claimed.sid).meta, "tail", tail)
    assert (await taken_over(log, claimed.sid)).pen.base == base


async def test_under_another_boot_the_first_claim_jumps_too(any_redis: Any) -> None:
    log = StreamLog(any_redis, lease_s=0)
    sid = await queued(log)
    await survive_a_restart_of_redis(log, sid)
    claimed = await log.claim(sid, "claim-1", "worker-1")
    assert (claimed.pen.epoch, claimed.pen.base, claimed.attempt) == (1, SECOND_BLOCK, 1)


async def test_what_has_ended_cannot_be_claimed(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, ending()))
    with pytest.raises(StreamClosed):
        await log.claim(claimed.sid, "claim-2", "worker-2")


async def test_of_many_claimers_one_gets_the_pen(log: StreamLog) -> None:
    sid = await queued(log)
    claims = [log.claim(sid, f"claim-{n}", f"worker-{n}") for n in range(10)]
    outcomes = await asyncio.gather(*claims, return_exceptions=True)
    [winner] = [outcome for outcome in outcomes if isinstance(outcome, Claimed)]
    assert sum(isinstance(outcome, LeaseHeld) for outcome in outcomes) == 9
    assert (await meta(log, sid))["claim"] == winner.pen.claim_id


# -- after a restart of Redis ------------------------------------------------------------------------------


async def test_until_redis_has_been_up_for_a_lease_nobody_takes_a_pen(redis: Redis) -> None:
    log = StreamLog(redis, lease_s=100_000)
    claimed = await running_through_a_restart(log)
    with pytest.raises(LogHealing) as healing:
        await log.claim(claimed.sid, "claim-2", "worker-2")
    assert 0 < healing.value.retry_after_s <= 100_000
    with pytest.raises(LogHealing):
        await seize(log, claimed.sid, "cancelled", b"{}")
    assert await ids(log, claimed.sid) == [1]


async def test_until_then_its_writer_goes_on_even_with_an_expired_lease(redis: Redis) -> None:
    log = StreamLog(redis, lease_s=100_000)
    claimed = await running_through_a_restart(log)
    assert (await log.append(batch(claimed, 2, *text("Salt")))).tail == 2
    assert await lease_left_ms(log, claimed.sid) > 0


async def test_a_new_ending_waits_while_another_may_be_put_back(redis: Redis) -> None:
    log = StreamLog(redis, lease_s=90)
    claimed = await running_through_a_restart(log)
    with pytest.raises(LogHealing) as healing:
        await log.append(batch(claimed, 2, *text("Salt"), ending()))
    assert 50 < healing.value.retry_after_s <= 60
    assert await ids(log, claimed.sid) == [1]
    assert await lease_left_ms(log, claimed.sid) > 0
    assert (await log.append(batch(claimed, 2, *text("Salt"), ending()._replace(t=1)))).state == "done"


async def test_a_claim_is_not_repeated_under_another_server(log: StreamLog) -> None:
    claimed = await running(log)
    await log.redis.hset(log.keys.stream(claimed.sid).meta, "claimed_under", "the server of before")
    with pytest.raises(LeaseHeld):
        await log.claim(claimed.sid, claimed.pen.claim_id, "worker-1")


async def test_what_may_have_been_created_before_uses_no_id_of_that_time(redis: Redis) -> None:
    log, new = StreamLog(redis, lease_s=0), new_stream()
    assert await log.create(new, reserved_ms=await log.now_ms() - 2500)
    assert (await log.claim(new.sid, "claim-1", "worker-1")).pen.base >= 3_000_001
    assert not await log.create(new, reserved_ms=1)


async def test_a_stream_with_a_given_id_begins_as_the_successor_of_all_that_had_it(redis: Redis) -> None:
    log, new = StreamLog(redis, lease_s=0), new_stream()
    assert await log.create(new, counted_from_ms=await log.now_ms() - 7500)
    assert (await meta(log, new.sid))["epoch"] == "8"
    claimed = await log.claim(new.sid, "claim-1", "worker-1")
    assert claimed.pen.epoch == 9
    assert claimed.pen.base >= 8_000_001
    assert not await log.create(new, counted_from_ms=1)
    assert int((await meta(log, new.sid))["created"]) > await log.now_ms() - 5000, "it is as young as it is"


async def test_after_a_change_of_servers_what_is_missing_may_return_for_two_leases(redis: Redis) -> None:
    await StreamLog(redis).servers.require_settled(2)
    [this] = await redis.zrange(StreamLog(redis).keys.servers, 0, -1)
    await redis.zadd(StreamLog(redis).keys.servers, {"the server of before": 1})
    with pytest.raises(LogHealing):
        await StreamLog(redis).servers.require_settled(2)
    await redis.zincrby(StreamLog(redis).keys.servers, -12_000, this)
    await StreamLog(redis).servers.require_settled(2)


async def test_who_has_met_another_server_tells_those_who_come_later(redis: Redis) -> None:
    log = StreamLog(redis)
    log.servers.seen = Seen("one that has lost everything", 1)
    await log.servers.note()
    with pytest.raises(LogHealing):
        await StreamLog(redis).servers.require_settled(2)


async def succeeding(redis: Redis, *, ended_after_s: float, others: int = 1) -> tuple[StreamLog, bool]:
    """A log on a server that succeeds another one, which was in use for so long and ended a second ago."""
    log = StreamLog(redis)
    ended_ms = await log.now_ms() - 1000
    servers = {f"server-{n}": float(n) for n in range(others)}
    await redis.zadd(log.keys.servers, {**servers, "ended": ended_ms - round(ended_after_s * 1000)})
    return log, await log.servers.succeed("ended", ended_ms)


@pytest.mark.parametrize(("ended_after_s", "others"), [(12, 1), (86_400, 7), (1, 0)])
async def test_a_server_that_succeeds_one_that_had_settled_lets_nobody_wait(
    redis: Redis, ended_after_s: float, others: int
) -> None:
    """Nor does one that succeeds the first of all."""
    log, succeeds = await succeeding(redis, ended_after_s=ended_after_s, others=others)
    assert succeeds
    await log.servers.require_settled(2)
    claimed = await running(log)
    await survive_a_restart_of_redis(log, claimed.sid)
    again = await taken_over(log, claimed.sid)
    assert again.pen.base > 1_000_000, "the next block, as under any other server"
    await redis.hset(log.keys.stream(claimed.sid).meta, "claimed_under", "ended")
    with pytest.raises(LeaseHeld):
        await log.claim(claimed.sid, again.pen.claim_id, "worker-2")
    before, last = (await redis.zrange(log.keys.servers, 0, -1))[-2:]
    assert (before, last.decode()) == (b"ended", log.servers.seen.server)
    assert await redis.zcard(log.keys.servers) <= 8


async def test_a_server_that_succeeds_one_that_had_not_settled_is_a_new_one(redis: Redis) -> None:
    log, succeeds = await succeeding(redis, ended_after_s=11)
    assert not succeeds
    with pytest.raises(LogHealing):
        await log.servers.require_settled(2)


async def test_nobody_succeeds_a_server_that_is_not_the_last_one_met(redis: Redis) -> None:
    log = StreamLog(redis)
    assert not await log.servers.succeed("ended", await log.now_ms()), "nobody has met any"
    await redis.zadd(log.keys.servers, {"ended": 1, "met since": 2})
    assert not await log.servers.succeed("ended", await log.now_ms())
    assert await redis.zcard(log.keys.servers) == 2
    await redis.delete(log.keys.servers)


async def test_a_server_that_somebody_has_met_already_stays_as_new_as_it_is(redis: Redis) -> None:
    log = StreamLog(redis)
    await redis.zadd(log.keys.servers, {"one before": 1, "ended": 2})
    await log.servers.note()
    assert not await log.servers.succeed("ended", await log.now_ms())
    with pytest.raises(LogHealing):
        await StreamLog(redis).servers.require_settled(2)


# -- append ------------------------------------------------------------------------------------------------


async def test_events_are_added_under_consecutive_ids_and_redis_time(log: StreamLog) -> None:
    claimed = await running(log)
    before = await log.now_ms()
    appended = await log.append(batch(claimed, 2, *text("Salt", "bread")))
    assert (appended.tail, appended.state) == (3, "running")
    assert (await log.append(batch(claimed, 4, *text("index")))).tail == 4
    events = await log.read_all(claimed.sid)
    assert [event.data for event in events] == [b"{}", b'{"text":"Salt"}', b'{"text":"bread"}', b'{"text":"index"}']
    assert [event.id for event in events] == [1, 2, 3, 4]
    assert events[1].t == appended.now_ms
    assert before <= appended.now_ms <= await log.now_ms()
    found = await meta(log, claimed.sid)
    assert (found["tail"], found["events"], found["bytes"]) == ("4", "4", str(sum(len(e.data) for e in events)))


async def test_any_text_is_kept_as_it_is(log: StreamLog) -> None:
    claimed = await running(log)
    data = encode_data({"text": "a\r\n\x00\u2028🧂\x7f'\"{}[]"})
    await log.append(batch(claimed, 2, Unsent("text_delta", data)))
    assert (await log.read_last(claimed.sid)).data == data


async def test_an_append_whose_reply_was_lost_may_be_repeated(log: StreamLog) -> None:
    claimed = await running(log)
    append = batch(claimed, 2, *text("Salt", "bread"))
    await log.append(append)
    before = await log.read_all(claimed.sid)
    assert (await log.append(append)).tail == 3
    assert await log.read_all(claimed.sid) == before
    assert (await meta(log, claimed.sid))["events"] == "3"


async def test_of_a_repetition_only_what_is_new_is_added(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("Salt", "bread")))
    assert (await log.append(batch(claimed, 3, *text("bread", "index", "far")))).tail == 5
    assert [event.data for event in await log.read_all(claimed.sid)][1:] == [e.data for e in text(*SALT)]
    assert (await meta(log, claimed.sid))["events"] == "5"


SALT = ("Salt", "bread", "index", "far")


async def test_repeating_older_events_alone_adds_nothing(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text(*SALT)))
    assert (await log.append(batch(claimed, 2, *text("Salt")))).tail == 5
    assert await ids(log, claimed.sid) == [1, 2, 3, 4, 5]


async def test_the_ending_may_be_repeated(log: StreamLog) -> None:
    claimed = await running(log)
    append = batch(claimed, 2, *text("Salt"), ending())
    assert (await log.append(append)).state == "done"
    again = await log.append(append)
    assert (again.tail, again.state) == (3, "done")
    assert await kinds(log, claimed.sid) == ["queued", "text_delta", "done"]


async def test_a_hole_is_refused_and_the_tail_named(log: StreamLog) -> None:
    claimed = await running(log)
    with pytest.raises(AppendGap) as gap:
        await log.append(batch(claimed, 3, *text("bread")))
    assert gap.value.tail == 1
    assert await ids(log, claimed.sid) == [1]


async def test_a_writer_never_writes_below_its_base(log: StreamLog) -> None:
    second = await taken_over(log, (await running(log)).sid)
    for first in (2, SECOND_BLOCK - 1, SECOND_BLOCK + 1):
        with pytest.raises(AppendGap):
            await log.append(batch(second, first, *text("Salt")))
    assert await ids(log, second.sid) == [1]


async def test_nothing_follows_the_ending(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, ending()))
    with pytest.raises(StreamClosed):
        await log.append(batch(claimed, 3, *text("more")))
    assert await kinds(log, claimed.sid) == ["queued", "done"]


async def test_other_events_under_ids_that_are_taken_are_never_acknowledged(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("one", "two")))
    for events in (text("other"), text("one", "other"), text("one", "other", "three")):
        with pytest.raises(WriterSuperseded):
            await log.append(batch(claimed, 2, *events))
    await log.append(batch(claimed, 4, ending()))
    with pytest.raises(StreamClosed):
        await log.append(batch(claimed, 4, *text("other")))
    assert await kinds(log, claimed.sid) == ["queued", "text_delta", "text_delta", "done"]


async def test_a_batch_that_goes_on_after_a_terminal_event_is_a_bug_and_not_sent(log: StreamLog) -> None:
    claimed = await running(log)
    with pytest.raises(ValueError):
        await log.append(batch(claimed, 2, ending(), *text("more")))
    assert await kinds(log, claimed.sid) == ["queued"]


async def test_a_producer_without_numbers_never_reuses_an_id_that_redis_may_have_lost(real_log: StreamLog) -> None:
    new = new_stream(producer=EXTERNAL)
    await real_log.create(new)
    roll_back = await remember(real_log, new.sid)
    pen = Pen(1, (await meta(real_log, new.sid))["claim"], 2)
    assert (await real_log.append(Append(new.sid, pen, 0, text("lost")))).tail == 2
    await roll_back()
    await survive_a_restart_of_redis(real_log, new.sid)
    assert (await real_log.append(Append(new.sid, pen, 0, text("kept")))).tail == SECOND_BLOCK
    moved = pen._replace(base=int((await meta(real_log, new.sid))["base"]))
    assert (await real_log.append(Append(new.sid, moved, 0, text("and", "on")))).tail == SECOND_BLOCK + 2
    with pytest.raises(AppendGap):
        await real_log.append(Append(new.sid, moved, 3, text("a number of before")))


async def test_an_old_epoch_is_fenced(log: StreamLog) -> None:
    first = await running(log)
    await log.append(batch(first, 2, *text("Salt")))
    await taken_over(log, first.sid)
    for append in (batch(first, 3, *text("zombie")), batch(first, 2, *text("Salt")), renewal(first)):
        with pytest.raises(WriterSuperseded):
            await log.append(append)
    assert await ids(log, first.sid) == [1, 2]


async def test_the_same_epoch_under_another_claim_is_fenced(log: StreamLog) -> None:
    claimed = await running(log)
    other = Pen(claimed.pen.epoch, "another claim", claimed.pen.base)
    with pytest.raises(WriterSuperseded):
        await log.append(Append(claimed.sid, other, 2, text("Salt")))
    assert await ids(log, claimed.sid) == [1]


async def test_to_a_fenced_writer_a_finished_stream_is_closed(log: StreamLog) -> None:
    first = await running(log)
    second = await taken_over(log, first.sid)
    await log.append(batch(second, SECOND_BLOCK, ending()))
    for append in (batch(first, 2, *text("zombie")), renewal(first)):
        with pytest.raises(StreamClosed):
            await log.append(append)


async def test_a_claim_that_redis_lost_is_adopted_from_its_writer(log: StreamLog) -> None:
    sid = await queued(log)
    roll_back = await remember(log, sid)
    claimed = await log.claim(sid, "claim-1", "worker-1")
    await log.append(batch(claimed, 2, *text("Salt")))
    await roll_back()
    with pytest.raises(AppendGap) as gap:
        await log.append(batch(claimed, 3, *text("bread")))
    assert gap.value.tail == 1
    assert (await log.append(batch(claimed, 2, *text("Salt", "bread")))).tail == 3
    found = await meta(log, sid)
    assert (found["state"], found["epoch"], found["claim"], found["base"]) == ("running", "1", "claim-1", "2")
    assert "started" in found


async def test_a_pen_from_behind_the_log_is_not_adopted_however_new_it_is(log: StreamLog) -> None:
    """It comes from a time that Redis has lost, and others have written since: it could add nothing, and would stay."""
    claimed = await running(log)
    assert (await log.append(batch(claimed, 2, *text("Salt")))).tail == 2
    with pytest.raises(WriterSuperseded):
        await log.append(Append(claimed.sid, Pen(9, "another claim", 2), 2, text("Oil"), 6.0))
    assert (await log.append(batch(claimed, 3, *text("Oil")))).tail == 3


async def test_a_takeover_that_redis_lost_is_adopted_at_its_block(log: StreamLog) -> None:
    first = await running(log)
    await log.append(batch(first, 2, *text("Salt")))
    roll_back = await remember(log, first.sid)
    second = await taken_over(log, first.sid)
    await log.append(batch(second, SECOND_BLOCK, *text("bread")))
    await roll_back()
    assert (await log.append(batch(second, SECOND_BLOCK, *text("bread")))).tail == SECOND_BLOCK
    with pytest.raises(WriterSuperseded):
        await log.append(batch(first, 3, *text("zombie")))
    assert await ids(log, first.sid) == [1, 2, SECOND_BLOCK]


async def test_a_heartbeat_alone_brings_a_lost_claim_back(log: StreamLog) -> None:
    sid = await queued(log)
    roll_back = await remember(log, sid)
    claimed = await log.claim(sid, "claim-1", "worker-1")
    await log.append(batch(claimed, 2, *text("Salt")))
    await roll_back()
    assert (await log.append(renewal(claimed))).tail == 1
    with pytest.raises(LeaseHeld):
        await log.claim(sid, "claim-2", "worker-2")


async def test_an_event_put_back_keeps_its_time(log: StreamLog) -> None:
    claimed = await running(log)
    healed = Unsent("text_delta", b'{"text":"Salt"}', 1_700_000_000_000)
    await log.append(batch(claimed, 2, healed, *text("bread")))
    _, first, second = await log.read_all(claimed.sid)
    assert first.t == 1_700_000_000_000
    assert second.t > first.t


async def test_an_append_to_no_stream_is_refused(log: StreamLog) -> None:
    nobody = Claimed(NOBODY, Pen(1, "claim", 2), 1, 1, 1, 2, "", {})
    for step in (
        log.append(batch(nobody, 2, *text("Salt"))),
        log.append(renewal(nobody)),
        log.claim(NOBODY, "claim", "worker"),
        seize(log, NOBODY, "cancelled", b"{}"),
        log.read_page(NOBODY, 0),
        log.read_last(NOBODY),
        log.read_all(NOBODY),
    ):
        with pytest.raises(StreamNotFound):
            await step
    assert await log.redis.keys("*") == []


async def test_of_appends_sent_together_each_comes_to_its_own_outcome(log: StreamLog) -> None:
    good, fenced, ended = await running(log), await running(log), await running(log)
    await taken_over(log, fenced.sid)
    await log.append(batch(ended, 2, ending()))
    appends = [batch(fenced, 2, *text("zombie")), batch(good, 2, *text("Salt")), batch(ended, 3, *text("more"))]
    outcomes = await log.append_many(lambda: appends)
    assert [type(outcome).__name__ for outcome in outcomes] == ["WriterSuperseded", "Appended", "StreamClosed"]


async def test_a_server_that_has_forgotten_the_scripts_is_given_them_again(real_log: StreamLog) -> None:
    claimed = await running(real_log)
    await real_log.redis.script_flush()
    assert (await real_log.append(batch(claimed, 2, *text("Salt")))).tail == 2


async def test_a_batch_that_must_be_sent_again_says_what_holds_by_then(real_log: StreamLog) -> None:
    claimed = await running(real_log)
    await real_log.redis.script_flush()
    sendings = count(1)

    def appends() -> list[Append]:
        # By the second one the writer has lost its right to heal: its process stood still meanwhile.
        return [batch(claimed, 2, *text("Salt"))._replace(claimed_under="another" if next(sendings) == 2 else "")]

    [outcome] = await real_log.append_many(appends)
    assert isinstance(outcome, WriterSuperseded)


# -- append without numbers (an external producer that cannot retry) -----------------------------------------


async def test_without_a_number_events_follow_whatever_is_there(log: StreamLog) -> None:
    claimed = await running(log)
    assert (await log.append(batch(claimed, 0, *text("Salt")))).tail == 2
    assert (await log.append(batch(claimed, 0, *text("Salt", "bread")))).tail == 4


async def test_without_a_number_the_first_event_of_a_pen_has_its_base(log: StreamLog) -> None:
    second = await taken_over(log, (await running(log)).sid)
    assert (await log.append(batch(second, 0, *text("Salt")))).tail == SECOND_BLOCK


async def test_without_a_number_nothing_follows_the_ending_either(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 0, ending()))
    with pytest.raises(StreamClosed):
        await log.append(batch(claimed, 0, ending()))


# -- limits ------------------------------------------------------------------------------------------------


async def test_a_stream_holds_so_many_events_and_its_ending(any_redis: Any) -> None:
    log = StreamLog(any_redis, max_events=4)
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("Salt", "bread")))
    with pytest.raises(StreamLimit):
        await log.append(batch(claimed, 4, *text("index", "far")))
    assert await ids(log, claimed.sid) == [1, 2, 3]
    await log.append(batch(claimed, 4, *text("index")))
    with pytest.raises(StreamLimit):
        await log.append(batch(claimed, 5, *text("far")))
    with pytest.raises(StreamLimit):
        await log.append(batch(claimed, 5, *text("far"), ending()))
    assert (await log.append(batch(claimed, 5, ending("error")))).state == "error"


async def test_a_stream_holds_so_many_bytes_and_its_ending(any_redis: Any) -> None:
    log = StreamLog(any_redis, max_bytes=20)
    claimed = await running(log)
    await log.append(batch(claimed, 2, Unsent("status", b'"' + b"x" * 16 + b'"')))
    with pytest.raises(StreamLimit):
        await log.append(batch(claimed, 3, Unsent("status", b"1")))
    assert (await meta(log, claimed.sid))["bytes"] == "20"
    assert (await log.append(batch(claimed, 3, Unsent("done", b'{"usage":{"output_tokens":5}}')))).state == "done"


async def test_a_repetition_does_not_count_against_the_limit(any_redis: Any) -> None:
    log = StreamLog(any_redis, max_events=4)
    claimed = await running(log)
    append = batch(claimed, 2, *text("Salt", "bread", "index"))
    await log.append(append)
    assert (await log.append(append)).tail == 4


async def test_the_limits_count_what_earlier_writers_wrote(any_redis: Any) -> None:
    log = StreamLog(any_redis, max_events=4)
    first = await running(log)
    await log.append(batch(first, 2, *text("Salt")))
    second = await taken_over(log, first.sid)
    assert (second.events, second.bytes) == (2, 17)
    with pytest.raises(StreamLimit):
        await log.append(batch(second, SECOND_BLOCK, *text(*SALT)))


# -- renew -------------------------------------------------------------------------------------------------


async def test_an_append_of_nothing_renews_the_lease_and_tells_the_tail(log: StreamLog) -> None:
    claimed = await running(log)
    await expire_lease(log, claimed.sid)
    renewed = await log.append(renewal(claimed))
    assert (renewed.tail, renewed.state) == (1, "running")
    assert 0 < await lease_left_ms(log, claimed.sid) <= 6000
    assert await ids(log, claimed.sid) == [1]


async def test_every_append_renews_the_lease(log: StreamLog) -> None:
    claimed = await running(log)
    append = batch(claimed, 2, *text("Salt"))
    for _ in ("new", "a repetition"):
        await expire_lease(log, claimed.sid)
        await log.append(append)
        assert await lease_left_ms(log, claimed.sid) > 0


async def test_a_lease_is_as_long_as_the_append_says(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(renewal(claimed, lease_s=30))
    assert 20_000 < await lease_left_ms(log, claimed.sid) <= 30_000


async def test_who_ended_a_stream_may_still_renew_and_learns_that_it_ended(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, ending("error")))
    assert (await log.append(renewal(claimed))).state == "error"
    assert "lease_until" not in await meta(log, claimed.sid)


# -- the ending --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["done", "error", "cancelled"])
async def test_a_terminal_event_ends_the_stream_and_starts_its_retention(log: StreamLog, kind: str) -> None:
    claimed = await running(log)
    assert await log.redis.ttl(log.keys.stream(claimed.sid).log) == -1
    await log.append(batch(claimed, 2, *text("Salt"), Unsent(kind, b'{"why":1}')))
    found = await meta(log, claimed.sid)
    assert (found["state"], found["tail"], found["stopped_after"], found["ending"]) == (kind, "3", "2", '{"why":1}')
    assert int(found["finished"]) >= int(found["created"])
    for key in log.keys.stream(claimed.sid)[:2]:
        assert RETENTION_MS - 60_000 < await log.redis.pttl(key) <= RETENTION_MS


async def test_an_ending_alone_knows_after_what_it_came(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("Salt")))
    await log.append(batch(claimed, 3, ending()))
    assert (await meta(log, claimed.sid))["stopped_after"] == "2"


async def test_the_first_text_is_noted_once(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, Unsent("start", b"{}")))
    assert "first_text" not in await meta(log, claimed.sid)
    await log.append(batch(claimed, 3, *text("Salt")))
    first_text = (await meta(log, claimed.sid))["first_text"]
    await log.redis.hset(log.keys.stream(claimed.sid).meta, "first_text", "7")
    await log.append(batch(claimed, 4, *text("bread")))
    assert int(first_text) > 7
    assert (await meta(log, claimed.sid))["first_text"] == "7"


# -- attempts ----------------------------------------------------------------------------------------------

RESTART = Unsent("restart", b"{}")


async def test_a_writers_own_restart_is_an_attempt(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("Salt"), RESTART, RESTART))
    assert (await meta(log, claimed.sid))["attempt"] == "3"


async def test_the_restart_that_announces_a_takeover_was_counted_by_its_claim(log: StreamLog) -> None:
    second = await taken_over(log, (await running(log)).sid)
    append = batch(second, SECOND_BLOCK, RESTART)
    await log.append(append)
    await log.append(append)
    assert (await meta(log, second.sid))["attempt"] == "2"


async def test_a_repeated_restart_is_counted_once(log: StreamLog) -> None:
    claimed = await running(log)
    append = batch(claimed, 2, *text("Salt"), RESTART)
    await log.append(append)
    await log.append(append)
    assert (await meta(log, claimed.sid))["attempt"] == "2"


# -- published ---------------------------------------------------------------------------------------------


async def test_each_append_publishes_what_it_added_and_nothing_else(log: StreamLog) -> None:
    claimed = await running(log)
    async with log.redis.pubsub() as pubsub:
        await pubsub.subscribe(log.keys.stream(claimed.sid).live)
        await log.append(batch(claimed, 2, *text("Salt", "bread")))
        await log.append(batch(claimed, 2, *text("Salt", "bread")))
        await log.append(renewal(claimed))
        await log.append(batch(claimed, 3, *text("bread", "in\ndex"), Unsent("tool_end", b"{}", 5)))
        await seize(log, claimed.sid, "cancelled", b'{"by":"client"}')
        batches = [from_published(await _next_message(pubsub)) for _ in range(3)]
    everything = await log.read_all(claimed.sid)
    assert [[event.id for event in published] for published in batches] == [[2, 3], [4, 5], [SECOND_BLOCK]]
    assert [event for published in batches for event in published] == everything[1:]


async def _next_message(pubsub: Any) -> bytes:
    async with asyncio.timeout(10):
        while (message := await pubsub.get_message(timeout=1)) is None or message["type"] != "message":
            pass
    payload: bytes = message["data"]
    return payload


# -- seize -------------------------------------------------------------------------------------------------


async def test_a_waiting_stream_is_cancelled_before_anybody_works_on_it(log: StreamLog) -> None:
    sid = await queued(log)
    seized = await seize(log, sid, "cancelled", b'{"by":"client"}')
    assert seized[:4] == ("cancelled", SECOND_BLOCK, 1, False)
    assert await ids(log, sid) == [1, SECOND_BLOCK]
    with pytest.raises(StreamClosed):
        await log.claim(sid, "claim-1", "worker-1")


async def test_a_running_stream_is_seized_and_its_writer_fenced(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("Salt")))
    assert (await seize(log, claimed.sid, "cancelled", b"{}"))[:4] == ("cancelled", SECOND_BLOCK, 2, False)
    for append in (batch(claimed, 3, *text("late")), batch(claimed, 3, ending()), renewal(claimed)):
        with pytest.raises(StreamClosed):
            await log.append(append)
    assert await kinds(log, claimed.sid) == ["queued", "text_delta", "cancelled"]


async def test_a_seizure_ends_as_an_ending_does(log: StreamLog) -> None:
    claimed = await running(log)
    await seize(log, claimed.sid, "error", b'{"code":"worker_lost"}')
    found = await meta(log, claimed.sid)
    assert (found["state"], found["tail"], found["stopped_after"]) == ("error", str(SECOND_BLOCK), "1")
    assert (found["ending"], found["events"]) == ('{"code":"worker_lost"}', "2")
    assert "lease_until" not in found
    for key in log.keys.stream(claimed.sid)[:2]:
        assert 0 < await log.redis.pttl(key) <= RETENTION_MS


async def test_a_finished_stream_keeps_its_ending(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("Salt"), ending()))
    assert (await seize(log, claimed.sid, "cancelled", b"{}"))[:4] == ("done", 3, 2, True)
    assert await kinds(log, claimed.sid) == ["queued", "text_delta", "done"]


async def test_seizing_twice_ends_once(log: StreamLog) -> None:
    claimed = await running(log)
    await seize(log, claimed.sid, "cancelled", b"{}")
    assert (await seize(log, claimed.sid, "error", b"{}"))[:4] == ("cancelled", SECOND_BLOCK, 1, True)
    assert await kinds(log, claimed.sid) == ["queued", "cancelled"]


async def test_the_same_seizure_again_is_answered_like_the_first(log: StreamLog) -> None:
    claimed = await running(log)
    first = await seize(log, claimed.sid, "cancelled", b"{}", claim_id="seizure-1")
    assert await seize(log, claimed.sid, "cancelled", b"{}", claim_id="seizure-1") == first
    assert await kinds(log, claimed.sid) == ["queued", "cancelled"]


async def test_a_seizure_for_a_dead_writer_spares_a_living_one(log: StreamLog) -> None:
    claimed = await running(log)
    with pytest.raises(LeaseHeld):
        await seize(log, claimed.sid, "error", b"{}", only_expired=True)
    await expire_lease(log, claimed.sid)
    assert not (await seize(log, claimed.sid, "error", b"{}", only_expired=True)).already


async def test_a_seizure_jumps_beyond_any_block_that_time_has_allowed(log: StreamLog) -> None:
    sid = await queued(log)
    await grow_old(log, sid, by_s=20)
    assert (await seize(log, sid, "cancelled", b"{}")).last_event_id == 21_000_001


@pytest.mark.parametrize("round_", range(5))
async def test_whoever_races_a_cancel_nothing_follows_it(valkey_url: str, redis: Redis, round_: int) -> None:
    log = StreamLog(redis)
    claimed = await running(log)
    elsewhere = [StreamLog(connect(valkey_url)) for _ in range(3)]

    async def write() -> int:
        tail = 1
        try:
            while True:
                tail = (await log.append(batch(claimed, tail + 1, *text("Salt")))).tail
        except StreamClosed:
            return tail

    writing = asyncio.create_task(write())
    while len(await ids(log, claimed.sid)) < 5 * round_:
        pass
    seizures = await asyncio.gather(*(seize(other, claimed.sid, "cancelled", b"{}") for other in elsewhere))
    acknowledged = await writing
    for other in elsewhere:
        await other.redis.aclose()
    assert [seized.already for seized in seizures].count(False) == 1
    assert {seized[:3] for seized in seizures} == {("cancelled", SECOND_BLOCK, acknowledged)}
    assert await ids(log, claimed.sid) == [*range(1, acknowledged + 1), SECOND_BLOCK]


# -- reads -------------------------------------------------------------------------------------------------


async def test_a_log_is_read_in_pages_from_a_cursor(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text(*SALT)))
    page = await log.read_page(claimed.sid, 2, count=2)
    assert ([event.id for event in page.events], page.more, page.present) == ([3, 4], True, True)
    assert (page.state, page.tail) == ("running", 5)
    page = await log.read_page(claimed.sid, 4, count=2)
    assert ([event.id for event in page.events], page.more) == ([5], False)


@pytest.mark.parametrize(("cursor", "first"), [(0, 1), (1, 2), (3, 4)])
async def test_a_page_begins_after_its_cursor(log: StreamLog, cursor: int, first: int) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text(*SALT)))
    page = await log.read_page(claimed.sid, cursor)
    assert (page.events[0].id, page.present, page.more) == (first, True, False)


async def test_a_page_at_the_tail_is_empty(log: StreamLog) -> None:
    sid = await queued(log)
    page = await log.read_page(sid, 1, count=1)
    assert (page.events, page.present, page.more) == ([], True, False)


async def test_a_page_tells_whether_the_log_still_has_the_cursors_event(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("Salt")))
    second = await taken_over(log, claimed.sid)
    await log.append(batch(second, SECOND_BLOCK, *text("bread")))
    lost = await log.read_page(claimed.sid, 57, count=1)
    assert ([event.id for event in lost.events], lost.present, lost.more) == ([SECOND_BLOCK], False, False)
    beyond = await log.read_page(claimed.sid, SECOND_BLOCK + 5)
    assert (beyond.events, beyond.present, beyond.tail) == ([], False, SECOND_BLOCK)


async def test_the_whole_log_is_read_page_by_page(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text(*map(str, range(1200)))))
    assert await ids(log, claimed.sid) == list(range(1, 1202))
    assert (await log.read_last(claimed.sid)).id == 1201


async def test_metas_are_read_together_and_a_missing_one_is_none(log: StreamLog) -> None:
    sid = await queued(log, user="u", metadata={"a": 1})
    found, missing = await log.read_meta(sid, NOBODY)
    assert found
    assert (found.user, found.metadata, missing) == ("u", {"a": 1}, None)
    assert await log.read_meta() == []


# -- when Redis cannot serve -------------------------------------------------------------------------------


async def test_a_redis_that_is_not_there_is_unavailable() -> None:
    log = StreamLog(connect("unix:///nowhere/at/all"))
    for step in (log.now_ms(), log.read_page("sid", 0), log.read_meta("sid"), log.create(new_stream())):
        with pytest.raises(RedisUnavailable):
            await step
    await log.redis.aclose()


async def test_a_full_redis_is_unavailable_and_takes_the_same_append_later(real_log: StreamLog) -> None:
    claimed = await running(real_log)
    await real_log.redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(RedisUnavailable):
            await real_log.append(batch(claimed, 2, *text("Salt")))
        with pytest.raises(RedisUnavailable):
            await real_log.create(new_stream())
    finally:
        await real_log.redis.config_set("maxmemory", "0")
    assert (await real_log.append(batch(claimed, 2, *text("Salt")))).tail == 2


async def test_a_read_only_replica_is_unavailable_for_writing(real_log: StreamLog) -> None:
    claimed = await running(real_log)
    await real_log.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(RedisUnavailable):
            await real_log.append(batch(claimed, 2, *text("Salt")))
    finally:
        await real_log.redis.execute_command("REPLICAOF", "NO", "ONE")
