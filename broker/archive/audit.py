"""The audit: everything in the archive against its seals. docs/AUDIT.md specifies it for other verifiers.

Nothing in the database is trusted. A seal counts if a known key has signed it; a chain, if its numbers have no gap and
each seal names the digest of the one before it; a row, if a seal of the chain claims the same. A row that no seal names
was inserted. The keys and the heads come from outside of the database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import filterfalse
from typing import Any, NamedTuple

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.archive import seal as seals
from broker.archive.database import Database, see_one_moment
from broker.archive.heads import Head
from broker.archive.packing import decompress, is_brief_of, unpack
from broker.archive.reader import WITH_BRIEFS, Sealed
from broker.archive.schema import CONTENT, DEED, DEEDS, SEALS, STREAMS, VIEWS, raw
from broker.archive.seal import Seal
from broker.archive.signing import PublicKeys
from broker.archive.stamps import Stamp
from broker.log.event import KIND, Event

PAGE = 100
"""Seals in one read, with the rows that they seal: a row may hold megabytes, and all of a page are in memory."""


class Finding(NamedTuple):
    """Something that differs from what was sealed. `what`: its code, `detail`: a sentence."""

    what: str
    detail: str
    tenant: str | None = None
    stream: str | None = None
    seal: int | None = None


class Report(NamedTuple):
    """How much was checked, and what was found. `headless`: tenants without a head that is kept elsewhere.

    Whether the end of such a tenant's chain was cut off cannot be determined.
    """

    seals: int
    streams: int
    views: int
    deeds: int
    findings: list[Finding]
    headless: list[str]


# -- one stream ------------------------------------------------------------------------------------------


def check_stream(sealed: Sealed, keys: PublicKeys, head: Head | None) -> list[Finding]:
    """One stream against its own seal, and the seal's place in the chain as far as the next seal shows it."""
    row = sealed.row
    found: list[Finding] = []
    if sealed.seal is None:
        return [Finding("seal_missing", "The stream names a seal that does not exist.", row["tenant"], row["sid"])]
    found += _check_seal(sealed.seal, row["tenant"], row["seal"], keys)
    if sealed.next and sealed.next.claims().get("previous") != sealed.seal.digest:
        found.append(_broken_chain(row["tenant"], row["seal"] + 1))
    if head and sealed.next is None and head.number > row["seal"]:
        found.append(_cut_off(row["tenant"], row["seal"], head))
    if head and head.number == row["seal"] and head.digest != sealed.seal.digest:
        found.append(_other_head(row["tenant"], head))
    found += _check_row(row, sealed.seal.claims())
    if row["erased"] is not None or row["log"] is None:
        found += _check_erasure(row, sealed.erasure, keys)
    return found


# -- everything ------------------------------------------------------------------------------------------


class Audit:
    """`stamps`: time stamps of the heads, each with what is wrong with it, or None."""

    def __init__(
        self,
        database: Database,
        keys: PublicKeys,
        heads: Mapping[str, Head],
        stamps: Sequence[tuple[Stamp, str | None]] = (),
    ) -> None:
        self._database = database
        self._stamps = stamps
        self._keys = keys
        self._heads = heads

    async def run(self) -> Report:
        """Check everything. Raises ArchiveUnavailable."""
        findings = [Finding("stamp_invalid", f"A time stamp of the heads: {bad}.") for _, bad in self._stamps if bad]
        stamped: dict[str, dict[int, str]] = defaultdict(dict)
        for stamp, bad in self._stamps:
            for tenant, (number, digest) in stamp.heads.items() if not bad else ():
                stamped[tenant][number] = digest
        counted = 0
        async with self._database.reading(within_s=None) as connection:
            await connection.run_sync(see_one_moment)
            in_rows = set((await connection.execute(sa.select(SEALS.c.tenant).distinct())).scalars())
            tenants = sorted({*filter(_is_text, in_rows), *self._heads, *stamped})
            findings += [Finding("unreadable", "A seal's tenant is not text.") for _ in filterfalse(_is_text, in_rows)]
            for tenant in tenants:
                chain = _Chain(connection, tenant, self._keys, self._heads.get(tenant), stamped.get(tenant, {}))
                try:
                    counted += await chain.check()
                except (TypeError, ValueError, KeyError, AttributeError) as error:
                    chain.findings.append(Finding("unreadable", f"A row holds an impossible value: {error}.", tenant))
                findings += chain.findings
            streams = await _check_unsealed(connection, STREAMS, STREAMS.c.sid, findings)
            views = await _check_unsealed(connection, VIEWS, VIEWS.c.id, findings)
            deeds = await _check_unsealed(connection, DEEDS, DEEDS.c.id, findings)
        return Report(
            counted, streams, views, deeds, findings, [tenant for tenant in tenants if tenant not in self._heads]
        )


class _Chain:
    """One tenant's seals, from the first to the last, and every row that they seal."""

    def __init__(
        self,
        connection: AsyncConnection,
        tenant: str,
        keys: PublicKeys,
        head: Head | None,
        stamped: Mapping[int, str],
    ) -> None:
        self._connection = connection
        self._stamped = stamped
        self._tenant = tenant
        self._keys = keys
        self._head = head
        self._erasures: dict[str, int] = {}
        self._erased: dict[str, int | None] = {}
        self._sealed_streams: set[str] = set()
        self._empty_deeds: dict[str, int] = {}
        self._of_people: dict[str, list[tuple[int, list[Any]]]] = {"streams": [], "deeds": []}
        self._people: set[str] = set()
        self.findings: list[Finding] = []

    async def check(self) -> int:
        """Check the chain. Returns the number of its last seal."""
        last, previous = 0, seals.NOTHING
        async for page in self._pages():
            rows, views = await self._rows_of(page), await self._views_of(page)
            deeds = await self._deeds_of(page)
            for number, seal in page:
                if number != last + 1:
                    self._find("seals_missing", f"The seals between {last} and {number} are missing.", number)
                self.findings += _check_seal(seal, self._tenant, number, self._keys)
                if seal.claims().get("previous") != previous:
                    self.findings.append(_broken_chain(self._tenant, number))
                self._check_what_it_seals(number, seal, rows, views, deeds)
                last, previous = number, seal.digest
                if self._stamped.get(number, previous) != previous:
                    self._find("stamp_differs", "A time stamp of the head is of another seal with this number.", number)
                if self._head and self._head.number == last and self._head.digest != previous:
                    self.findings.append(_other_head(self._tenant, self._head))
        if self._head and self._head.number > last:
            self.findings.append(_cut_off(self._tenant, last, self._head))
        for number in (number for number in self._stamped if number > last):
            self._find("stamp_differs", "A time stamp of the head is of a seal that the chain does not reach.", number)
        if self._head and self._head.number < 1:
            self.findings.append(_other_head(self._tenant, self._head))
        self._check_erasures()
        return last

    def _check_what_it_seals(
        self,
        number: int,
        seal: Seal,
        rows: Mapping[str, Any],
        views: Mapping[int, list[Any]],
        deeds: Mapping[int, list[Any]],
    ) -> None:
        claims = seal.claims()
        sid = str(claims.get("stream"))
        match claims.get("kind"):
            case seals.STREAM:
                self._check_stream(number, sid, claims, rows.get(sid))
            case seals.ERASURE:
                self._check_erased_row(number, sid, claims, rows.get(sid))
            case seals.VIEWS:
                self._check_views(number, claims, views.get(number, []))
            case seals.DEEDS:
                self._check_deeds(number, claims, deeds.get(number, []))
            case seals.ERASURES:
                self._take_erasure_of_person(number, claims)

    def _check_stream(self, number: int, sid: str, claims: dict[str, Any], row: Any) -> None:
        if sid in self._sealed_streams:
            self._find("sealed_twice", "The stream has two seals.", number, sid)
        self._sealed_streams.add(sid)
        if row is None:
            self._find("stream_missing", "The stream was sealed but is not in the archive.", number, sid)
            return
        if row["seal"] != number:
            self._find("row_changed", f"The stream names seal {row['seal']} as its own, not this one.", number, sid)
        if row["erased"] is not None:
            self._erased[sid] = row["erasure"]
        self.findings += _check_row(row, claims)

    def _check_erased_row(self, number: int, sid: str, claims: dict[str, Any], row: Any) -> None:
        if sid in self._erasures:
            self._find("sealed_twice", "The stream's erasure has two seals.", number, sid)
        self._erasures[sid] = number
        if row is None:
            self._find("stream_missing", "The stream was erased but its tombstone is missing.", number, sid)
        elif row["erased"] != claims.get("at") or row["erasure"] != number:
            self._find("erasure_undone", "The stream was erased but its row does not say so.", number, sid)
        elif row["seal"] == number:
            self._erased[sid] = number
            self.findings += _check_row(row, claims)

    def _check_views(self, number: int, claims: dict[str, Any], rows: list[Any]) -> None:
        digest = seals.views_digest((row["id"], row["sid"], str(row["digest"])) for row in rows)
        if len(rows) != claims.get("views") or digest != claims.get("digest"):
            self._find("views_changed", "The viewers' records are not those that were sealed.", number)
        for row in rows:
            self.findings += _check_view(row)

    def _check_deeds(self, number: int, claims: dict[str, Any], rows: list[Any]) -> None:
        digest = seals.deeds_digest((row["id"], str(row["digest"])) for row in rows)
        if len(rows) != claims.get("deeds") or digest != claims.get("digest"):
            self._find("deeds_changed", "The deeds are not those that were sealed.", number)
        for row in rows:
            if row["record"] is None:
                self._empty_deeds[row["id"]] = number
            if not _is_deed(row):
                self._find("deed_changed", "A deed differs from what was sealed.", number)

    def _take_erasure_of_person(self, number: int, claims: dict[str, Any]) -> None:
        """What it says is checked at the end: a stream's own erasure may be sealed before it, or (its worker was slow)
        after it."""
        if (erasure := str(claims.get("erasure"))) in self._people:
            self._find("sealed_twice", "The erasure of a person has two seals.", number)
        self._people.add(erasure)
        for of, listed in self._of_people.items():
            listed.append((number, claims[of]))

    def _check_erasures(self) -> None:
        for number, sids in self._of_people["streams"]:
            for sid in sids:
                if sid not in self._erasures:
                    detail = "A person's stream was erased and no seal of its own says so."
                    self._find("erasure_undone", detail, number, sid)
        emptied: set[Any] = set()
        for number, ids in self._of_people["deeds"]:
            emptied.update(ids)
            if not self._empty_deeds.keys() >= set(ids):
                self._find("erasure_undone", "A person's deed was erased but its row does not say so.", number)
        for deed, batch in self._empty_deeds.items():
            if deed not in emptied:
                self._find("erased_unsealed", "A deed's content is gone and no seal says why.", batch)
        for sid, erasure in self._erased.items():
            if erasure is None or self._erasures.get(sid) != erasure:
                self._find("erased_unsealed", "The stream's content is gone and no seal says why.", erasure, sid)

    async def _pages(self) -> AsyncIterator[list[tuple[int, Seal]]]:
        after: int | None = None
        while True:
            which = sa.select(SEALS).where(SEALS.c.tenant == self._tenant).order_by(SEALS.c.number).limit(PAGE)
            if after is not None:
                which = which.where(SEALS.c.number > after)
            found = await self._connection.execute(which)
            page = [(row.number, Seal(raw(row.statement), raw(row.signature))) for row in found]
            if not page:
                return
            yield page
            after = page[-1][0]

    async def _rows_of(self, page: list[tuple[int, Seal]]) -> dict[str, Any]:
        sids = [str(seal.claims().get("stream")) for _, seal in page]
        found = await self._connection.execute(
            WITH_BRIEFS.where(STREAMS.c.tenant == self._tenant, STREAMS.c.sid.in_(sids))
        )
        return {row["sid"]: row for row in found.mappings()}

    async def _views_of(self, page: list[tuple[int, Seal]]) -> dict[int, list[Any]]:
        views: dict[int, list[Any]] = {}
        numbers = [number for number, seal in page if seal.claims().get("kind") == seals.VIEWS]
        found = await self._connection.execute(
            sa.select(VIEWS, STREAMS.c.erased.is_not(None).label("is_erased"))
            .join(STREAMS, STREAMS.c.sid == VIEWS.c.sid, isouter=True)
            .where(VIEWS.c.tenant == self._tenant, VIEWS.c.seal.in_(numbers))
        )
        for row in found.mappings():
            views.setdefault(row["seal"], []).append(row)
        return views

    async def _deeds_of(self, page: list[tuple[int, Seal]]) -> dict[int, list[Any]]:
        deeds: dict[int, list[Any]] = {}
        numbers = [number for number, seal in page if seal.claims().get("kind") == seals.DEEDS]
        which = sa.select(DEEDS).where(DEEDS.c.tenant == self._tenant, DEEDS.c.seal.in_(numbers))
        for row in (await self._connection.execute(which)).mappings():
            deeds.setdefault(row["seal"], []).append(row)
        return deeds

    def _find(self, what: str, detail: str, seal: int | None, stream: str | None = None) -> None:
        self.findings.append(Finding(what, detail, self._tenant, stream, seal))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_BATCHES = {VIEWS.name: seals.VIEWS, DEEDS.name: seals.DEEDS}
"""Rows that a seal covers as one of many: which kind of seal."""


async def _check_unsealed(
    connection: AsyncConnection, table: sa.Table, name: sa.Column[Any], findings: list[Finding]
) -> int:
    """Check that each row has a seal. Returns how many rows there are. A row without its seal was inserted or moved."""
    count = (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()
    rows = await connection.execute(
        sa.select(table.c.tenant, name.label("name"), table.c.seal, SEALS.c.statement).join(
            SEALS, sa.and_(SEALS.c.tenant == table.c.tenant, SEALS.c.number == table.c.seal), isouter=True
        )
    )
    seen: set[str] = set()
    for row in rows:
        if row.name in seen:
            findings.append(Finding("twice", "This row exists twice.", row.tenant, row.name, row.seal))
        seen.add(row.name)
        claims = Seal(raw(row.statement), b"").claims() if row.statement is not None else {}
        if table is STREAMS and claims.get("stream") == row.name:
            continue
        if claims.get("kind") == _BATCHES.get(table.name, "none"):
            continue
        findings.append(
            Finding("unsealed", "This row was never sealed: it was inserted or moved.", row.tenant, row.name, row.seal)
        )
    return count


# -- the checks ------------------------------------------------------------------------------------------


def _check_seal(seal: Seal, tenant: str, number: int, keys: PublicKeys) -> list[Finding]:
    claims = seal.claims()
    found = []
    if not seals.is_signed(seal, keys):
        detail = "No known key has signed this seal in this form."
        if str(claims.get("key")) not in keys:
            detail = f"The seal names a key ({str(claims.get('key'))[:16]}) that is not known."
        found.append(Finding("signature_invalid", detail, tenant, claims.get("stream"), number))
    if not seal.is_known:
        found.append(Finding("seal_unknown", "This version does not know this kind of seal.", tenant, seal=number))
    if (claims.get("tenant"), claims.get("number")) != (tenant, number):
        found.append(
            Finding("seal_moved", "The seal has another tenant or number.", tenant, claims.get("stream"), number)
        )
    return found


def _check_row(row: Mapping[str, Any], claims: Mapping[str, Any]) -> list[Finding]:
    """A stream's row against its seal's claims."""

    def finding(what: str, detail: str) -> Finding:
        return Finding(what, detail, row["tenant"], row["sid"], row["seal"])

    found = []
    sealed = {
        "sid": claims.get("stream"),
        "tenant": claims.get("tenant"),
        "state": claims.get("state"),
        "created": claims.get("created"),
        "finished": claims.get("finished"),
        "events": claims.get("events"),
        "tail": claims.get("last_event_id"),
        "archived": claims.get("at"),
    }
    changed = [name for name, value in sealed.items() if row[name] != value]
    if row["erased"] is not None:
        changed += [name for name in (*CONTENT, "brief") if row[name] is not None]
    elif row["erasure"] is not None:
        changed.append("erasure")
    if changed:
        found.append(finding("row_changed", f"These columns differ from what was sealed: {', '.join(changed)}."))
    if row["erased"] is None:
        found += [finding(*problem) for problem in _check_content(row, claims)]
    return found


def _check_content(row: Mapping[str, Any], claims: Mapping[str, Any]) -> list[tuple[str, str]]:
    try:
        salt, record = raw(row["salt"]), decompress(raw(row["record"]))
        fields = orjson.loads(record)
        is_same_record = seals.record_digest(salt, record) == claims.get("record")
        columns_differ = [name for name in ("session", "user", "model") if row[name] != fields.get(name)]
        if row["brief"] is not None and not _is_brief_of(raw(row["brief"]), fields):
            columns_differ.append("brief")
    except (TypeError, ValueError, AttributeError):
        is_same_record, columns_differ = False, []
    found = []
    if not is_same_record:
        found.append(("record_changed", "The stream's record (request, times, usage …) differs from what was sealed."))
    if columns_differ:
        found.append(("row_changed", f"These columns differ from the record: {', '.join(columns_differ)}."))
    try:
        log = unpack(raw(row["log"]))
        is_same_log = seals.log_digest(raw(row["salt"]), log) == claims.get("log") and all(map(_is_event, log))
    except (TypeError, ValueError):
        is_same_log = False
    if not is_same_log:
        found.append(("log_changed", "The stream's events differ from what was sealed."))
    return found


def _is_brief_of(brief: bytes, fields: Mapping[str, str]) -> bool:
    try:
        return is_brief_of(brief, fields)
    except ValueError:
        return False


def _is_event(event: Event) -> bool:
    """Whether its kind and data are well formed. If not, other events could give the same line of NDJSON."""
    try:
        orjson.loads(event.data)
    except orjson.JSONDecodeError:
        return False
    return KIND.fullmatch(event.kind) is not None


def _check_erasure(row: Mapping[str, Any], erasure: Seal | None, keys: PublicKeys) -> list[Finding]:
    claims = erasure.claims() if erasure else {}
    is_its_own = claims.get("kind") == seals.ERASURE and claims.get("stream") == row["sid"]
    if erasure and is_its_own and claims.get("at") == row["erased"]:
        return _check_seal(erasure, row["tenant"], row["erasure"], keys)
    return [Finding("erased_unsealed", "The stream's content is gone and no seal says why.", row["tenant"], row["sid"])]


def _check_view(row: Mapping[str, Any]) -> list[Finding]:
    record = row["record"]
    if record is None or row["is_erased"]:
        is_same = record is None and bool(row["is_erased"]) and row["opened"] is None
    else:
        try:
            claims = orjson.loads(record)
            places = (claims["id"], claims["stream"], claims["opened"]) == (row["id"], row["sid"], row["opened"])
        except (ValueError, KeyError, TypeError):
            places = False
        is_same = places and seals.view_digest(raw(record)) == row["digest"]
    if is_same:
        return []
    detail = "A viewer's record differs from what was sealed."
    return [Finding("view_changed", detail, row["tenant"], row["sid"], row["seal"])]


def _is_deed(row: Mapping[str, Any]) -> bool:
    """Whether a row is what its digest says, or (emptied) has nothing left but that."""
    if row["record"] is None:
        return all(row[name] is None for name in DEED)
    try:
        claims = orjson.loads(row["record"])
        is_its_own = all(row[name] == claims[name] for name in ("id", *DEED) if name != "record")
    except (ValueError, KeyError, TypeError):
        return False
    return is_its_own and seals.deed_digest(raw(row["record"])) == row["digest"]


def _broken_chain(tenant: str, number: int) -> Finding:
    return Finding("chain_broken", "The seal does not name the digest of the one before it.", tenant, seal=number)


def _cut_off(tenant: str, number: int, head: Head) -> Finding:
    detail = f"The chain ends at seal {number} but had reached {head.number}: its newest seals were cut off."
    return Finding("seals_cut_off", detail, tenant, seal=head.number)


def _other_head(tenant: str, head: Head) -> Finding:
    return Finding("head_differs", "This seal differs from the head that is kept outside.", tenant, seal=head.number)
