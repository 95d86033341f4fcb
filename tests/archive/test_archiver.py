"""What has ended moves into the archive, once, and Redis lets go of nothing before (G7); killed at every step, too."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from broker.archive.database import Database
from broker.archive.writer import ArchiveWriter
from broker.errors import ArchiveUnavailable
from broker.log.access import LOST_AFTER_MS, AccessRecord, View, read_stored, read_views
from broker.log.index import Filter
from broker.log.meta import Meta, new_sid
from broker.log.seizures import Seizures
from broker.log.stream_log import StreamLog
from broker.service.listing import Listing
from tests.archive.archive import TestArchive, finish
from tests.archive.conftest import DATABASES, new_archive, open_archive
from tests.rig.deployment import until
from tests.rig.long import LONG
from tests.rig.streams import ids, meta, queued, running, sweeper
from worker.archiving.archiver import Archiver
from worker.archiving.streams import AGAIN_S
from worker.archiving.turn import TURN_MS

RETENTION_S = 500.0


@pytest.fixture
def archive_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/archive.db"


@pytest.fixture
async def archive(archive_url: str, tmp_path: Path) -> AsyncIterator[TestArchive]:
    async with open_archive(archive_url, tmp_path) as archive:
        yield archive


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis, retention_s=RETENTION_S, is_archived=True)


@pytest.fixture
def archiver(log: StreamLog, archive: TestArchive) -> Archiver:
    return Archiver(log, archive.writer, after_s=0, retention_s=lambda _: None)


async def sweep(log: StreamLog) -> None:
    """The leases of all streams have run out, and a sweeper looks."""
    for sid in await log.redis.zrange(log.keys.leases, 0, -1):
        await log.redis.zadd(log.keys.leases, {sid: 1})

    async def take(sid: str, _: Meta) -> None:
        raise AssertionError(f"{sid} is finished")

    await sweeper(log, take).sweep()


async def on_its_way(log: StreamLog, **fields: Any) -> str:
    sid = await finish(log, **fields)
    await sweep(log)
    return sid


async def lives_s(log: StreamLog, sid: str) -> list[int]:
    """The seconds that its log and its meta have to live; -1: no end to it, -2: gone."""
    keys = log.keys.stream(sid)
    return [await log.redis.ttl(key) for key in (keys.log, keys.meta)]


# -- G7 ----------------------------------------------------------------------------------------------------


async def test_with_an_archive_an_ending_gives_a_stream_no_life(log: StreamLog) -> None:
    sid = await finish(log)
    assert await lives_s(log, sid) == [-1, -1]
    cancelled = await queued(log)
    await Seizures(log).seize(cancelled, "cancelled", b"{}")
    assert await lives_s(log, cancelled) == [-1, -1]
    await sweep(log)


async def test_a_finished_stream_is_always_in_one_index_or_the_other(log: StreamLog) -> None:
    sid = await finish(log)
    assert await log.redis.zscore(log.keys.leases, sid) is not None
    await sweep(log)
    assert await log.redis.zscore(log.keys.leases, sid) is None
    assert await log.redis.zscore(log.keys.unarchived, sid) is not None


async def test_once_archived_it_lives_for_its_retention(
    log: StreamLog, archiver: Archiver, archive: TestArchive
) -> None:
    sid = await on_its_way(log)
    before = await log.read_all(sid)
    await archiver.archive_once()
    stored = await archive.reader.read_log(sid)
    assert stored
    assert await stored.read_all(sid) == before
    assert all(RETENTION_S - 5 < life <= RETENTION_S for life in await lives_s(log, sid))
    assert (await meta(log, sid))["archived"]
    assert await log.redis.zscore(log.keys.unarchived, sid) is None
    assert await archive.findings() == []


async def test_all_endings_are_archived_and_what_runs_is_not(
    log: StreamLog, archiver: Archiver, archive: TestArchive
) -> None:
    done, failed = await finish(log), await finish(log, ending="error")
    cancelled = await queued(log)
    await Seizures(log).seize(cancelled, "cancelled", b'{"reason":"requested","by":"client"}')
    live = await running(log)
    await sweep_finished(log)
    await archiver.archive_once()
    metas = [await archive.reader.find(sid) for sid in (done, failed, cancelled, live.sid)]
    assert [found and found.state for found in metas] == ["done", "error", "cancelled", None]
    assert await ids(log, cancelled) == [event.id for event in await log.read_all(cancelled)]
    assert await archive.findings() == []


async def sweep_finished(log: StreamLog) -> None:
    for sid in await log.redis.zrange(log.keys.leases, 0, -1):
        if (await meta(log, sid.decode()))["state"] != "running":
            await log.redis.zadd(log.keys.leases, {sid: 1})

    async def take(_: str, __: Meta) -> None:
        raise AssertionError

    await sweeper(log, take).sweep()


async def test_what_has_just_ended_is_left_to_settle(log: StreamLog, archive: TestArchive) -> None:
    sid = await on_its_way(log)
    await Archiver(log, archive.writer, after_s=60, retention_s=lambda _: None).archive_once()
    assert await archive.reader.find(sid) is None
    assert await log.redis.zscore(log.keys.unarchived, sid) is not None


async def test_a_stream_that_lost_its_ending_waits_until_it_is_back(
    log: StreamLog, archiver: Archiver, archive: TestArchive
) -> None:
    sid = await on_its_way(log)
    await log.redis.hset(log.keys.stream(sid).meta, "state", "running")
    await archiver.archive_once()
    assert await archive.reader.find(sid) is None
    again_ms = await log.redis.zscore(log.keys.unarchived, sid)
    assert again_ms
    assert again_ms > await log.now_ms() + AGAIN_S * 900
    await log.redis.zrem(log.keys.unarchived, sid)
    for key in log.keys.stream(sid):
        await log.redis.expire(key, 5)


async def test_a_log_that_does_not_end_as_it_should_stays_in_redis_and_is_said(
    log: StreamLog, archiver: Archiver, archive: TestArchive, caplog: pytest.LogCaptureFixture
) -> None:
    sid = await on_its_way(log)
    await log.redis.xtrim(log.keys.stream(sid).log, maxlen=0)
    await log.redis.xadd(log.keys.stream(sid).log, {"k": "text_delta", "d": "{}", "t": 1}, id="9-0")
    await archiver.archive_once()
    assert await archive.reader.find(sid) is None
    assert await lives_s(log, sid) == [-1, -1]
    assert "does not end where its meta says" in caplog.text


@pytest.mark.parametrize(("field", "value"), [("created", "no number"), ("created", "9" * 30), ("tenant", None)])
async def test_one_that_cannot_be_archived_stays_in_redis_and_keeps_no_other_out(
    log: StreamLog,
    archiver: Archiver,
    archive: TestArchive,
    caplog: pytest.LogCaptureFixture,
    field: str,
    value: str | None,
) -> None:
    bad, good = await finish(log), await finish(log)
    await sweep(log)
    if value is None:
        await log.redis.hdel(log.keys.stream(bad).meta, field)
    else:
        await log.redis.hset(log.keys.stream(bad).meta, field, value)
    await archiver.archive_once()
    assert await archive.reader.find(bad) is None
    assert await archive.reader.find(good)
    assert await lives_s(log, bad) == [-1, -1]
    assert f"stream {bad}: it could not be archived" in caplog.text


async def test_one_worker_archives_at_a_time_and_another_goes_on_when_it_is_gone(
    log: StreamLog, archive: TestArchive
) -> None:
    first, second = (Archiver(log, archive.writer, after_s=0, retention_s=lambda _: None) for _ in range(2))
    assert [await one.turn.take() for one in (first, second, first, second)] == [True, False, True, False]
    assert 0 < await log.redis.pttl(log.keys.archiver) <= TURN_MS
    await log.redis.delete(log.keys.archiver)
    assert [await one.turn.take() for one in (second, first)] == [True, False]


async def test_a_worker_that_cannot_reach_the_archive_keeps_nobody_who_can_from_it(
    log: StreamLog, archive: TestArchive, tmp_path: Path
) -> None:
    nowhere = ArchiveWriter(Database(f"postgresql:///x?host={tmp_path}"), archive.signer, archive.heads)
    cut_off, other = (
        Archiver(log, writer, after_s=0, retention_s=lambda _: None) for writer in (nowhere, archive.writer)
    )
    sid = await on_its_way(log)
    running = [asyncio.create_task(cut_off.run())]
    try:
        await until(lambda: log.redis.exists(log.keys.archiver), "it has its turn", every_s=0.001)
        running.append(asyncio.create_task(other.run()))
        await until(lambda: archive.reader.find(sid), "the other one has archived it")
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)


async def test_the_sweep_finds_what_ended_without_an_archive(
    log: StreamLog, redis: Redis, archiver: Archiver, archive: TestArchive, caplog: pytest.LogCaptureFixture
) -> None:
    without = StreamLog(redis, retention_s=RETENTION_S)
    sid = await finish(without)
    await sweep(without)
    assert await redis.zscore(log.keys.unarchived, sid) is None
    await archiver.streams.sweep()
    assert await lives_s(log, sid) == [-1, -1]
    assert "1 ended streams were not listed" in caplog.text
    await archiver.archive_once()
    assert await archive.reader.find(sid)
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        await archiver.streams.sweep()
        assert caplog.text == ""


async def test_archived_streams_leave_the_tenants_list_in_redis_and_stay_in_their_sessions(
    log: StreamLog, archiver: Archiver
) -> None:
    sid = await on_its_way(log)
    created = float((await meta(log, sid))["created"])
    await archiver.archive_once()
    assert not await log.redis.exists(log.keys.streams("t"))
    assert await log.redis.zscore(log.keys.session("t", "s"), sid) == created
    assert await log.redis.zscore(log.keys.sessions("t"), "s") == created
    assert await meta(log, sid)


async def test_a_stream_that_is_archived_is_listed_once_with_its_session_and_so_is_the_session(
    log: StreamLog, archiver: Archiver, archive: TestArchive
) -> None:
    sids = {await on_its_way(log) for _ in range(3)}
    await archiver.archive_once()
    listing = Listing(log, archive.reader, max_bytes=2**20)

    async def records(found: Sequence[tuple[str, Meta]]) -> list[dict[str, Any]]:
        return [{"id": sid} for sid, _ in found]

    async def listed() -> list[str]:
        found, after = [], None
        while True:
            page = await listing.streams("t", Filter(session="s"), limit=2, after=after, records=records)
            found += [one["id"] for one in page["streams"]]
            after = page["next"]
            if after is None:
                return found

    async def sessions() -> list[str]:
        return [one["id"] for one in (await listing.sessions("t", limit=5, after=None))["sessions"]]

    assert sorted(await listed()) == sorted(sids)
    assert await sessions() == ["s"]
    for sid in sids:  # its retention in Redis is over
        await log.redis.delete(log.keys.stream(sid).meta, log.keys.stream(sid).log)
    assert sorted(await listed()) == sorted(sids)
    assert await sessions() == ["s"]


# -- erasure -----------------------------------------------------------------------------------------------


async def test_an_order_to_erase_is_carried_out_in_the_archive(
    log: StreamLog, archiver: Archiver, archive: TestArchive
) -> None:
    sid = await on_its_way(log)
    await archiver.archive_once()
    await log.redis.zadd(log.keys.erasing, {sid: await log.now_ms()})
    await log.erase(sid, Meta(await meta(log, sid)), await log.now_ms(), by="anyone")
    await archiver.archive_once()
    found = await archive.reader.find(sid)
    assert found
    assert found.erased
    assert found.erased_by == "anyone"
    assert await log.redis.zcard(log.keys.erasing) == 0
    assert await archive.findings() == []


async def test_an_order_of_a_server_of_release_0_1_is_carried_out_though_it_does_not_say_whose_it_is(
    log: StreamLog, archiver: Archiver, archive: TestArchive
) -> None:
    sid = await on_its_way(log)
    await archiver.archive_once()
    await log.redis.zadd(log.keys.erasing, {sid: await log.now_ms()})
    await log.erase(sid, Meta(await meta(log, sid)), await log.now_ms(), by="")
    await log.redis.hdel(log.keys.stream(sid).meta, "erased_by")
    await archiver.archive_once()
    found = await archive.reader.find(sid)
    assert found
    assert (found.erased is not None, found.erased_by) == (True, None)
    assert await archive.findings() == []


async def test_an_order_waits_for_the_erasure_it_announces(log: StreamLog, archiver: Archiver) -> None:
    sid = await on_its_way(log)
    await log.redis.zadd(log.keys.erasing, {sid: await log.now_ms()})
    await archiver.archive_once()
    assert await log.redis.zcard(log.keys.erasing) == 1
    await log.redis.zadd(log.keys.erasing, {sid: await log.now_ms() - AGAIN_S * 1000 - 1})
    await archiver.archive_once()
    assert await log.redis.zcard(log.keys.erasing) == 0


async def test_a_stream_erased_before_it_was_archived_never_comes(
    log: StreamLog, archiver: Archiver, archive: TestArchive
) -> None:
    sid = await on_its_way(log)
    await log.redis.zadd(log.keys.erasing, {sid: await log.now_ms()})
    await log.erase(sid, Meta(await meta(log, sid)), await log.now_ms(), by="anyone")
    assert await lives_s(log, sid) == [-2, -1]
    await archiver.archive_once()
    assert all(life != -1 for life in await lives_s(log, sid))
    found = await archive.reader.find(sid)
    assert found
    assert found.erased
    assert await log.redis.zcard(log.keys.unarchived) == 0
    assert await archive.findings() == []


async def test_an_erasure_whose_order_was_lost_is_found_by_the_sweep(
    log: StreamLog, archiver: Archiver, archive: TestArchive
) -> None:
    sid = await on_its_way(log)
    await archiver.archive_once()
    await log.erase(sid, Meta(await meta(log, sid)), await log.now_ms(), by="anyone")
    await archiver.streams.sweep()
    await archiver.archive_once()
    found = await archive.reader.find(sid)
    assert found
    assert found.erased


async def test_the_archives_retention_reaches_redis_too(log: StreamLog, archive: TestArchive) -> None:
    sid = await on_its_way(log, user="ann")
    archiver = Archiver(log, archive.writer, after_s=0, retention_s=lambda _: -60.0)
    await archiver.archive_once()
    await archiver.erasures.expire()
    left = await meta(log, sid)
    assert ("erased" in left, "user" in left, await ids(log, sid)) == (True, False, [])
    assert all(life != -1 for life in await lives_s(log, sid))


async def test_a_database_file_that_was_moved_away_holds_nothing(
    log: StreamLog, archiver: Archiver, archive: TestArchive, tmp_path: Path
) -> None:
    """SQLite would go on writing to it, wherever it is now; and Redis would let go of what is in no archive."""
    first, second = await finish(log), await finish(log)
    await sweep(log)
    await log.redis.zrem(log.keys.unarchived, second)
    await archiver.archive_once()
    move_away(tmp_path)
    await log.redis.zadd(log.keys.unarchived, {second: 1})
    with pytest.raises(ArchiveUnavailable):
        await archiver.archive_once()
    assert await lives_s(log, second) == [-1, -1]
    await archiver.archive_once()
    assert await archive.reader.find(second)
    assert await archive.reader.find(first) is None


def move_away(folder: Path) -> None:
    for path in folder.glob("archive.db*"):
        path.rename(folder / f"moved-{path.name}")


async def test_the_archives_retention_is_per_tenant(log: StreamLog, archive: TestArchive) -> None:
    sids = {tenant: await finish(log, tenant=tenant) for tenant in ("short", "long")}
    await sweep(log)
    archiver = Archiver(log, archive.writer, after_s=0, retention_s={"short": -60.0, "long": 60.0}.get)
    await archiver.archive_once()
    await archiver.erasures.expire()
    assert await archive.reader.read_log(sids["short"]) is None
    assert await archive.reader.read_log(sids["long"]) is not None


# -- viewers -----------------------------------------------------------------------------------------------


def access_record(log: StreamLog, *, is_archived: bool = True) -> AccessRecord:
    return AccessRecord(log.redis, log.keys, retention_s=RETENTION_S, is_archived=is_archived)


def view_of(sid: str) -> View:
    return View(sid, {"tenant": "t", "who": "anyone", "address": "::1", "user_agent": "x", "requested": 0})


async def settle(log: StreamLog) -> None:
    """The index's entries are old enough to be looked at."""
    for sid in await log.redis.zrange(log.keys.views, 0, -1):
        await log.redis.zadd(log.keys.views, {sid: 1})


async def test_a_viewers_record_goes_by_redis_into_the_archive(
    log: StreamLog, archiver: Archiver, archive: TestArchive
) -> None:
    access, sid = access_record(log), new_sid()
    gone, here = view_of(sid), view_of(sid)
    access.opened(gone)
    access.opened(here)
    gone.delivered(3, 9)
    access.closed(gone, "left")
    await access.flush()
    await settle(log)
    await archiver.archive_once()
    [stored] = (await archive.reader.views(sid, 10)).values()
    assert (stored["id"], stored["first_id"], stored["last_id"], stored["how"]) == (gone.id, 3, 9, "left")
    [waiting] = await read_views(log.redis, log.keys, sid, await log.now_ms())
    assert (waiting["id"], "how" in waiting) == (here.id, False)
    access.closed(here, "finished")
    await access.close()
    await settle(log)
    await archiver.archive_once()
    assert len(await archive.reader.views(sid, 10)) == 2
    assert await log.redis.zcard(log.keys.views) == 0
    assert not await log.redis.exists(log.keys.views_of(sid))
    assert await archive.findings() == []


async def test_a_dead_servers_viewers_are_closed_for_it(
    log: StreamLog, archiver: Archiver, archive: TestArchive, caplog: pytest.LogCaptureFixture
) -> None:
    access, sid = access_record(log), new_sid()
    access.opened(view_of(sid))
    await access.flush()
    [server] = await log.redis.zrange(log.keys.tiers, 0, -1)
    await log.redis.zadd(log.keys.tiers, {server: await log.now_ms() - LOST_AFTER_MS - 1})
    [(view, record)] = (await log.redis.hgetall(log.keys.views_of(sid))).items()
    old = record.replace(b'"opened":1', b'"opened":')  # a digit less: long ago
    await log.redis.hset(log.keys.views_of(sid), view, old)
    await settle(log)
    await archiver.archive_once()
    [stored] = (await archive.reader.views(sid, 10)).values()
    assert (stored["how"], stored["last_id"]) == ("server_lost", None)
    assert "ended without closing its viewers' records" in caplog.text
    assert await log.redis.zcard(log.keys.tiers) == 0


async def test_a_viewer_that_comes_while_the_index_is_cleared_is_not_forgotten(
    log: StreamLog, archiver: Archiver
) -> None:
    access, sid = access_record(log), new_sid()
    view = view_of(sid)
    access.opened(view)
    access.closed(view, "left")
    await access.flush()
    stale = await log.redis.zscore(log.keys.views, sid)
    await log.redis.delete(log.keys.views_of(sid))
    await log.redis.zadd(log.keys.views, {sid: stale + 5})  # somebody came in between
    await archiver.views._move_on(sid, stale, await log.now_ms())
    assert await log.redis.zscore(log.keys.views, sid) == stale + 5
    await archiver.views._move_on(sid, stale + 5, await log.now_ms())
    assert await log.redis.zscore(log.keys.views, sid) is None


async def come_and_go(log: StreamLog, sid: str, times: int, *, limit: int, address: str = "::1") -> None:
    access = AccessRecord(log.redis, log.keys, retention_s=RETENTION_S, is_archived=True, limit=limit)
    for _ in range(times):
        view = View(sid, {"tenant": "t", "who": "token", "address": address, "requested": 0})
        access.opened(view)
        view.delivered(1, 9)
        access.closed(view, "left")
    await access.close()
    await settle(log)


async def age_sums(log: StreamLog, sid: str) -> None:
    """A day has passed."""
    for field, value in (await log.redis.hgetall(log.keys.views_of(sid))).items():
        if field.startswith(b"+"):
            await log.redis.hset(log.keys.views_of(sid), field, b"1 " + value.partition(b" ")[2])
    await settle(log)


async def test_the_archive_has_no_more_records_of_a_stream_than_its_limit_however_often_they_are_moved(
    log: StreamLog, archive: TestArchive
) -> None:
    sid, limit = new_sid(), 4
    archiver = Archiver(log, archive.writer, after_s=0, retention_s=lambda _: None, view_records=limit)
    for _ in range(5):
        await come_and_go(log, sid, 3, limit=limit)
        await archiver.archive_once()
    stored = (await archive.reader.views(sid, 100)).values()
    assert [one.get("count") for one in stored] == [None] * limit
    [(field, value)] = (await log.redis.hgetall(log.keys.views_of(sid))).items()
    [total] = await read_views(log.redis, log.keys, sid, await log.now_ms())
    assert (total["who"], total["count"], total["last_id"]) == ("token", 11, 9)
    assert field != b"+others"
    assert value.split(b" ")[1] == b"11"
    assert await archive.findings() == []
    await log.redis.delete(log.keys.views_of(sid))
    await archiver.archive_once()


async def test_a_sum_is_archived_when_its_day_is_over_and_beyond_twice_the_limit_as_one_for_all(
    log: StreamLog, archive: TestArchive
) -> None:
    sid, limit = new_sid(), 3
    archiver = Archiver(log, archive.writer, after_s=0, retention_s=lambda _: None, view_records=limit)
    for day in range(6):
        for number in range(4):
            await come_and_go(log, sid, 5, limit=limit, address=f"192.0.2.{number}")
        await archiver.archive_once()
        await age_sums(log, sid)
        for _ in range(3):  # beyond the bound a caller's sum first goes into that of all others
            await archiver.archive_once()
            await age_sums(log, sid)
        stored = list((await archive.reader.views(sid, 100)).values())
        others = [one for one in stored if one["who"] == "others"]
        assert len(stored) - len(others) <= 2 * limit
        assert len(others) <= 4 * (day + 1), "one a day: each round was one"
        assert sum(one.get("count", 1) for one in stored) == 20 * (day + 1), "each connection is counted once"
    assert len(others) >= 4
    assert await archive.findings() == []
    assert not await log.redis.exists(log.keys.views_of(sid))


async def test_a_sum_that_grows_while_it_is_archived_loses_nothing(log: StreamLog, archive: TestArchive) -> None:
    sid = new_sid()
    archiver = Archiver(log, archive.writer, after_s=0, retention_s=lambda _: None, view_records=1)
    await come_and_go(log, sid, 4, limit=1)
    stale = await read_stored(log.redis, log.keys, sid, await log.now_ms())
    await come_and_go(log, sid, 4, limit=1)
    await archiver.views._bound(sid, [one._replace(since_ms=1) for one in stale if one.since_ms], 0, await log.now_ms())
    [total] = [one for one in await read_views(log.redis, log.keys, sid, await log.now_ms()) if "count" in one]
    assert total["count"] == 7
    await log.redis.delete(log.keys.views_of(sid))
    await archiver.archive_once()


async def test_without_an_archive_records_live_as_long_as_streams(log: StreamLog) -> None:
    access, sid = access_record(log, is_archived=False), new_sid()
    access.opened(view_of(sid))
    await access.flush()
    assert RETENTION_S - 5 < await log.redis.ttl(log.keys.views_of(sid)) <= RETENTION_S
    assert await log.redis.zcard(log.keys.views) == 0


async def test_records_wait_while_redis_is_away_and_what_does_not_fit_is_counted(
    log: StreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.log.access.MAX_WAITING", 3)
    access, sid = access_record(log), new_sid()
    for _ in range(5):
        access.opened(view_of(sid))
    assert (access.waiting, access.lost) == (3, 2)
    await access.flush()
    assert (access.waiting, len(await read_views(log.redis, log.keys, sid, await log.now_ms()))) == (0, 3)
    await log.redis.delete(log.keys.views_of(sid), log.keys.views)


# -- killed at every step ------------------------------------------------------------------------------------


@pytest.fixture(params=DATABASES)
def either_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return new_archive(request, tmp_path)


@pytest.mark.processes
async def test_killed_at_any_step_it_archives_each_stream_once_and_releases_none_early(
    log: StreamLog, either_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """A full turn: two streams to archive, one to erase that is archived, one that is not, and viewers' records."""
    every = 1 if LONG else 41
    async with open_archive(either_url, tmp_path) as archive:
        whole = Archiver(log, archive.writer, after_s=0, retention_s=lambda _: None)
        argv = [sys.executable, "-m", "tests.archive.killed", valkey_url, either_url, str(tmp_path), "1"]
        folder = Path(__file__).parents[2]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder) as killer:  # noqa: ASYNC220
            assert killer.stdin
            assert killer.stdout
            steps = 0
            for kill_at in range(1, 10_000, every):
                sids = await a_full_turn(log, whole)
                killer.stdin.write(b"%d\n" % kill_at)
                killer.stdin.flush()
                status = int(await asyncio.to_thread(killer.stdout.readline))
                assert status in (0, -signal.SIGKILL)
                for sid in sids:
                    assert -1 in await lives_s(log, sid) or await archive.reader.find(sid), f"step {kill_at}: too early"
                await settle(log)
                await whole.archive_once()
                for sid in sids:
                    assert await archive.reader.find(sid), f"step {kill_at}: it never came"
                    assert all(life > 0 or life == -2 for life in await lives_s(log, sid))
                if status == 0:
                    break
                steps = kill_at
            killer.stdin.close()
        assert steps > 50, "these are not all steps"
        await archive.writer.settle_heads()
        report = await archive.audit()
        assert report.findings == []
        rows = await archive.rows("SELECT sid, count(*) AS n FROM streams GROUP BY sid")
        assert all(row["n"] == 1 for row in rows)
        assert [await log.redis.zcard(key) for key in (log.keys.unarchived, log.keys.erasing, log.keys.views)] == [
            0
        ] * 3


async def a_full_turn(log: StreamLog, archiver: Archiver) -> list[str]:
    archived = await on_its_way(log)
    await archiver.archive_once()
    streams = [await finish(log) for _ in range(3)]
    await sweep(log)
    for sid in (archived, streams[0]):
        await log.redis.zadd(log.keys.erasing, {sid: await log.now_ms()})
        await log.erase(sid, Meta(await meta(log, sid)), await log.now_ms(), by="anyone")
    access = access_record(log)
    for sid in streams:
        view = view_of(sid)
        access.opened(view)
        access.closed(view, "left")
    await access.close()
    await settle(log)
    return [archived, *streams]
