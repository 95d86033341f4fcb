"""Writers and their group commit, over a wire to a real server that breaks in every way a wire can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis

import broker.log.writer
from broker.errors import LasteventError, StreamClosed, StreamLimit, WriterSuperseded
from broker.log.meta import new_claim_id
from broker.log.steps import Append, Claimed
from broker.log.stream_log import StreamLog
from broker.log.writer import BATCH_EVENTS, UNCONFIRMED_EVENTS, GroupCommit, StreamWriter
from broker.store.connect import connect
from tests.rig.deployment import until
from tests.rig.proxy import Proxy, proxy_to
from tests.rig.streams import batch, committing, ids, kinds, meta, queued, remember, running, seize, taken_over, text
from worker.heartbeat import Heartbeat

LIMIT_S = 30.0


@pytest.fixture
async def proxy(valkey_url: str) -> AsyncIterator[Proxy]:
    async with proxy_to(valkey_url) as proxy:
        yield proxy


@pytest.fixture
async def log(redis: Redis, proxy: Proxy) -> AsyncIterator[StreamLog]:
    """The writers' log, through the proxy. `redis` is there to look past it."""
    async with connect(proxy.url) as client:
        yield StreamLog(client)


@pytest.fixture
async def writer(log: StreamLog, commit: GroupCommit) -> StreamWriter:
    return StreamWriter(commit, await running(log))


def say(writer: StreamWriter, *words: object) -> list[int]:
    return [writer.write("text_delta", {"text": str(word)}) for word in words]


async def evalsha_calls(redis: Redis) -> int:
    stats = await redis.info("commandstats")
    return int(stats["cmdstat_evalsha"]["calls"])


# -- ids at once, events soon ------------------------------------------------------------------------------


async def test_an_event_has_its_id_at_once_and_is_in_the_log_after_a_flush(
    log: StreamLog, writer: StreamWriter
) -> None:
    assert say(writer, "Salt", "bread") == [2, 3]
    assert (writer.tail, writer.unconfirmed) == (3, 2)
    await writer.flush()
    assert writer.unconfirmed == 0
    assert await ids(log, writer.sid) == [1, 2, 3]


async def test_what_is_gathered_goes_out_together_one_append_a_stream(
    redis: Redis, log: StreamLog, commit: GroupCommit
) -> None:
    writers = [StreamWriter(commit, await running(log)) for _ in range(10)]
    before = await evalsha_calls(redis)
    for word in range(20):
        for writer in writers:
            say(writer, word)
    await asyncio.gather(*(writer.flush() for writer in writers))
    assert await evalsha_calls(redis) - before == len(writers)
    for writer in writers:
        assert await ids(log, writer.sid) == list(range(1, 22))


async def test_a_text_that_goes_on_waits_for_the_pace_and_leaves_with_what_does_not(
    log: StreamLog, commit: GroupCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.log.writer, "PACE_S", 60)
    one, other = [StreamWriter(commit, await running(log)) for _ in range(2)]
    for writer in (one, other):  # each text begins at once, also behind another stream's
        say(writer, "begins")
        await writer.flush()
    say(one, "goes on", "and on")
    for _ in range(5):
        await log.now_ms()
    assert one.unconfirmed == 2
    other.write("done", {})
    await one.flush()
    await other.flush()


async def test_the_pace_does_not_hold_a_text_back_once_it_is_over(log: StreamLog, writer: StreamWriter) -> None:
    for word in range(5):
        say(writer, word)
        await writer.flush()


async def test_events_keep_their_order_however_commits_fall(log: StreamLog, commit: GroupCommit) -> None:
    writers = [StreamWriter(commit, await running(log)) for _ in range(5)]

    async def speak(writer: StreamWriter) -> None:
        for word in range(200):
            say(writer, word)
            if word % 7 == 0:
                await writer.drain()
                await asyncio.sleep(0)
        writer.write("done", {})
        await writer.flush()

    await asyncio.gather(*map(speak, writers))
    for writer in writers:
        said = [event.data for event in await log.read_all(writer.sid)][1:-1]
        assert said == [event.data for event in text(*map(str, range(200)))]


async def test_what_a_takeover_writes_begins_at_its_block(log: StreamLog, commit: GroupCommit) -> None:
    writer = StreamWriter(commit, await taken_over(log, (await running(log)).sid))
    assert say(writer, "Salt", "bread") == [1_000_001, 1_000_002]
    await writer.flush()
    assert await ids(log, writer.sid) == [1, 1_000_001, 1_000_002]


async def test_a_long_stream_is_carried_in_several_commits(log: StreamLog, writer: StreamWriter) -> None:
    say(writer, *range(3 * BATCH_EVENTS + 1))
    await writer.flush()
    assert await ids(log, writer.sid) == list(range(1, 3 * BATCH_EVENTS + 3))


async def test_a_provider_is_held_back_once_the_process_keeps_as_much_as_it_may(
    log: StreamLog, writer: StreamWriter, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.hold()
    say(writer, *range(UNCONFIRMED_EVENTS), "one more")
    await writer.drain()
    monkeypatch.setattr(broker.log.writer, "UNCONFIRMED_BYTES", 1000)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await writer.drain()
    proxy.release()
    await writer.drain()
    await writer.flush()
    assert len(await ids(log, writer.sid)) == UNCONFIRMED_EVENTS + 2


# -- the wire breaks ---------------------------------------------------------------------------------------


async def test_a_lost_reply_doubles_nothing(log: StreamLog, writer: StreamWriter, proxy: Proxy) -> None:
    proxy.lose_next_reply()
    say(writer, "Salt", "bread")
    await writer.flush()
    assert await ids(log, writer.sid) == [1, 2, 3]


async def test_the_lost_reply_of_the_ending_is_no_second_ending(
    log: StreamLog, writer: StreamWriter, proxy: Proxy
) -> None:
    proxy.lose_next_reply()
    writer.write("done", {})
    await writer.flush()
    assert writer.lost is None
    assert await kinds(log, writer.sid) == ["queued", "done"]


async def test_a_wire_cut_again_and_again_loses_and_doubles_nothing(
    redis: Redis, commit: GroupCommit, log: StreamLog, proxy: Proxy
) -> None:
    writers = [StreamWriter(commit, await running(StreamLog(redis))) for _ in range(3)]
    for word in range(60):
        for writer in writers:
            say(writer, word)
        if word % 10 == 3:
            proxy.cut()
        elif word % 10 == 7:
            proxy.lose_next_reply()
        await asyncio.sleep(0)
    for writer in writers:
        await writer.flush()
        assert await ids(StreamLog(redis), writer.sid) == list(range(1, 62))


async def test_while_redis_is_away_writers_keep_what_is_written_and_then_go_on(
    redis: Redis, writer: StreamWriter, proxy: Proxy
) -> None:
    proxy.refuse()
    say(writer, *range(300))
    await writer.drain()
    flushing = asyncio.create_task(writer.flush())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await asyncio.shield(flushing)
    proxy.refuse(False)
    await flushing
    assert await ids(StreamLog(redis), writer.sid) == list(range(1, 302))


async def test_a_full_redis_is_waited_for(redis: Redis, log: StreamLog, writer: StreamWriter) -> None:
    await redis.config_set("maxmemory", "1")
    try:
        say(writer, "Salt")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await writer.flush()
    finally:
        await redis.config_set("maxmemory", "0")
    await writer.flush()
    assert await ids(log, writer.sid) == [1, 2]


async def test_a_reply_that_nobody_understands_counts_as_a_lost_one(
    log: StreamLog, writer: StreamWriter, proxy: Proxy
) -> None:
    say(writer, "Salt")
    proxy.garble_next_reply()
    async with asyncio.timeout(LIMIT_S):
        await writer.flush()
    assert await ids(log, writer.sid) == [1, 2]


class FaultyWriter(StreamWriter):
    """It fails once, as nobody has foreseen."""

    has_failed = False

    def batch(self) -> Append:
        if not self.has_failed:
            self.has_failed = True
            raise ZeroDivisionError
        return super().batch()


async def test_a_commit_that_failed_in_an_unforeseen_way_is_made_when_its_loop_runs_again(log: StreamLog) -> None:
    commit = GroupCommit(log)
    writer = FaultyWriter(commit, await running(log))
    writer.write("done", {})
    with pytest.raises(ZeroDivisionError):
        await commit.run()
    again = asyncio.create_task(commit.run())
    async with asyncio.timeout(LIMIT_S):
        await writer.flush()
    again.cancel()
    assert await kinds(log, writer.sid) == ["queued", "done"]


async def test_a_stream_that_redis_refuses_holds_up_no_other(redis: Redis, log: StreamLog, commit: GroupCommit) -> None:
    broken, sound = StreamWriter(commit, await running(log)), StreamWriter(commit, await running(log))
    key = log.keys.stream(broken.sid).log
    await redis.set(key, "no stream", ex=60)
    for writer in (broken, sound):
        say(writer, "Salt")
    await sound.flush()
    with pytest.raises(LasteventError):
        await broken.flush()
    assert await ids(log, sound.sid) == [1, 2]


# -- Redis loses the end of the log ------------------------------------------------------------------------


async def test_a_log_that_lost_its_tail_gets_it_back_under_the_same_ids_and_times(
    log: StreamLog, writer: StreamWriter
) -> None:
    say(writer, "Salt")
    await writer.flush()
    roll_back = await remember(log, writer.sid)
    say(writer, "bread", "index")
    await writer.flush()
    before = await log.read_all(writer.sid)
    await roll_back()
    say(writer, "far")
    await writer.flush()
    after = await log.read_all(writer.sid)
    assert after[:-1] == before
    assert after[-1].id == 5


async def test_a_log_that_lost_even_the_claim_gets_it_back(log: StreamLog, commit: GroupCommit) -> None:
    sid = await queued(log)
    roll_back = await remember(log, sid)
    writer = StreamWriter(commit, await log.claim(sid, new_claim_id(), "worker-1"))
    say(writer, "Salt", "bread")
    await writer.flush()
    before = await log.read_all(sid)
    await roll_back()
    writer.write("done", {})
    await writer.flush()
    assert (await log.read_all(sid))[:-1] == before
    assert (await meta(log, sid))["claim"] == writer.pen.claim_id


async def test_a_takeover_heals_no_further_back_than_its_own_block(log: StreamLog, commit: GroupCommit) -> None:
    first = await running(log)
    roll_back = await remember(log, first.sid)
    await log.append(batch(first, 2, *text("Salt")))
    writer = StreamWriter(commit, await taken_over(log, first.sid))
    say(writer, "bread", "index")
    await writer.flush()
    await roll_back()
    say(writer, "far")
    await writer.flush()
    assert await ids(log, first.sid) == [1, 1_000_001, 1_000_002, 1_000_003]


async def test_more_than_a_batch_is_healed(log: StreamLog, writer: StreamWriter) -> None:
    roll_back = await remember(log, writer.sid)
    say(writer, *range(2 * BATCH_EVENTS + 10))
    await writer.flush()
    await roll_back()
    writer.write("done", {})
    await writer.flush()
    assert await ids(log, writer.sid) == list(range(1, 2 * BATCH_EVENTS + 13))


# -- usage, for an ending that somebody else writes -----------------------------------------------------------


def usage(tokens: int) -> bytes:
    return b'{"usage":{"input_tokens":%d}}' % tokens


async def usage_in(log: StreamLog, writer: StreamWriter) -> str | None:
    return (await meta(log, writer.sid)).get("usage")


async def test_the_first_usage_goes_with_the_next_events_and_later_ones_with_the_heartbeat(
    log: StreamLog, writer: StreamWriter
) -> None:
    heartbeat = Heartbeat(log)
    heartbeat.keep(writer)
    writer.write("start", {})
    await writer.flush()
    assert await usage_in(log, writer) is None
    writer.note_usage(lambda: usage(7))
    say(writer, "Salt")
    await writer.flush()
    assert await usage_in(log, writer) == '{"usage":{"input_tokens":7}}'
    writer.note_usage(lambda: usage(9))
    say(writer, "bread")
    await writer.flush()
    assert await usage_in(log, writer) == '{"usage":{"input_tokens":7}}'
    await heartbeat.renew()
    assert await usage_in(log, writer) == '{"usage":{"input_tokens":9}}'


async def test_events_that_are_sent_again_carry_the_latest_usage(
    redis: Redis, log: StreamLog, writer: StreamWriter, proxy: Proxy
) -> None:
    proxy.hold()
    writer.note_usage(lambda: usage(7))
    say(writer, "Salt")
    await until(lambda: proxy.held > 0, "they are on their way")
    writer.note_usage(lambda: usage(9))
    proxy.cut()
    proxy.release()
    await writer.flush()
    assert await usage_in(StreamLog(redis), writer) == '{"usage":{"input_tokens":9}}'


async def test_a_usage_whose_reply_is_lost_is_kept(log: StreamLog, writer: StreamWriter, proxy: Proxy) -> None:
    proxy.lose_next_reply()
    writer.note_usage(lambda: usage(7))
    say(writer, "Salt")
    await writer.flush()
    assert await usage_in(log, writer) == '{"usage":{"input_tokens":7}}'


async def test_a_usage_that_redis_lost_without_an_event_comes_back_with_the_next_heartbeat(
    log: StreamLog, writer: StreamWriter
) -> None:
    heartbeat = Heartbeat(log)
    heartbeat.keep(writer)
    writer.note_usage(lambda: usage(7))
    roll_back = await remember(log, writer.sid)
    for _ in range(2):
        await heartbeat.renew()
        assert await usage_in(log, writer) == '{"usage":{"input_tokens":7}}'
        await roll_back()


async def test_a_takeovers_heartbeat_repeats_the_usage_until_it_has_its_own(
    log: StreamLog, commit: GroupCommit
) -> None:
    first = await running(log)
    roll_back = await remember(log, first.sid)
    await log.append(batch(first, 2, *text("Salt"))._replace(usage=usage(7)))
    writer, heartbeat = StreamWriter(commit, await taken_over(log, first.sid)), Heartbeat(log)
    heartbeat.keep(writer)
    assert writer.claimed.meta.usage == {"usage": {"input_tokens": 7}}
    await roll_back()
    await heartbeat.renew()
    assert await usage_in(log, writer) == '{"usage":{"input_tokens":7}}'
    writer.note_usage(lambda: usage(16))
    say(writer, "bread")
    await writer.flush()
    assert await usage_in(log, writer) == '{"usage":{"input_tokens":16}}'


async def test_a_writer_that_ends_its_stream_leaves_the_usage_to_its_ending(
    log: StreamLog, writer: StreamWriter
) -> None:
    writer.note_usage(lambda: usage(7))
    say(writer, "Salt")
    await writer.flush()
    writer.write("done", {"usage": {"input_tokens": 9}})
    await writer.flush()
    heartbeat = Heartbeat(log)
    heartbeat.keep(writer)
    await heartbeat.renew()
    assert await usage_in(log, writer) is None
    assert (await log.read_last(writer.sid)).data == b'{"usage":{"input_tokens":9}}'


# -- limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"max_events": 5}, {"max_bytes": 2 + 4 * len(b'{"text":"a"}')}])
async def test_a_full_stream_still_takes_its_ending(redis: Redis, limits: dict[str, Any]) -> None:
    log = StreamLog(redis, **limits)
    async with committing(log) as commit:
        writer = StreamWriter(commit, await running(log))
        say(writer, *"abcd")
        with pytest.raises(StreamLimit):
            say(writer, "e")
        writer.write("error", {"code": "stream_limit", "message": "as long as it likes " * 100})
        await writer.flush()
    assert await kinds(log, writer.sid) == ["queued", *4 * ["text_delta"], "error"]


# -- endings and fences ------------------------------------------------------------------------------------


async def test_nothing_is_written_after_the_ending(log: StreamLog, writer: StreamWriter) -> None:
    writer.write("done", {})
    for kind in ("text_delta", "done"):
        with pytest.raises(ValueError, match="terminal event"):
            writer.write(kind, {})
    await writer.flush()
    assert await kinds(log, writer.sid) == ["queued", "done"]


async def test_data_that_json_cannot_say_leaves_no_trace(log: StreamLog, writer: StreamWriter) -> None:
    for kind in ("text_delta", "done"):
        with pytest.raises(TypeError):
            writer.write(kind, {"text": "\ud800"})
    assert writer.write("done", {}) == 2
    await writer.flush()


async def test_a_cancel_fences_the_writer_and_tells_its_owner_once(log: StreamLog, writer: StreamWriter) -> None:
    told: list[LasteventError | None] = []
    writer.on_lost = lambda: told.append(writer.lost)
    await seize(log, writer.sid, "cancelled", b"{}")
    say(writer, "late")
    with pytest.raises(StreamClosed):
        await writer.flush()
    with pytest.raises(StreamClosed):
        say(writer, "later")
    writer.lose(StreamClosed("learnt again, by a heartbeat"))
    assert told == [writer.lost]
    assert await kinds(log, writer.sid) == ["queued", "cancelled"]


async def test_a_takeover_fences_the_writer(log: StreamLog, writer: StreamWriter) -> None:
    await taken_over(log, writer.sid)
    say(writer, "zombie")
    with pytest.raises(WriterSuperseded):
        await writer.flush()
    assert await ids(log, writer.sid) == [1]


async def test_a_fenced_writer_holds_up_no_other(log: StreamLog, commit: GroupCommit) -> None:
    fenced, sound = StreamWriter(commit, await running(log)), StreamWriter(commit, await running(log))
    await seize(log, fenced.sid, "cancelled", b"{}")
    for writer in (fenced, sound):
        say(writer, "Salt")
    await sound.flush()
    with suppress(StreamClosed):
        await fenced.flush()
    assert isinstance(fenced.lost, StreamClosed)
    assert await ids(log, sound.sid) == [1, 2]


async def test_a_pen_that_has_been_written_with_is_not_taken_up_again(log: StreamLog, commit: GroupCommit) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("Salt")))
    again: Claimed = await log.claim(claimed.sid, claimed.pen.claim_id, "worker-1")
    with pytest.raises(ValueError, match="claim the stream again"):
        StreamWriter(commit, again)
