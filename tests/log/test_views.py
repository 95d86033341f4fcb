"""A stream has so many records of its views, and no more: a caller that comes back without end is summed up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from broker.log.access import MAX_WAITING, AccessRecord, View, read_views
from broker.log.keys import Keys
from broker.log.meta import new_sid

LIMIT = 5


@pytest.fixture
def access(redis: Redis) -> AccessRecord:
    return another(redis)


def another(redis: Redis) -> AccessRecord:
    return AccessRecord(redis, Keys(), retention_s=60, is_archived=False, limit=LIMIT)


def view_of(sid: str, who: str = "token", address: str = "192.0.2.7", requested: int = 0) -> View:
    details = {"tenant": "t", "who": who, "address": address, "user_agent": "x" * 300, "format": "sse"}
    return View(sid, {**details, "requested": requested})


def come_and_go(access: AccessRecord, sid: str, span: tuple[int, int] = (1, 9), **caller: Any) -> None:
    view = view_of(sid, **caller)
    access.opened(view)
    view.delivered(*span)
    access.closed(view, "left")


async def records(redis: Redis, sid: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those of one view each, and the sums."""
    found = await read_views(redis, Keys(), sid, 0)
    return [one for one in found if "count" not in one], [one for one in found if "count" in one]


async def test_beyond_the_limit_a_callers_connections_are_one_record(access: AccessRecord, redis: Redis) -> None:
    sid = new_sid()
    for number in range(200):
        come_and_go(access, sid, span=(number + 3, number + 4), requested=number)
    await access.flush()
    own, [total] = await records(redis, sid)
    assert len(own) == LIMIT
    assert (total["who"], total["address"], total["count"], total["how"]) == ("token", "192.0.2.7", 195, "many")
    assert (total["requested"], total["first_id"], total["last_id"]) == (5, 8, 203)
    assert total["opened"] <= total["closed"]
    assert await redis.memory_usage(Keys().views_of(sid)) < 10_000


async def test_each_caller_has_a_sum_and_beyond_twice_the_limit_all_others_share_one(
    access: AccessRecord, redis: Redis
) -> None:
    sid = new_sid()
    for number in range(100):
        come_and_go(access, sid, address=f"192.0.2.{number}")
    come_and_go(access, sid, address="192.0.2.7")
    await access.flush()
    own, sums = await records(redis, sid)
    named, [others] = [one for one in sums if one["who"] == "token"], [one for one in sums if one["who"] == "others"]
    assert (len(own), len(named), others["address"]) == (LIMIT, LIMIT, None)
    assert {one["address"]: one["count"] for one in named} == {f"192.0.2.{n}": 2 if n == 7 else 1 for n in range(5, 10)}
    assert len(own) + sum(one["count"] for one in sums) == 101, "each is counted once"


async def test_the_bound_holds_over_all_servers(redis: Redis) -> None:
    sid = new_sid()
    servers = [another(redis) for _ in range(4)]
    for server in servers:
        for _ in range(20):
            come_and_go(server, sid)
    await asyncio.gather(*(server.flush() for server in servers))
    own, [total] = await records(redis, sid)
    assert (len(own), total["count"]) == (LIMIT, 75)


async def test_who_is_connected_when_the_limit_is_reached_is_counted_once_and_closed(
    access: AccessRecord, redis: Redis
) -> None:
    sid = new_sid()
    before, beyond = view_of(sid), view_of(sid)
    access.opened(before)
    for _ in range(LIMIT - 1):
        access.opened(view_of(sid))
    access.opened(beyond)
    await access.flush()
    own, [total] = await records(redis, sid)
    assert ([one["id"] for one in own].count(before.id), total["count"], total["closed"]) == (1, 1, None)
    for view in (before, beyond):
        view.delivered(2, 30)
        access.closed(view, "left")
    await access.flush()
    own, [total] = await records(redis, sid)
    assert [one["how"] for one in own if one["id"] == before.id] == ["left"]
    assert (total["count"], total["last_id"], total["closed"] is None) == (1, 30, False)


async def test_a_sum_stays_a_sum_when_there_is_room_again(access: AccessRecord, redis: Redis) -> None:
    """The archiver has taken the others meanwhile."""
    sid = new_sid()
    beyond = view_of(sid)
    for view in [*(view_of(sid) for _ in range(LIMIT)), beyond]:
        access.opened(view)
    await access.flush()
    own, _ = await records(redis, sid)
    await redis.hdel(Keys().views_of(sid), *(one["id"] for one in own))
    access.closed(beyond, "left")
    await access.flush()
    own, [total] = await records(redis, sid)
    assert (own, total["count"], total["closed"] is None) == ([], 1, False)


async def test_one_that_comes_and_goes_within_a_flush_is_one_entry(access: AccessRecord, redis: Redis) -> None:
    sid = new_sid()
    come_and_go(access, sid)
    assert access.waiting == 1
    await access.flush()
    [own], _ = await records(redis, sid)
    assert (own["how"], own["last_id"]) == ("left", 9)


async def test_event_ids_are_exact_in_a_sum(access: AccessRecord, redis: Redis) -> None:
    sid = new_sid()
    for _ in range(LIMIT + 2):
        come_and_go(access, sid, span=(2**53 - 3, 2**53 - 1))
    await access.flush()
    _, [total] = await records(redis, sid)
    assert (total["first_id"], total["last_id"]) == (2**53 - 3, 2**53 - 1)


async def test_a_sum_lives_as_long_as_any_record(access: AccessRecord, redis: Redis) -> None:
    sid = new_sid()
    for _ in range(LIMIT + 1):
        come_and_go(access, sid)
    await access.flush()
    assert 0 < await redis.ttl(Keys().views_of(sid)) <= 60


# -- readings ------------------------------------------------------------------------------------------------


def reader_of(who: str = "key:1", form: str = "text") -> dict[str, Any]:
    return {"tenant": "t", "who": who, "address": "::1", "format": form, "requested": 0}


async def test_a_caller_that_reads_leaves_one_record_a_form_a_stream_and_an_hour(
    access: AccessRecord, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    sid, other = new_sid(), new_sid()
    for _ in range(3):
        access.read(sid, reader_of(), (1, 9))
        access.read(sid, reader_of(form="record"))
        access.read(sid, reader_of(who="key:2"), (1, 9))
        access.read(other, reader_of(), (1, 4))
    assert access.waiting == 4
    await access.flush()
    own, _ = await records(redis, sid)
    assert sorted((one["who"], one["format"], one["last_id"], one["how"]) for one in own) == [
        *(("key:1", "record", None, "finished"), ("key:1", "text", 9, "finished"), ("key:2", "text", 9, "finished"))
    ]
    assert all(one["opened"] == one["closed"] for one in own)
    monkeypatch.setattr("broker.log.access.READ_AGAIN_S", 1e-6)  # the hour is over
    access.read(sid, reader_of(), (1, 9))
    assert access.waiting == 1


async def test_what_is_remembered_of_readings_is_bounded(access: AccessRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.log.access.MAX_REMEMBERED", 10)
    for _ in range(2):
        for number in range(30):
            access.read(f"{number}", reader_of())
    assert len(access._read_in) == 10
    assert access.waiting == 60, "what was forgotten is recorded again"
    assert MAX_WAITING >= 60
