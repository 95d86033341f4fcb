"""Listings of the archive: every filter, in order, page by page; and each by an index."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from broker.archive.reader import streams_statement
from broker.archive.writer import finished
from broker.errors import ArchiveDamaged
from broker.log.index import Filter, Place
from broker.log.meta import Meta, new_sid
from tests.archive.archive import NOW_MS, TestArchive, events_of, meta_of
from tests.archive.conftest import DATABASES, new_archive, open_archive

STREAMS = 60
STATES = ("done", "error", "cancelled")
SID = "00" * 16

FILTERS = {
    "none": Filter(),
    "session": Filter(session="session-3"),
    "user": Filter(user="user-2"),
    "model": Filter(model="anthropic/model-1"),
    "state": Filter(state="error"),
    "time": Filter(created_after_ms=NOW_MS - 40, created_before_ms=NOW_MS - 20),
    "user and state": Filter(user="user-2", state="done"),
    "session and time": Filter(session="session-3", created_before_ms=NOW_MS - 20),
    "nobody": Filter(user="nobody"),
}
INDEXES = {
    "none": "streams_newest",
    "time": "streams_newest",
    "session": "streams_by_session",
    "user": "streams_by_user",
    "model": "streams_by_model",
    "state": "streams_by_state",
}


@pytest.fixture(scope="module", params=DATABASES)
async def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[TestArchive, list[tuple[str, Meta]]]]:
    """60 streams, some of them created in the same millisecond."""
    folder = tmp_path_factory.mktemp("archive")
    async with open_archive(new_archive(request, folder), folder) as archive:
        metas = [(new_sid(), meta(at)) for at in range(STREAMS)]
        log = events_of(SID, 3)
        await archive.writer.add([finished(sid, one, log) for sid, one in metas], NOW_MS)
        yield archive, metas


def meta(at: int) -> Meta:
    fields = {"session": f"session-{at % 7}", "user": f"user-{at % 5}", "model": f"anthropic/model-{at % 3}"}
    created = str(NOW_MS - 60 + at // 2 * 2)
    return meta_of(SID, 3, **fields, state=STATES[at % 4 % 3], created=created)


def wanted(metas: list[tuple[str, Meta]], which: Filter) -> list[str]:
    found = [
        (one.created, sid)
        for sid, one in metas
        if which.matches(one) and (which.created_after_ms or 0) <= one.created <= (which.created_before_ms or 2**60)
    ]
    return [sid for _, sid in sorted(found, reverse=True)]


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("limit", [1, 7, 100])
async def test_each_filter_gives_its_streams_newest_first_page_by_page(
    filled: tuple[TestArchive, list[tuple[str, Meta]]], name: str, limit: int
) -> None:
    archive, metas = filled
    listed: list[str] = []
    place: Place | None = None
    while True:
        found, place = await archive.reader.list_streams("t", FILTERS[name], limit, place)
        listed += [place.member for place in found]
        if place is None:
            break
    assert listed == wanted(metas, FILTERS[name])


async def test_another_tenants_streams_are_not_listed(filled: tuple[TestArchive, list[tuple[str, Meta]]]) -> None:
    archive, _ = filled
    assert await archive.reader.list_streams("other", Filter(), 10, None) == ({}, None)
    assert await archive.reader.list_sessions("other", 10, None) == ([], None)


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_sessions_are_listed_by_their_newest_stream(
    filled: tuple[TestArchive, list[tuple[str, Meta]]], limit: int
) -> None:
    archive, metas = filled
    newest: dict[str, int] = {}
    for _, one in metas:
        session = one.session or ""
        newest[session] = max(newest.get(session, 0), one.created)
    listed: list[Place] = []
    place: Place | None = None
    while True:
        found, place = await archive.reader.list_sessions("t", limit, place)
        listed += found
        if place is None:
            break
    assert listed == sorted((Place(created, session) for session, created in newest.items()), reverse=True)


@pytest.mark.parametrize(("name", "is_later"), list(itertools.product(INDEXES, (False, True))))
async def test_each_filter_is_answered_by_an_index_in_its_order(
    filled: tuple[TestArchive, list[tuple[str, Meta]]], name: str, is_later: bool
) -> None:
    """As the query plan says: no scan of the table, and nothing sorted."""
    archive, _ = filled
    statement = streams_statement("t", FILTERS[name], 50, Place(NOW_MS - 30, SID) if is_later else None)
    plan = await plan_of(archive, statement)
    assert INDEXES[name] in plan, plan
    assert not any(word in plan for word in ("TEMP B-TREE", "SCAN streams\n", "Seq Scan", "Sort")), plan


async def plan_of(archive: TestArchive, statement: sa.Select[tuple[object, ...]]) -> str:
    async with archive.database.reading() as connection:
        dialect = connection.dialect
        sql = str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
        if archive.database.path:
            rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}")
            return "\n".join(row[3] for row in rows) + "\n"
        # So few rows are read faster without an index: the plan of a large table is asked for.
        for setting in ("enable_seqscan", "enable_sort", "enable_bitmapscan"):
            await connection.exec_driver_sql(f"SET LOCAL {setting} = off")
        rows = await connection.exec_driver_sql(f"EXPLAIN {sql}")
        return "\n".join(row[0] for row in rows) + "\n"


async def test_neither_a_listing_nor_a_reconnect_reads_a_request(archive: TestArchive) -> None:
    sid = new_sid()
    await archive.add(sid, request='"asked"')
    await archive.change("UPDATE streams SET record = :nothing", nothing=b"no record at all")
    found, _ = await archive.reader.list_streams("t", Filter(), 10, None)
    assert [(place.member, "request" in meta.fields) for place, meta in found.items()] == [(sid, False)]
    assert await archive.reader.find(sid) == next(iter(found.values()))
    with pytest.raises(ArchiveDamaged):
        await archive.reader.find(sid, with_request=True)


async def test_what_release_0_1_archived_is_listed_without_its_request(archive: TestArchive) -> None:
    sid = new_sid()
    await archive.add(sid, request='"asked"')
    await archive.change("DELETE FROM briefs")
    found, _ = await archive.reader.list_streams("t", Filter(), 10, None)
    assert [(place.member, "request" in meta.fields) for place, meta in found.items()] == [(sid, False)]


async def test_the_brief_of_what_release_0_1_erased_is_removed(archive: TestArchive) -> None:
    kept, erased = new_sid(), new_sid()
    await archive.add(kept, erased)
    await archive.change("UPDATE streams SET record = NULL, erased = 1 WHERE sid = :sid", sid=erased)
    await archive.writer.settle_erasures()
    assert [row["sid"] for row in await archive.rows("SELECT sid FROM briefs")] == [kept]
