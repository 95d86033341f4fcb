"""Who follows a stream: from records and announcements to what callers are told, and what a flush announces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

import broker.log.access
from broker.log.access import AccessRecord, View
from broker.log.keys import Keys
from broker.log.meta import new_sid
from broker.log.presence import (
    ANNOUNCED,
    KEY,
    MANY,
    SHOWN,
    Announcement,
    Crowd,
    Here,
    Names,
    Open,
    Seen,
    notice,
    shown,
    together,
)

KEYS = Keys()
SINCE = "1970-01-01T00:00:01.000Z"


def record(who: str | None = "user:ann", server: str = "a", opened: int = 1000, **more: Any) -> bytes:
    return orjson.dumps({"who": who, "address": "192.0.2.7", "server": server, "opened": opened, **more})


def here_of(*records: bytes) -> Here:
    here = Here()
    here.take((b"%d" % number, value) for number, value in enumerate(records))
    return here


def everybody(_: str) -> bool:
    return True


def seen_of(*who: str) -> Seen:
    return Seen(len(who), len(set(who)), dict.fromkeys(who, 1000))


# -- who is there ----------------------------------------------------------------------------------------------


def test_open_records_are_connections_and_their_names_are_people() -> None:
    here = here_of(record("user:ann", opened=2000), record("user:ann"), record("user:bob"), record(how="left"))
    assert here.seen(everybody) == Seen(3, 2, {"user:ann": 1000, "user:bob": 1000})


def test_a_sum_is_nobody() -> None:
    here = Here()
    here.take([(b"+0123", b'1 2 - - - - - {"who":"user:ann"}')])
    assert here.seen(everybody) == Seen()


def test_a_text_of_the_clients_does_not_make_an_open_record_a_closed_one() -> None:
    assert here_of(record(user_agent='","how":"left')).seen(everybody).connections == 1


def test_a_silent_servers_people_are_not_seen_until_it_speaks() -> None:
    here = here_of(record("user:ann", "a"), record("user:bob", "b"))
    here.take_crowds({b"b": b"7 3"})
    assert here.seen("a".__eq__) == Seen(1, 1, {"user:ann": 1000})
    assert here.seen(everybody) == Seen(9, 5, {"user:ann": 1000, "user:bob": 1000})


def test_a_keys_id_is_nowhere() -> None:
    here = here_of(record("key:1a2b3c4d"), record("key:5e6f"), record(None))
    assert here.seen(everybody).who == {KEY: 1000, "anyone": 1000}
    assert b"1a2b" not in Announcement("a", {"1": Open.of({"who": "key:1a2b3c4d", "opened": 1})}).encode()


def test_an_announcement_said_twice_is_one() -> None:
    here = here_of(record("user:ann"))
    said = Announcement("a", {"7": Open("user:bob", 5)}, ["0", "no such"], Crowd(2, 1))
    for _ in range(2):
        here.apply(Announcement.decode(said.encode()))
        assert here.seen(everybody) == Seen(3, 2, {"user:bob": 5})


def test_an_announcement_of_many_says_only_that_there_are_more() -> None:
    came = {str(number): Open("user:ann", 1) for number in range(ANNOUNCED + 1)}
    text = Announcement("a", came, ["x"], Crowd(1, 1)).encode()
    assert Announcement.decode(text) == Announcement("a", crowd=Crowd(1, 1), has_more=True)
    assert len(text) < 100


@pytest.mark.parametrize("text", [b"", b"7", b"[]", b"{}", b'{"server":"a"}', b'{"server":"a","crowd":[1]}'])
def test_what_is_no_announcement_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):
        Announcement.decode(text)


def test_together_somebody_at_two_streams_is_one_of_people() -> None:
    assert together([seen_of("user:ann", "user:bob"), seen_of("user:ann")]) == Seen(
        3, 2, {"user:ann": 1000, "user:bob": 1000}
    )
    assert together([]) == Seen()
    assert together([Seen(MANY + 1, 900), seen_of("user:ann")]) == Seen(MANY + 2, 901)


# -- what callers are told ---------------------------------------------------------------------------------------


def test_each_caller_sees_the_numbers_and_the_names_that_it_may() -> None:
    seen = seen_of("user:ann", KEY, "anyone")
    names = {sees: [each["who"] for each in shown(seen, sees)["viewers"]] for sees in Names}
    assert names == {Names.ALL: ["anyone", KEY, "user:ann"], Names.USERS: ["user:ann"], Names.NONE: []}
    assert {(shown(seen, sees)["connections"], shown(seen, sees)["people"]) for sees in Names} == {(3, 3)}


def test_at_most_so_many_names_are_shown_the_longest_here_first() -> None:
    seen = Seen(300, 300, {f"user:{number}": 1000 + number for number in reversed(range(300))})
    viewers = shown(seen, Names.ALL)["viewers"]
    assert [each["who"] for each in viewers] == [f"user:{number}" for number in range(SHOWN)]
    assert viewers[0] == {"who": "user:0", "since": SINCE}


def test_many_are_numbers_alone() -> None:
    here = here_of(*(record(f"user:{number % 7}") for number in range(MANY + 1)))
    assert shown(here.seen(everybody), Names.ALL) == {"connections": MANY + 1, "people": 7, "viewers": []}


def test_a_notice_has_who_came_and_who_went() -> None:
    said = notice(seen_of("user:ann", KEY), seen_of("user:ann", "user:bob"), Names.ALL)
    bob, key = {"who": "user:bob", "since": SINCE}, {"who": KEY, "since": SINCE}
    assert said == {"joined": [bob], "left": [key], "connections": 2, "people": 2}


def test_a_second_connection_of_somebody_is_in_the_number_alone() -> None:
    said = notice(seen_of("user:ann"), seen_of("user:ann", "user:ann"), Names.ALL)
    assert said == {"joined": [], "left": [], "connections": 2, "people": 1}


def test_no_news_is_no_notice() -> None:
    assert notice(seen_of("user:ann"), seen_of("user:ann"), Names.ALL) is None
    assert notice(seen_of("user:ann"), seen_of("user:bob"), Names.NONE) is None


def test_a_notice_is_whole_where_it_would_name_too_many_and_where_names_begin_or_end() -> None:
    crowd = seen_of(*(f"user:{number}" for number in range(SHOWN + 1)))
    for before, after in ((Seen(), crowd), (Seen(MANY + 1, 9), crowd), (crowd, Seen(MANY + 1, 9))):
        assert notice(before, after, Names.ALL) == shown(after, Names.ALL)
    numbers = {"joined": [], "left": [], "connections": MANY + 2, "people": 9}
    assert notice(Seen(MANY + 1, 9), Seen(MANY + 2, 9), Names.ALL) == numbers


# -- what a flush announces ----------------------------------------------------------------------------------------


def access_of(redis: Redis, limit: int = 1000) -> AccessRecord:
    return AccessRecord(redis, KEYS, retention_s=60, is_archived=False, limit=limit)


def view_of(sid: str, who: str = "user:ann") -> View:
    return View(sid, {"tenant": "t", "who": who, "address": "192.0.2.7", "format": "sse", "requested": 0})


@asynccontextmanager
async def hearing(redis: Redis, sid: str) -> AsyncIterator[Callable[[], Any]]:
    """heard(): what was announced since it was asked last."""
    async with redis.pubsub() as channel:
        await channel.subscribe(KEYS.presence_of(sid))
        assert (await channel.get_message(timeout=10))["type"] == "subscribe"
        yield lambda: _heard(redis, channel, KEYS.presence_of(sid))


async def _heard(redis: Redis, channel: PubSub, name: str) -> list[Announcement]:
    """To a mark that is published behind it."""
    await redis.publish(name, b"mark")
    found = []
    while (message := await channel.get_message(timeout=10)) and message["data"] != b"mark":
        found.append(Announcement.decode(message["data"]))
    return found


async def seen_in(redis: Redis, sid: str) -> Seen:
    here = Here()
    here.take((await redis.hgetall(KEYS.views_of(sid))).items())
    here.take_crowds(await redis.hgetall(KEYS.crowd_of(sid)))
    return here.seen(everybody)


async def test_who_came_and_who_went_since_the_last_flush_is_announced_once(redis: Redis) -> None:
    sid, access = new_sid(), access_of(redis)
    ann, bob = view_of(sid), view_of(sid, "user:bob")
    async with hearing(redis, sid) as heard:
        access.opened(ann)
        access.opened(bob)
        await access.flush()
        [came] = await heard()
        assert {opened.who for opened in came.came.values()} == {"user:ann", "user:bob"}
        access.closed(ann, "left")
        await access.flush()
        [went] = await heard()
        assert (went.came, went.went, went.server) == ({}, [ann.id], came.server)
        await access.flush()
        assert await heard() == []


async def test_who_came_and_went_between_two_flushes_is_not_announced_nor_who_only_reads(redis: Redis) -> None:
    sid, access = new_sid(), access_of(redis)
    async with hearing(redis, sid) as heard:
        view = view_of(sid)
        access.opened(view)
        access.closed(view, "left")
        access.read(sid, {"who": "user:ann", "format": "text"})
        await access.flush()
        assert await heard() == []


async def test_who_goes_while_its_coming_is_written_is_announced_as_gone(redis: Redis) -> None:
    sid, access = new_sid(), access_of(redis)
    async with hearing(redis, sid) as heard:
        view = view_of(sid)
        access.opened(view)
        flush = asyncio.create_task(access.flush())
        async with asyncio.timeout(30):
            while not view.is_announced:  # noqa: ASYNC110  # it is closed amid the flush, which nothing announces
                await asyncio.sleep(0)
        access.closed(view, "left")
        await flush
        assert [said.went for said in await heard()] == [[], [view.id]]
        assert await seen_in(redis, sid) == Seen()


async def test_one_that_redis_may_have_announced_is_announced_as_gone(redis: Redis) -> None:
    """Redis took it, its answer was lost, and the view closed before it was tried again."""
    sid, access = new_sid(), access_of(redis)
    view = view_of(sid)
    access.opened(view)
    view.is_announced = True
    access.closed(view, "left")
    async with hearing(redis, sid) as heard:
        await access.flush()
        assert [said.went for said in await heard()] == [[view.id]]


async def test_connections_without_a_record_of_their_own_are_counted_and_uncounted(redis: Redis) -> None:
    sid, access, other = new_sid(), access_of(redis, limit=2), access_of(redis, limit=2)
    views = [view_of(sid, f"user:{number % 4}") for number in range(10)]
    for view in views:
        (access if view in views[:7] else other).opened(view)
    here = Here()
    async with hearing(redis, sid) as heard:

        async def settle() -> Seen:
            await access.flush()
            await other.flush()
            for said in await heard():
                here.apply(said)
            found = await seen_in(redis, sid)
            assert here.seen(everybody) == found
            return found

        assert (await settle()).connections == 10
        assert await redis.ttl(KEYS.crowd_of(sid)) > 80_000
        for view, gone in zip(views, count(1), strict=False):
            (access if view in views[:7] else other).closed(view, "left")
            assert (await settle()).connections == 10 - gone
    assert await redis.exists(KEYS.crowd_of(sid)) == 0


async def test_one_without_a_record_that_goes_at_once_was_never_there(redis: Redis) -> None:
    sid, access = new_sid(), access_of(redis, limit=1)
    access.opened(view_of(sid))
    await access.flush()
    view = view_of(sid, "user:bob")
    access.opened(view)
    access.closed(view, "left")
    await access.flush()
    assert await seen_in(redis, sid) == Seen(1, 1, {"user:ann": (await _opened(redis, sid))})
    assert await redis.exists(KEYS.crowd_of(sid)) == 0


async def _opened(redis: Redis, sid: str) -> int:
    records = [
        orjson.loads(value) for name, value in (await redis.hgetall(KEYS.views_of(sid))).items() if name[:1] != b"+"
    ]
    opened: int = records[0]["opened"]
    return opened


async def test_a_crowds_number_is_written_again_each_hour(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    sid, access = new_sid(), access_of(redis, limit=1)
    for who in ("user:ann", "user:bob"):
        access.opened(view_of(sid, who))
    await access.flush()
    await redis.delete(KEYS.crowd_of(sid))
    await access.flush()
    assert await redis.exists(KEYS.crowd_of(sid)) == 0
    monkeypatch.setattr(broker.log.access, "CROWD_RENEWED_S", -1)
    await access.flush()
    assert (await seen_in(redis, sid)).connections == 2


async def test_a_server_gives_signs_of_life_also_with_nothing_to_write_and_within_a_long_backlog(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.log.access, "FLUSH_BATCH", 2)
    sid, access = new_sid(), access_of(redis)
    await redis.config_resetstat()
    await access.flush()
    assert await _calls(redis, "zadd") == 1
    for _ in range(10):
        access.opened(view_of(sid))
    await access.flush()
    assert await _calls(redis, "zadd") == 1 + 1 + 5


async def test_a_viewer_that_stays_costs_redis_nothing(redis: Redis) -> None:
    access = access_of(redis)
    for _ in range(50):
        access.opened(view_of(new_sid()))
    await access.flush()
    await redis.config_resetstat()
    for _ in range(3):
        await access.flush()
    said = await redis.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): told["calls"] for name, told in said.items()}
    written = {name: calls[name] for name in calls if name not in ("config|resetstat", "info")}
    assert written == {"time": 3, "zadd": 3, "expire": 3}


async def _calls(redis: Redis, command: str) -> int:
    calls: int = (await redis.info("commandstats"))[f"cmdstat_{command}"]["calls"]
    return calls
