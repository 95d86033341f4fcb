"""The schema's migration: by one at a time, whole or not at all; and what a database that is away looks like."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from broker.archive.database import Database, upgrade
from broker.archive.schema import METADATA, REVISION, REVISIONS, STREAMS
from broker.errors import ArchiveUnavailable
from broker.store.archive_url import parse_archive_url
from tests.archive.archive import TestArchive
from tests.rig.long import LONG
from tests.rig.zygote import run_module

FOLDER = Path(__file__).parents[2]


def prepare(url: str, kill_at: int = 0) -> subprocess.CompletedProcess[bytes]:
    return run_module("tests.archive.prepared", [url, str(kill_at)], dict(os.environ), FOLDER)


async def is_whole(url: str) -> bool:
    """Whether an archive that is prepared there has the schema that schema.py says."""
    database = Database(url)
    try:
        return await _has_the_schema(await database.prepared())
    finally:
        await database.aclose()


async def _has_the_schema(engine: AsyncEngine) -> bool:
    async with engine.connect() as connection:
        revision = (await connection.execute(sa.select(REVISION))).scalar_one()
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), METADATA)
        )
    return not differences and revision == REVISIONS[-1]


async def test_migrations_make_the_schema_that_a_new_archive_has(archive_url: str) -> None:
    migrated = create_async_engine(parse_archive_url(archive_url))
    async with migrated.begin() as connection:
        await connection.run_sync(upgrade)
    assert await _has_the_schema(migrated)
    await migrated.dispose()
    assert await is_whole(archive_url), "and it is taken for one"


async def test_a_new_archive_is_whole(archive_url: str) -> None:
    assert await is_whole(archive_url)


async def test_a_second_start_finds_it_done(archive_url: str) -> None:
    assert await is_whole(archive_url)
    assert await is_whole(archive_url)


@pytest.mark.processes
async def test_two_that_start_together_both_succeed(archive_url: str) -> None:
    for ended in await asyncio.gather(*(asyncio.to_thread(prepare, archive_url) for _ in range(3))):
        assert ended.returncode == 0, ended.stderr.decode()
    assert await is_whole(archive_url)


@pytest.mark.processes
async def test_one_that_is_killed_at_any_step_leaves_nothing_in_the_way(archive_url: str) -> None:
    steps = range(1, 200, 3) if LONG else (4, 14, 20)
    for kill_at in steps:
        killed = prepare(archive_url, kill_at)
        if killed.returncode == 0:
            break
        assert killed.returncode == -signal.SIGKILL
    assert await is_whole(archive_url)


async def test_a_newer_schema_stays_as_it_is(archive: TestArchive, archive_url: str) -> None:
    await archive.change("UPDATE alembic_version SET version_num = '9999'")
    again = Database(archive_url)
    async with again.reading() as connection:
        assert (await connection.execute(sa.select(sa.func.count()).select_from(STREAMS))).scalar() == 0
    await again.aclose()


@pytest.mark.parametrize("archive_url", ["sqlite"], indirect=True)  # PostgreSQL's writers lock no file
async def test_a_process_whose_first_read_meets_a_writer_is_served(archive: TestArchive, archive_url: str) -> None:
    """Another program may hold SQLite's write lock for as long as it likes: a backup, an operator at a prompt."""
    await archive.database.prepared()
    path = archive.database.path
    assert path
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        for begin in ("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"):
            writer.execute(begin)
            first = Database(archive_url)
            async with first.reading(within_s=5) as connection:
                assert (await connection.execute(sa.select(sa.func.count()).select_from(STREAMS))).scalar() == 0
            await first.aclose()
            writer.execute("ROLLBACK")


async def test_a_database_that_is_away_is_an_error_that_passes(tmp_path: Path) -> None:
    for url in (f"postgresql:///x?host={tmp_path}", f"sqlite:///{tmp_path}/archive.db/cannot/be"):
        (tmp_path / "archive.db").touch()
        database = Database(url)
        with pytest.raises(ArchiveUnavailable):
            async with database.reading():
                pass
        await database.aclose()


async def test_who_waits_for_a_database_that_does_not_answer_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.archive.database.CONNECT_S", 2)  # what libpq takes for a timeout, at least
    with socket.create_server(("127.0.0.1", 0)) as silent:
        database = Database(f"postgresql://x@127.0.0.1:{silent.getsockname()[1]}/x")
        began = time.monotonic()
        asked = await asyncio.gather(*(database.prepared() for _ in range(20)), return_exceptions=True)
        assert time.monotonic() - began < 20
        assert all(isinstance(error, ArchiveUnavailable | sa.exc.OperationalError) for error in asked)


async def test_nobody_else_on_the_machine_reads_a_sqlite_archive(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/new/archive.db")
    async with database.reading():
        files = list((tmp_path / "new").iterdir())
        assert files
        assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "new", *files))
    await database.aclose()


async def test_writers_come_one_after_the_other(archive: TestArchive, archive_url: str) -> None:
    other = Database(archive_url)
    order = []

    async def write(database: Database, name: str, may_end: asyncio.Event) -> None:
        async with database.writing() as connection:
            order.append(f"{name} in")
            began.set()
            await connection.execute(sa.select(sa.func.count()).select_from(STREAMS))
            await may_end.wait()
            order.append(f"{name} out")

    began, may_end, at_once = asyncio.Event(), asyncio.Event(), asyncio.Event()
    at_once.set()
    await other.prepared()
    first = asyncio.create_task(write(archive.database, "first", may_end))
    await began.wait()
    second = asyncio.create_task(write(other, "second", at_once))
    await asyncio.wait([second], timeout=0.2)
    may_end.set()
    await asyncio.gather(first, second)
    assert order == ["first in", "first out", "second in", "second out"]
    await other.aclose()


@pytest.mark.parametrize("path", ["/a b/c?d#e%20f/ü&x.db", "relative.db"])
def test_any_path_can_be_an_archive(path: str) -> None:
    url = sa.URL.create("sqlite", database=path).render_as_string()
    assert parse_archive_url(url).database == path


@pytest.mark.parametrize("url", ["", "x", "mysql://h/db", "sqlite://", "postgresql://host", "sqlite:///", "http://x/y"])
def test_what_is_no_archive_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///path"):
        parse_archive_url(url)


@pytest.mark.processes
@pytest.mark.parametrize("archive_url", ["postgresql"], indirect=True)  # SQLite has no server that could freeze
async def test_a_database_that_is_frozen_is_away(archive: TestArchive) -> None:
    """It takes what is sent, and never answers."""
    async with archive.database.reading() as connection:
        pid = (await connection.execute(sa.text("SELECT pg_backend_pid()"))).scalar_one()
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(ArchiveUnavailable):
            async with archive.database.reading(within_s=0.3) as connection:
                await connection.execute(sa.text("SELECT 1"))
    finally:
        os.kill(pid, signal.SIGCONT)
    async with archive.database.reading() as connection:
        assert (await connection.execute(sa.text("SELECT 1"))).scalar_one() == 1
