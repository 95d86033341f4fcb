"""ArchiveReader: find a stream, list streams and sessions, and what belongs to one: its views, its seal.

A stream from here looks like one from Redis: the same meta, and a log that is read by pages (tail.py), so that
whoever asks for it gets the same bytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.archive.database import Database
from broker.archive.packing import Unpacking, decompress
from broker.archive.schema import BRIEFS, DEEDS, SEALS, STREAMS, VIEWS, raw
from broker.archive.seal import Seal
from broker.errors import ArchiveDamaged
from broker.log.deeds import Which
from broker.log.event import Event
from broker.log.index import Filter, Part, Place, record_bytes
from broker.log.meta import Meta
from broker.log.readable import ReadableLog
from broker.log.steps import PAGE_EVENTS, Page

logger = logging.getLogger(__name__)

FILTERS = {"session": STREAMS.c.session, "user": STREAMS.c.user, "model": STREAMS.c.model, "state": STREAMS.c.state}
LISTED = (
    *(STREAMS.c.sid, STREAMS.c.tenant, STREAMS.c.state, STREAMS.c.created, STREAMS.c.finished, STREAMS.c.events),
    *(STREAMS.c.tail, STREAMS.c.archived, STREAMS.c.erased, STREAMS.c.erasure),
)
SIZES = sa.func.length(STREAMS.c.record).label("record_bytes"), sa.func.length(BRIEFS.c.brief).label("brief_bytes")
_BRIEFS = BRIEFS, BRIEFS.c.sid == STREAMS.c.sid
WITH_BRIEFS = sa.select(STREAMS, BRIEFS.c.brief).outerjoin(*_BRIEFS)

BATCH_BYTES = 2**20
"""Compressed records of a listing that are in memory at a time. Each is unpacked by itself."""

WITH_REQUESTS = 8
"""Records in memory at a time that keep their requests: one of 1 MB may be a thousandth of that in its row."""

PAGE_BYTES = 128 * 1024
"""Data of a page: so much is inflated and parsed in 1 to 3 ms, in which nothing else of the process has its turn."""


class ArchivedLog(ReadableLog):
    """A finished log, read as StreamLog is, by one reader. `state` and `tail`: of its row.

    It is unpacked as far as it was read. A reader that goes back, or jumps, begins anew.
    """

    def __init__(self, block: bytes, *, state: str, tail: int) -> None:
        self._block = block
        self._state = state
        self._tail = tail
        self._unpacking: Unpacking | None = None
        self._at = 0  # the id of the last event given

    async def read_page(self, _: str, cursor: int, count: int = PAGE_EVENTS) -> Page:
        """As StreamLog.read_page. Raises ArchiveDamaged."""
        try:
            return await self._read_page(cursor, count)
        except ValueError as error:
            raise ArchiveDamaged("The archived log cannot be read. Run: lastevent verify --all") from error

    async def _read_page(self, cursor: int, count: int) -> Page:
        is_known = cursor == 0 or self._at == cursor
        if self._unpacking is None or self._at != cursor:
            self._unpacking = await asyncio.to_thread(Unpacking, self._block)
        events: list[Event] = []
        while self._unpacking.left and not events:
            taken = self._unpacking.take(count, PAGE_BYTES)
            is_known = is_known or any(event.id == cursor for event in taken)
            events = [event for event in taken if event.id > cursor]
            await asyncio.sleep(0)  # others have their turns between two pages
        if events:
            self._at = events[-1].id
        else:  # the end; a cursor that is not in the log is not known the next time either
            self._at = cursor if is_known else -1
        return Page(self._state, self._tail, is_known, events, self._unpacking.left > 0)

    async def read_last(self, sid: str) -> Event:
        return (await self.read_all(sid))[-1]


class Sealed(NamedTuple):
    """An archived stream as it stands in the database, and the seals that speak of it; unchecked (audit.py)."""

    row: dict[str, Any]
    seal: Seal | None
    next: Seal | None
    erasure: Seal | None


class ArchiveReader:
    """Each call raises ArchiveUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, sid: str, *, with_request: bool = False) -> Meta | None:
        """The stream's meta; None if it is not archived. One that is erased says so (`erased`), and little else."""
        if _is_never_stored(sid):
            return None
        which = sa.select(*LISTED, _stored(with_request)).outerjoin(*_BRIEFS).where(STREAMS.c.sid == sid)
        async with self._database.reading() as connection:
            row = (await connection.execute(which)).first()
            erased_by = await _erased_by(connection, [row] if row else [])
        if row is None:
            return None
        if with_request:  # 32 MiB take a while to unpack
            return await asyncio.to_thread(_meta, row, row.stored, erased_by, with_request)
        return _meta(row, row.stored, erased_by, with_request)

    async def read_log(self, sid: str) -> ArchivedLog | None:
        """None if there is no such stream, or its content was erased."""
        async with self._database.reading() as connection:
            which = sa.select(STREAMS.c.log, STREAMS.c.state, STREAMS.c.tail).where(STREAMS.c.sid == sid)
            row = (await connection.execute(which)).first()
        return None if row is None or row.log is None else ArchivedLog(raw(row.log), state=row.state, tail=row.tail)

    async def list_streams(
        self,
        tenant: str,
        which: Filter,
        limit: int,
        after: Place | None,
        *,
        with_requests: bool = False,
        max_bytes: float = float("inf"),
    ) -> Part:
        """Up to `limit` streams with their meta, newest first, after a place in the listing.

        The search ends with the first stream whose record goes beyond `max_bytes` in all.
        """
        if _is_never_stored(which.session, which.user, which.model):
            return Part({}, None)
        statement = streams_statement(tenant, which, limit, after)
        async with self._database.reading() as connection:
            rows = (await connection.execute(statement)).all()
            erased_by = await _erased_by(connection, rows)
            _, end = _places([(row.created, row.sid) for row in rows], limit)
            found: dict[Place, Meta] = {}
            size = 0
            there = [row for row in rows if isinstance(row.created, int)]
            for batch in _batches(there, WITH_REQUESTS if with_requests else limit, with_requests):
                of_these = sa.select(STREAMS.c.sid, _stored(with_requests)).outerjoin(*_BRIEFS)
                found_there = await connection.execute(of_these.where(STREAMS.c.sid.in_([row.sid for row in batch])))
                records = {row.sid: row.stored for row in found_there}
                for row, meta in await asyncio.to_thread(_metas, batch, records, erased_by, with_requests):
                    if meta:
                        found[Place(row.created, row.sid)] = meta
                        size += record_bytes(meta)
                    if size > max_bytes:
                        return Part(found, end if row is rows[-1] else Place(row.created, row.sid))
        return Part(found, end)

    async def list_sessions(self, tenant: str, limit: int, after: Place | None) -> tuple[list[Place], Place | None]:
        """Sessions by their newest stream, newest first: its creation, and the session's name; and as `Part.end`."""
        newer = STREAMS.alias("newer")
        is_newest = ~sa.exists().where(
            newer.c.tenant == tenant,
            newer.c.session == STREAMS.c.session,
            sa.tuple_(newer.c.created, newer.c.sid) > sa.tuple_(STREAMS.c.created, STREAMS.c.sid),
        )
        statement = (
            sa.select(STREAMS.c.created, STREAMS.c.session)
            .where(STREAMS.c.tenant == tenant, STREAMS.c.session.is_not(None), is_newest)
            .order_by(STREAMS.c.created.desc(), STREAMS.c.session.desc())
            .limit(limit)
        )
        if after:
            place = sa.tuple_(STREAMS.c.created, STREAMS.c.session)
            statement = statement.where(STREAMS.c.created <= after.score, place < sa.tuple_(*after))
        async with self._database.reading() as connection:
            rows = [tuple(row) for row in await connection.execute(statement)]
        return _places(rows, limit)

    async def views(self, sid: str, limit: int, after: Place | None = None) -> dict[Place, dict[str, Any]]:
        """Up to `limit` viewers' records of a stream, oldest first: (opened, id) → record. Of an erased stream none."""
        statement = (
            sa.select(VIEWS.c.opened, VIEWS.c.id, VIEWS.c.record)
            .where(VIEWS.c.sid == sid, VIEWS.c.record.is_not(None))
            .order_by(VIEWS.c.opened, VIEWS.c.id)
            .limit(limit)
        )
        if after:
            # The first condition says nothing new, but lets every planner begin at the place in the index.
            place = sa.tuple_(VIEWS.c.opened, VIEWS.c.id)
            statement = statement.where(VIEWS.c.opened >= after.score, place > sa.tuple_(*after))
        async with self._database.reading() as connection:
            rows = list(await connection.execute(statement))
        return {Place(row.opened, row.id): orjson.loads(row.record) for row in rows if isinstance(row.opened, int)}

    async def deeds(
        self, tenant: str, which: Which, limit: int, after: Place | None
    ) -> tuple[dict[Place, dict[str, Any]], Place | None]:
        """Up to `limit` deeds' records, newest first, after a place: (at, id) → record. And as `Part.end`."""
        if _is_never_stored(which.who, which.stream):
            return {}, None
        statement = sa.select(DEEDS.c.at, DEEDS.c.id, DEEDS.c.record).where(
            DEEDS.c.tenant == tenant, DEEDS.c.record.is_not(None)
        )
        for column, wanted in ((DEEDS.c.what, which.what), (DEEDS.c.who, which.who), (DEEDS.c.stream, which.stream)):
            if wanted is not None:
                statement = statement.where(column == wanted)
        if which.after_ms is not None:
            statement = statement.where(DEEDS.c.at >= which.after_ms)
        if which.before_ms is not None:
            statement = statement.where(DEEDS.c.at <= which.before_ms)
        if after:  # as in streams_statement
            place = sa.tuple_(DEEDS.c.at, DEEDS.c.id)
            statement = statement.where(DEEDS.c.at <= after.score, place < sa.tuple_(*after))
        async with self._database.reading() as connection:
            rows = list(await connection.execute(statement.order_by(DEEDS.c.at.desc(), DEEDS.c.id.desc()).limit(limit)))
        _, end = _places([(row.at, row.id) for row in rows], limit)
        return {Place(row.at, row.id): orjson.loads(row.record) for row in rows if isinstance(row.at, int)}, end

    async def tenant(self, sid: str) -> str | None:
        """Of a row that may be damaged otherwise."""
        async with self._database.reading() as connection:
            found: str | None = await connection.scalar(sa.select(STREAMS.c.tenant).where(STREAMS.c.sid == sid))
        return found

    async def sealed(self, sid: str) -> Sealed | None:
        async with self._database.reading() as connection:
            row = (await connection.execute(WITH_BRIEFS.where(STREAMS.c.sid == sid))).mappings().first()
            if row is None:
                return None
            own = row["seal"] if isinstance(row["seal"], int) else 0
            numbers = {"seal": own, "next": own + 1, "erasure": row["erasure"]}
            found = await connection.execute(
                sa.select(SEALS).where(
                    SEALS.c.tenant == row["tenant"],
                    SEALS.c.number.in_([number for number in numbers.values() if number is not None]),
                )
            )
            seals = {seal.number: Seal(raw(seal.statement), raw(seal.signature)) for seal in found}
        return Sealed(dict(row), **{name: seals.get(number) for name, number in numbers.items()})


def _is_never_stored(*asked: str | None) -> bool:
    """No name has a NUL (schema.py), and PostgreSQL answers one that has with an error."""
    return any("\0" in text for text in asked if text)


def streams_statement(tenant: str, which: Filter, limit: int, after: Place | None) -> sa.Select[Any]:
    statement = sa.select(*LISTED, *SIZES).outerjoin(*_BRIEFS).where(STREAMS.c.tenant == tenant)
    for name, column in FILTERS.items():
        if (wanted := getattr(which, name)) is not None:
            statement = statement.where(column == wanted)
    if which.created_after_ms is not None:
        statement = statement.where(STREAMS.c.created >= which.created_after_ms)
    if which.created_before_ms is not None:
        statement = statement.where(STREAMS.c.created <= which.created_before_ms)
    if after:
        # The first condition says nothing new, but lets every planner begin at the place in the index.
        place = sa.tuple_(STREAMS.c.created, STREAMS.c.sid)
        statement = statement.where(STREAMS.c.created <= after.score, place < sa.tuple_(*after))
    return statement.order_by(STREAMS.c.created.desc(), STREAMS.c.sid.desc()).limit(limit)


def _places(rows: Sequence[tuple[Any, ...]], limit: int) -> tuple[list[Place], Place | None]:
    """A row that somebody has damaged (its time is not a number) takes no other from a listing."""
    places = [Place(created, member) for created, member in rows if isinstance(created, int)]
    return places, places[-1] if places and len(rows) == limit else None


ErasedBy = Mapping[tuple[str, int], str]
"""(tenant, number) of the seal of an erasure → who erased, as the seal says."""


async def _erased_by(connection: AsyncConnection, rows: Sequence[Any]) -> ErasedBy:
    numbers = {row.erasure for row in rows if isinstance(row.erasure, int)}
    if not numbers:
        return {}
    found = await connection.execute(
        sa.select(SEALS.c.tenant, SEALS.c.number, SEALS.c.statement).where(
            SEALS.c.tenant.in_({row.tenant for row in rows}), SEALS.c.number.in_(numbers)
        )
    )
    claims = {(seal.tenant, seal.number): Seal(raw(seal.statement), b"").claims() for seal in found}
    return {place: by for place, claim in claims.items() if isinstance(by := claim.get("by"), str)}


def _stored(with_request: bool) -> sa.ColumnElement[Any]:
    """The stream's record, or its brief if it has one and that is enough."""
    stored = STREAMS.c.record if with_request else sa.func.coalesce(BRIEFS.c.brief, STREAMS.c.record)
    return stored.label("stored")


def _batches(rows: Sequence[Any], most: int, with_requests: bool) -> Iterator[list[Any]]:
    """Of BATCH_BYTES and `most` rows, or one row that is larger."""
    batch: list[Any] = []
    size = 0
    for row in rows:
        stored_bytes = (row.record_bytes if with_requests or row.brief_bytes is None else row.brief_bytes) or 0
        if batch and (len(batch) == most or size + stored_bytes > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += stored_bytes
    if batch:
        yield batch


def _metas(
    rows: Sequence[Any], records: Mapping[str, Any], erased_by: ErasedBy, with_requests: bool
) -> list[tuple[Any, Meta | None]]:
    there = [row for row in rows if row.erased is not None or records.get(row.sid) is not None]  # others: just erased
    return [(row, _meta_or_none(row, records.get(row.sid), erased_by, with_requests)) for row in there]


def _meta_or_none(row: Any, record: Any, erased_by: ErasedBy, with_request: bool) -> Meta | None:
    try:
        return _meta(row, record, erased_by, with_request)
    except ArchiveDamaged:
        logger.exception("a row of the archive cannot be read, and is not listed; run lastevent verify --all")
        return None


def _meta(row: Any, record: Any, erased_by: ErasedBy, with_request: bool) -> Meta:
    """Raises ArchiveDamaged."""
    try:
        for name in ("created", "finished", "events", "tail", "archived"):
            int(row._mapping[name])
        return _decoded(row, record, erased_by, with_request)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArchiveDamaged("The archive's row of this stream cannot be read. Run: lastevent verify --all") from error


def _decoded(row: Any, stored: Any, erased_by: ErasedBy, with_request: bool) -> Meta:
    kept = {name: str(row._mapping[name]) for name in ("tenant", "state", "created", "finished", "events", "tail")}
    if row.erased is not None or stored is None:
        by = erased_by.get((row.tenant, row.erasure))
        erased = {"erased": str(row.erased)} if by is None else {"erased": str(row.erased), "erased_by": by}
        return Meta({**kept, "archived": str(row.archived), **erased})
    record: dict[str, str] = orjson.loads(decompress(raw(stored)))
    del record["id"]
    if not with_request:
        record.pop("request", None)
    return Meta({**record, **kept, "archived": str(row.archived)})
