"""ArchiveWriter: everything that changes the archive. Each call is one transaction, with the seals for its changes.

Writers of all processes take turns (database.py), so a chain has one next number. Every call may be repeated: rows that
exist are left as they are. After a transaction the head of each chain that it extended is also kept elsewhere
(heads.py). A crash between the two leaves the head behind; `settle_heads` corrects that at the next start.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from broker import gauges
from broker.archive import seal
from broker.archive.database import Database
from broker.archive.heads import Head, HeadStore, HeadsUnavailable
from broker.archive.packing import compress, pack, pack_brief
from broker.archive.schema import BRIEFS, CONTENT, DEED, DEEDS, SEALS, STREAMS, VIEWS, raw
from broker.archive.seal import Seal, Signer, canonical
from broker.archive.stamps import Stamper
from broker.log.deeds import Written
from broker.log.erasures import Order
from broker.log.event import OURSELVES, Event
from broker.log.meta import Meta

logger = logging.getLogger(__name__)

MOST_IDS = 500
"""In one statement's list."""

REQUESTED, RETENTION = "requested", "retention"
"""Why content was erased, as the seal of the erasure says."""


class Finished(NamedTuple):
    """A stream on its way into the archive: its row, its brief (schema.py), and the claims of its seal."""

    sid: str
    tenant: str
    row: dict[str, Any]
    brief: bytes
    claims: dict[str, Any]
    traceparent: str | None = None


class Erasure(NamedTuple):
    """An erasure to carry out. `meta`: the tombstone in Redis. The stream may not be in the archive yet."""

    sid: str
    meta: Meta


@dataclass(frozen=True, slots=True)
class ViewRecord:
    """The record of a viewer's connection that has closed (log/access.py). Its `opened` is in ms."""

    id: str
    tenant: str
    sid: str
    record: Mapping[str, Any]


def finished(sid: str, meta: Meta, events: Sequence[Event]) -> Finished:
    """A stream made ready for the archive. `events`: its whole log, which must end with the terminal event.

    Takes some milliseconds for a long log: meant to run in a thread.
    """
    salt = seal.new_salt()
    counted = {"events": str(len(events)), "bytes": str(sum(len(event.data) for event in events))}
    fields = {"id": sid, **meta.archived_fields(), **counted}
    record = canonical(fields)
    known = {
        "state": meta.state,
        "created": meta.created,
        "finished": meta.finished,
        "events": len(events),
    }
    tail = events[-1].id
    row = {
        **known,
        "sid": sid,
        "tenant": meta.tenant,
        "session": meta.session,
        "user": meta.user,
        "model": meta.model,
        "tail": tail,
        "salt": salt,
        "record": compress(record),
        "log": pack(events),
    }
    claims = {
        **known,
        "stream": sid,
        "last_event_id": tail,
        "record": seal.record_digest(salt, record),
        "log": seal.log_digest(salt, events),
    }
    return Finished(sid, meta.tenant, row, pack_brief(fields), claims, meta.traceparent)


class ArchiveWriter:
    """`stamper`: has the heads stamped once a day; None: nobody does."""

    def __init__(
        self, database: Database, signer: Signer, head_store: HeadStore, stamper: Stamper | None = None
    ) -> None:
        self.database = database
        self._stamper = stamper
        self._signer = signer
        self._heads = head_store
        self.behind: set[str] = set()
        """Tenants whose head, outside of the database, does not have their last seal."""

    async def add(self, streams: Sequence[Finished], now_ms: int) -> None:
        """Archive these streams, each once; one that is already there stays as it is. Raises ArchiveUnavailable."""
        async with self.database.writing() as connection:
            there = await _known(connection, streams)
            chains = _Chains(connection, self._signer, now_ms)
            rows, briefs = [], []
            for stream in streams:
                if stream.sid not in there:
                    number = await chains.add(stream.tenant, seal.STREAM, stream.claims)
                    rows.append({**stream.row, "archived": now_ms, "seal": number})
                    briefs.append({"sid": stream.sid, "brief": stream.brief})
            await _insert(connection, STREAMS, rows)
            await _replace_briefs(connection, briefs)
            await chains.write()
        await self._advance_heads(chains)

    async def add_views(self, views: Sequence[ViewRecord], now_ms: int) -> None:
        """Archive viewers' records, with one seal a tenant. Raises ArchiveUnavailable."""
        async with self.database.writing() as connection:
            there = await _present_views(connection, views)
            erased = await _erased(connection, [view.sid for view in views])
            chains = _Chains(connection, self._signer, now_ms)
            batches: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for view in views:
                if view.id not in there:
                    batches[view.tenant].append(_view_row(view, is_erased=view.sid in erased))
            for tenant, rows in batches.items():
                claims = {
                    "views": len(rows),
                    "digest": seal.views_digest((row["id"], row["sid"], row["digest"]) for row in rows),
                }
                number = await chains.add(tenant, seal.VIEWS, claims)
                await _insert(connection, VIEWS, [{**row, "seal": number} for row in rows])
            await chains.write()
        await self._advance_heads(chains)

    async def add_deeds(self, deeds: Sequence[Written], now_ms: int) -> None:
        """Archive deeds, each once, with one seal a tenant. Raises ArchiveUnavailable."""
        async with self.database.writing() as connection:
            which = sa.select(DEEDS.c.id).where(DEEDS.c.id.in_([deed.id for deed in deeds]))
            there = set((await connection.execute(which)).scalars())
            chains = _Chains(connection, self._signer, now_ms)
            batches: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
            for deed in deeds:
                if deed.id not in there:
                    batches[deed.deed.tenant][deed.id] = _deed_row(deed)
            for tenant, rows in batches.items():
                lines = ((row["id"], row["digest"]) for row in rows.values())
                claims = {"deeds": len(rows), "digest": seal.deeds_digest(lines)}
                number = await chains.add(tenant, seal.DEEDS, claims)
                await _insert(connection, DEEDS, [{**row, "seal": number} for row in rows.values()])
            await chains.write()
        await self._advance_heads(chains)

    async def close_erasure(self, order: Order, sids: Collection[str], now_ms: int) -> None:
        """Empty the deeds by and about a person whose streams are erased, and seal what was erased, once an order.

        Raises ArchiveUnavailable.
        """
        async with self.database.writing() as connection:
            chains = _Chains(connection, self._signer, now_ms)
            if not await _is_closed(connection, order):
                erased = sorted([sid for some in _some(sids) for sid in await _erased(connection, some)])
                deeds = await _empty_deeds(connection, order, sids)
                about = {"erasure": order.id, "by": order.by, "ordered": order.at, "reason": order.reason}
                await chains.add(order.tenant, seal.ERASURES, {**about, "streams": erased, "deeds": deeds})
            await chains.write()
        await self.database.rewrite()
        await self._advance_heads(chains)

    async def streams_of(self, tenant: str, user: str | None, session: str | None, after: str, limit: int) -> list[str]:
        """Ids of streams of a user, or of a session, that still have their content; in order, after one of them."""
        of = STREAMS.c.session == session if user is None else STREAMS.c.user == user
        which = sa.select(STREAMS.c.sid).where(
            STREAMS.c.tenant == tenant, of, STREAMS.c.erased.is_(None), STREAMS.c.sid > after
        )
        async with self.database.reading() as connection:
            return list((await connection.execute(which.order_by(STREAMS.c.sid).limit(limit))).scalars())

    async def last_seal(self, tenant: str) -> int:
        """The number of the last seal of the tenant's chain; 0: there is none."""
        async with self.database.reading() as connection:
            tip = await _tip(connection, tenant)
        return tip.number if tip else 0

    async def erase(self, erasures: Sequence[Erasure], now_ms: int) -> None:
        """Erase the content of these streams. One that was never archived also leaves a tombstone.

        Raises ArchiveUnavailable.
        """
        async with self.database.writing() as connection:
            chains = _Chains(connection, self._signer, now_ms)
            for erasure in erasures:
                await self._erase(connection, chains, erasure, now_ms)
            await chains.write()
        await self.database.forget_erased()
        await self._advance_heads(chains)

    async def expire(self, tenant: str, finished_before_ms: int, now_ms: int, limit: int) -> list[str]:
        """Erase up to `limit` streams whose retention in the archive is over. Returns their ids.

        Raises ArchiveUnavailable.
        """
        async with self.database.writing() as connection:
            old = await connection.execute(
                sa.select(STREAMS.c.sid)
                .where(
                    STREAMS.c.tenant == tenant,
                    STREAMS.c.erased.is_(None),
                    STREAMS.c.finished < finished_before_ms,
                )
                .limit(limit)
            )
            sids = list(old.scalars())
            chains = _Chains(connection, self._signer, now_ms)
            for sid in sids:
                await _empty(connection, chains, tenant, sid, {"reason": RETENTION, "by": OURSELVES}, now_ms)
            await chains.write()
        if sids:
            await self.database.forget_erased()
        await self._advance_heads(chains)
        return sids

    async def kept_views(self, sids: Sequence[str]) -> dict[str, int | None]:
        """How many viewers' records it has of each of these streams; None for a stream that was erased."""
        counted = sa.select(VIEWS.c.sid, sa.func.count()).where(VIEWS.c.sid.in_(sids)).group_by(VIEWS.c.sid)
        async with self.database.reading() as connection:
            counts = {row[0]: row[1] for row in await connection.execute(counted)}
            erased = await _erased(connection, sids)
        return {sid: None if sid in erased else counts.get(sid, 0) for sid in sids}

    async def tenants(self) -> list[str]:
        async with self.database.reading() as connection:
            return list((await connection.execute(sa.select(SEALS.c.tenant).distinct())).scalars())

    async def settle_heads(self) -> None:
        """Move each head to the end of its chain: the last run may have ended before it did."""
        for tenant in await self.tenants():
            async with self.database.reading() as connection:
                tip = await _tip(connection, tenant)
            if tip:
                await self._advance_head(tenant, tip)

    async def stamp_heads(self) -> None:
        """Have the heads stamped, if that is due. One that is missing is tried again at the next look."""
        if self._stamper:
            try:
                heads = await asyncio.to_thread(self._heads.read)
                await asyncio.to_thread(self._stamper.stamp, heads)
            except HeadsUnavailable as unavailable:
                logger.warning("the heads of the seals have no time stamp of today: %s", unavailable)

    async def settle_erasures(self) -> None:
        """Remove the briefs of erased streams: a worker of release 0.1, which knows none, may erase during a roll-out.

        Raises ArchiveUnavailable.
        """
        left = sa.select(BRIEFS.c.sid).join(STREAMS, STREAMS.c.sid == BRIEFS.c.sid).where(STREAMS.c.erased.is_not(None))
        async with self.database.writing() as connection:
            removed = await connection.execute(sa.delete(BRIEFS).where(BRIEFS.c.sid.in_(left)))
        if removed.rowcount:
            await self.database.forget_erased()

    async def _erase(self, connection: AsyncConnection, chains: _Chains, erasure: Erasure, now_ms: int) -> None:
        found = await connection.execute(
            sa.select(STREAMS.c.tenant, STREAMS.c.erased).where(STREAMS.c.sid == erasure.sid)
        )
        row = found.first()
        if row is None:
            meta = erasure.meta
            left = {"state": meta.state, "created": meta.created, "finished": meta.finished, "events": meta.events}
            tail = meta.tail
            claims = {"stream": erasure.sid, "reason": REQUESTED, "by": meta.erased_by, **left, "last_event_id": tail}
            number = await chains.add(meta.tenant, seal.ERASURE, claims)
            tomb = {"sid": erasure.sid, "tenant": meta.tenant, **left, "tail": tail}
            marks = {"archived": now_ms, "seal": number, "erased": now_ms, "erasure": number}
            await _insert(connection, STREAMS, [{**tomb, **marks}])
            await _empty_views(connection, erasure.sid)  # they may have come before it
        elif row.erased is None:
            why = {"reason": REQUESTED, "by": erasure.meta.erased_by}
            await _empty(connection, chains, row.tenant, erasure.sid, why, now_ms)

    async def _advance_heads(self, chains: _Chains) -> None:
        gauges.seals.inc(chains.made)
        for tenant, tip in chains.moved.items():
            await self._advance_head(tenant, tip)

    async def _advance_head(self, tenant: str, tip: Head) -> None:
        self.behind.add(tenant)
        try:
            known = (await asyncio.to_thread(self._heads.read)).get(tenant)
            if known and not await self._continues(tenant, known):
                # Whose chain it is nothing else would tell: the one line with a tenant's name (OPERATIONS, logs).
                logger.critical(
                    "the archive's chain of tenant %s does not continue its head (seal %d): seals are missing or "
                    "were changed; run lastevent verify --all. The head stays as it is",
                    *(tenant, known.number),
                )
                return
            await asyncio.to_thread(self._heads.advance, tenant, tip)
            self.behind.discard(tenant)
        except HeadsUnavailable as unavailable:
            logger.error("the head of the seals is not kept outside of the archive: %s", unavailable)  # noqa: TRY400

    async def _continues(self, tenant: str, head: Head) -> bool:
        async with self.database.reading() as connection:
            found = await _seal(connection, tenant, head.number)
        return found is not None and found.digest == head.digest


class _Chains:
    """The chains of this transaction's tenants: it numbers new seals and writes them together."""

    def __init__(self, connection: AsyncConnection, signer: Signer, now_ms: int) -> None:
        self._connection = connection
        self._signer = signer
        self._now_ms = now_ms
        self._rows: list[dict[str, Any]] = []
        self.moved: dict[str, Head] = {}

    @property
    def made(self) -> int:
        """How many seals."""
        return len(self._rows)

    async def add(self, tenant: str, kind: str, claims: Mapping[str, Any]) -> int:
        """Make a seal. Returns its number."""
        tip = self.moved.get(tenant) or await _tip(self._connection, tenant) or Head(0, seal.NOTHING, 0)
        number = tip.number + 1
        made = self._signer.seal(tenant, number, tip.digest, self._now_ms, kind, claims)
        self.moved[tenant] = Head(number, made.digest, self._now_ms)
        self._rows.append({"tenant": tenant, "number": number, **made._asdict()})
        return number

    async def write(self) -> None:
        await _insert(self._connection, SEALS, self._rows)


async def _insert(connection: AsyncConnection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        await connection.execute(sa.insert(table), [dict(row) for row in rows])


async def _replace_briefs(connection: AsyncConnection, briefs: Sequence[Mapping[str, Any]]) -> None:
    """One whose stream somebody has removed must not keep that stream from being archived."""
    if briefs:
        await connection.execute(sa.delete(BRIEFS).where(BRIEFS.c.sid.in_([brief["sid"] for brief in briefs])))
    await _insert(connection, BRIEFS, briefs)


async def _known(connection: AsyncConnection, streams: Sequence[Finished]) -> set[str]:
    """Which of these are already archived. A row in the archive was sealed, and stays."""
    which = sa.select(STREAMS.c.sid, STREAMS.c.log).where(STREAMS.c.sid.in_([stream.sid for stream in streams]))
    logs = {row.sid: row.log for row in await connection.execute(which)}
    for stream in streams:
        if (log := logs.get(stream.sid)) is not None and bytes(log) != stream.row["log"]:
            logger.error("stream %s: its log in Redis differs from the archived one, which stays", stream.sid)
    return set(logs)


async def _present_views(connection: AsyncConnection, views: Sequence[ViewRecord]) -> set[str]:
    """Which of these are already archived. A server wrongly taken for dead sends its records later, and they differ."""
    which = sa.select(VIEWS.c.id, VIEWS.c.record).where(VIEWS.c.id.in_([view.id for view in views]))
    records = {row.id: row.record for row in await connection.execute(which)}
    for view in views:
        record = records.get(view.id)
        if record is not None and orjson.loads(record)["how"] != view.record["how"]:
            logger.warning("stream %s: a viewer's record is sealed as server_lost; the later one is dropped", view.sid)
    return set(records)


async def _erased(connection: AsyncConnection, sids: Iterable[str]) -> set[str]:
    which = sa.select(STREAMS.c.sid).where(STREAMS.c.sid.in_(set(sids)), STREAMS.c.erased.is_not(None))
    return set((await connection.execute(which)).scalars())


async def _seal(connection: AsyncConnection, tenant: str, number: int) -> Seal | None:
    which = sa.select(SEALS.c.statement, SEALS.c.signature).where(SEALS.c.tenant == tenant, SEALS.c.number == number)
    row = (await connection.execute(which)).first()
    return None if row is None else Seal(raw(row.statement), raw(row.signature))


async def _tip(connection: AsyncConnection, tenant: str) -> Head | None:
    last = sa.select(sa.func.max(SEALS.c.number)).where(SEALS.c.tenant == tenant)
    number = (await connection.execute(last)).scalar()
    if number is None:
        return None
    found = await _seal(connection, tenant, number)
    return found and Head(number, found.digest, int(found.claims().get("at", 0)))


async def _empty(
    connection: AsyncConnection, chains: _Chains, tenant: str, sid: str, why: Mapping[str, str | None], now_ms: int
) -> None:
    number = await chains.add(tenant, seal.ERASURE, {"stream": sid, **why})
    nothing = dict.fromkeys(CONTENT)
    await connection.execute(
        sa.update(STREAMS).where(STREAMS.c.sid == sid).values(**nothing, erased=now_ms, erasure=number)
    )
    await connection.execute(sa.delete(BRIEFS).where(BRIEFS.c.sid == sid))
    await _empty_views(connection, sid)


async def _empty_views(connection: AsyncConnection, sid: str) -> None:
    await connection.execute(sa.update(VIEWS).where(VIEWS.c.sid == sid).values(opened=None, record=None))


def _view_row(view: ViewRecord, *, is_erased: bool) -> dict[str, Any]:
    record = canonical({"id": view.id, "stream": view.sid, **view.record, "salt": secrets.token_hex(16)})
    return {
        "id": view.id,
        "tenant": view.tenant,
        "sid": view.sid,
        "opened": None if is_erased else view.record["opened"],
        "record": None if is_erased else record,
        "digest": seal.view_digest(record),
    }


def _deed_row(written: Written) -> dict[str, Any]:
    deed = written.deed
    record = canonical({**written.record(), "person": deed.person, "salt": secrets.token_hex(16)})
    return {
        "id": written.id,
        "tenant": deed.tenant,
        "at": written.at,
        "who": deed.who,
        "what": deed.what,
        "stream": deed.stream,
        "person": deed.person,
        "record": record,
        "digest": seal.deed_digest(record),
    }


async def _is_closed(connection: AsyncConnection, order: Order) -> bool:
    """Whether the chain has this order's statement: its worker died before it could say so."""
    since = sa.select(SEALS.c.statement).where(SEALS.c.tenant == order.tenant, SEALS.c.number > order.chain)
    async for statement in await connection.stream_scalars(since):
        claims = Seal(raw(statement), b"").claims()
        if claims.get("kind") == seal.ERASURES and claims.get("erasure") == order.id:
            return True
    return False


async def _empty_deeds(connection: AsyncConnection, order: Order, sids: Collection[str]) -> list[str]:
    """Those about these streams, and by or about this person. Returns their ids."""
    of: list[sa.ColumnElement[bool]] = [DEEDS.c.stream.in_(some) for some in _some(sids)]
    if order.person is not None:
        of.append(DEEDS.c.person == order.person)
    emptied: list[str] = []
    for which in of:
        is_its = sa.and_(DEEDS.c.tenant == order.tenant, which)
        emptied += (await connection.execute(sa.select(DEEDS.c.id).where(is_its))).scalars()
        await connection.execute(sa.update(DEEDS).where(is_its).values(**dict.fromkeys(DEED)))
    return sorted(emptied)


def _some(sids: Collection[str]) -> Iterator[list[str]]:
    """In parts that a statement has room for."""
    listed = sorted(sids)
    return (listed[start : start + MOST_IDS] for start in range(0, len(listed), MOST_IDS))
