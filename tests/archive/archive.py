"""An archive in a test's hands: written, read and checked; and finished streams to put into it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from broker.archive.audit import Audit, Finding, Report
from broker.archive.database import Database
from broker.archive.heads import HeadStore
from broker.archive.reader import ArchiveReader
from broker.archive.schema import raw
from broker.archive.seal import Seal, Signer
from broker.archive.signing import PublicKeys
from broker.archive.writer import ArchiveWriter, ViewRecord, finished
from broker.log.event import DONE, TERMINAL, Event, encode_data
from broker.log.meta import Meta, NewStream, new_claim_id, new_sid
from broker.log.steps import Unsent
from broker.log.stream_log import StreamLog
from tests.rig.streams import batch, new_stream

NOW_MS = 1_800_000_000_000
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "so", "on", "until", "evening")


class TestArchive:
    __test__ = False

    def __init__(self, database: Database, signer: Signer, heads: HeadStore, keys: PublicKeys) -> None:
        self.database = database
        self.signer = signer
        self.heads = heads
        self.keys = keys
        self.writer = ArchiveWriter(database, signer, heads)
        self.reader = ArchiveReader(database)

    async def add(self, *sids: str, events: int = 5, tenant: str = "t", **meta: str) -> None:
        streams = [finished(sid, meta_of(sid, events, tenant=tenant, **meta), events_of(sid, events)) for sid in sids]
        await self.writer.add(streams, NOW_MS)

    async def audit(self, keys: PublicKeys | None = None) -> Report:
        return await Audit(self.database, self.keys if keys is None else keys, self.heads.read()).run()

    async def findings(self) -> list[Finding]:
        return (await self.audit()).findings

    async def change(self, statement: str, **values: Any) -> int:
        """What somebody with a hand on the database may do. How many rows it met."""
        async with self.database.writing() as connection:
            changed: int = (await connection.execute(sa.text(statement), values)).rowcount
        return changed

    async def seal_at(self, tenant: str, number: int) -> Seal | None:
        found = await self.rows("SELECT * FROM seals WHERE tenant = :t AND number = :n", t=tenant, n=number)
        return Seal(raw(found[0]["statement"]), raw(found[0]["signature"])) if found else None

    async def rows(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        async with self.database.reading() as connection:
            return [dict(row) for row in (await connection.execute(sa.text(statement), values)).mappings()]


def events_of(sid: str, count: int, ending: str = DONE) -> list[Event]:
    """A log of so many events, of this stream's own words."""
    start = NOW_MS - 60_000
    texts = [f" {WORDS[(at * 7 + int(sid[:4], 16)) % len(WORDS)]}" for at in range(count - 2)]
    deltas = [
        Event(2 + at, "text_delta", encode_data({"text": text}), start + 20 * at) for at, text in enumerate(texts)
    ]
    return [Event(1, "queued", b"{}", start), *deltas, Event(count, ending, b"{}", start + 20 * count)]


def meta_of(sid: str, events: int, **fields: str) -> Meta:
    known = {
        "schema": "1",
        "tenant": "t",
        "session": "s",
        "producer": "worker",
        "model": "anthropic/some-model",
        "request": '{"messages":[{"role":"user","content":"Hello"}],"max_tokens":100}',
        "metadata": "{}",
        "on_worker_loss": "restart",
        "state": "done",
        "attempt": "1",
        "tail": str(events),
        "events": str(events),
        "bytes": str(sum(len(event.data) for event in events_of(sid, events))),
        "created": str(NOW_MS - 60_000),
        "started": str(NOW_MS - 59_900),
        "first_text": str(NOW_MS - 59_800),
        "finished": str(NOW_MS - 50_000),
        "stopped_after": str(events - 1),
        "ending": "{}",
    }
    return Meta({**known, **fields})


def view_of(sid: str, **record: Any) -> ViewRecord:
    details = {"who": "anyone", "address": "127.0.0.1", "user_agent": "a browser", "format": "sse", "requested": 0}
    ended = {"first_id": 1, "last_id": 5, "opened": NOW_MS - 1000, "closed": NOW_MS, "how": "finished"}
    return ViewRecord(secrets.token_hex(16), "t", sid, {**details, **ended, **record})


async def finish(
    log: StreamLog, deltas: Sequence[bytes] = (b'{"text":"Hi"}',), ending: str = DONE, **fields: Any
) -> str:
    """A finished stream in Redis, as a worker leaves it; its id."""
    assert ending in TERMINAL
    new: NewStream = new_stream(new_sid(), **fields)
    await log.create(new)
    claimed = await log.claim(new.sid, new_claim_id(), "worker-1")
    unsent = [*(Unsent("text_delta", data) for data in deltas), Unsent(ending, b"{}")]
    await log.append(batch(claimed, claimed.pen.base, *unsent))
    return new.sid
