"""A hundred ways to lie with a database, on both kinds; each is found."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.archive.audit import Audit, Finding, check_stream
from broker.archive.heads import open_heads
from broker.archive.packing import compress, decompress, pack, pack_brief, unpack
from broker.archive.schema import BRIEFS, DEED, DEEDS, SEALS, STREAMS, VIEWS
from broker.archive.seal import Seal, Signer, canonical, deed_digest, log_digest, record_digest, view_digest
from broker.archive.writer import ArchiveWriter, Erasure, finished
from broker.errors import ArchiveUnavailable
from broker.log.deeds import CREATED, Deed, Written
from broker.log.erasures import Order
from broker.log.event import Event, to_ndjson
from broker.log.meta import FIELDS, Meta, new_sid
from tests.archive.archive import NOW_MS, TestArchive, events_of, meta_of, view_of
from tests.archive.conftest import DATABASES, new_archive, open_archive
from tests.rig.long import LONG

Tampering = Callable[[TestArchive], Awaitable[object]]

STREAM, OTHER, ERASED, CRAFTED = (digit * 32 for digit in "12ec")
"""Seals: 1 STREAM, 2 OTHER, 3 ERASED, 4 a view each of STREAM and OTHER, 5 the erasure, 6 CRAFTED, 7 three deeds,
8 the erasure of a person, which was ERASED, and of two of those deeds."""

DEED_KEPT, DEED_ABOUT, DEED_BY = (letter * 32 for letter in "789")

WAYS: dict[str, Tampering] = {}


def way(name: str) -> Callable[[Tampering], Tampering]:
    def register(tampering: Tampering) -> Tampering:
        assert name not in WAYS
        WAYS[name] = tampering
        return tampering

    return register


@pytest.fixture(scope="module", params=DATABASES)
async def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TestArchive]:
    folder = tmp_path_factory.mktemp("archive")
    async with open_archive(new_archive(request, folder), folder) as archive:
        told = {"user": "ann", "metadata": '{"a":1}', "regenerates": "x", "abandon_after_s": "5"}
        await archive.add(STREAM, OTHER, ERASED, **told, agent="support", show='["args"]')
        await archive.writer.add_views([view_of(STREAM), view_of(OTHER)], NOW_MS)
        await archive.writer.erase([Erasure(ERASED, Meta({}))], NOW_MS)
        crafted = _with(events_of(CRAFTED, 5), 1, data=b'{"a":"x","data":5,"text":"y"}')
        await archive.writer.add([finished(CRAFTED, meta_of(CRAFTED, 5), crafted)], NOW_MS)
        kept = deed_of(DEED_KEPT, who="user:bob", stream=STREAM, detail={"regenerates": OTHER})
        await archive.writer.add_deeds(
            [kept, deed_of(DEED_ABOUT, stream=ERASED), deed_of(DEED_BY, who="user:eve", stream=OTHER)], NOW_MS
        )
        await archive.writer.close_erasure(Order("o", "t", "key:k", NOW_MS, user="eve"), [ERASED], NOW_MS)
        yield archive


def deed_of(deed_id: str, **fields: Any) -> Written:
    known: dict[str, Any] = {"tenant": "t", "who": "key:k", "what": CREATED, "address": "::1", "request_id": "r"}
    return Written("1-0", deed_id, NOW_MS, Deed(**{**known, **fields}))


@pytest.fixture
async def full(filled: TestArchive, tmp_path: Path) -> AsyncIterator[TestArchive]:
    """Put back as it was after each test."""
    tables, heads = (STREAMS, BRIEFS, SEALS, VIEWS, DEEDS), filled.heads.read()
    async with filled.database.reading() as connection:
        before = {table: (await connection.execute(sa.select(table))).mappings().all() for table in tables}
    filled.heads = filled.writer._heads = open_heads(str(tmp_path / "heads"))
    for tenant, head in heads.items():
        filled.heads.advance(tenant, head)
    yield filled
    async with filled.database.writing() as connection:
        for table, rows in before.items():
            await connection.execute(sa.delete(table))
            await connection.execute(sa.insert(table), [dict(row) for row in rows])


# -- every column --------------------------------------------------------------------------------------------


def _changed(value: Any) -> Any:
    match value:
        case None:
            return None
        case int():
            return value + 1
        case str():
            return value + "x"
        case _:
            changed = bytearray(value)
            changed[len(changed) // 2] ^= 1
            return bytes(changed)


def change_column(table: str, column: str, key: str, at: Any, change: Callable[[Any], Any]) -> Tampering:
    async def tamper(archive: TestArchive) -> None:
        [row] = await archive.rows(f'SELECT "{column}" AS v FROM {table} WHERE {key} = :at', at=at)
        met = await archive.change(f'UPDATE {table} SET "{column}" = :v WHERE {key} = :at', v=change(row["v"]), at=at)
        assert met == 1

    return tamper


for column in STREAMS.columns:
    if column.name == "erasure":
        WAYS["a stream's erasure, of one that was not erased"] = change_column(
            "streams", "erasure", "sid", STREAM, lambda _: 5
        )
        WAYS["an erased stream's erasure, another seal"] = change_column(
            "streams", "erasure", "sid", ERASED, lambda _: 4
        )
        WAYS["an erased stream's erasure, removed"] = change_column("streams", "erasure", "sid", ERASED, lambda _: None)
        continue
    if column.name == "erased":
        WAYS["a stream's erased, set"] = change_column("streams", "erased", "sid", STREAM, lambda _: NOW_MS)
        WAYS["an erased stream's time of erasure"] = change_column("streams", "erased", "sid", ERASED, _changed)
        WAYS["an erased stream's erased, removed"] = change_column("streams", "erased", "sid", ERASED, lambda _: None)
        continue
    WAYS[f"a stream's {column.name}"] = change_column("streams", column.name, "sid", STREAM, _changed)
    if column.nullable:
        WAYS[f"a stream's {column.name}, removed"] = change_column(
            "streams", column.name, "sid", STREAM, lambda _: None
        )
        WAYS[f"an erased stream's {column.name}, put in"] = change_column(
            "streams",
            column.name,
            "sid",
            ERASED,
            lambda _, column=column: b"x" if column.name in ("salt", "record", "log") else "x",
        )
    else:
        WAYS[f"an erased stream's {column.name}"] = change_column("streams", column.name, "sid", ERASED, _changed)
WAYS["a stream's brief"] = change_column("briefs", "brief", "sid", STREAM, _changed)
WAYS["a stream's brief, another stream's"] = change_column(
    "briefs", "brief", "sid", STREAM, lambda _: pack_brief({"id": "x"})
)
WAYS["a brief of an erased stream"] = change_column("briefs", "sid", "sid", STREAM, lambda _: ERASED)
for column in VIEWS.columns:
    change = (lambda _: secrets.token_hex(16)) if column.name == "id" else _changed
    WAYS[f"a view's {column.name}"] = change_column("views", column.name, "sid", STREAM, change)
    if column.nullable:
        WAYS[f"a view's {column.name}, removed"] = change_column("views", column.name, "sid", STREAM, lambda _: None)
for column in DEEDS.columns:
    change = (lambda _: secrets.token_hex(16)) if column.name == "id" else _changed
    WAYS[f"a deed's {column.name}"] = change_column("deeds", column.name, "id", DEED_KEPT, change)
    if column.nullable:
        WAYS[f"a deed's {column.name}, removed"] = change_column("deeds", column.name, "id", DEED_KEPT, lambda _: None)
        put_in: Any = {"record": b"{}", "at": NOW_MS}.get(column.name, "x")
        WAYS[f"an emptied deed's {column.name}, put in"] = change_column(
            "deeds", column.name, "id", DEED_BY, lambda _, put_in=put_in: put_in
        )
for column in SEALS.columns:
    change = (lambda number: number + 100) if column.name == "number" else _changed
    for number, kind in ((1, "stream"), (4, "views"), (5, "erasure"), (7, "deeds"), (8, "erasures")):
        WAYS[f"a seal's {column.name} ({kind})"] = change_column("seals", column.name, "number", number, change)


# -- every field of an event, of the record, of a statement ----------------------------------------------------


def change_log(change: Callable[[list[Event]], list[Event]]) -> Tampering:
    return change_column("streams", "log", "sid", STREAM, lambda block: pack(change(unpack(bytes(block)))))


def _with(log: list[Event], at: int, **fields: Any) -> list[Event]:
    return [*log[:at], log[at]._replace(**fields), *log[at + 1 :]]


for name, change in {
    "id": lambda log: _with(log, 1, id=77),
    "kind": lambda log: _with(log, 1, kind="thinking_delta"),
    "data": lambda log: _with(log, 1, data=b'{"text":"No"}'),
    "data, in its spaces": lambda log: _with(log, 1, data=log[1].data + b" "),
    "time": lambda log: _with(log, 1, t=log[1].t + 1),
    "all times": lambda log: [event._replace(t=event.t + 1) for event in log],
    "order": lambda log: [log[0], log[2], log[1], *log[3:]],
    "order under the same ids": lambda log: _with(_with(log, 1, data=log[2].data), 2, data=log[1].data),
    "deletion": lambda log: log[:1] + log[2:],
    "deletion of the first": lambda log: log[1:],
    "deletion of the last": lambda log: log[:-1],
    "insertion": lambda log: [*log[:2], log[1], *log[2:]],
    "another ending": lambda log: _with(log, -1, kind="cancelled"),
    "nothing left but the ending": lambda log: log[-1:],
}.items():
    WAYS[f"an event's {name}"] = change_log(change)  # type: ignore[arg-type]

WAYS["a log with something behind it"] = change_column("streams", "log", "sid", STREAM, lambda log: bytes(log) + b"x")
WAYS["a log cut short"] = change_column("streams", "log", "sid", STREAM, lambda log: bytes(log)[:-3])
WAYS["a record with something behind it"] = change_column(
    "streams", "record", "sid", STREAM, lambda record: bytes(record) + b"x"
)


def change_record(field: str, value: str | None) -> Tampering:
    def changed(block: Any) -> bytes:
        record = orjson.loads(decompress(bytes(block)))
        assert record.get(field) != value  # what a stream has not, it must not get either
        if value is None:
            del record[field]
        else:
            record[field] = value
        return compress(canonical(record))

    return change_column("streams", "record", "sid", STREAM, changed)


for field in ("id", *(field.name for field in FIELDS if field.is_archived)):
    WAYS[f"the record's {field}"] = change_record(field, "77")
WAYS["the record's request, removed"] = change_record("request", None)


def change_statement(field: str, value: str | int) -> Tampering:
    def changed(statement: Any) -> bytes:
        return canonical({**orjson.loads(bytes(statement)), field: value})

    return change_column("seals", "statement", "number", 1, changed)


for field in ("v", "kind", "tenant", "number", "previous", "at", "key", "stream", "state", "created", "finished"):
    WAYS[f"a statement's {field}"] = change_statement(field, "77")
for field in ("events", "last_event_id", "record", "log"):
    WAYS[f"a statement's {field}"] = change_statement(field, 77)


# -- what is there at all -----------------------------------------------------------------------------------


def run(*statements: str) -> Tampering:
    async def tamper(archive: TestArchive) -> None:
        for statement in statements:
            assert await archive.change(statement)

    return tamper


WAYS["a stream deleted"] = run(f"DELETE FROM streams WHERE sid = '{STREAM}'")
WAYS["a tombstone deleted"] = run(f"DELETE FROM streams WHERE sid = '{ERASED}'")
WAYS["a seal deleted"] = run("DELETE FROM seals WHERE number = 2")
WAYS["the first seal deleted"] = run("DELETE FROM seals WHERE number = 1")
WAYS["a stream deleted with its seal"] = run(
    f"DELETE FROM streams WHERE sid = '{OTHER}'", "DELETE FROM seals WHERE number = 2"
)
WAYS["a stream deleted with its seal, and the others moved up"] = run(
    f"DELETE FROM streams WHERE sid = '{OTHER}'",
    "DELETE FROM seals WHERE number = 2",
    "UPDATE seals SET number = number - 1 WHERE number = 3",
    "UPDATE seals SET number = number - 1 WHERE number = 4",
    "UPDATE seals SET number = number - 1 WHERE number = 5",
    "UPDATE streams SET seal = 2 WHERE seal = 3",
    "UPDATE views SET seal = 3",
)
WAYS["the newest seal cut off, with all that it sealed"] = run(
    "DELETE FROM seals WHERE number >= 6", "DELETE FROM streams WHERE seal = 6", "DELETE FROM deeds"
)
WAYS["the newest seals cut off, with all that they sealed"] = run(
    "DELETE FROM seals WHERE number > 1", "DELETE FROM streams WHERE seal > 1", "DELETE FROM views", "DELETE FROM deeds"
)
WAYS["everything deleted"] = run(*(f"DELETE FROM {table}" for table in ("seals", "streams", "views", "deeds")))
WAYS["two seals exchanged"] = run(
    "UPDATE seals SET number = 99 WHERE number = 1",
    "UPDATE seals SET number = 1 WHERE number = 2",
    "UPDATE seals SET number = 2 WHERE number = 99",
)
WAYS["a view deleted"] = run(f"DELETE FROM views WHERE sid = '{STREAM}'")
WAYS["all views deleted"] = run("DELETE FROM views")
WAYS["a view given to another stream"] = run(f"UPDATE views SET sid = '{OTHER}' WHERE sid = '{STREAM}'")
WAYS["a view inserted"] = run(
    "INSERT INTO views (id, tenant, sid, opened, record, digest, seal) "
    f"SELECT 'x', tenant, sid, opened, record, digest, seal FROM views WHERE sid = '{STREAM}'"
)
WAYS["a view inserted under no seal"] = run(
    "INSERT INTO views (id, tenant, sid, opened, record, digest, seal) "
    f"SELECT 'x', tenant, sid, opened, record, digest, 77 FROM views WHERE sid = '{STREAM}'"
)
WAYS["a stream moved to another tenant"] = run(f"UPDATE streams SET tenant = 'other' WHERE sid = '{STREAM}'")
WAYS["everything moved to another tenant"] = run(
    "UPDATE streams SET tenant = 'other'",
    "UPDATE seals SET tenant = 'other'",
    "UPDATE views SET tenant = 'other'",
    "UPDATE deeds SET tenant = 'other'",
)
COPIED = ", ".join(f'"{column.name}"' for column in STREAMS.columns if column.name != "sid")
WAYS["a stream inserted as a copy of another"] = run(
    f"INSERT INTO streams (sid, {COPIED}) SELECT '{'9' * 32}', {COPIED} FROM streams WHERE sid = '{STREAM}'"
)
WAYS["an erased stream's content put back"] = run(
    "UPDATE streams SET erased = NULL, erasure = NULL, salt = (SELECT salt FROM streams WHERE seal = 1), "
    "record = (SELECT record FROM streams WHERE seal = 1), log = (SELECT log FROM streams WHERE seal = 1) "
    f"WHERE sid = '{ERASED}'"
)
WAYS["a stream made to look erased"] = run(
    "UPDATE streams SET erased = 1, erasure = 5, salt = NULL, record = NULL, log = NULL, session = NULL, "
    f"\"user\" = NULL, model = NULL WHERE sid = '{STREAM}'"
)
for column in ("log", "record", "salt"):
    WAYS[f"two streams' {column}s exchanged"] = run(
        f"UPDATE streams SET {column} = (SELECT other.{column} FROM streams other WHERE other.sid = '{OTHER}') "
        f"WHERE sid = '{STREAM}'"
    )


EMPTIED = 'session = NULL, "user" = NULL, model = NULL, salt = NULL, record = NULL, log = NULL, erased = 1'
WAYS["a stream emptied, under no seal"] = run(f"UPDATE streams SET {EMPTIED} WHERE sid = '{STREAM}'")
WAYS["every stream emptied, under no seal"] = run(f"UPDATE streams SET {EMPTIED} WHERE erased IS NULL")
WAYS["a view given to an erased stream, and emptied"] = run(
    f"UPDATE views SET sid = '{ERASED}', record = NULL, opened = NULL WHERE sid = '{STREAM}'"
)
WAYS["a view emptied"] = run(f"UPDATE views SET record = NULL, opened = NULL WHERE sid = '{STREAM}'")
WAYS["a deed deleted"] = run(f"DELETE FROM deeds WHERE id = '{DEED_KEPT}'")
WAYS["an emptied deed deleted"] = run(f"DELETE FROM deeds WHERE id = '{DEED_BY}'")
WAYS["all deeds deleted"] = run("DELETE FROM deeds")
DEED_COPIED = ", ".join(column.name for column in DEEDS.columns if column.name not in ("id", "seal"))
for seal in (7, 77):
    WAYS[f"a deed inserted under seal {seal}"] = run(
        f"INSERT INTO deeds (id, seal, {DEED_COPIED}) SELECT 'x', {seal}, {DEED_COPIED} FROM deeds "
        f"WHERE id = '{DEED_KEPT}'"
    )
WAYS["a deed emptied, which no seal says"] = run(
    f"UPDATE deeds SET {', '.join(f'{name} = NULL' for name in DEED)} WHERE id = '{DEED_KEPT}'"
)
WAYS["two deeds exchanged"] = run(
    f"UPDATE deeds SET id = 'x' WHERE id = '{DEED_KEPT}'",
    f"UPDATE deeds SET id = '{DEED_KEPT}' WHERE id = '{DEED_BY}'",
    f"UPDATE deeds SET id = '{DEED_BY}' WHERE id = 'x'",
)
WAYS["a view's digest of nothing"] = run(f"UPDATE views SET digest = '' WHERE sid = '{STREAM}'")


@way("the same sealed bytes taken apart as other events")
async def _(archive: TestArchive) -> None:
    """A line says where its parts begin only if each is what it must be."""
    [row] = await archive.rows("SELECT log FROM streams WHERE sid = :sid", sid=CRAFTED)
    log = unpack(bytes(row["log"]))
    assert log[1].data == b'{"a":"x","data":5,"text":"y"}'
    other = _with(log, 1, kind='text_delta","data":{"a":"x', data=b'5,"text":"y"}')
    assert [to_ndjson(event) for event in other] == [to_ndjson(event) for event in log]
    await archive.change("UPDATE streams SET log = :log WHERE sid = :sid", log=pack(other), sid=CRAFTED)


@way("two streams swapped")
async def _(archive: TestArchive) -> None:
    for sid, name in ((STREAM, "x"), (OTHER, STREAM), ("x", OTHER)):
        await archive.change("UPDATE streams SET sid = :name WHERE sid = :sid", name=name, sid=sid)


@way("two streams swapped, their seals with them")
async def _(archive: TestArchive) -> None:
    for number, becomes in ((1, 99), (2, 1), (99, 2)):
        await archive.change("UPDATE streams SET seal = :to WHERE seal = :from", **{"from": number, "to": becomes})


# -- with the digests made to fit, and with keys ------------------------------------------------------------------


async def _forge(archive: TestArchive, signer: Signer | None) -> None:
    """Change a word, and all digests that follow from it; sign with what key there is."""
    [row] = await archive.rows("SELECT salt, record, log FROM streams WHERE sid = :sid", sid=STREAM)
    log = _with(unpack(bytes(row["log"])), 1, data=b'{"text":"No"}')
    [seal] = await archive.rows("SELECT statement, signature FROM seals WHERE number = 1")
    said = orjson.loads(bytes(seal["statement"])) | {"log": log_digest(bytes(row["salt"]), log)}
    if signer:
        said["key"] = signer.key_id
    statement = canonical(said)
    signature = signer._key.sign(b"lastevent seal 1\n" + statement) if signer else bytes(seal["signature"])
    await archive.change("UPDATE streams SET log = :log WHERE sid = :sid", log=pack(log), sid=STREAM)
    await archive.change("UPDATE seals SET statement = :s, signature = :g WHERE number = 1", s=statement, g=signature)


@way("a word, with its seal's digest made to fit")
async def _(archive: TestArchive) -> None:
    await _forge(archive, None)


@way("a word, with its seal made to fit and signed by another key")
async def _(archive: TestArchive) -> None:
    await _forge(archive, Signer(Ed25519PrivateKey.generate()))


@way("a word, its seal signed by another key that gives itself the known one's name")
async def _(archive: TestArchive) -> None:
    signer = Signer(Ed25519PrivateKey.generate())
    signer.key_id = archive.signer.key_id
    await _forge(archive, signer)


@way("the key replaced: everything sealed anew")
async def _(archive: TestArchive) -> None:
    for table in ("streams", "seals", "views", "deeds"):
        await archive.change(f"DELETE FROM {table}")
    other = ArchiveWriter(archive.database, Signer(Ed25519PrivateKey.generate()), archive.heads)
    await other.add([finished(sid, meta_of(sid, 5), events_of(sid, 5)) for sid in (STREAM, OTHER, ERASED)], NOW_MS)


@way("the very key stolen: everything sealed anew, shorter")
async def _(archive: TestArchive) -> None:
    for table in ("streams", "seals", "views", "deeds"):
        await archive.change(f"DELETE FROM {table}")
    await archive.add(STREAM)


@way("the very key stolen: everything sealed anew, longer")
async def _(archive: TestArchive) -> None:
    for table in ("streams", "seals", "views", "deeds"):
        await archive.change(f"DELETE FROM {table}")
    await archive.add(*(new_sid() for _ in range(10)))


@way("a view's record changed, and its digest made to fit")
async def _(archive: TestArchive) -> None:
    [row] = await archive.rows("SELECT record FROM views WHERE sid = :sid", sid=STREAM)
    record = canonical({**orjson.loads(bytes(row["record"])), "last_id": 99})
    await archive.change(
        "UPDATE views SET record = :r, digest = :d WHERE sid = :sid", r=record, d=view_digest(record), sid=STREAM
    )


@way("a deed's record changed, and its digest and columns made to fit")
async def _(archive: TestArchive) -> None:
    [row] = await archive.rows("SELECT record FROM deeds WHERE id = :id", id=DEED_KEPT)
    record = canonical({**orjson.loads(bytes(row["record"])), "who": "key:k"})
    values = {"r": record, "d": deed_digest(record), "id": DEED_KEPT}
    await archive.change("UPDATE deeds SET record = :r, digest = :d, who = 'key:k' WHERE id = :id", **values)


@way("the record's user and the column changed together, and the digest left")
async def _(archive: TestArchive) -> None:
    await change_record("user", "eve")(archive)
    await archive.change("UPDATE streams SET \"user\" = 'eve' WHERE sid = :sid", sid=STREAM)


# Two tests, since pytest sets `filled` up anew for each entry of one list of pairs.
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("filled", ["sqlite"], indirect=True)
async def test_it_is_found(full: TestArchive, name: str) -> None:
    await WAYS[name](full)
    assert await full.findings() != []


# PostgreSQL differs in how it stores and reads, not in what is checked: here it is every fifth, in the long form all.
@pytest.mark.processes
@pytest.mark.parametrize("name", list(WAYS)[:: 1 if LONG else 5])
@pytest.mark.parametrize("filled", ["postgresql"], indirect=True)
async def test_it_is_found_on_postgresql(full: TestArchive, name: str) -> None:
    await WAYS[name](full)
    assert await full.findings() != []


def test_there_are_a_hundred_ways() -> None:
    assert len(WAYS) >= 100


# -- what a report says ---------------------------------------------------------------------------------------


async def test_a_whole_archive_has_no_findings_and_is_counted(full: TestArchive) -> None:
    report = await full.audit()
    assert (report.seals, report.streams, report.views, report.deeds, report.findings) == (8, 4, 2, 3, [])


async def test_a_finding_names_what_and_where(full: TestArchive) -> None:
    await WAYS["an event's data"](full)
    assert await full.findings() == [
        Finding("log_changed", "The stream's events differ from what was sealed.", "t", STREAM, 1)
    ]


async def test_a_chain_whose_end_nobody_knows_is_said(full: TestArchive, tmp_path: Path) -> None:
    assert (await full.audit()).headless == []
    nowhere = Audit(full.database, full.keys, {})
    assert (await nowhere.run()).headless == ["t"]
    for wrong in (0, -5, 9):
        heads = {"t": full.heads.read()["t"]._replace(number=wrong)}
        assert (await Audit(full.database, full.keys, heads).run()).findings != []


async def test_rows_of_the_wrong_kind_are_findings_and_nothing_worse(full: TestArchive) -> None:
    if full.database.path is None:
        return  # PostgreSQL takes no other kinds
    places = (
        *(("seals", column, "number = 1") for column in ("statement", "signature", "number", "tenant")),
        *(("streams", column.name, f"sid = '{STREAM}'") for column in STREAMS.columns),
        *(("views", column.name, f"sid = '{STREAM}'") for column in VIEWS.columns),
        *(("deeds", column.name, f"id = '{DEED_KEPT}'") for column in DEEDS.columns),
    )
    values = ("77", "'text'", "1.5", "x'00ff'", "9223372036854775807")
    for turn, (table, column, key) in enumerate(places):
        for value in values if LONG else (values[turn % 5], values[(turn + 2) % 5]):
            async with full.database.writing() as connection:
                before = (
                    (await connection.execute(sa.text(f"SELECT rowid, * FROM {table} WHERE {key}"))).mappings().one()
                )
                await connection.execute(sa.text(f'UPDATE {table} SET "{column}" = {value} WHERE {key}'))
            try:
                found = await full.findings()
            except ArchiveUnavailable:
                continue  # it cannot be read at all: that is said
            finally:
                await full.change(
                    f'UPDATE {table} SET "{column}" = :v WHERE rowid = :rowid', v=before[column], rowid=before["rowid"]
                )
            assert found, f"{table}.{column} = {value}"


async def test_without_the_key_nothing_is_believed(full: TestArchive) -> None:
    report = await full.audit(keys={})
    assert {finding.what for finding in report.findings} == {"signature_invalid"}
    assert len(report.findings) == 8


async def test_after_a_change_of_keys_both_are_believed(full: TestArchive, tmp_path: Path) -> None:
    signer = Signer(Ed25519PrivateKey.generate())
    sid = new_sid()
    await ArchiveWriter(full.database, signer, full.heads).add([finished(sid, meta_of(sid, 5), events_of(sid, 5))], 1)
    assert await full.findings() != []
    assert (await full.audit({**full.keys, signer.key_id: signer.public_key})).findings == []


async def test_one_stream_is_checked_without_the_others(full: TestArchive) -> None:
    async def found(sid: str) -> set[str]:
        sealed = await full.reader.sealed(sid)
        assert sealed
        return {finding.what for finding in check_stream(sealed, full.keys, full.heads.read().get("t"))}

    assert [await found(sid) for sid in (STREAM, OTHER, ERASED)] == [set(), set(), set()]
    await WAYS["an event's data"](full)
    assert [await found(sid) for sid in (STREAM, OTHER, ERASED)] == [{"log_changed"}, set(), set()]
    await WAYS["a stream's user, removed"](full)
    assert await found(STREAM) == {"log_changed", "row_changed"}
    await WAYS["a seal deleted"](full)
    assert await found(OTHER) == {"seal_missing"}


def test_a_salt_hides_what_was_erased() -> None:
    log = events_of(STREAM, 3)
    assert log_digest(b"1", log) != log_digest(b"2", log)
    assert record_digest(b"1", b"{}") != record_digest(b"2", b"{}")
    assert Seal(b"{}", b"").claims() == {}
