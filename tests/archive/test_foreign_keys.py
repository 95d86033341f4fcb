"""Something else has written a key of ours: that stream is named, and no other suffers from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from broker.errors import WrongType
from broker.log.access import AccessRecord, View
from broker.log.index import Filter
from broker.log.keys import Keys
from broker.log.meta import Meta
from broker.log.stream_log import StreamLog
from broker.service.listing import Listing
from tests.archive.archive import finish
from tests.archive.conftest import open_archive
from tests.rig.streams import queued, sweeper
from worker.archiving.archiver import Archiver


@pytest.fixture
async def log(redis: Redis) -> AsyncIterator[StreamLog]:
    yield StreamLog(redis, is_archived=True)
    await redis.flushdb()  # what the other hand has left of a stream has no end


async def overwrite(log: StreamLog, sid: str, name: str) -> None:
    key = f"le:{{{sid}}}:{name}"
    await log.redis.delete(key)
    await log.redis.set(key, "of something else", ex=60)


async def sweep(log: StreamLog) -> None:
    for sid in await log.redis.zrange(log.keys.leases, 0, -1):
        await log.redis.zadd(log.keys.leases, {sid: 1})

    async def take(_: str, __: Meta) -> None:
        raise AssertionError("they have ended")

    await sweeper(log, take).sweep()


async def test_a_sweeper_finds_the_other_streams(log: StreamLog, caplog: pytest.LogCaptureFixture) -> None:
    spoilt, sound = await finish(log), await finish(log)
    await overwrite(log, spoilt, "meta")
    await sweep(log)
    assert await log.redis.zrange(log.keys.unarchived, 0, -1) == [sound.encode()]
    assert await log.redis.zrange(log.keys.leases, 0, -1) == []
    assert f"stream {spoilt}: A key in Redis is not of the type that Lastevent gives it" in caplog.text


@pytest.mark.parametrize("name", ["meta", "log", "views"])
async def test_the_archiver_takes_the_other_streams(log: StreamLog, tmp_path: Path, name: str) -> None:
    access = AccessRecord(log.redis, log.keys, retention_s=500, is_archived=True)
    spoilt, sound = await finish(log), await finish(log)
    for sid in (spoilt, sound):
        view = View(sid, {"tenant": "t", "who": "w", "address": None, "format": "sse", "requested": 0})
        access.opened(view)
        access.closed(view, "left")
    await access.flush()
    await sweep(log)
    await overwrite(log, spoilt, name)
    async with open_archive(f"sqlite:///{tmp_path}/archive.db", tmp_path) as archive:
        archiver = Archiver(log, archive.writer, after_s=0, retention_s=lambda _: None)
        await archiver.archive_once()
        assert await archive.reader.find(sound)
        assert (await archive.reader.find(spoilt) is not None) == (name == "views")


@pytest.mark.parametrize(("key", "field"), [("meta", "tail"), ("log", "x")])
async def test_the_archiver_takes_the_other_streams_of_one_that_cannot_be_read(
    log: StreamLog, tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, field: str
) -> None:
    spoilt, sound = await finish(log), await finish(log)
    await sweep(log)
    if key == "meta":
        await log.redis.hset(f"le:{{{spoilt}}}:meta", field, "no number")
    else:
        await log.redis.xadd(f"le:{{{spoilt}}}:log", {field: "y"}, id="9-0")
    async with open_archive(f"sqlite:///{tmp_path}/archive.db", tmp_path) as archive:
        await Archiver(log, archive.writer, after_s=0, retention_s=lambda _: None).archive_once()
        assert await archive.reader.find(sound)
        assert await archive.reader.find(spoilt) is None
    assert f"stream {spoilt}: it could not be archived; it stays in Redis" in caplog.text


@pytest.mark.parametrize("listing", ["streams:t", "sessions:t", "session:t:mine"])
async def test_a_stream_that_could_not_be_listed_does_not_begin(log: StreamLog, listing: str) -> None:
    """Its caller would be told so, and a sweeper would have it run nevertheless."""
    await log.redis.set(f"le:{listing}", "of something else", ex=60)
    with pytest.raises(WrongType, match=f"The key le:{listing.partition(':')[0]}:…"):
        await queued(log, session="mine")
    assert await log.redis.keys("le:{*") == []


async def test_a_listing_has_the_other_streams(log: StreamLog) -> None:
    spoilt, sound = await queued(log), await queued(log)
    await overwrite(log, spoilt, "meta")

    async def records(found: Any) -> list[dict[str, Any]]:
        return [{"id": sid} for sid, meta in found if isinstance(meta, Meta)]

    page = await Listing(log, None, max_bytes=1 << 20).streams("t", Filter(), limit=10, after=None, records=records)
    assert page["streams"] == [{"id": sound}]


async def test_a_key_that_all_need_is_named(log: StreamLog) -> None:
    await log.redis.set(Keys().leases, "of something else", ex=60)
    with pytest.raises(WrongType, match="The key le:leases"):
        await queued(log)
    assert await log.redis.keys("le:{*") == []
