"""Redis' copies of sealed streams against the archive: what viewers are shown must be what was sealed.

Redis keeps a sealed stream for its retention, and whoever can write to Redis can change that copy. Nothing there is
believed, not even that the stream is archived, or that it has ended: the archive says which streams are sealed.
A sealed stream's row must have been checked against its seal before (audit.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import orjson
import redis.exceptions

from broker.archive.audit import Finding
from broker.archive.packing import decompress, unpack
from broker.archive.reader import ArchiveReader, Sealed
from broker.archive.schema import raw
from broker.errors import StreamNotFound, WrongType
from broker.log.event import Event
from broker.log.meta import Meta
from broker.log.stream_log import StreamLog

SCAN_KEYS = 500
"""Keys in one step of a scan, during which Redis serves no other client."""


async def check_copy(log: StreamLog, sealed: Sealed) -> list[Finding]:
    """Where Redis' copy of a stream differs from what was sealed. [] if Redis has none, or the content was erased.

    Raises RedisUnavailable.
    """
    row = sealed.row
    sid: str = row["sid"]

    def finding(what: str, detail: str) -> Finding:
        return Finding(what, detail, row["tenant"], sid, row["seal"])

    if row["erased"] is not None:
        return []
    kept = await asyncio.to_thread(unpack, raw(row["log"]))
    try:
        events = await _read(log, sid, len(kept))
        [meta] = await log.read_meta(sid)  # after its events: if its retention has ended meanwhile, there is no copy
    except (KeyError, ValueError, TypeError, WrongType, redis.exceptions.ResponseError):
        return [finding("copy_unreadable", "Redis' copy of the stream cannot be read.")]
    if meta is None:
        return []
    if "erased" in meta.fields:
        if await log.redis.zscore(log.keys.erasing, sid) is not None:  # the archive is about to follow
            return []
        return [finding("copy_erased", "Redis says that the stream was erased, and no order to erase it is waiting.")]
    meta = await log.requests.of(meta)
    found = []
    if names := await asyncio.to_thread(_differing, meta, raw(row["record"])):  # it may have a request of 32 MiB
        found.append(finding("copy_record_differs", f"Redis' copy of the record differs: {', '.join(names)}."))
    if events != kept:
        at = next((ours.id for ours, theirs in zip(kept, events, strict=False) if ours != theirs), None)
        where = f"from event {at} on" if at else "at its end"
        found.append(finding("copy_log_differs", f"Redis' copy of the events differs {where}."))
    return found


async def check_copies(log: StreamLog, reader: ArchiveReader) -> tuple[int, list[Finding]]:
    """How many sealed streams Redis still has, and where they differ. Raises RedisUnavailable or ArchiveUnavailable."""
    seen: set[str] = set()
    found: list[Finding] = []
    async for key in log.redis.scan_iter(match=log.keys.stream("*").meta, count=SCAN_KEYS):
        sid = key.decode(errors="replace").rpartition("{")[2].rpartition("}")[0]
        if sid not in seen and (sealed := await reader.sealed(sid)):  # a scan may give a key twice
            seen.add(sid)
            found += await check_sealed_copy(log, reader, sealed)
    return len(seen), found


async def check_sealed_copy(log: StreamLog, reader: ArchiveReader, sealed: Sealed) -> list[Finding]:
    """As check_copy; a stream that is erased while it is looked at does not differ."""
    try:
        found = await check_copy(log, sealed)
    except ValueError:  # the archive's own row cannot be read: the audit says so
        return []
    if found:
        now = await reader.find(sealed.row["sid"])
        if now and now.erased is not None:
            return []
    return found


async def _read(log: StreamLog, sid: str, count: int) -> Sequence[Event]:
    """Its events, not many more than `count`: a forged log may be of any length."""
    events: list[Event] = []
    try:
        more = True
        while more and len(events) <= count:
            page = await log.read_page(sid, events[-1].id if events else 0)
            events += page.events
            more = page.more
    except StreamNotFound:
        return []
    return events


def _differing(meta: Meta, record: bytes) -> list[str]:
    """The names of the fields that differ. Those that a newer or older release sealed are fields too.

    A request that is not there is shown to nobody: its own key may have expired just before the stream's. What is
    counted of the log is compared with the log itself.
    """
    sealed: dict[str, str] = orjson.loads(decompress(record))
    absent = set() if "request" in meta.fields else {"request"}
    names = (sealed.keys() | meta.archived_fields().keys()) - {"id", "events", "bytes"} - absent
    return sorted(name for name in names if meta.fields.get(name) != sealed.get(name))
