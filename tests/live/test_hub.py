"""The hub: one subscription a stream, a ring of what came last, and no loss that goes unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from redis.asyncio import Redis

import broker.live.hub
import broker.live.subscription
from broker.dialects.format import Batch, Format
from broker.dialects.sse import encode
from broker.live.hub import Hub
from broker.live.topic import RING_BYTES, RING_EVENTS, Topic
from broker.log.keys import Keys
from broker.log.stream_log import StreamLog
from broker.store.connect import connect
from tests.rig.proxy import Proxy, proxy_to
from tests.rig.streams import batch, running, text

LIMIT_S = 30.0


def said(first: int, *words: str, kind: str = "text_delta") -> list[bytes]:
    """One published batch (scripts/prelude.lua), as the hub gives it to a topic."""
    return ["\n".join(f"{n}\n0\n{kind}\n{word}" for n, word in enumerate(words, first)).encode()]


def ids(batch: Batch | None) -> list[int] | None:
    return None if batch is None else [event.id for event in batch.events]


# -- the ring ----------------------------------------------------------------------------------------------


@pytest.fixture
def topic() -> Topic:
    return Topic("sid")


def test_the_ring_gives_each_cursor_what_follows_it(topic: Topic) -> None:
    topic.publish(said(5, "a", "b"))
    topic.publish(said(7, "c"))
    assert [ids(topic.after(cursor)) for cursor in (4, 5, 6, 7)] == [[5, 6, 7], [6, 7], [7], []]


def test_a_cursor_before_the_ring_must_ask_the_log(topic: Topic) -> None:
    topic.publish(said(5, "a"))
    assert topic.after(3) is None
    assert topic.after(0) is None


def test_a_cursor_beyond_the_ring_has_nothing_to_get(topic: Topic) -> None:
    assert ids(topic.after(0)) == []
    topic.publish(said(5, "a"))
    assert ids(topic.after(99)) == []


def test_an_event_is_encoded_once_for_everybody(topic: Topic) -> None:
    topic.publish(said(5, "a"))
    one, other = topic.after(4), topic.after(4)
    assert one
    assert other
    assert one.render(Format.EXACT) is other.render(Format.EXACT)


@pytest.mark.parametrize("first", [9, 1_000_001, 2])
def test_a_batch_that_does_not_follow_begins_a_new_ring(topic: Topic, first: int) -> None:
    topic.publish(said(5, "a", "b"))
    topic.publish(said(first, "c"))
    assert ids(topic.after(first - 1)) == [first]
    assert topic.after(first - 2) is None


def test_what_is_said_again_replaces_what_was_said(topic: Topic) -> None:
    topic.publish(said(5, "a", "b", "c"))
    topic.publish(said(6, "b", "c", "d"))
    assert ids(topic.after(4)) == [5, 6, 7, 8]
    topic.publish(said(5, "a"))
    assert ids(topic.after(4)) == [5]


def test_the_ring_keeps_the_latest_events_up_to_a_number(topic: Topic) -> None:
    for n in range(1, 3 * RING_EVENTS):
        topic.publish(said(n, "x"))
    kept = next(held for cursor in range(3 * RING_EVENTS) if (held := topic.after(cursor)) is not None)
    assert RING_EVENTS // 2 < len(kept) <= RING_EVENTS
    assert kept.events[-1].id == 3 * RING_EVENTS - 1


def test_the_ring_keeps_the_latest_events_up_to_a_size(topic: Topic) -> None:
    for n in range(1, 50):
        topic.publish(said(n, "x" * (RING_BYTES // 10)))
    kept = next(held for cursor in range(50) if (held := topic.after(cursor)) is not None)
    assert 0 < sum(len(encode(event)) for event in kept.events) <= RING_BYTES
    assert kept.events[-1].id == 49


def test_one_event_larger_than_the_ring_is_kept_alone(topic: Topic) -> None:
    topic.publish(said(1, "a"))
    topic.publish(said(2, "x" * (RING_BYTES + 1)))
    assert ids(topic.after(1)) == [2]


def test_an_ending_is_kept_aside_until_the_subscription_is_made_anew(topic: Topic) -> None:
    topic.publish(said(5, "{}", kind="done"))
    assert topic.ending is not None
    topic.reset(version=2)
    assert topic.ending is None
    assert ids(topic.after(4)) == []


def test_every_change_wakes_who_took_the_sign_before_it(topic: Topic) -> None:
    for change in (lambda: topic.publish(said(1, "a")), lambda: topic.reset(version=3), topic.wake):
        before, changes = topic.changed, topic.changes
        change()
        assert before.is_set()
        assert not topic.changed.is_set()
        assert topic.changes > changes


# -- the subscription --------------------------------------------------------------------------------------


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis)


@pytest.fixture
async def hub(log: StreamLog, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    hub = Hub(log.redis, log.keys)
    loop = asyncio.create_task(hub.run())
    yield hub
    loop.cancel()
    await asyncio.wait([loop])


async def until(condition: Callable[[], object | Awaitable[object]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while True:
            holds = condition()
            if await holds if isinstance(holds, Awaitable) else holds:
                return
            await asyncio.sleep(0.005)


async def subscribers(log: StreamLog, sid: str) -> int:
    [(_, count)] = await log.redis.pubsub_numsub(log.keys.stream(sid).live)
    return int(count)


async def test_a_stream_has_one_subscription_however_many_watch_it(log: StreamLog, hub: Hub) -> None:
    streams = [await running(log) for _ in range(3)]
    async with AsyncExitStack() as viewers:
        topics = [await viewers.enter_async_context(hub.join(streams[n % 3].sid)) for n in range(30)]
        await until(lambda: all(topic.version for topic in topics))
        assert [await subscribers(log, claimed.sid) for claimed in streams] == [1, 1, 1]
        assert len(await log.redis.client_list(_type="pubsub")) == 1
        assert hub.topics == 3


async def test_what_is_appended_reaches_the_ring(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    async with hub.join(claimed.sid) as topic:
        await until(lambda: topic.version)
        await log.append(batch(claimed, 2, *text("Salt", "bread")))
        await until(lambda: topic.after(1))
        assert getattr(topic.after(1), "events", None) == (await log.read_all(claimed.sid))[1:]


async def test_a_topic_joined_before_there_is_a_connection_is_subscribed_with_it(log: StreamLog) -> None:
    hub = Hub(log.redis, log.keys)
    async with hub.join("sid") as topic:
        assert topic.version == 0
        loop = asyncio.create_task(hub.run())
        await until(lambda: topic.version)
        loop.cancel()
        await asyncio.wait([loop])
        assert topic.version == 0


async def test_a_topic_outlives_its_last_viewer_and_is_found_again(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    async with hub.join(claimed.sid) as topic:
        await until(lambda: topic.version)
    await log.append(batch(claimed, 2, *text("Salt")))
    await until(lambda: topic.after(1))
    async with hub.join(claimed.sid) as again:
        assert again is topic


async def test_a_topic_that_nobody_comes_back_to_is_let_go(
    log: StreamLog, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.live.hub, "LINGER_S", 0.0)
    claimed = await running(log)
    async with hub.join(claimed.sid) as topic:
        await until(lambda: topic.version)
        async with hub.join(claimed.sid):
            pass
        assert await subscribers(log, claimed.sid) == 1
    await until(lambda: hub.topics == 0)

    async def is_unsubscribed() -> bool:
        return await subscribers(log, claimed.sid) == 0

    await until(is_unsubscribed)
    async with hub.join(claimed.sid) as later:
        assert later is not topic
        await until(lambda: later.version)


async def test_leaving_and_joining_at_once_stays_subscribed(
    log: StreamLog, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.live.hub, "LINGER_S", 0.0)
    claimed = await running(log)
    for n in range(20):
        async with hub.join(claimed.sid) as topic:
            await until(lambda topic=topic: topic.version)
            await log.append(batch(claimed, 2 + n, *text("Salt")))
            await until(lambda topic=topic, n=n: topic.after(1 + n))
        await until(lambda: hub.topics == 0)


async def test_a_broken_subscription_is_made_again_and_everybody_told(log: StreamLog, hub: Hub) -> None:
    first, second = await running(log), await running(log)
    async with hub.join(first.sid) as one, hub.join(second.sid) as other:
        await until(lambda: one.version and other.version)
        await log.append(batch(first, 2, *text("Salt")))
        await until(lambda: one.after(1))
        versions = one.version, other.version
        await log.redis.client_kill_filter(_type="pubsub")
        await until(lambda: one.version > max(versions) and other.version > max(versions))
        assert ids(one.after(1)) == []
        await log.append(batch(first, 3, *text("bread")))
        await until(lambda: one.after(2))


async def test_something_published_that_is_no_batch_costs_no_viewer_the_stream(log: StreamLog, hub: Hub) -> None:
    claimed = await running(log)
    async with hub.join(claimed.sid) as topic:
        await until(lambda: topic.version)
        version = topic.version
        await log.redis.publish(log.keys.stream(claimed.sid).live, b"no batch")
        await until(lambda: topic.version > version)
        await log.append(batch(claimed, 2, *text("Salt")))
        await until(lambda: topic.after(1))


@pytest.fixture
async def proxy(valkey_url: str) -> AsyncIterator[Proxy]:
    async with proxy_to(valkey_url) as proxy:
        yield proxy


async def test_a_connection_that_went_silent_is_found_dead(
    log: StreamLog, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.live.subscription, "PING_S", 0.05)
    monkeypatch.setattr(broker.live.subscription, "SILENCE_S", 0.5)
    async with connect(proxy.url) as client:
        hub = Hub(client, log.keys)
        loop = asyncio.create_task(hub.run())
        async with hub.join("sid") as topic:
            await until(lambda: topic.version)
            proxy.hold()
            await until(lambda: topic.version == 0)
            proxy.release()
            await until(lambda: topic.version)
        loop.cancel()
        await asyncio.wait([loop])


async def test_a_connection_that_answers_pings_is_kept_however_little_happens(
    log: StreamLog, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.live.subscription, "PING_S", 0.02)
    async with hub.join("sid") as topic:
        await until(lambda: topic.version)
        version = topic.version

        async def has_pinged() -> bool:
            stats = await log.redis.info("commandstats")
            return int(stats["cmdstat_ping"]["calls"]) >= before + 5

        before = int((await log.redis.info("commandstats")).get("cmdstat_ping", {"calls": 0})["calls"])
        async with hub.join("another"):  # wakes the sender, which waits for the longer time it had before
            await until(has_pinged)
        assert topic.version == version


# -- when a process cannot keep up -------------------------------------------------------------------------


@pytest.fixture
def idle_hub() -> Hub:
    """One that is given its messages by hand."""
    return Hub(Redis(), Keys())


def published(hub: Hub, sid: str, first: int, *words: str) -> None:
    hub.take([b"message", Keys().stream(sid).live.encode(), *said(first, *words)])


async def test_what_waits_for_a_stream_goes_out_as_one_batch(idle_hub: Hub) -> None:
    async with idle_hub.join("busy") as topic:
        before = topic.changes
        for n in range(1, 101):
            published(idle_hub, "busy", n, "word")
        assert topic.changes == before, "it has its turn when whatever else is ready has had one"
        await asyncio.sleep(0)
        assert topic.changes == before + 1
        assert ids(topic.after(0)) == list(range(1, 101))


async def test_streams_have_their_turns_in_the_order_in_which_something_came(
    idle_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.live.hub, "SLICE_S", 0.0)
    async with AsyncExitStack() as viewers:
        topics = {sid: await viewers.enter_async_context(idle_hub.join(sid)) for sid in ("a", "b", "c")}
        for n in range(1, 51):
            published(idle_hub, "a", n, "word")
        published(idle_hub, "b", 1, "word")
        published(idle_hub, "c", 1, "word")
        turns = []
        while len(turns) < 3:
            await asyncio.sleep(0)  # a round ends after each turn here, and others than the hub run
            published(idle_hub, "a", 51 + len(turns), "more")  # always more for the busy one
            turns += [sid for sid, topic in topics.items() if topic.changes and sid not in turns]
        assert turns == ["a", "b", "c"]


async def test_with_many_streams_each_ring_is_shorter(idle_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.live.hub, "ALL_RINGS_EVENTS", 100)
    monkeypatch.setattr(broker.live.hub, "MIN_RING_EVENTS", 8)
    async with AsyncExitStack() as viewers:
        for sid in "abcd":
            await viewers.enter_async_context(idle_hub.join(sid))
        for n in range(1, 101):
            published(idle_hub, "a", n, "word")
            await asyncio.sleep(0)
        async with idle_hub.join("a") as topic:
            kept = next(held for cursor in range(101) if (held := topic.after(cursor)) is not None)
            assert 8 <= len(kept) <= 25


async def test_whoever_listens_is_told_of_messages_and_of_each_new_subscription(redis: Redis, hub: Hub) -> None:
    heard: list[str] = []
    with hub.listen("le:session:t:s", lambda _: heard.append("first")):
        await until(lambda: heard == ["first"])
        with hub.listen("le:session:t:s", lambda _: heard.append("second")):
            await redis.publish("le:session:t:s", "x")
            await until(lambda: heard == ["first", "first", "second"])
        await redis.client_kill_filter(_type="pubsub")
        await until(lambda: heard[3:] == ["first"])
    await until(lambda: _is_forgotten(redis, "le:session:t:s"))


async def _is_forgotten(redis: Redis, channel: str) -> bool:
    [(_, count)] = await redis.pubsub_numsub(channel)
    return bool(count == 0)
