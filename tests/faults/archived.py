"""What the archive is checked for at the end of a run: it holds every stream, as Redis does, and as it was sealed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from broker.archive.audit import Audit
from broker.archive.database import Database
from broker.archive.reader import ArchiveReader
from broker.archive.setup import find_heads, find_public_keys
from broker.log.event import Event
from broker.settings import Settings
from tests.faults.checker import FinalStream


class Archived(NamedTuple):
    streams: int
    views: int
    problems: list[str]


def archive_url(folder: Path) -> str:
    return f"sqlite:///{folder}/archive.db"


async def check_archive(folder: Path, streams: Sequence[FinalStream]) -> Archived:
    """Against what Redis holds, stream by stream; then against its own seals."""
    settings = Settings(archive_url=archive_url(folder))
    async with _database(settings) as database:
        reader = ArchiveReader(database)
        problems = [problem for stream in streams if (problem := await _compare(reader, stream))]
        report = await Audit(database, find_public_keys(settings), find_heads(settings).read()).run()
    problems += [f"archive: {finding.what}: {finding.detail} ({finding.stream})" for finding in report.findings]
    return Archived(report.streams, report.views, problems)


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Database]:
    database = Database(settings.archive_url)
    try:
        yield database
    finally:
        await database.aclose()


async def _compare(reader: ArchiveReader, stream: FinalStream) -> str | None:
    if stream.state is None:
        return None  # it vanished whole, which the checker judges
    log = await reader.read_log(stream.sid)
    if log is None:
        return f"archive: {stream.sid} ({stream.state}) never came"
    there = await log.read_all(stream.sid)
    here = [Event(entry.id, entry.kind, entry.data.encode(), entry.t) for entry in stream.entries]
    if there != here:
        return f"archive: {stream.sid} is not what Redis has: {len(there)} events, {len(here)} there"
    return None
