"""The usage of a stream that its worker does not end: kept in meta while it runs, and part of an ending by seizure.

What writers do for it is in test_writer.py; that no order of steps loses it, in tests/protocol.
"""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from broker.errors import AppendGap, StreamClosed, WriterSuperseded
from broker.log.meta import Meta, new_claim_id
from broker.log.seizures import Seizures
from broker.log.steps import Append
from broker.log.stream_log import StreamLog
from broker.store.connect import connect
from tests.rig.proxy import proxy_to
from tests.rig.streams import (
    batch,
    ending,
    expire_lease,
    meta,
    queued,
    remember,
    running,
    seize,
    survive_a_restart_of_redis,
    taken_over,
    text,
)

COUNTED = b'{"usage":{"input_tokens":7,"provider":{"tier":"}{"}},"cost_usd":0.0012,"usage_incomplete":true}'
MORE = b'{"usage":{"input_tokens":9}}'


@pytest.fixture
def log(any_redis: Any) -> StreamLog:
    return StreamLog(any_redis)


async def usage_in(log: StreamLog, sid: str) -> bytes:
    return (await meta(log, sid)).get("usage", "").encode()


async def ending_of(log: StreamLog, sid: str) -> bytes:
    """The terminal event's data, which meta has too."""
    data = (await log.read_last(sid)).data
    assert (await meta(log, sid))["ending"].encode() == data
    return data


# -- into the ending ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data", "written"),
    [
        ("cancelled", b'{"reason":"","by":"client"}', b'{"reason":"","by":"client",' + COUNTED[1:]),
        ("error", b'{"code":"worker_lost","retry":{}}', b'{"code":"worker_lost","retry":{},' + COUNTED[1:]),
        ("cancelled", b'{"reason":"\\"usage\\":"}', b'{"reason":"\\"usage\\":",' + COUNTED[1:]),
        ("cancelled", b"{}", COUNTED),
        ("error", b'{"usage":{}}', b'{"usage":{}}'),
    ],
)
async def test_an_ending_by_seizure_takes_over_what_was_counted(
    log: StreamLog, kind: str, data: bytes, written: bytes
) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("Salt"))._replace(usage=COUNTED))
    await expire_lease(log, claimed.sid)
    seized = await seize(log, claimed.sid, kind, data, only_expired=True)
    assert seized.data == await ending_of(log, claimed.sid) == written
    assert "usage" not in await meta(log, claimed.sid)


@pytest.mark.parametrize("usage", [b"", b"{}"])
async def test_where_nothing_was_counted_the_ending_is_as_it_was_given(log: StreamLog, usage: bytes) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("Salt"))._replace(usage=usage))
    await seize(log, claimed.sid, "cancelled", b'{"by":"client"}')
    assert await ending_of(log, claimed.sid) == b'{"by":"client"}'


async def test_a_stream_that_waits_for_its_next_worker_has_the_usage_of_its_last(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("Salt"))._replace(usage=COUNTED))
    await log.release(claimed.sid, claimed.pen)
    await seize(log, claimed.sid, "cancelled", b"{}")
    assert await ending_of(log, claimed.sid) == COUNTED


async def test_a_worker_finds_in_its_claim_what_was_counted_before_it(log: StreamLog) -> None:
    claimed = await running(log)
    assert (claimed.usage, claimed.meta.usage) == ("", None)
    await log.append(batch(claimed, 2, *text("Salt"))._replace(usage=MORE))
    second = await taken_over(log, claimed.sid)
    assert (second.usage, second.meta.usage) == (MORE.decode(), {"usage": {"input_tokens": 9}})
    await log.release(claimed.sid, second.pen)
    assert (await log.claim(claimed.sid, new_claim_id(), "worker-3")).usage == MORE.decode()


# -- who may set it ----------------------------------------------------------------------------------------


async def test_whatever_renews_the_lease_keeps_the_usage(log: StreamLog) -> None:
    claimed = await running(log)
    said, renewal = batch(claimed, 2, *text("Salt")), batch(claimed, 3)
    for append in (said, said, renewal):  # events, the same again, none
        await log.redis.hdel(log.keys.stream(claimed.sid).meta, "usage")
        await log.append(append._replace(usage=COUNTED))
        assert await usage_in(log, claimed.sid) == COUNTED
    await log.append(renewal)
    assert await usage_in(log, claimed.sid) == COUNTED, "one that brings none leaves it"
    with pytest.raises(AppendGap):
        await log.append(batch(claimed, 9, *text("far"))._replace(usage=MORE))
    assert await usage_in(log, claimed.sid) == MORE


async def test_a_claim_that_redis_lost_comes_back_with_its_usage(log: StreamLog) -> None:
    sid = await queued(log)
    roll_back = await remember(log, sid)
    claimed = await log.claim(sid, new_claim_id(), "worker-1")
    await roll_back()
    await log.append(batch(claimed, 2)._replace(usage=COUNTED))
    assert await usage_in(log, sid) == COUNTED


async def test_who_does_not_hold_the_pen_changes_no_usage(log: StreamLog) -> None:
    first = await running(log)
    said, renewal = batch(first, 2, *text("Salt")), batch(first, 3)
    await log.append(said._replace(usage=COUNTED))

    async def is_refused(append: Append, why: type[Exception]) -> None:
        with pytest.raises(why):
            await log.append(append._replace(usage=MORE))
        assert await usage_in(log, first.sid) in (COUNTED, b"")

    await is_refused(batch(first, 2, *text("another's")), WriterSuperseded)
    await is_refused(renewal._replace(claimed_under="another server"), WriterSuperseded)
    await log.release(first.sid, first.pen)
    for append in (said, renewal):
        await is_refused(append, WriterSuperseded)
    second = await taken_over(log, first.sid)
    for append in (said, renewal):
        await is_refused(append, WriterSuperseded)
    await log.append(batch(second, second.pen.base, ending()))
    for append in (said, renewal):
        await is_refused(append, StreamClosed)
    await log.append(batch(second, second.pen.base, ending())._replace(usage=MORE))  # it is there: no error
    assert "usage" not in await meta(log, first.sid)


async def test_nothing_of_it_is_left_of_an_erased_stream(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("Salt"))._replace(usage=COUNTED))
    await seize(log, claimed.sid, "cancelled", b"{}")
    await log.erase(claimed.sid, Meta(await meta(log, claimed.sid)), 7, by="anyone")
    left = await meta(log, claimed.sid)
    assert not {"usage", "ending"} & left.keys()


# -- an ending that comes back -----------------------------------------------------------------------------


async def test_a_lost_seizure_comes_back_byte_for_byte_with_its_usage(log: StreamLog) -> None:
    """Also if the stream has other numbers by then."""
    claimed, seizures = await running(log), Seizures(log)
    await log.append(batch(claimed, 2, *text("Salt"))._replace(usage=COUNTED))
    roll_back = await remember(log, claimed.sid)
    await seizures.seize(claimed.sid, "cancelled", b'{"by":"client"}')
    before, ended = await log.read_all(claimed.sid), await meta(log, claimed.sid)
    assert before[-1].data == b'{"by":"client",' + COUNTED[1:]
    await roll_back()
    await survive_a_restart_of_redis(log, claimed.sid)
    await log.append(batch(claimed, 3)._replace(usage=MORE))
    await seizures.look()
    assert await log.read_all(claimed.sid) == before
    assert {**await meta(log, claimed.sid), "boot": ended["boot"]} == ended
    await log.redis.delete(log.keys.leases)


async def test_a_seizure_whose_reply_was_lost_keeps_what_is_in_the_log(redis: Redis, valkey_url: str) -> None:
    log = StreamLog(redis)
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("Salt"))._replace(usage=COUNTED))
    roll_back = await remember(log, claimed.sid)
    async with proxy_to(valkey_url) as proxy, connect(proxy.url) as broken:
        seizures = Seizures(StreamLog(broken))
        proxy.lose_next_reply()
        seized = await seizures.seize(claimed.sid, "cancelled", b"{}")
        assert (seized.already, seized.data) == (False, COUNTED)
        before = await log.read_all(claimed.sid)
        await roll_back()
        await seizures.look()
    assert await log.read_all(claimed.sid) == before
    await redis.delete(log.keys.leases)


async def test_who_finds_another_ending_is_told_nothing_of_its_data(log: StreamLog) -> None:
    claimed = await running(log)
    await seize(log, claimed.sid, "cancelled", b'{"by":"client"}')
    seized = await seize(log, claimed.sid, "cancelled", b"{}")
    assert (seized.already, seized.data) == (True, b"")
