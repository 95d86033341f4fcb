"""Presence: read by one for all who ask, and watched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

import broker.live.presence
from broker.live.hub import Hub
from broker.live.presence import SHARED_RECORDS, Presence
from broker.log.access import AccessRecord, View
from broker.log.keys import Keys
from broker.log.meta import new_sid
from broker.log.presence import MANY, SILENT_AFTER_MS, Names
from tests.rig.deployment import until

KEYS = Keys()
LIMIT_S = 30.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTICE_S", "LOOK_S", "AGAIN_S"):
        monkeypatch.setattr(broker.live.presence, name, 0.02)


@pytest.fixture
async def hub(redis: Redis) -> AsyncIterator[Hub]:
    hub = Hub(redis, KEYS)
    async with running(hub):
        yield hub


@pytest.fixture
async def presence(redis: Redis, hub: Hub) -> AsyncIterator[Presence]:
    presence = Presence(redis, KEYS, hub)
    async with running(presence):
        yield presence


@asynccontextmanager
async def running(what: Hub | Presence) -> AsyncIterator[None]:
    loop = asyncio.create_task(what.run())
    yield
    loop.cancel()
    with suppress(asyncio.CancelledError):
        await loop


class Server:
    """A server's access record, which a test flushes."""

    def __init__(self, redis: Redis, limit: int = 20_000) -> None:
        self.access = AccessRecord(redis, KEYS, retention_s=60, is_archived=False, limit=limit)
        self._redis = redis

    async def opens(self, sid: str, *who: str) -> list[View]:
        views = [View(sid, {"tenant": "t", "who": each, "address": "192.0.2.7"}) for each in who]
        for view in views:
            self.access.opened(view)
        await self.access.flush()
        return views

    async def closes(self, *views: View) -> None:
        for view in views:
            self.access.closed(view, "left")
        await self.access.flush()

    async def falls_silent(self) -> None:
        """As if its last sign of life were old."""
        name = self.access._server
        long_ago_ms = (await self._redis.time())[0] * 1000 - SILENT_AFTER_MS - 1000
        await self._redis.zadd(KEYS.tiers, {name: long_ago_ms})


class Watcher:
    """What one caller was told, and who is there by that."""

    def __init__(self, presence: Presence, sid: str, names: Names = Names.ALL) -> None:
        self.told: list[dict[str, Any]] = []
        self.here: set[str] = set()
        self.names = names
        self._notices = presence.watch(sid, lambda: self.names)

    async def hears(self) -> dict[str, Any]:
        async with asyncio.timeout(LIMIT_S):
            said = await anext(self._notices)
        self.told.append(said)
        if "viewers" in said:
            self.here = {each["who"] for each in said["viewers"]}
        else:
            self.here |= {each["who"] for each in said["joined"]}
            self.here -= {each["who"] for each in said["left"]}
        return said

    async def hears_until(self, *who: str) -> None:
        while self.here != set(who) or not self.told:
            await self.hears()

    async def close(self) -> None:
        await self._notices.aclose()


async def test_a_watcher_is_told_the_whole_and_then_who_comes_and_goes_at_each_server(
    redis: Redis, presence: Presence
) -> None:
    sid, one, other = new_sid(), Server(redis), Server(redis)
    [ann] = await one.opens(sid, "user:ann")
    watcher = Watcher(presence, sid)
    first = await watcher.hears()
    assert (first["connections"], first["people"], [each["who"] for each in first["viewers"]]) == (1, 1, ["user:ann"])
    [bob] = await other.opens(sid, "user:bob")
    joined = await watcher.hears()
    assert (joined["connections"], [each["who"] for each in joined["joined"]], joined["left"]) == (2, ["user:bob"], [])
    await one.closes(ann)
    left = await watcher.hears()
    assert (left["connections"], [each["who"] for each in left["left"]]) == (1, ["user:ann"])
    await other.closes(bob)
    await watcher.hears_until()
    await watcher.close()


async def test_watchers_share_a_task_and_each_sees_what_it_may(redis: Redis, presence: Presence) -> None:
    sid, server = new_sid(), Server(redis)
    watchers = [Watcher(presence, sid, names) for names in Names]
    for watcher in watchers:
        await watcher.hears()
    assert len(presence._watched) == 1
    await server.opens(sid, "user:ann", "key:1a2b3c4d")
    said = [await watcher.hears() for watcher in watchers]
    assert [watcher.here for watcher in watchers] == [{"user:ann", "key"}, {"user:ann"}, set()]
    assert {(each["connections"], each["people"]) for each in said} == {(2, 2)}
    for watcher in watchers:
        await watcher.close()
    assert presence._watched == {}


async def test_the_people_of_a_silent_server_leave_and_are_back_when_it_speaks(
    redis: Redis, presence: Presence
) -> None:
    sid, one, other = new_sid(), Server(redis), Server(redis)
    await one.opens(sid, "user:ann")
    await other.opens(sid, "user:bob")
    watcher = Watcher(presence, sid)
    await watcher.hears_until("user:ann", "user:bob")
    await one.falls_silent()
    await watcher.hears_until("user:bob")
    assert (await presence.of(sid)).connections == 1
    await one.access.flush()
    await watcher.hears_until("user:ann", "user:bob")
    await watcher.close()


async def test_who_asks_is_not_told_of_a_silent_servers_people(redis: Redis, presence: Presence) -> None:
    sid, one, other = new_sid(), Server(redis), Server(redis)
    await one.opens(sid, "user:ann")
    await other.opens(sid, "user:bob")
    assert set((await presence.of(sid)).who) == {"user:ann", "user:bob"}
    await one.falls_silent()
    assert set((await presence.of(sid)).who) == {"user:bob"}


async def test_what_was_announced_while_the_subscription_was_broken_is_read(
    redis: Redis, hub: Hub, presence: Presence
) -> None:
    sid, server = new_sid(), Server(redis)
    watcher = Watcher(presence, sid)
    await watcher.hears()
    for who in ("user:ann", "user:bob", "user:cyd"):
        assert hub._subscription
        hub._subscription.fail(ConnectionError("a test"))
        await server.opens(sid, who)
        await watcher.hears_until(*watcher.here, who)
    await watcher.close()


async def test_a_thousand_that_come_at_once_are_read_and_beyond_that_are_numbers(
    redis: Redis, presence: Presence
) -> None:
    sid, one, other = new_sid(), Server(redis), Server(redis)
    watcher = Watcher(presence, sid)
    await watcher.hears()
    half = MANY // 2 + 1
    views = await one.opens(sid, *(f"user:{number}" for number in range(half)))
    await other.opens(sid, *(f"user:{number}" for number in range(half)))
    while (said := await watcher.hears())["connections"] < 2 * half:
        pass
    assert (said["connections"], said["people"], said["viewers"]) == (2 * half, half, [])
    await one.closes(*views)
    while (said := await watcher.hears())["connections"] > half:
        pass
    assert (said["connections"], said["people"], len(said["viewers"])) == (half, half, 200)
    await watcher.close()


async def test_connections_beyond_the_streams_records_count_too(redis: Redis, presence: Presence) -> None:
    sid, one, other = new_sid(), Server(redis, limit=3), Server(redis, limit=3)
    watcher = Watcher(presence, sid)
    await watcher.hears()
    views = await one.opens(sid, *(f"user:{number}" for number in range(10)))
    await other.opens(sid, *(f"user:{number}" for number in range(10)))
    while (said := await watcher.hears())["connections"] != 20:
        pass
    await one.closes(*views)
    while (said := await watcher.hears())["connections"] != 10:
        pass
    assert said["people"] == 10
    await watcher.close()
    assert (await presence.of(sid)).connections == 10


async def test_what_is_no_announcement_harms_nobody(redis: Redis, presence: Presence) -> None:
    sid, server = new_sid(), Server(redis)
    watcher = Watcher(presence, sid)
    await watcher.hears()
    for text in ("", "7", "[]", "{}"):
        await redis.publish(KEYS.presence_of(sid), text)
    await server.opens(sid, "user:ann")
    await watcher.hears_until("user:ann")
    await watcher.close()


async def test_a_slow_watcher_is_told_the_difference_to_what_it_was_told_last(redis: Redis, presence: Presence) -> None:
    sid, server = new_sid(), Server(redis)
    slow, quick = Watcher(presence, sid), Watcher(presence, sid)
    await slow.hears()
    for number in range(5):
        views = await server.opens(sid, f"user:{number}")
        await quick.hears_until(f"user:{number}")
        await server.closes(*views)
        await quick.hears_until()
    await server.opens(sid, "user:ann")
    await quick.hears_until("user:ann")
    said = await slow.hears()
    assert ([each["who"] for each in said["joined"]], said["left"]) == (["user:ann"], [])
    await slow.close()
    await quick.close()


async def test_who_may_see_less_from_now_on_is_told_the_whole_of_that(redis: Redis, presence: Presence) -> None:
    sid, server = new_sid(), Server(redis)
    await server.opens(sid, "user:ann")
    watcher = Watcher(presence, sid)
    await watcher.hears_until("user:ann")
    watcher.names = Names.NONE
    await server.opens(sid, "user:bob")
    assert await watcher.hears() == {"connections": 2, "people": 2, "viewers": []}
    await watcher.close()


async def test_those_who_ask_at_the_same_time_share_a_reading(redis: Redis, presence: Presence) -> None:
    sid = new_sid()
    await Server(redis).opens(sid, "user:ann")
    await redis.config_resetstat()
    seen = await asyncio.gather(*(presence.of(sid) for _ in range(50)))
    assert {each.connections for each in seen} == {1}
    assert (await redis.info("commandstats"))["cmdstat_hkeys"]["calls"] == 1


async def test_a_reading_of_many_records_is_everybodys_for_a_while(
    redis: Redis, presence: Presence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.live.presence, "NOTICE_S", LIMIT_S)
    sid, server = new_sid(), Server(redis)
    views = await server.opens(sid, *(f"user:{number}" for number in range(SHARED_RECORDS + 1)))
    await server.closes(*views)  # what is read counts, not what is found
    first = await presence.of(sid)
    await server.opens(sid, "user:ann")
    assert await presence.of(sid) is first
    assert first.connections == 0


async def test_one_of_many_streams_is_read_once_a_while_however_often_it_is_asked_for(
    redis: Redis, presence: Presence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.live.presence, "NOTICE_S", LIMIT_S)
    sid, server = new_sid(), Server(redis)
    await server.opens(sid, "user:ann")
    first = await presence.of(sid, is_one_of_many=True)
    await server.opens(sid, "user:ben")
    assert await presence.of(sid, is_one_of_many=True) is first
    assert first.connections == 1


async def test_a_foreign_key_is_said_to_who_asks_and_a_watcher_waits(
    redis: Redis, presence: Presence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.live.presence, "FAILED_S", 0.02)
    sid = new_sid()
    await redis.set(KEYS.views_of(sid), "not ours", ex=60)
    watcher = Watcher(presence, sid)
    waiting = asyncio.create_task(watcher.hears())
    for _ in range(2):
        with pytest.raises(Exception, match="type"):
            await presence.of(sid)
    await redis.delete(KEYS.views_of(sid))
    assert (await waiting)["connections"] == 0
    await watcher.close()


async def test_nothing_is_left_of_a_watcher_that_leaves_at_any_moment(redis: Redis, presence: Presence) -> None:
    sid = new_sid()
    await Server(redis).opens(sid, "user:ann")
    for steps in range(30):
        async with aclosing(presence.watch(sid, lambda: Names.ALL)) as notices:
            asking = asyncio.ensure_future(anext(notices))
            for _ in range(steps):
                await asyncio.sleep(0)
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking
    assert presence._watched == {}
    await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name() == "presence"], "no task is left")


async def test_ten_thousand_records_are_read_while_others_have_their_turns(redis: Redis, presence: Presence) -> None:
    """The figure is that of bench/presence.py, on a machine that does nothing else. Here: in pieces."""
    sid = new_sid()
    server = Server(redis)
    await server.access.flush()
    name = server.access._server
    record = {"who": "user:ann", "user_agent": "x" * 300, "server": name, "opened": 1}
    fields = {f"{number:032}": orjson.dumps(record) for number in range(10_000)}
    await redis.hset(KEYS.views_of(sid), mapping=fields)
    await redis.expire(KEYS.views_of(sid), 60)
    turns = 0
    asked = asyncio.create_task(presence.of(sid))
    began_s = time.process_time()
    while not asked.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await asked).connections == 10_000
    assert turns > 40
    assert time.process_time() - began_s < 5
