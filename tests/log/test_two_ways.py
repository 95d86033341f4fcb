"""The two ways of writing: the short one (extend.lua) touches the log alone; what it cannot do goes the whole one.

Who reads a stream meanwhile is told where its log ends, not what meta has last heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

import broker.log.writer
from broker.errors import StreamClosed, WriterSuperseded
from broker.log.clock import RedisClock
from broker.log.event import Event
from broker.log.meta import Meta
from broker.log.pulse import now_s
from broker.log.stream_log import StreamLog
from broker.log.writer import GroupCommit, StreamWriter
from broker.store.connect import connect
from tests.rig.deployment import until
from tests.rig.proxy import Proxy, proxy_to
from tests.rig.streams import expire_lease, ids, kinds, meta, remember, running, seize, taken_over
from worker.heartbeat import Heartbeat


@pytest.fixture
async def proxy(valkey_url: str) -> AsyncIterator[Proxy]:
    async with proxy_to(valkey_url) as proxy:
        yield proxy


@pytest.fixture
async def log(redis: Redis, proxy: Proxy) -> AsyncIterator[StreamLog]:
    async with connect(proxy.url) as client:
        yield StreamLog(client)


@pytest.fixture
async def writer(log: StreamLog, commit: GroupCommit) -> StreamWriter:
    """It has written its first text, so it knows the log."""
    writer = StreamWriter(commit, await running(log))
    await say(writer, "first")
    return writer


async def say(writer: StreamWriter, *words: str) -> None:
    for word in words:
        writer.write("text_delta", {"text": word})
    await writer.flush()


class Calls:
    """How often Redis was asked for what, since this was made."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def begin(self) -> Calls:
        await self._redis.config_resetstat()
        return self

    async def of(self, command: str) -> int:
        found: dict[str, Any] = (await self._redis.info("commandstats")).get(f"cmdstat_{command}", {})
        return int(found.get("calls", 0))

    async def of_each(self, *commands: str) -> dict[str, int]:
        return {command: await self.of(command) for command in commands}


@pytest.fixture
async def calls(redis: Redis, writer: StreamWriter) -> Calls:
    await say(writer, "second")  # by then Redis has both scripts
    return await Calls(redis).begin()


async def beat(log: StreamLog, *writers: StreamWriter) -> None:
    heartbeat = Heartbeat(log)
    for writer in writers:
        heartbeat.keep(writer)
    await heartbeat.renew()


async def in_log(log: StreamLog, sid: str) -> list[Event]:
    return await log.read_all(sid)


async def told(log: StreamLog, sid: str) -> tuple[int, int, int]:
    """What meta says of the log: tail, events, bytes."""
    found = await meta(log, sid)
    return int(found["tail"]), int(found["events"]), int(found["bytes"])


async def is_true(log: StreamLog, sid: str) -> bool:
    events = await log.read_all(sid)
    return await told(log, sid) == (events[-1].id, len(events), sum(len(event.data) for event in events))


# -- what the short way costs ------------------------------------------------------------------------------


async def test_an_event_costs_one_script_one_xadd_and_one_publish(calls: Calls, writer: StreamWriter) -> None:
    for word in range(20):
        await say(writer, str(word))
    asked = await calls.of_each("evalsha", "xadd", "publish", "hget", "xlen")
    assert asked == dict.fromkeys(asked, 20)
    assert await calls.of_each("hset", "hmget", "time") == {"hset": 0, "hmget": 0, "time": 0}


async def test_redis_writes_one_command_an_event_into_its_file(redis: Redis, writer: StreamWriter) -> None:
    await redis.config_set("appendonly", "yes")
    try:
        await until(lambda: _is_kept_in_a_file(redis), "Redis keeps a file", 20)
        for word in range(20):
            await say(writer, str(word))
        await redis.config_set("appendfsync", "always")  # what was written before it is in the file
        await say(writer, "the last")
        folder = Path((await redis.config_get("dir"))["dir"]) / "appendonlydir"
        written = b"".join(file.read_bytes() for file in folder.glob("*.incr.aof"))
    finally:
        await redis.config_set("appendonly", "no")
        await redis.config_set("appendfsync", "everysec")
    assert written.count(b"XADD") == 21
    assert b"MULTI" not in written
    assert b"HSET" not in written


async def _is_kept_in_a_file(redis: Redis) -> bool:
    info = await redis.info("persistence")
    return info["aof_enabled"] == 1 and not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]


async def test_several_events_go_the_short_way_at_once(calls: Calls, log: StreamLog, writer: StreamWriter) -> None:
    await say(writer, *"abc")
    asked = await calls.of_each("evalsha", "xadd", "publish", "hset")
    assert asked == {"evalsha": 1, "xadd": 3, "publish": 1, "hset": 0}
    assert await ids(log, writer.sid) == [1, 2, 3, 4, 5, 6]


async def test_a_heartbeat_reads_the_pen_and_the_length_and_writes_once(
    redis: Redis, log: StreamLog, writer: StreamWriter
) -> None:
    await beat(log, writer)  # by then Redis has the script
    calls = await Calls(redis).begin()
    await beat(log, writer)
    asked = await calls.of_each("evalsha", "hget", "xlen", "time", "hset", "hmget", "xrevrange")
    assert asked == {"evalsha": 1, "hget": 1, "xlen": 1, "time": 1, "hset": 1, "hmget": 0, "xrevrange": 0}


# -- what goes the whole way -------------------------------------------------------------------------------


async def test_a_pens_first_events_go_the_whole_way(redis: Redis, log: StreamLog, commit: GroupCommit) -> None:
    first = StreamWriter(commit, await running(log))
    await say(first, "one")
    await say(first, "two")
    second = StreamWriter(commit, await taken_over(log, first.sid))
    calls = await Calls(redis).begin()
    await say(second, "three")
    assert await calls.of("hmget") == 1
    await say(second, "four")
    assert await calls.of("hmget") == 1


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("restart", {"attempt": 1}),
        ("internal.turn", {}),
        ("internal.tool_result", {"key": "k"}),
        ("done", {}),
    ],
)
async def test_what_changes_meta_goes_the_whole_way(
    calls: Calls, writer: StreamWriter, kind: str, data: dict[str, Any]
) -> None:
    writer.write(kind, data)
    await writer.flush()
    assert await calls.of("hset") > 0


async def test_the_first_text_goes_the_whole_way_and_is_kept(log: StreamLog, commit: GroupCommit) -> None:
    writer = StreamWriter(commit, await running(log))
    writer.write("start", {})
    await writer.flush()
    assert (await meta(log, writer.sid)).get("first_text") is None
    await say(writer, "Salt")
    [_, _, text] = await in_log(log, writer.sid)
    assert int((await meta(log, writer.sid))["first_text"]) == text.t


async def test_a_usage_that_the_log_does_not_have_goes_the_whole_way(log: StreamLog, writer: StreamWriter) -> None:
    writer.note_usage(lambda: b'{"usage":{"input_tokens":7}}')
    await say(writer, "Salt")
    assert (await meta(log, writer.sid))["usage"] == '{"usage":{"input_tokens":7}}'


async def test_a_commit_that_finds_nothing_to_write_publishes_nothing(
    calls: Calls, log: StreamLog, commit: GroupCommit, writer: StreamWriter
) -> None:
    commit.gather(writer)
    await until(lambda: calls.of("evalsha"), "the commit is made")
    await say(writer, "Salt")
    assert await calls.of("publish") == 1
    assert await ids(log, writer.sid) == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["no event yet", "done"])
async def test_a_heartbeat_before_the_first_event_and_after_the_ending_goes_the_whole_way(
    redis: Redis, log: StreamLog, commit: GroupCommit, kind: str
) -> None:
    writer = StreamWriter(commit, await running(log))
    if kind == "done":
        await say(writer, "Salt")
        writer.write("done", {})
        await writer.flush()
    calls = await Calls(redis).begin()
    await beat(log, writer)
    assert await calls.of("hmget") == 1


async def test_a_heartbeat_carries_the_latest_usage_on_either_way(log: StreamLog, writer: StreamWriter) -> None:
    usages = [b'{"usage":{"output_tokens":%d}}' % n for n in range(3)]
    writer.note_usage(lambda: usages[0])
    await say(writer, "Salt")
    await say(writer, "bread")
    for usage in usages[1:]:
        writer.note_usage(lambda usage=usage: usage)  # type: ignore[misc]
        await beat(log, writer)
        assert (await meta(log, writer.sid))["usage"] == usage.decode()


# -- whatever happened, the short way does nothing and the whole one finds out -------------------------------


async def test_a_reply_that_is_lost_on_the_short_way_doubles_nothing(
    log: StreamLog, writer: StreamWriter, proxy: Proxy
) -> None:
    proxy.lose_next_reply()
    await say(writer, "Salt", "bread")
    await say(writer, "index")
    assert await ids(log, writer.sid) == [1, 2, 3, 4, 5]


async def test_what_redis_lost_is_put_back_before_the_short_way_goes_on(log: StreamLog, writer: StreamWriter) -> None:
    roll_back = await remember(log, writer.sid)
    await say(writer, "Salt")
    await say(writer, "bread")
    before = await in_log(log, writer.sid)
    await roll_back()
    await say(writer, "index")
    after = await in_log(log, writer.sid)
    assert after[:-1] == before
    assert [event.id for event in after] == [1, 2, 3, 4, 5]


async def test_a_stream_that_vanished_is_put_back_and_goes_on(
    redis: Redis, log: StreamLog, writer: StreamWriter
) -> None:
    await say(writer, "Salt")
    before = await in_log(log, writer.sid)
    await redis.delete(*log.keys.stream(writer.sid)[:2])
    writer.claimed = replace(writer.claimed, server="the one before")
    await say(writer, "bread")
    await say(writer, "index")
    after = await in_log(log, writer.sid)
    assert [event.data for event in after[1:-2]] == [event.data for event in before[1:]]
    assert int((await meta(log, writer.sid))["first_text"]) == before[1].t


async def test_a_writer_that_is_put_back_without_an_event_does_not_know_the_log(
    redis: Redis, log: StreamLog, commit: GroupCommit
) -> None:
    first = StreamWriter(commit, await running(log))
    writer = StreamWriter(commit, await taken_over(log, first.sid))
    assert writer.pen.base > 2
    await redis.delete(*log.keys.stream(writer.sid)[:2])
    writer.claimed = replace(writer.claimed, server="the one before")
    await beat(log, writer)
    await until(lambda: redis.exists(log.keys.stream(writer.sid).log), "the stream is back")
    await until(lambda: not writer.vanished, "its writer knows")
    await beat(log, writer)
    await beat(log, writer)
    assert await is_true(log, writer.sid)
    assert (await seize(log, writer.sid, "cancelled", b"{}")).stopped_after == 1


async def test_a_takeover_fences_the_short_way(log: StreamLog, writer: StreamWriter) -> None:
    await expire_lease(log, writer.sid)
    await taken_over(log, writer.sid)
    writer.write("text_delta", {"text": "zombie"})
    with pytest.raises(WriterSuperseded):
        await writer.flush()
    assert await ids(log, writer.sid) == [1, 2]


async def test_a_cancel_fences_the_short_way_and_knows_where_the_log_ended(
    log: StreamLog, writer: StreamWriter
) -> None:
    await say(writer, "Salt")
    seized = await seize(log, writer.sid, "cancelled", b"{}")
    assert seized.stopped_after == 3
    writer.write("text_delta", {"text": "late"})
    with pytest.raises(StreamClosed):
        await writer.flush()
    assert await kinds(log, writer.sid) == ["queued", "text_delta", "text_delta", "cancelled"]
    assert await is_true(log, writer.sid)


async def test_a_heartbeat_that_the_short_way_refuses_goes_the_whole_way_at_once(
    log: StreamLog, writer: StreamWriter
) -> None:
    roll_back = await remember(log, writer.sid)
    await say(writer, "Salt")
    await say(writer, "bread")
    before = await in_log(log, writer.sid)
    await roll_back()
    await expire_lease(log, writer.sid)
    await beat(log, writer)
    assert int((await meta(log, writer.sid))["lease_until"]) > await log.now_ms()
    await writer.flush()
    assert await in_log(log, writer.sid) == before


@pytest.mark.parametrize("by", ["a takeover", "a cancel"])
async def test_a_heartbeat_renews_no_lease_of_anothers(log: StreamLog, writer: StreamWriter, by: str) -> None:
    if by == "a takeover":
        await expire_lease(log, writer.sid)
        await taken_over(log, writer.sid)
    else:
        await seize(log, writer.sid, "cancelled", b"{}")
    before = await meta(log, writer.sid)
    await beat(log, writer)
    assert isinstance(writer.lost, WriterSuperseded if by == "a takeover" else StreamClosed)
    assert await meta(log, writer.sid) == before


async def test_scripts_that_redis_has_forgotten_are_loaded_for_either_way(
    redis: Redis, log: StreamLog, commit: GroupCommit, writer: StreamWriter
) -> None:
    fresh = StreamWriter(commit, await running(log))
    for _ in range(2):
        await redis.script_flush()
        for each in (writer, fresh):
            each.write("text_delta", {"text": "Salt"})
        await asyncio.gather(writer.flush(), fresh.flush())
    assert await ids(log, writer.sid) == [1, 2, 3, 4]
    assert await ids(log, fresh.sid) == [1, 2, 3]


# -- meta, and who reads it --------------------------------------------------------------------------------


async def test_meta_is_behind_until_a_heartbeat_and_readers_ask_the_log(log: StreamLog, writer: StreamWriter) -> None:
    await say(writer, "Salt")
    await say(writer, "bread")
    known = await meta(log, writer.sid)
    assert known["tail"] == "2"
    assert (await log.at_tail(writer.sid, Meta(known))).tail == 4
    await beat(log, writer)
    assert await is_true(log, writer.sid)


async def test_what_was_read_of_a_running_stream_gets_the_tail_before_its_ending(
    log: StreamLog, writer: StreamWriter
) -> None:
    """Else a viewer at the latest event would begin behind the ending, and never hear of it."""
    await say(writer, "Salt")
    while_it_ran = Meta(await meta(log, writer.sid))
    await seize(log, writer.sid, "cancelled", b"{}")
    assert (await log.at_tail(writer.sid, while_it_ran)).tail == 3


async def test_a_log_that_is_no_log_stops_nobody_who_reads_many(
    redis: Redis, log: StreamLog, commit: GroupCommit, writer: StreamWriter
) -> None:
    other = StreamWriter(commit, await running(log))
    for each in (writer, other):
        await say(each, "Salt")
        await say(each, "bread")
    metas = {each.sid: Meta(await meta(log, each.sid)) for each in (writer, other)}
    await redis.set(log.keys.stream(writer.sid).log, "foreign")
    found = await log.at_tails(metas)
    assert (found[writer.sid].tail, found[other.sid].tail) == (metas[writer.sid].tail, 3)


async def test_only_a_heartbeat_renews_the_lease_of_a_writer_on_the_short_way(
    log: StreamLog, writer: StreamWriter
) -> None:
    before = (await meta(log, writer.sid))["lease_until"]
    await say(writer, "Salt")
    assert (await meta(log, writer.sid))["lease_until"] == before


@pytest.mark.parametrize("is_taken_over", [True, False])
async def test_a_pen_is_held_for_a_lease_from_the_last_renewal_not_from_the_last_event(
    log: StreamLog, writer: StreamWriter, is_taken_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process stands still after an event by the short way, for less than a lease, and the heartbeat was before."""
    began_s = now_s()
    await say(writer, "Salt")
    writer._renewed_at_s -= 3
    monkeypatch.setattr(broker.log.writer, "now_s", lambda: now_s() + 4)
    if is_taken_over:
        await expire_lease(log, writer.sid)
        await taken_over(log, writer.sid)
        with pytest.raises(WriterSuperseded):
            await writer.hold(began_s)
    else:
        before = (await meta(log, writer.sid))["lease_until"]
        await writer.hold(began_s)
        assert (await meta(log, writer.sid))["lease_until"] > before


async def test_every_ending_says_how_much_the_log_has(
    log: StreamLog, commit: GroupCommit, writer: StreamWriter
) -> None:
    await say(writer, "Salt")
    writer.write("done", {})
    await writer.flush()
    assert await is_true(log, writer.sid)
    first = StreamWriter(commit, await running(log))
    await say(first, "one")
    await say(first, "two", "three")
    second = StreamWriter(commit, await taken_over(log, first.sid))
    await say(second, "four")
    await say(second, "five")
    second.write("error", {"code": "x"})
    await second.flush()
    assert await is_true(log, first.sid)


async def test_a_writers_events_are_in_the_order_of_their_times_and_none_is_in_the_future(
    redis: Redis, log: StreamLog, writer: StreamWriter
) -> None:
    for word in range(30):
        await say(writer, str(word))
        if word % 10 == 5:
            writer.write("restart", {"attempt": 1})
            await writer.flush()
    seconds, micros = await redis.time()
    times = [event.t for event in await in_log(log, writer.sid)]
    assert times == sorted(times)
    assert times[-1] <= seconds * 1000 + micros // 1000


async def test_times_do_not_go_backwards_with_redis_clock(log: StreamLog, writer: StreamWriter) -> None:
    [_, first] = await in_log(log, writer.sid)
    ahead = first.t + 3_600_000
    writer._stamp_ms = ahead
    await say(writer, "the short way")
    writer.write("restart", {"attempt": 1})
    await writer.flush()
    assert [event.t for event in (await in_log(log, writer.sid))[2:]] == [ahead, ahead]


# -- Redis' time as a process knows it -----------------------------------------------------------------------


def test_the_clock_takes_the_closest_answer_and_follows_a_clock_that_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    moment_s = 100.0
    monkeypatch.setattr("broker.log.clock.now_s", lambda: moment_s)
    clock = RedisClock()
    assert clock.now_ms() is None
    clock.hear(5_000, 99.5)  # asked at 99.5, received at 100: Redis is at 5,000 or up to 500 ms further
    assert clock.now_ms() == 5_000
    moment_s = 101.0
    clock.hear(6_100, 100.9)
    assert clock.now_ms() == 6_100, "closer"
    moment_s = 102.0
    clock.hear(7_000, 101.0)
    assert clock.now_ms() == 7_100, "an answer that took long says less"
    moment_s = 103.0
    clock.hear(2_000, 102.99)
    assert clock.now_ms() == 2_000, "Redis' clock was set back"
