"""What Redis lost comes back: events, endings, whole streams; and who has no right to bring anything back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

import broker.log.pulse
import broker.log.writer
from broker.errors import RedisUnavailable, StreamClosed, StreamNotFound, WriterSuperseded
from broker.log.event import Event
from broker.log.pulse import Pulse
from broker.log.seizures import Seizures
from broker.log.steps import Claimed
from broker.log.stream_log import StreamLog
from broker.log.writer import RETRY_S, GroupCommit, StreamWriter
from broker.store.connect import connect
from tests.rig.deployment import until
from tests.rig.proxy import proxy_to
from tests.rig.streams import (
    batch,
    committing,
    ending,
    expire_lease,
    ids,
    kinds,
    meta,
    queued,
    remember,
    running,
    seize,
    survive_a_restart_of_redis,
    taken_over,
    text,
)
from worker.heartbeat import Heartbeat

LIMIT_S = 20
SECOND_BLOCK = 1_000_001
ANOTHER_SERVER = "another server"


@pytest.fixture
def log(any_redis: Any) -> StreamLog:
    return StreamLog(any_redis)


async def vanish(log: StreamLog, sid: str) -> None:
    """Redis lost the stream, its place in the sweeper's index and in the listings."""
    everything = [key async for key in log.redis.scan_iter()]
    await log.redis.delete(*[key for key in everything if not key.endswith(b":servers")])


def on_another_server(claimed: Claimed) -> Claimed:
    """The claim was made before Redis restarted."""
    return replace(claimed, server=ANOTHER_SERVER)


# -- a stream that vanished whole --------------------------------------------------------------------------


async def test_a_vanished_stream_is_put_back_as_it_was_but_for_its_progress(log: StreamLog) -> None:
    claimed = on_another_server(await running(log, user="u", metadata={"a": 1}, regenerates="r", abandon_after_s=9.5))
    before, first = await meta(log, claimed.sid), await log.read_all(claimed.sid)
    await log.append(batch(claimed, 2, *text("Salt")))
    await vanish(log, claimed.sid)
    await log.restore(claimed)
    after = await meta(log, claimed.sid)
    assert {**after, "lease_until": "", "claimed_under": before["claimed_under"]} == {**before, "lease_until": ""}
    assert int(after["lease_until"]) > await log.now_ms()
    assert await log.read_all(claimed.sid) == first
    assert await log.redis.zscore(log.keys.leases, claimed.sid) is not None
    assert await log.redis.zscore(log.keys.streams("t"), claimed.sid) == float(before["created"])
    await log.append(batch(claimed, 2, *text("Salt")))
    assert await ids(log, claimed.sid) == [1, 2]


async def test_a_stream_that_is_there_is_left_as_it_is(log: StreamLog) -> None:
    claimed = on_another_server(await running(log))
    await log.append(batch(claimed, 2, *text("Salt")))
    before = await meta(log, claimed.sid), await log.read_all(claimed.sid)
    await log.restore(claimed)
    assert (await meta(log, claimed.sid), await log.read_all(claimed.sid)) == before


async def test_a_stream_that_went_without_a_restart_of_redis_was_removed_and_stays_away(log: StreamLog) -> None:
    claimed = await running(log)
    await vanish(log, claimed.sid)
    with pytest.raises(StreamNotFound):
        await log.restore(claimed)
    await log.redis.delete(log.keys.leases)


async def test_a_finished_stream_is_not_brought_back_to_life(log: StreamLog) -> None:
    claimed = on_another_server(await running(log))
    await seize(log, claimed.sid, "cancelled", b"{}")
    await log.restore(claimed)
    with pytest.raises(StreamClosed):
        await log.append(batch(claimed, 2, *text("Salt")))


async def test_a_writer_puts_its_vanished_stream_back_and_goes_on(log: StreamLog, commit: GroupCommit) -> None:
    writer = StreamWriter(commit, on_another_server(await running(log)))
    writer.write("text_delta", {"text": "Salt"})
    await writer.flush()
    before = await log.read_all(writer.sid)
    await vanish(log, writer.sid)
    writer.write("text_delta", {"text": "bread"})
    await writer.flush()
    assert writer.lost is None
    assert (await log.read_all(writer.sid))[:2] == before
    assert await ids(log, writer.sid) == [1, 2, 3]


async def test_a_takeovers_writer_puts_back_its_own_block(log: StreamLog, commit: GroupCommit) -> None:
    second = on_another_server(await taken_over(log, (await running(log)).sid))
    writer = StreamWriter(commit, second)
    writer.write("restart", {"attempt": 2})
    await writer.flush()
    await vanish(log, writer.sid)
    writer.write("text_delta", {"text": "bread"})
    await writer.flush()
    assert await ids(log, writer.sid) == [1, SECOND_BLOCK, SECOND_BLOCK + 1]
    assert (await meta(log, writer.sid))["attempt"] == "2"


async def test_the_heartbeat_brings_back_the_usage_of_a_stream_that_vanished(
    log: StreamLog, commit: GroupCommit
) -> None:
    writer, heartbeat = StreamWriter(commit, on_another_server(await running(log))), Heartbeat(log)
    heartbeat.keep(writer)
    writer.note_usage(lambda: b'{"usage":{"input_tokens":7}}')
    writer.write("text_delta", {"text": "Salt"})
    await writer.flush()
    await vanish(log, writer.sid)
    await heartbeat.renew()
    await writer.flush()
    await heartbeat.renew()
    await seize(log, writer.sid, "cancelled", b"{}")
    assert (await log.read_last(writer.sid)).data == b'{"usage":{"input_tokens":7}}'
    await log.redis.delete(log.keys.leases)


async def test_a_writer_whose_stream_was_removed_stops(log: StreamLog, commit: GroupCommit) -> None:
    writer = StreamWriter(commit, await running(log))
    await vanish(log, writer.sid)
    writer.write("text_delta", {"text": "Salt"})
    with pytest.raises(StreamNotFound):
        await writer.flush()
    await log.redis.delete(log.keys.leases)


# -- an adopted claim ----------------------------------------------------------------------------------------


async def test_a_takeover_that_is_adopted_keeps_its_attempt(log: StreamLog) -> None:
    first = await running(log)
    roll_back = await remember(log, first.sid)
    second = await taken_over(log, first.sid)
    await roll_back()
    await log.append(batch(second, SECOND_BLOCK, *text("Salt"))._replace(attempt=second.attempt))
    assert (await meta(log, first.sid))["attempt"] == "2"


# -- endings that are kept -----------------------------------------------------------------------------------


async def test_a_writers_ending_is_kept_for_a_lease_and_put_back(
    log: StreamLog, commit: GroupCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = _Clock(monkeypatch)
    writer, heartbeat = StreamWriter(commit, await running(log)), Heartbeat(log)
    heartbeat.keep(writer)
    roll_back = await remember(log, writer.sid)
    writer.write("text_delta", {"text": "Salt"})
    writer.write("done", {})
    await writer.flush()
    before = await log.read_all(writer.sid)
    for _ in range(2):
        await roll_back()
        clock.go_on(log.lease_s - 1)
        commit.pulse.stood_still_since(0)
        await heartbeat.renew()
        await writer.flush()
        assert await log.read_all(writer.sid) == before
        assert (await meta(log, writer.sid))["state"] == "done"
    await heartbeat.renew()
    await roll_back()
    await heartbeat.renew()
    assert await kinds(log, writer.sid) == ["queued"], "after a lease nobody keeps it"
    await seize(log, writer.sid, "cancelled", b"{}")
    await log.redis.delete(log.keys.leases)


async def test_a_new_ending_goes_as_soon_as_no_other_can_come_back(redis: Redis) -> None:
    log = StreamLog(redis, lease_s=0.6)
    claimed = await running(log)
    await survive_a_restart_of_redis(log, claimed.sid)
    async with committing(log) as commit:
        writer = StreamWriter(commit, claimed)
        writer.write("text_delta", {"text": "Salt"})
        writer.write("done", {})
        await writer.flush()
    assert await kinds(log, claimed.sid) == ["queued", "text_delta", "done"]
    assert (await log.read_last(claimed.sid)).t - int((await meta(log, claimed.sid))["created"]) >= 400


async def test_a_seizure_is_put_back_under_its_id_and_time(log: StreamLog) -> None:
    claimed, seizures = await running(log), Seizures(log)
    roll_back = await remember(log, claimed.sid)
    seized = await seizures.seize(claimed.sid, "cancelled", b'{"by":"client"}')
    before, ended = await log.read_all(claimed.sid), await meta(log, claimed.sid)
    await roll_back()
    assert await kinds(log, claimed.sid) == ["queued"]
    await seizures.look()
    assert await log.read_all(claimed.sid) == before
    assert await meta(log, claimed.sid) == ended
    assert before[-1].id == seized.last_event_id
    await log.redis.delete(log.keys.leases)


async def test_a_seizure_of_a_stream_that_has_moved_on_ends_it_further_on(log: StreamLog) -> None:
    claimed, seizures = await running(log), Seizures(log)
    roll_back = await remember(log, claimed.sid)
    await seizures.seize(claimed.sid, "cancelled", b"{}")
    await roll_back()
    other = await taken_over(log, claimed.sid)
    await log.append(batch(other, SECOND_BLOCK, *text("Salt")))
    await seizures.look()
    assert await ids(log, claimed.sid) == [1, SECOND_BLOCK, 2_000_001]
    with pytest.raises(StreamClosed):
        await log.append(batch(other, SECOND_BLOCK + 1, *text("bread")))
    await log.redis.delete(log.keys.leases)


async def test_a_seizure_that_is_there_is_left_alone_and_let_go_after_a_lease(
    log: StreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed, seizures = await running(log), Seizures(log)
    roll_back = await remember(log, claimed.sid)
    await seizures.seize(claimed.sid, "cancelled", b"{}")
    before = await log.read_all(claimed.sid)
    await seizures.look()
    assert await log.read_all(claimed.sid) == before
    log.lease_s = 0  # it is over
    await seizures.look()
    await roll_back()
    await seizures.look()
    assert await kinds(log, claimed.sid) == ["queued"]
    await seize(log, claimed.sid, "cancelled", b"{}")
    await log.redis.delete(log.keys.leases)


async def test_a_seizure_whose_reply_is_lost_is_one(redis: Redis, valkey_url: str) -> None:
    async with proxy_to(valkey_url) as proxy, connect(proxy.url) as broken:
        claimed = await running(StreamLog(redis))
        proxy.lose_next_reply()
        seized = await Seizures(StreamLog(broken)).seize(claimed.sid, "cancelled", b"{}")
    assert (seized.state, seized.already) == ("cancelled", False)
    assert await kinds(StreamLog(redis), claimed.sid) == ["queued", "cancelled"]
    await redis.delete(StreamLog(redis).keys.leases)


# -- who stood still -----------------------------------------------------------------------------------------


class _Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now_s = 1000.0
        for module in (broker.log.pulse, broker.log.writer):
            monkeypatch.setattr(module, "now_s", lambda: self._now_s)

    def go_on(self, seconds: float) -> None:
        self._now_s += seconds


def test_a_pulse_notices_that_its_process_stood_still_for_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)
    pulse = Pulse(lease_s=6)
    clock.go_on(5.9)
    assert not pulse.stood_still_since(1000)
    clock.go_on(6.1)
    assert pulse.stood_still_since(1000)
    clock.go_on(1)
    assert not pulse.stood_still_since(1013), "what was claimed since is not touched by it"


@pytest.fixture
def zombie_clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    return _Clock(monkeypatch)


async def test_a_writer_that_stood_still_goes_on_if_nobody_took_its_stream(
    log: StreamLog, zombie_clock: _Clock, commit: GroupCommit
) -> None:
    writer = StreamWriter(commit, await running(log))
    await expire_lease(log, writer.sid)
    zombie_clock.go_on(30)
    writer.write("text_delta", {"text": "Salt"})
    await writer.flush()
    assert await ids(log, writer.sid) == [1, 2]
    await seize(log, writer.sid, "cancelled", b"{}")
    await log.redis.delete(log.keys.leases)


async def test_a_writer_that_stood_still_heals_nothing_under_another_server(
    log: StreamLog, zombie_clock: _Clock, commit: GroupCommit
) -> None:
    """A takeover may be among what was lost."""
    writer = StreamWriter(commit, on_another_server(await running(log)))
    zombie_clock.go_on(30)
    writer.write("text_delta", {"text": "Salt"})
    with pytest.raises(WriterSuperseded):
        await writer.flush()
    assert await ids(log, writer.sid) == [1]


async def test_a_writer_that_stood_still_between_two_tries_heals_nothing_either(
    redis: Redis, valkey_url: str, zombie_clock: _Clock
) -> None:
    async with proxy_to(valkey_url) as proxy, connect(proxy.url) as broken:
        proxy.refuse()
        failed: list[RedisUnavailable] = []

        class CountedLog(StreamLog):
            async def append_many(self, appends: Any) -> Any:
                try:
                    return await super().append_many(appends)
                except RedisUnavailable as error:
                    failed.append(error)
                    raise

        async with committing(CountedLog(broken)) as commit:
            writer = StreamWriter(commit, on_another_server(await running(StreamLog(redis))))
            writer.write("text_delta", {"text": "Salt"})
            # From here on the pauses are long: none of its tries is under way when its process stands still.
            await until(lambda: len(failed) == len(RETRY_S), "it has tried some times")
            zombie_clock.go_on(30)
            proxy.refuse(False)
            with pytest.raises(WriterSuperseded):
                await writer.flush()
    assert await ids(StreamLog(redis), writer.sid) == [1]


async def test_a_writer_that_stood_still_while_it_connected_heals_nothing_either(
    redis: Redis, valkey_url: str, zombie_clock: _Clock
) -> None:
    async with proxy_to(valkey_url) as proxy, connect(proxy.url) as held, committing(StreamLog(held)) as commit:
        claimed = await running(StreamLog(redis))
        await StreamLog(redis).append(batch(claimed, 2))  # Redis has the script: the events are sent only once
        writer = StreamWriter(commit, on_another_server(claimed))
        proxy.hold()
        writer.write("text_delta", {"text": "Salt"})
        await until(lambda: proxy.held, "its first connection waits for Redis' greeting")
        zombie_clock.go_on(30)
        proxy.release()
        with pytest.raises(WriterSuperseded):
            await writer.flush()
    assert await ids(StreamLog(redis), writer.sid) == [1]


async def test_a_process_that_writes_nothing_asks_redis_for_nothing(redis: Redis, valkey_url: str) -> None:
    async with proxy_to(valkey_url) as proxy, connect(proxy.url) as watched, committing(StreamLog(watched)) as commit:
        await Heartbeat(commit.log).renew()
        lost = StreamWriter(commit, await running(StreamLog(redis)))
        lost.lose(WriterSuperseded("taken"))
        commit.gather(lost)
        await until(lambda: not commit._dirty, "its commit is over")
        assert proxy.connections == 0
    await seize(StreamLog(redis), lost.sid, "cancelled", b"{}")
    await redis.delete(StreamLog(redis).keys.leases)


async def test_a_writer_that_stood_still_puts_no_stream_back(
    log: StreamLog, zombie_clock: _Clock, commit: GroupCommit
) -> None:
    writer = StreamWriter(commit, on_another_server(await running(log)))
    await vanish(log, writer.sid)
    zombie_clock.go_on(30)
    writer.write("text_delta", {"text": "Salt"})
    with pytest.raises(StreamNotFound):
        await writer.flush()
    assert not await log.redis.exists(*log.keys.stream(writer.sid)[:2])


# -- release -------------------------------------------------------------------------------------------------


async def test_a_released_stream_may_be_claimed_at_once_and_its_old_writer_is_fenced(log: StreamLog) -> None:
    first = await running(log)
    await log.append(batch(first, 2, *text("Salt")))
    await log.release(first.sid, first.pen)
    with pytest.raises(WriterSuperseded):
        await log.append(batch(first, 3)._replace(events=()))  # a renewal that comes late
    second = await log.claim(first.sid, "claim-2", "worker-2")
    assert second.pen == (first.pen.epoch + 1, "claim-2", SECOND_BLOCK)
    assert await log.redis.zscore(log.keys.leases, first.sid) == 0, "a sweeper looks at once"


async def test_an_attempt_that_did_not_begin_gives_its_number_back(log: StreamLog) -> None:
    first = await running(log)
    second = await taken_over(log, first.sid)
    await log.release(second.sid, second.pen, unbegun=True)
    third = await log.claim(first.sid, "claim-3", "worker-3")
    assert (second.attempt, third.attempt) == (2, 2)
    assert third.pen.epoch == second.pen.epoch + 1


async def test_only_who_holds_the_pen_can_give_it_up(log: StreamLog) -> None:
    first = await running(log)
    await taken_over(log, first.sid)
    with pytest.raises(WriterSuperseded):
        await log.release(first.sid, first.pen)
    ended = await running(log)
    await log.append(batch(ended, 2, ending()))
    with pytest.raises(StreamClosed):
        await log.release(ended.sid, ended.pen)
    with pytest.raises(StreamNotFound):
        await log.release("nobody", ended.pen)


# -- what a process keeps ------------------------------------------------------------------------------------


async def test_a_process_knows_how_much_it_keeps_for_redis(log: StreamLog, commit: GroupCommit) -> None:
    writer, other = StreamWriter(commit, await running(log)), StreamWriter(commit, await running(log))
    roll_back = await remember(log, writer.sid)
    for word in ("Salt", "bread"):
        writer.write("text_delta", {"text": word})
    other.write("text_delta", {"text": "Salt"})
    size = len(b'{"text":"Salt"}')
    assert commit.unconfirmed_bytes == 3 * size + 1
    await writer.flush()
    await other.flush()
    assert commit.unconfirmed_bytes == 0
    await roll_back()
    await _beat(log, writer)
    await writer.flush()
    assert commit.unconfirmed_bytes == 0
    writer.write("text_delta", {"text": "more"})
    writer.lose(WriterSuperseded("taken"))
    assert commit.unconfirmed_bytes == 0


async def _beat(log: StreamLog, writer: StreamWriter) -> None:
    heartbeat = Heartbeat(log)
    heartbeat.keep(writer)
    await heartbeat.renew()


async def test_an_event_healed_after_a_lost_reply_keeps_its_first_time(redis: Redis, valkey_url: str) -> None:
    log = StreamLog(redis)
    async with proxy_to(valkey_url) as proxy, connect(proxy.url) as broken:
        commit = GroupCommit(StreamLog(broken))
        writer = StreamWriter(commit, await running(log))
        roll_back = await remember(log, writer.sid)
        writer.write("text_delta", {"text": "Salt"})
        proxy.lose_next_reply()
        loop = asyncio.create_task(commit.run())
        async with asyncio.timeout(LIMIT_S):
            await writer.flush()
            before: list[Event] = await log.read_all(writer.sid)
            await roll_back()
            await _beat(log, writer)
            await writer.flush()
        loop.cancel()
    assert await log.read_all(writer.sid) == before


async def test_a_queued_stream_whose_lease_index_was_lost_is_listed_again_by_its_restorer(log: StreamLog) -> None:
    sid = await queued(log)
    claimed = on_another_server(await log.claim(sid, "claim-1", "worker-1"))
    await vanish(log, sid)
    await log.restore(claimed)
    assert await log.redis.zscore(log.keys.leases, sid) is not None
