"""What Redis still shows of a sealed stream is what was sealed, or it is said: whoever writes Redis may change it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from broker.archive.copies import check_copies, check_sealed_copy
from broker.archive.writer import Erasure
from broker.auth import Auth, Grant
from broker.log.event import Event
from broker.log.meta import Meta, new_sid
from broker.log.stream_log import StreamLog
from broker.service.streams import Streams
from broker.settings import Settings
from broker.tenants.keyring import Keyring
from tests.archive.archive import TestArchive, events_of, meta_of

Forgery = Callable[[StreamLog, str], Awaitable[Any]]


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis, retention_s=500, is_archived=True)


async def sealed_in_both(archive: TestArchive, log: StreamLog, **fields: str) -> str:
    """A stream that the archive has sealed, and that Redis has as the archiver left it."""
    sid = new_sid()
    await archive.add(sid, user="ann", **fields)
    await copy(log, sid, meta_of(sid, 5, user="ann", **fields), events_of(sid, 5))
    return sid


async def copy(log: StreamLog, sid: str, meta: Meta, events: list[Event]) -> None:
    keys = log.keys.stream(sid)
    known = {**meta.fields, "archived": "1800000000001", "epoch": "1", "claim": "c", "base": "2", "lease_until": "7"}
    await log.redis.hset(keys.meta, mapping=known)
    for event in events:
        await write(log, sid, event)
    await log.redis.pexpire(keys.meta, 60_000)
    await log.redis.pexpire(keys.log, 60_000)


async def write(log: StreamLog, sid: str, event: Event) -> None:
    await log.redis.xadd(log.keys.stream(sid).log, {"k": event.kind, "d": event.data, "t": event.t}, f"{event.id}-0")


async def differences(archive: TestArchive, log: StreamLog, sid: str) -> list[str]:
    sealed = await archive.reader.sealed(sid)
    assert sealed
    return [finding.what for finding in await check_sealed_copy(log, archive.reader, sealed)]


def set_field(name: str, value: str) -> Forgery:
    return lambda log, sid: log.redis.hset(log.keys.stream(sid).meta, name, value)


def remove_field(name: str) -> Forgery:
    return lambda log, sid: log.redis.hdel(log.keys.stream(sid).meta, name)


async def change_text(log: StreamLog, sid: str) -> None:
    events = events_of(sid, 5)
    key = log.keys.stream(sid).log
    await log.redis.delete(key)
    for event in [*events[:2], events[2]._replace(data=b'{"text":"a forged answer"}'), *events[3:]]:
        await write(log, sid, event)
    await log.redis.pexpire(key, 60_000)


async def add_event(log: StreamLog, sid: str) -> None:
    await write(log, sid, Event(6, "text_delta", b'{"text":"more"}', 7))


async def add_many(log: StreamLog, sid: str) -> None:
    for number in range(6, 1200):
        await write(log, sid, Event(number, "text_delta", b"{}", 7))


async def remove_event(log: StreamLog, sid: str) -> None:
    await log.redis.xdel(log.keys.stream(sid).log, "3-0")


async def remove_log(log: StreamLog, sid: str) -> None:
    await log.redis.delete(log.keys.stream(sid).log)


async def write_what_is_no_event(log: StreamLog, sid: str) -> None:
    await log.redis.xadd(log.keys.stream(sid).log, {"x": "y"}, "6-0")


async def make_the_log_another_thing(log: StreamLog, sid: str) -> None:
    await remove_log(log, sid)
    await log.redis.set(log.keys.stream(sid).log, "x", px=60_000)


FORGERIES: dict[str, tuple[Forgery, str]] = {
    "a text was changed": (change_text, "copy_log_differs"),
    "an event was added": (add_event, "copy_log_differs"),
    "more events were added than a page has": (add_many, "copy_log_differs"),
    "an event was removed": (remove_event, "copy_log_differs"),
    "the log was removed": (remove_log, "copy_log_differs"),
    "what is no event was added": (write_what_is_no_event, "copy_unreadable"),
    "the log is no log": (make_the_log_another_thing, "copy_unreadable"),
    "the user was changed": (set_field("user", "eve"), "copy_record_differs"),
    "the user was removed": (remove_field("user"), "copy_record_differs"),
    "a field was added": (set_field("regenerates", "another"), "copy_record_differs"),
    "the ending was changed": (set_field("ending", '{"stop_reason":"forged"}'), "copy_record_differs"),
    "it was made a failure": (set_field("state", "error"), "copy_record_differs"),
    "it was made to run": (set_field("state", "running"), "copy_record_differs"),
    "the state was removed": (remove_field("state"), "copy_record_differs"),
    "the request was changed": (set_field("request", "{}"), "copy_record_differs"),
    "it was given to another tenant": (set_field("tenant", "eve"), "copy_record_differs"),
    "it was made a tombstone": (set_field("erased", "7"), "copy_erased"),
}


@pytest.mark.parametrize("archive_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("keeps_mark", [True, False], ids=["", "and archived was removed"])
@pytest.mark.parametrize("what", FORGERIES)
async def test_a_forged_copy_is_found(archive: TestArchive, log: StreamLog, what: str, keeps_mark: bool) -> None:
    sid = await sealed_in_both(archive, log)
    assert await differences(archive, log, sid) == []
    forge, finding = FORGERIES[what]
    await forge(log, sid)
    if not keeps_mark:
        await remove_field("archived")(log, sid)
    found = await differences(archive, log, sid)
    assert finding in found
    if finding == "copy_log_differs":
        assert found == [finding]
    count, all_found = await check_copies(log, archive.reader)
    assert (count, [one.what for one in all_found]) == (1, found)


@pytest.mark.parametrize("archive_url", ["sqlite"], indirect=True)
async def test_a_copy_as_it_was_left_does_not_differ(archive: TestArchive, log: StreamLog) -> None:
    sid = await sealed_in_both(archive, log)
    assert await differences(archive, log, sid) == []
    assert await check_copies(log, archive.reader) == (1, [])


@pytest.mark.parametrize("archive_url", ["sqlite"], indirect=True)
async def test_what_redis_no_longer_has_does_not_differ(archive: TestArchive, log: StreamLog) -> None:
    sid = await sealed_in_both(archive, log)
    await log.redis.delete(*log.keys.stream(sid)[:2])
    assert await differences(archive, log, sid) == []


@pytest.mark.parametrize("archive_url", ["sqlite"], indirect=True)
async def test_a_field_that_a_newer_release_sealed_is_compared_as_well(archive: TestArchive, log: StreamLog) -> None:
    """Workers are replaced before servers."""
    sid = new_sid()
    record = {name: text for name, text in meta_of(sid, 5).fields.items() if name != "stopped_after"}
    await archive.add(sid)
    await copy(log, sid, Meta(record), events_of(sid, 5))
    assert await differences(archive, log, sid) == ["copy_record_differs"]
    await set_field("of_a_newer_release", "1")(log, sid)
    await set_field("stopped_after", "4")(log, sid)
    assert await differences(archive, log, sid) == []


@pytest.mark.parametrize("archive_url", ["sqlite"], indirect=True)
async def test_an_erasure_that_was_ordered_is_no_difference(archive: TestArchive, log: StreamLog) -> None:
    sid = await sealed_in_both(archive, log)
    await log.redis.zadd(log.keys.erasing, {sid: 7})
    await log.erase(sid, meta_of(sid, 5), 7, by="anyone")
    assert await differences(archive, log, sid) == []
    await log.redis.zrem(log.keys.erasing, sid)
    assert await differences(archive, log, sid) == ["copy_erased"]
    before = await archive.reader.sealed(sid)
    assert before
    await archive.writer.erase([Erasure(sid, Meta({}))], 7)
    assert await check_sealed_copy(log, archive.reader, before) == [], "it was erased while it was looked at"
    await log.start_retention(sid, 7)


@pytest.mark.parametrize("archive_url", ["sqlite"], indirect=True)
async def test_many_are_compared_together(archive: TestArchive, log: StreamLog) -> None:
    sids = [await sealed_in_both(archive, log) for _ in range(20)]
    await asyncio.gather(*(change_text(log, sid) for sid in sids[:7]))
    count, found = await check_copies(log, archive.reader)
    assert (count, {one.stream for one in found}) == (20, set(sids[:7]))


class Silent:
    """An archive that does not answer."""

    asked = 0

    async def find(self, _: str, **__: bool) -> None:
        self.asked += 1
        await asyncio.Event().wait()


@pytest.mark.parametrize("archive_url", ["sqlite"], indirect=True)
async def test_what_redis_has_is_shown_while_the_archive_does_not_answer_and_that_is_not_waited_for_again(
    archive: TestArchive, log: StreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.service.streams.ARCHIVE_ANSWER_S", 0.01)
    monkeypatch.setattr("broker.service.streams.ARCHIVE_PAUSE_S", 1e6)
    sid, silent, unused = await sealed_in_both(archive, log), Silent(), cast(Any, None)
    auth = Auth(Keyring(), unused, unused, 1)
    streams = Streams(log, cast(Any, silent), unused, unused, auth, Settings(), unused, unused)
    for _ in range(3):
        found = await streams.look_up_content(sid, Grant("t"), as_sealed=True, whole=True)
        assert (found.is_in_redis, found.meta.user) == (True, "ann")
    assert silent.asked == 1
    monkeypatch.setattr("broker.service.streams.ARCHIVE_ANSWER_S", 60.0)
    answering = Streams(log, archive.reader, unused, unused, auth, Settings(), unused, unused)
    assert not (await answering.look_up_content(sid, Grant("t"), as_sealed=True)).is_in_redis
    assert (await answering.look_up_content(sid, Grant("t"))).is_in_redis, "who follows is served by Redis"
