"""A listing costs what it shows, whatever callers have stored: counted in the bytes that Redis sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from broker.archive.writer import Erasure
from broker.log.index import Filter, Place
from broker.log.meta import Meta, NewStream, new_sid
from broker.log.steps import Unsent
from broker.log.stream_log import StreamLog
from broker.service.listing import SUM_PAGES, Listing
from broker.service.record import stream_record
from tests.archive.archive import NOW_MS, TestArchive
from tests.archive.conftest import open_archive
from tests.rig.streams import batch, new_stream, queued, running

MB = 2**20
LARGE = {"messages": [{"role": "user", "content": "x" * MB}]}
STREAMS = 30
ALL = Filter()


async def records(found: Sequence[tuple[str, Meta]]) -> list[dict[str, Any]]:
    return [stream_record(meta, sid, None, is_parsed=True) for sid, meta in found]


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis)


@pytest.fixture
def listing(log: StreamLog) -> Listing:
    return Listing(log, None, max_bytes=MB)


async def page(listing: Listing, which: Filter = ALL, after: str | None = None, **asked: Any) -> dict[str, Any]:
    return await listing.streams("t", which, limit=200, after=after, records=records, **asked)


async def walked(listing: Listing, **asked: Any) -> list[dict[str, Any]]:
    pages = [await page(listing, **asked)]
    while after := pages[-1]["next"]:
        pages.append(await page(listing, after=after, **asked))
    return pages


async def sent_by_redis(redis: Redis, listing: Listing, which: Filter = ALL, **asked: Any) -> int:
    before = (await redis.info("stats"))["total_net_output_bytes"]
    await page(listing, which, **asked)
    return int((await redis.info("stats"))["total_net_output_bytes"] - before)


async def test_a_filter_that_matches_nothing_reads_no_more_than_the_fields_it_compares(
    redis: Redis, log: StreamLog, listing: Listing
) -> None:
    for _ in range(STREAMS):
        await queued(log, request=LARGE, metadata={"a": "x" * 16_000})
    assert await sent_by_redis(redis, listing, Filter(user="nobody")) < STREAMS * 500
    assert await sent_by_redis(redis, listing, Filter(state="done"), with_requests=True) < STREAMS * 500


async def test_a_page_reads_what_it_shows(redis: Redis, log: StreamLog, listing: Listing) -> None:
    for _ in range(STREAMS):
        await queued(log, request=LARGE)
    assert await sent_by_redis(redis, listing) < STREAMS * 2000
    assert await sent_by_redis(redis, listing, with_requests=True) < 2 * MB


@pytest.mark.parametrize(("field", "kept"), [("metadata", "x" * 16_000), ("ending", "x" * 100_000)])
async def test_a_page_ends_with_next_once_its_json_would_be_larger(
    log: StreamLog, listing: Listing, field: str, kept: str
) -> None:
    made = [await queued(log) for _ in range(80)]
    for sid in made:
        await log.redis.hset(log.keys.stream(sid).meta, field, orjson.dumps({"usage": {"a": kept}}))
    pages = await walked(listing)
    assert len(pages) > 1
    assert sorted(one["id"] for each in pages for one in each["streams"]) == sorted(made)
    assert all(len(orjson.dumps(each)) <= MB for each in pages)
    assert all(len(orjson.dumps(each)) > MB / 2 for each in pages[:-1])


async def test_records_have_their_requests_if_asked_for_and_within_the_bytes_of_a_page(
    log: StreamLog, listing: Listing
) -> None:
    first = await queued(log, request={"a": "x" * 300_000})
    [meta] = await log.read_meta(first)
    assert meta
    again = NewStream.again(first, meta)
    for sid in (again.sid, *(new_sid() for _ in range(6))):
        await log.create(NewStream.again(first, meta) if sid == again.sid else new_stream(sid))
    old = await queued(log)  # an older release's: the request is in meta
    await log.redis.hset(log.keys.stream(old).meta, "request", b'{"a":"old"}')
    await log.redis.hdel(log.keys.stream(old).meta, "request_of")
    assert all("request" not in one for each in await walked(listing) for one in each["streams"])
    pages = await walked(listing, with_requests=True)
    assert all(len(orjson.dumps(each)) <= MB for each in pages)
    shown = {one["id"]: one["request"] for each in pages for one in each["streams"]}
    assert len(shown) == 9
    assert shown[first] == {"a": "x" * 300_000}
    assert shown[old] == {"a": "old"}
    assert list(shown.values()).count(shown[first]) == 2


async def test_a_page_has_at_least_one_stream(log: StreamLog, listing: Listing) -> None:
    made = [await queued(log, request={"a": "x" * 2 * MB}) for _ in range(3)]
    pages = await walked(listing, with_requests=True)
    assert [len(each["streams"]) for each in pages] == [1, 1, 1]
    assert sorted(each["streams"][0]["id"] for each in pages) == sorted(made)


async def test_a_session_is_summed_up_as_far_as_a_bound(
    log: StreamLog, listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.service.listing.SUM_STREAMS", 5)
    monkeypatch.setattr("broker.service.listing.SUM_PAGES", 2)
    for _ in range(12):
        await finished(log, b'{"usage":{"output_tokens":1},"cost_usd":0.000001}')
    await finished(log, b'{"usage":{"output_tokens":1},"cost_usd":0.000001}', session="another")
    first = await listing.streams("t", Filter(session="s"), limit=2, after=None, records=records)
    summed = await listing.session_totals("t", "s", first)
    assert (summed["streams"], summed["is_whole"]) == (10, False)
    assert (summed["usage"]["output_tokens"], summed["cost_usd"]) == (10, 0.00001)
    whole = await listing.streams("t", Filter(session="s"), limit=12, after=None, records=records)
    assert whole["next"], "it is not known yet that this is all"
    monkeypatch.setattr("broker.service.listing.SUM_PAGES", 3)
    summed = await listing.session_totals("t", "s", whole)
    assert (summed["streams"], summed["is_whole"], summed["usage"]["output_tokens"]) == (12, True, 12)


async def test_the_sum_of_a_session_reads_no_more_than_bytes_allow(log: StreamLog, listing: Listing) -> None:
    """Endings are as long as their producers like."""
    for _ in range(30):
        await finished(log, orjson.dumps({"usage": {"output_tokens": 1}, "said": "x" * 400_000}))
    first = await listing.streams("t", Filter(session="s"), limit=1, after=None, records=records)
    summed = await listing.session_totals("t", "s", first)
    assert (summed["streams"], summed["is_whole"], summed["without_price"]) == (2 * SUM_PAGES, False, 2 * SUM_PAGES)


async def test_an_ending_that_cannot_be_read_takes_no_sum(log: StreamLog, listing: Listing) -> None:
    sids = [await finished(log, b'{"usage":{"output_tokens":1}}') for _ in range(3)]
    first = await listing.streams("t", Filter(session="s"), limit=1, after=None, records=records)
    await log.redis.hset(log.keys.stream(sids[0]).meta, "ending", "{")
    await log.redis.hset(log.keys.stream(sids[1]).meta, "ending", "[1]")
    assert (await listing.session_totals("t", "s", first))["usage"]["output_tokens"] == 1


async def finished(log: StreamLog, ending: bytes, **fields: Any) -> str:
    claimed = await running(log, **fields)
    await log.append(batch(claimed, claimed.pen.base, Unsent("done", ending)))
    return claimed.sid


# -- with an archive -------------------------------------------------------------------------------------


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[TestArchive]:
    async with open_archive(f"sqlite:///{tmp_path}/archive.db", tmp_path) as archive:
        yield archive


async def test_what_the_archive_has_is_listed_within_the_same_bytes(log: StreamLog, archive: TestArchive) -> None:
    listing = Listing(log, archive.reader, max_bytes=MB)
    text = '{"a":"%s"}' % ("x" * 300_000)
    made = [new_sid() for _ in range(9)]
    for at, sid in enumerate(made[:8]):
        await archive.add(sid, request=text, created=str(NOW_MS + at))
    await log.create(new_stream(made[8], request={"a": "y" * 300_000}))
    asked: dict[str, bool]
    for asked in ({}, {"with_requests": True}):
        pages = await walked(listing, **asked)
        assert sorted(one["id"] for each in pages for one in each["streams"]) == sorted(made)
        assert all(len(orjson.dumps(each)) <= MB for each in pages)
    assert len(pages) == 3
    assert all(one["request"] for each in pages for one in each["streams"])


async def test_a_stream_that_redis_and_the_archive_have_counts_once(log: StreamLog, archive: TestArchive) -> None:
    listing = Listing(log, archive.reader, max_bytes=MB)
    ending = '{"usage":{"output_tokens":1},"cost_usd":0.25}'
    in_both = await finished(log, ending.encode())
    await finished(log, ending.encode())
    [meta] = await log.read_meta(in_both)
    assert meta
    await archive.add(in_both, ending=ending, created=meta.fields["created"])
    await archive.add(*(new_sid() for _ in range(3)), ending=ending)
    erased = new_sid()
    await archive.add(erased, ending=ending)
    await archive.writer.erase([Erasure(erased, Meta({}))], NOW_MS)
    page = await listing.streams("t", Filter(), limit=200, after=None, records=records)
    assert (len(page["streams"]), page["totals"]["cost_usd"]) == (6, 1.25)
    first = await listing.streams("t", Filter(session="s"), limit=1, after=None, records=records)
    summed = await listing.session_totals("t", "s", first)
    assert (summed["streams"], summed["is_whole"], summed["cost_usd"]) == (5, True, 1.25)


async def test_the_archive_unpacks_no_more_than_a_page_shows(archive: TestArchive) -> None:
    for at in range(20):
        await archive.add(new_sid(), request='{"a":"%s"}' % ("x" * 300_000), created=str(NOW_MS + at))
    part = await archive.reader.list_streams("t", Filter(), 20, None, with_requests=True, max_bytes=MB)
    assert len(part.found) == 4  # the last of them goes beyond
    assert part.end == min(part.found)
    assert isinstance(part.end, Place)
    assert not any(
        "request" in meta.fields for meta in (await archive.reader.list_streams("t", Filter(), 20, None)).found.values()
    )
