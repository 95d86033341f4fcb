"""What stands between a process and its PostgreSQL: a firewall that forgets, a failover, PgBouncer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sqlalchemy as sa

import broker.archive.database
from broker.archive.database import Database
from broker.archive.schema import SEALS, STREAMS
from broker.errors import ArchiveUnavailable
from broker.log.meta import new_sid
from tests.archive.archive import TestArchive
from tests.archive.conftest import open_archive
from tests.archive.postgres import DEFAULT_PORT, KEEPER, USER, as_user, connect, running_postgres
from tests.rig.deployment import wait_until
from tests.rig.forgetful import Forgetful, forgetful

pytestmark = pytest.mark.processes

SOCKET = f".s.PGSQL.{DEFAULT_PORT}"
SERVED_WITHIN_S = 6
AT_ONCE = 4
"""As many as the pool has connections."""


@pytest.fixture
def name(postgres: str) -> str:
    """Of an empty database."""
    name = f"t{uuid.uuid4().hex}"
    with connect(postgres) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return name


@pytest.fixture
async def way(postgres: str, tmp_path: Path) -> AsyncIterator[Forgetful]:
    async with forgetful(f"{tmp_path}/{SOCKET}", f"{postgres}/{SOCKET}") as way:
        yield way


@pytest.fixture
async def archive(way: Forgetful, name: str, tmp_path: Path) -> AsyncIterator[TestArchive]:
    async with open_archive(f"postgresql:///{name}?host={tmp_path}&user={USER}", tmp_path) as archive:
        yield archive


async def count(database: Database) -> int:
    async with database.reading() as connection:
        return int((await connection.execute(sa.select(sa.func.count()).select_from(STREAMS))).scalar_one())


async def test_after_a_quiet_time_no_connection_is_used_that_may_have_been_forgotten(
    way: Forgetful, archive: TestArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    await archive.add(new_sid())
    assert await asyncio.gather(*(count(archive.database) for _ in range(AT_ONCE))) == [1] * AT_ONCE
    monkeypatch.setattr(broker.archive.database, "IDLE_S", 0.0)  # the quiet time is over now
    way.forget()
    began = time.monotonic()
    assert await asyncio.gather(*(count(archive.database) for _ in range(2 * AT_ONCE))) == [1] * 2 * AT_ONCE
    assert time.monotonic() - began < SERVED_WITHIN_S
    way.forget()
    await archive.add(new_sid())
    assert await count(archive.database) == 2


async def test_connections_that_are_in_use_are_kept(way: Forgetful, archive: TestArchive) -> None:
    await archive.database.prepared()
    before = way.connections
    for _ in range(5):
        await count(archive.database)
    assert way.connections == before


async def test_a_primary_that_a_failover_has_made_a_standby_is_left(
    way: Forgetful, postgres: str, postgres_programs: Path, name: str, tmp_path: Path
) -> None:
    """It lives on, and what is connected to it stays connected. It says "read-only", for ever."""
    through_the_way = f"postgresql:///{name}?host={tmp_path}&user={USER}"
    with running_postgres(postgres_programs) as old, connect(old) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        way.target = f"{old}/{SOCKET}"
        before, after = Database(through_the_way), Database(f"postgresql:///{name}?host={postgres}&user={USER}")
        for database in (before, after):
            await add_seal(database, 1)
        await asyncio.gather(*(count(before) for _ in range(AT_ONCE)))

        connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: _is_read_only(old), "the old primary is read-only")
        way.target = f"{postgres}/{SOCKET}"
        with pytest.raises(ArchiveUnavailable):
            await add_seal(before, 2)
        assert way.connections == AT_ONCE
        await add_seal(before, 2)
        assert await seals(after) == [1, 2]

        both = f"postgresql:///{name}?host={old},{postgres}&user={USER}"
        writer, reader = Database(both, writes=True), Database(both)
        await add_seal(writer, 3)
        assert await seals(after) == [1, 2, 3], "a writer looks for the primary among the hosts"
        assert await seals(reader) == [1], "a reader takes the first"
        for database in (before, after, writer, reader):
            await database.aclose()


async def add_seal(database: Database, number: int) -> None:
    async with database.writing() as connection:
        await connection.execute(sa.insert(SEALS).values(tenant="t", number=number, statement=b"", signature=b""))


async def seals(database: Database) -> list[int]:
    async with database.reading() as connection:
        return list((await connection.execute(sa.select(SEALS.c.number).order_by(SEALS.c.number))).scalars())


def _is_read_only(socket: str) -> bool:
    with connect(socket) as connection:
        return connection.execute("SHOW default_transaction_read_only").fetchone() == ("on",)


# -- PgBouncer -------------------------------------------------------------------------------------------

CONFIGURATION = """\
[databases]
* = host={server} port={port} user={user}
[pgbouncer]
listen_addr =
listen_port = {port}
unix_socket_dir = {folder}
auth_type = any
pool_mode = transaction
default_pool_size = 2
"""


@pytest.fixture
def bouncer(postgres: str, require: Callable[[str, str], str]) -> Iterator[str]:
    """The folder of the socket of a PgBouncer in transaction mode: each transaction gets any of two sessions."""
    with TemporaryDirectory(prefix="le-pgb-", dir="/tmp") as folder:
        path = Path(folder, "pgbouncer.ini")
        path.write_text(CONFIGURATION.format(server=postgres, port=DEFAULT_PORT, user=USER, folder=folder))
        command = [*as_user(folder), require("pgbouncer", "pgbouncer"), "-q", str(path)]
        keeper = [sys.executable, "-IS", "-c", KEEPER, *command]
        with subprocess.Popen(keeper, stdin=subprocess.PIPE, cwd="/", start_new_session=True) as process:
            wait_until(lambda: Path(folder, SOCKET).exists(), "PgBouncer listens")
            yield folder
            assert process.stdin
            process.stdin.close()
            process.wait()


@pytest.mark.parametrize("option", ["", "&prepare_threshold=0"])
async def test_the_archive_works_through_pgbouncer_in_transaction_mode(
    bouncer: str, name: str, tmp_path: Path, option: str
) -> None:
    url = f"postgresql:///{name}?host={bouncer}&user={USER}{option}"
    async with open_archive(url, tmp_path) as archive:
        others = [Database(url) for _ in range(3)]
        sids = [new_sid() for _ in range(12)]
        reading = [count(database) for database in others for _ in range(40)]
        await asyncio.gather(*(archive.add(sid) for sid in sids), *reading)
        assert await count(others[0]) == len(sids)
        assert await archive.findings() == []
        for database in others:
            await database.aclose()
