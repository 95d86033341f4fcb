"""What an agent is told while it runs: added by servers, in order, bounded, and gone with the stream."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from broker.errors import ApprovalNotFound, RateLimited, StreamClosed, StreamNotFound
from broker.log.inputs import INPUT, MAX_WAITING_BYTES
from broker.log.meta import Meta
from broker.log.stream_log import StreamLog
from tests.rig.streams import batch, ending, meta, queued, running, seize, tell_as_much_as_may_wait

YES, NO = ({"approve": approve, "reason": "", "by": "key:1"} for approve in (True, False))


@pytest.fixture
def log(any_redis: Any) -> StreamLog:
    return StreamLog(any_redis, retention_s=500)


async def test_inputs_come_out_in_the_order_in_which_they_came_each_with_an_id(log: StreamLog) -> None:
    sid = await queued(log)
    told = [await log.inputs.tell(sid, {"text": text}) for text in ("a", "b", "ő\u2028")]
    assert await log.inputs.read(sid) == told
    assert await log.inputs.read(sid, told[1].id) == told[2:]
    assert (told[0].what, told[0].data) == (INPUT, {"text": "a"})


async def test_each_input_is_published_for_its_stream(redis: Redis) -> None:
    log = StreamLog(redis)
    sid = await queued(log)
    async with redis.pubsub() as channel:
        await channel.subscribe(log.keys.input)
        await channel.get_message(timeout=10)
        await log.inputs.tell(sid, {"text": "a"})
        assert (await channel.get_message(timeout=10))["data"] == sid.encode()


@pytest.mark.parametrize("with_archive", [False, True])
async def test_the_list_lives_as_long_as_its_stream(any_redis: Any, with_archive: bool) -> None:
    log = StreamLog(any_redis, retention_s=500, is_archived=with_archive)
    claimed, seized = await running(log), await running(log)
    lists = [log.keys.stream(each.sid).inputs for each in (claimed, seized)]
    for each in (claimed, seized):
        await log.inputs.tell(each.sid, {"text": "a"})
    assert [await any_redis.ttl(each) for each in lists] == [-1, -1]
    await log.append(batch(claimed, 2, ending()))
    await seize(log, seized.sid, "cancelled", b"{}")
    if with_archive:
        assert [await any_redis.ttl(each) for each in lists] == [-1, -1]
        for each in (claimed, seized):
            await log.start_retention(each.sid, 7)
            await any_redis.zrem(log.keys.leases, each.sid)
    assert all([0 < await any_redis.ttl(each) <= 500 for each in lists])


async def test_who_has_ended_is_told_nothing(log: StreamLog) -> None:
    claimed = await running(log)
    await log.inputs.ask(claimed.sid, "a1", {})
    await log.append(batch(claimed, 2, ending()))
    for adding in (log.inputs.tell(claimed.sid, {}), log.inputs.decide(claimed.sid, "a1", YES)):
        with pytest.raises(StreamClosed):
            await adding
    with pytest.raises(StreamNotFound):
        await log.inputs.tell("f" * 32, {})


async def test_it_is_erased_with_its_stream(log: StreamLog) -> None:
    claimed = await running(log)
    await log.inputs.tell(claimed.sid, {"text": "secret"})
    await log.append(batch(claimed, 2, ending()))
    await log.erase(claimed.sid, Meta(await meta(log, claimed.sid)), 7, by="anyone")
    assert await log.inputs.read(claimed.sid) == []
    with pytest.raises(StreamClosed):
        await log.inputs.tell(claimed.sid, {})


async def test_only_so_many_inputs_wait_and_what_is_taken_makes_room(redis: Redis) -> None:
    log = StreamLog(redis)
    sid = await queued(log)
    await log.inputs.ask(sid, "a1", {})
    first, *_ = await tell_as_much_as_may_wait(log, sid)
    with pytest.raises(RateLimited, match="until the agent takes them"):
        await log.inputs.tell(sid, {})
    assert (await log.inputs.decide(sid, "a1", YES)).data == YES, "decisions are no inputs"
    await log.inputs.remove(sid, first)
    await log.inputs.tell(sid, {})


async def test_only_so_many_bytes_wait(log: StreamLog) -> None:
    sid = await queued(log)
    large = {"text": "x" * (MAX_WAITING_BYTES // 4)}
    for _ in range(3):
        await log.inputs.tell(sid, large)
    with pytest.raises(RateLimited):
        await log.inputs.tell(sid, large)
    await log.inputs.tell(sid, {"text": "small"})


async def test_an_approval_is_decided_only_where_it_was_asked_for(log: StreamLog) -> None:
    sid, other = await queued(log), await queued(log)
    await log.inputs.ask(sid, "a1", {"tool": "refund"})
    for stream, approval_id in ((sid, "a2"), (other, "a1")):
        with pytest.raises(ApprovalNotFound):
            await log.inputs.decide(stream, approval_id, YES)


async def test_the_first_decision_stands_for_everybody_and_asking_again_changes_nothing(log: StreamLog) -> None:
    sid = await queued(log)
    asked = await log.inputs.ask(sid, "a1", {"tool": "refund"})
    first = await log.inputs.decide(sid, "a1", YES)
    assert await log.inputs.decide(sid, "a1", NO) == first
    assert await log.inputs.ask(sid, "a1", {"tool": "another"}) == asked
    await log.inputs.ask(sid, "a2", {})
    assert (await log.inputs.decide(sid, "a2", NO)).data == NO, "each approval has its own"
    assert len(await log.inputs.read(sid)) == 4
