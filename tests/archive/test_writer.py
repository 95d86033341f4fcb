"""What the archive is given is there once, with its seal; what is erased is gone, with a seal that says so."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import orjson
import pytest

from broker.archive.heads import HeadsUnavailable, open_heads
from broker.archive.seal import ERASURE, NOTHING, STREAM, VERSIONS, Seal
from broker.archive.writer import ArchiveWriter, Erasure, ViewRecord, finished
from broker.log.index import Filter, Place
from broker.log.meta import Meta, new_sid
from tests.archive.archive import NOW_MS, TestArchive, events_of, meta_of, view_of
from tests.archive.conftest import open_archive

LATER_MS = NOW_MS + 1000


async def statements(archive: TestArchive, tenant: str = "t") -> list[dict[str, object]]:
    rows = await archive.rows("SELECT statement FROM seals WHERE tenant = :t ORDER BY number", t=tenant)
    return [orjson.loads(bytes(row["statement"])) for row in rows]


async def test_a_stream_is_found_as_it_was(archive: TestArchive) -> None:
    sid = new_sid()
    await archive.add(sid, events=7, user="ann", session="mine")
    meta = await archive.reader.find(sid, with_request=True)
    log = await archive.reader.read_log(sid)
    assert meta == meta_of(sid, 7, user="ann", session="mine", archived=str(NOW_MS))
    assert log
    assert await log.read_all(sid) == events_of(sid, 7)


async def test_what_is_not_archived_is_not_found(archive: TestArchive) -> None:
    assert await archive.reader.find(new_sid()) is None
    assert await archive.reader.read_log(new_sid()) is None
    assert await archive.reader.sealed(new_sid()) is None
    assert await archive.reader.views(new_sid(), 10) == {}


async def test_each_seal_names_the_one_before_it(archive: TestArchive) -> None:
    sids = [new_sid() for _ in range(3)]
    await archive.add(*sids[:2])
    await archive.add(sids[2])
    seals = [await archive.seal_at("t", number) for number in (1, 2, 3)]
    said = await statements(archive)
    assert [one["stream"] for one in said] == sids
    assert [one["number"] for one in said] == [1, 2, 3]
    assert [one["previous"] for one in said] == [NOTHING, *(seal.digest for seal in seals[:2] if seal)]


async def test_each_tenant_has_a_chain_of_its_own(archive: TestArchive) -> None:
    await archive.add(new_sid(), tenant="a")
    await archive.add(new_sid(), tenant="b")
    await archive.add(new_sid(), tenant="a")
    assert [one["number"] for one in await statements(archive, "a")] == [1, 2]
    assert [one["number"] for one in await statements(archive, "b")] == [1]
    assert set(archive.heads.read()) == {"a", "b"}
    assert await archive.findings() == []


async def test_a_stream_is_archived_once(archive: TestArchive) -> None:
    sid = new_sid()
    await archive.add(sid)
    await archive.add(sid, new_sid())
    assert len(await statements(archive)) == 2
    assert await archive.findings() == []


async def test_another_log_of_a_stream_that_is_sealed_is_said_and_left(
    archive: TestArchive, caplog: pytest.LogCaptureFixture
) -> None:
    sid = new_sid()
    await archive.add(sid, events=5)
    with caplog.at_level(logging.ERROR):
        await archive.add(sid, events=6)
    assert "its log in Redis differs from the archived one" in caplog.text
    log = await archive.reader.read_log(sid)
    assert log
    assert len(await log.read_all(sid)) == 5


async def test_writers_that_meet_make_one_chain(archive: TestArchive, archive_url: str, tmp_path: Path) -> None:
    async with open_archive(archive_url, tmp_path) as other:
        same = [new_sid() for _ in range(5)]
        own = [new_sid() for _ in range(10)]
        batches = [(archive, [*same[:3], *own[:5]]), (other, [*same[2:], *own[5:]]), (other, same), (archive, same)]
        await asyncio.gather(*(one.add(*sids) for one, sids in batches))
    assert len(await statements(archive)) == 15
    assert await archive.findings() == []


# -- the head of the chain ---------------------------------------------------------------------------------


async def test_the_head_follows_the_chain(archive: TestArchive) -> None:
    for number in (1, 2, 3):
        await archive.add(new_sid())
        head, seal = archive.heads.read()["t"], await archive.seal_at("t", number)
        assert seal
        assert (head.number, head.digest) == (number, seal.digest)


async def test_a_head_left_behind_by_a_crash_is_moved_on_at_the_next_start(
    archive: TestArchive, tmp_path: Path
) -> None:
    await archive.add(new_sid())
    before = (tmp_path / "seal-heads.json").read_bytes()
    await archive.add(new_sid())
    (tmp_path / "seal-heads.json").write_bytes(before)
    await archive.writer.settle_heads()
    assert archive.heads.read()["t"].number == 2


async def test_a_head_that_the_chain_does_not_continue_stays_for_verify_to_find(
    archive: TestArchive, caplog: pytest.LogCaptureFixture
) -> None:
    await archive.add(new_sid(), new_sid())
    await archive.change("DELETE FROM streams WHERE seal = 2")
    await archive.change("DELETE FROM seals WHERE number = 2")
    await archive.add(new_sid(), new_sid(), new_sid())
    assert archive.heads.read()["t"].number == 2
    assert "does not continue its head" in caplog.text
    assert {finding.what for finding in await archive.findings()} == {"head_differs"}


async def test_heads_that_cannot_be_kept_are_said_and_stop_nothing(
    archive: TestArchive, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "blocked").touch()
    nowhere = open_heads(str(tmp_path / "blocked" / "heads"))
    with pytest.raises(HeadsUnavailable):
        nowhere.read()
    sid = new_sid()
    stuck = ArchiveWriter(archive.database, archive.signer, nowhere)
    await stuck.add([finished(sid, meta_of(sid, 5), events_of(sid, 5))], NOW_MS)
    assert "is not kept outside" in caplog.text
    assert await archive.reader.find(sid)


# -- erasure -----------------------------------------------------------------------------------------------


async def test_erasing_leaves_a_tombstone_and_its_seals(archive: TestArchive) -> None:
    sid, kept = new_sid(), new_sid()
    await archive.add(sid, kept, user="ann", session="hers")
    await archive.writer.add_views([view_of(sid), view_of(kept)], NOW_MS)
    await archive.writer.erase([Erasure(sid, Meta({}))], LATER_MS)
    meta = await archive.reader.find(sid)
    assert meta
    assert (meta.state, meta.erased, meta.user, meta.request) == ("done", LATER_MS, None, None)
    assert await archive.reader.read_log(sid) is None
    assert await archive.reader.views(sid, 10) == {}
    assert len(await archive.reader.views(kept, 10)) == 1
    assert [one["kind"] for one in await statements(archive)] == ["stream", "stream", "views", "erasure"]
    assert await archive.findings() == []


async def test_nothing_of_what_was_erased_is_left_in_the_database(archive: TestArchive) -> None:
    sid = new_sid()
    await archive.add(sid, user="ann-the-secret", session="hers-the-secret")
    await archive.writer.add_views([view_of(sid, address="secret-address")], NOW_MS)
    await archive.writer.erase([Erasure(sid, Meta({}))], LATER_MS)
    for table in ("streams", "views", "seals"):
        for row in await archive.rows(f"SELECT * FROM {table}"):
            assert "secret" not in str({name: bytes(v) if isinstance(v, memoryview) else v for name, v in row.items()})


@pytest.mark.parametrize("archive_url", ["sqlite"], indirect=True)
async def test_nor_is_anything_left_in_the_files_of_sqlite(archive: TestArchive, tmp_path: Path) -> None:
    """Not in pages that are free now, nor in the write-ahead log."""

    def in_files() -> bool:
        return any(b"ann-the-secret" in path.read_bytes() for path in tmp_path.glob("archive.db*"))

    sid = new_sid()
    await archive.add(sid, user="ann-the-secret")
    await archive.add(*(new_sid() for _ in range(50)))
    await archive.writer.add_views([view_of(sid, user_agent="ann-the-secret")], NOW_MS)
    assert in_files()
    await archive.writer.erase([Erasure(sid, Meta({}))], LATER_MS)
    assert not in_files()


async def test_erasing_again_changes_nothing(archive: TestArchive) -> None:
    sid = new_sid()
    await archive.add(sid)
    for _ in range(2):
        await archive.writer.erase([Erasure(sid, Meta({}))], LATER_MS)
    assert len(await statements(archive)) == 2
    assert await archive.findings() == []


async def test_a_stream_erased_before_it_was_archived_leaves_a_tombstone_and_never_comes(archive: TestArchive) -> None:
    sid = new_sid()
    await archive.writer.erase([Erasure(sid, meta_of(sid, 5))], LATER_MS)
    await archive.add(sid)
    meta = await archive.reader.find(sid)
    assert meta
    assert (meta.state, meta.erased) == ("done", LATER_MS)
    assert await archive.findings() == []


async def test_the_seal_of_an_erasure_says_who_asked_for_it(archive: TestArchive) -> None:
    asked, unsaid, never_there, old = (new_sid() for _ in range(4))
    await archive.add(asked, unsaid)
    await archive.add(old, finished="1000")
    orders = [Erasure(asked, Meta({"erased_by": "key:1a2b3c4d"})), Erasure(unsaid, Meta({}))]
    await archive.writer.erase([*orders, Erasure(never_there, meta_of(never_there, 5, erased_by="token"))], LATER_MS)
    await archive.writer.expire("t", 2000, LATER_MS, 100)
    said = [(one["v"], one["stream"], one["by"]) for one in await statements(archive) if one["kind"] == "erasure"]
    assert said == [(2, asked, "key:1a2b3c4d"), (2, unsaid, None), (2, never_there, "token"), (2, old, "lastevent")]
    metas = [await archive.reader.find(sid) for sid in (asked, unsaid, never_there, old)]
    assert [meta and meta.erased_by for meta in metas] == ["key:1a2b3c4d", None, "token", "lastevent"]
    listed, _ = await archive.reader.list_streams("t", Filter(), 10, None)
    assert {place.member: meta.erased_by for place, meta in listed.items()}[asked] == "key:1a2b3c4d"
    assert await archive.findings() == []


async def test_an_erasure_that_release_0_1_sealed_is_still_verified(
    archive: TestArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    sid = new_sid()
    await archive.add(sid)
    sealed = archive.signer.seal

    def as_then(*args: Any) -> Seal:
        return sealed(*args[:-1], {name: value for name, value in args[-1].items() if name != "by"})

    with monkeypatch.context() as then:
        then.setitem(VERSIONS, ERASURE, 1)
        then.setattr(archive.signer, "seal", as_then)
        await archive.writer.erase([Erasure(sid, Meta({}))], LATER_MS)
    [*_, erasure] = await statements(archive)
    assert (erasure["v"], "by" in erasure) == (1, False)
    assert await archive.findings() == []
    meta = await archive.reader.find(sid)
    assert meta
    assert (meta.erased, meta.erased_by) == (LATER_MS, None)


async def test_a_statement_of_a_later_form_is_not_believed(
    archive: TestArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setitem(VERSIONS, STREAM, 2)
        await archive.add(new_sid())
    assert {finding.what for finding in await archive.findings()} == {"seal_unknown"}


async def test_views_that_come_after_the_erasure_keep_nothing(archive: TestArchive) -> None:
    sid = new_sid()
    await archive.add(sid)
    await archive.writer.erase([Erasure(sid, Meta({}))], LATER_MS)
    await archive.writer.add_views([view_of(sid, address="secret-address")], LATER_MS)
    assert await archive.reader.views(sid, 10) == {}
    assert "secret" not in str(await archive.rows("SELECT record, opened FROM views"))
    assert await archive.findings() == []


async def test_what_has_been_kept_long_enough_is_erased(archive: TestArchive) -> None:
    old, young, others = new_sid(), new_sid(), new_sid()
    await archive.add(old, finished="1000")
    await archive.add(young, finished="3000")
    await archive.add(others, finished="1000", tenant="other")
    assert await archive.writer.expire("t", 2000, LATER_MS, 100) == [old]
    assert await archive.writer.expire("t", 2000, LATER_MS, 100) == []
    assert [await archive.reader.read_log(sid) is None for sid in (old, young, others)] == [True, False, False]
    assert (await statements(archive))[-1]["reason"] == "retention"
    assert await archive.findings() == []


# -- views -------------------------------------------------------------------------------------------------


async def test_a_viewers_record_is_archived_once(archive: TestArchive, caplog: pytest.LogCaptureFixture) -> None:
    sid = new_sid()
    await archive.add(sid)
    first, second = view_of(sid, opened=5), view_of(sid, opened=3)
    await archive.writer.add_views([first], NOW_MS)
    await archive.writer.add_views([first, second], NOW_MS)
    assert caplog.text == ""
    late = view_of(sid)
    await archive.writer.add_views([ViewRecord(first.id, "t", sid, {**late.record, "how": "left"})], NOW_MS)
    assert "the later one is dropped" in caplog.text
    found = list((await archive.reader.views(sid, 10)).values())
    assert [view["id"] for view in found] == [second.id, first.id]
    assert {name: found[0][name] for name in second.record} == second.record
    assert await archive.findings() == []


async def test_records_are_read_in_pages_oldest_first(archive: TestArchive) -> None:
    sid = new_sid()
    await archive.add(sid)
    await archive.writer.add_views([view_of(sid, opened=NOW_MS + number // 3) for number in range(10)], NOW_MS)
    whole = list(await archive.reader.views(sid, 100))
    assert whole == sorted(whole)
    paged: list[Place] = []
    while page := list(await archive.reader.views(sid, 4, paged[-1] if paged else None)):
        paged += page
    assert paged == whole


async def test_records_are_counted_but_for_those_of_an_erased_stream(archive: TestArchive) -> None:
    sid, erased, unseen = new_sid(), new_sid(), new_sid()
    await archive.add(sid, erased, unseen)
    await archive.writer.add_views([view_of(sid), view_of(sid), view_of(erased)], NOW_MS)
    await archive.writer.erase([Erasure(erased, Meta({}))], LATER_MS)
    assert await archive.writer.kept_views([sid, erased, unseen]) == {sid: 2, erased: None, unseen: 0}


async def test_views_that_came_before_a_stream_that_never_came_are_erased_with_it(archive: TestArchive) -> None:
    sid = new_sid()
    await archive.writer.add_views([view_of(sid)], NOW_MS)
    await archive.writer.erase([Erasure(sid, meta_of(sid, 5))], NOW_MS)
    assert await archive.reader.views(sid, 10) == {}
    assert await archive.findings() == []
