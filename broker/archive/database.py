"""The archive's database: SQLite (WAL) or PostgreSQL, by SQLAlchemy; its schema by Alembic.

One process migrates at a time (a file lock beside a SQLite file, an advisory lock in PostgreSQL), in one transaction: a
process that is killed meanwhile leaves nothing behind, and the next one finds the work done. A schema newer than this
release stays as it is: two releases may share an archive during a roll-out.
The drivers' errors are translated here, at the border: ArchiveUnavailable is a state that passes.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.schema import CreateIndex, CreateTable

from broker.archive.schema import METADATA, REVISION, REVISIONS
from broker.errors import ArchiveUnavailable
from broker.store.archive_url import hosts_of, parse_archive_url, sqlite_path

logger = logging.getLogger(__name__)

POOL_CONNECTIONS = 4
"""For each process: writers take turns anyway, and a read lasts milliseconds."""

BUSY_S = 10.0
"""How long SQLite waits for another process' transaction."""

CONNECT_S = 5
"""PostgreSQL only, whole seconds, for each host of the URL: half of ANSWER_S leaves time to try a second host."""

ANSWER_S = 10.0
"""A database that accepts a connection but does not answer for so long (its host is gone or frozen) is away."""

IDLE_S = 10.0
"""PostgreSQL only: a connection that was idle for longer is replaced, and not asked whether it is still there. A
firewall may have forgotten it, and drops what is sent there without a word. A new one takes some milliseconds."""

REWRITE_BYTES = 2 * 2**30
"""A larger SQLite file is not rewritten by a worker: others could not write for longer than they wait."""

LIBPQ = {
    "connect_timeout": CONNECT_S,
    # What is sent and not acknowledged, and what nothing comes back for: the kernel's own limits are a quarter of an
    # hour, and two hours.
    "tcp_user_timeout": round(ANSWER_S * 1000),
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
"""What a URL may set otherwise."""

TARGET = "target_session_attrs"

LOST_STATES = ("08", "25006", "57P01", "57P02", "57P03")
"""SQLSTATEs (or their classes) of connections to give up. 25006, "read-only", is said by a primary that a failover has
made a standby: it lives on, and so do connections to it."""

MIGRATION_LOCK, WRITER_LOCK = 0x1E5EA1, 0x1E5EA2
"""PostgreSQL's advisory locks are numbers. Any two will do that no other program uses in this database."""

AWAY = "The archive cannot be reached or cannot serve. Nothing is lost. Try again shortly."


class Database:
    """`reading()` and `writing()` give connections in a transaction. Writers take turns, across processes.

    Everything raises ArchiveUnavailable if the database cannot be reached or cannot serve.
    """

    def __init__(self, url: str, *, writes: bool = False) -> None:
        """`writes`: of several hosts in the URL, the one that can be written to."""
        self.url = parse_archive_url(url)
        self.path = sqlite_path(self.url)
        self._libpq: dict[str, int | str] = {name: value for name, value in LIBPQ.items() if name not in self.url.query}
        if writes and self.path is None and len(hosts_of(self.url)) > 1 and TARGET not in self.url.query:
            self._libpq[TARGET] = "read-write"
        self._engine: AsyncEngine | None = None
        self._preparing = asyncio.Lock()
        self._inode: int | None = None
        self._failures = 0

    def reading(self, *, within_s: float | None = ANSWER_S) -> AbstractAsyncContextManager[AsyncConnection]:
        """`within_s`: the limit for the whole transaction; None for one that may take long."""
        return self._transaction(writes=False, within_s=within_s)

    def writing(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._transaction(writes=True, within_s=None)

    @asynccontextmanager
    async def _transaction(self, *, writes: bool, within_s: float | None) -> AsyncIterator[AsyncConnection]:
        with _from_database():
            async with asyncio.timeout(within_s):
                engine = await self.prepared()
            async with asyncio.timeout(within_s), engine.connect() as connection:
                connection = await connection.execution_options(writes=writes)
                async with connection.begin():
                    if writes and self.path is None:
                        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(WRITER_LOCK)))
                    yield connection
            await self._require_same_file()

    async def _require_same_file(self) -> None:
        """SQLite keeps using a file that was moved or removed, so what it reports as written may soon be gone."""
        if self.path is None or self._inode == _inode(self.path):
            return
        if self._engine:
            engine, self._engine = self._engine, None
            await engine.dispose()
        raise ArchiveUnavailable(f"{self.path.name} was moved or replaced and is opened again. Try again shortly.")

    async def forget_erased(self) -> None:
        """Leave no copy of erased content in SQLite's write-ahead log. (PostgreSQL's pages are out of our reach.)"""
        if self.path is not None:
            await self._run_outside("PRAGMA wal_checkpoint(TRUNCATE)")

    async def rewrite(self) -> None:
        """As `forget_erased`, also where SQLite had moved something before it was erased: what its pages have between
        their rows is overwritten neither then nor by the erasure (seen: names in the gaps of an index).

        Writers wait meanwhile, some 10 s a GB. A file beyond REWRITE_BYTES is left to its operator, who is told.
        """
        if self.path is None:
            return
        size = await asyncio.to_thread(os.path.getsize, self.path)
        if size > REWRITE_BYTES:
            logger.warning(
                "a person was erased, and parts of names may be left between the rows of %s, which is too large to be "
                "rewritten by itself (%.1f GB): run VACUUM on it in a quiet hour",
                *(self.path.name, size / 1e9),
            )
        else:
            await self._run_outside("VACUUM")
        await self.forget_erased()

    async def _run_outside(self, statement: str) -> None:
        """Outside of a transaction, in SQLite."""
        with _from_database():
            engine = await self.prepared()
            async with engine.connect() as connection:
                connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
                await connection.exec_driver_sql(statement)

    async def prepared(self) -> AsyncEngine:
        """The engine. The first call brings the schema up to date."""
        failures = self._failures
        async with self._preparing:
            if self._engine is None:
                if self._failures > failures:  # the first caller failed meanwhile; the others need not try one by one
                    raise ArchiveUnavailable(AWAY)
                engine = self._make_engine()
                try:
                    await self._migrate(engine)
                except BaseException as error:
                    self._failures += isinstance(error, Exception)
                    await engine.dispose()
                    raise
                self._engine, self._inode = engine, _inode(self.path) if self.path else None
        return self._engine

    async def aclose(self) -> None:
        if self._engine:
            await self._engine.dispose()

    def _make_engine(self) -> AsyncEngine:
        if self.path is None:
            engine = create_async_engine(
                self.url,
                hide_parameters=True,  # an error's words would have the row
                pool_size=POOL_CONNECTIONS,
                max_overflow=0,
                pool_use_lifo=True,  # what a quiet process does not need becomes idle
                # Prepared statements are of a session: PgBouncer gives each transaction another one.
                connect_args={**self._libpq, "prepare_threshold": None},
            )
            event.listen(engine.sync_engine, "checkin", _note_when)
            event.listen(engine.sync_engine, "checkout", partial(_require_alive, engine.sync_engine.dialect))
            event.listen(engine.sync_engine, "handle_error", _give_up_lost_connections)
            return engine
        _make_private(self.path)
        engine = create_async_engine(
            self.url,
            hide_parameters=True,
            pool_size=POOL_CONNECTIONS,
            max_overflow=0,
            connect_args={"timeout": BUSY_S},
        )
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine

    async def _migrate(self, engine: AsyncEngine) -> None:
        # The lock comes first: a new SQLite file becomes WAL at its first connection, and two such connections collide.
        async with self._only_migrator(), engine.connect() as connection:
            # Read first: a role that may only read can check this much, and a reader of SQLite waits for no writer.
            async with connection.begin():
                if await connection.run_sync(_is_up_to_date):
                    return
            connection = await connection.execution_options(writes=True)
            async with connection.begin():
                if self.path is None:
                    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
                await connection.run_sync(_bring_up_to_date)

    @asynccontextmanager
    async def _only_migrator(self) -> AsyncIterator[None]:
        if self.path is None:
            yield
            return
        lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _make_private(path: Path) -> None:
    """Only the owner may read the archive. SQLite gives its other files the same mode."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _note_when(_: object, record: ConnectionPoolEntry) -> None:
    record.info["idle_since"] = time.monotonic()


def _require_alive(dialect: sa.Dialect, connection: Any, record: ConnectionPoolEntry, _: object) -> None:
    """Raises DisconnectionError, for which the pool makes another connection."""
    since = record.info.get("idle_since")
    if since is None:  # a new one
        return
    if time.monotonic() - since > IDLE_S:
        raise sa.exc.DisconnectionError("idle for too long")
    try:
        dialect.do_ping(connection)  # its server may have been restarted
    except dialect.loaded_dbapi.Error as error:
        raise sa.exc.DisconnectionError("lost") from error


def _give_up_lost_connections(context: sa.engine.ExceptionContext) -> None:
    state = getattr(context.original_exception, "sqlstate", None)
    if state and state.startswith(LOST_STATES):
        context.is_disconnect = True  # the others of the pool, too: they are where this one was


def _set_up_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # or the driver begins and commits by itself, around DDL too
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # Redis forgets a stream once the archive has acknowledged it
    cursor.execute("PRAGMA secure_delete=ON")  # erased content is overwritten
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    if options.get("isolation_level") == "AUTOCOMMIT":  # VACUUM is refused within one
        return
    # A transaction that begins as a reader may later be unable to become a writer.
    writes = options.get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def see_one_moment(connection: sa.Connection) -> None:
    """From now on this transaction sees nothing that is written meanwhile. In SQLite that is always so."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


# -- the schema ------------------------------------------------------------------------------------------


def _is_up_to_date(connection: sa.Connection) -> bool:
    """A revision that this release does not know is a newer one's."""
    current = _revision(connection)
    return current is not None and (current == REVISIONS[-1] or current not in REVISIONS)


def _revision(connection: sa.Connection) -> str | None:
    # Without Alembic, which takes half a second to load: that is for archives of older releases.
    if not sa.inspect(connection).has_table(REVISION.name):
        return None
    return connection.execute(sa.select(REVISION.c.version_num)).scalar()


def _bring_up_to_date(connection: sa.Connection) -> None:
    if _is_up_to_date(connection):  # another process was faster
        return
    if _revision(connection) is None:
        for table in METADATA.sorted_tables:
            connection.execute(CreateTable(table))  # one of that name is somebody else's: an error
            # As the migrations do, the shorter ones first: of two that are as good to PostgreSQL's planner, which knows
            # little of a small table, it takes the newer, and that should be the one that was made for the question.
            for index in sorted(table.indexes, key=lambda index: (len(index.columns), str(index.name))):
                connection.execute(CreateIndex(index))
        connection.execute(CreateTable(REVISION))
        connection.execute(sa.insert(REVISION).values(version_num=REVISIONS[-1]))
    else:
        upgrade(connection)


def upgrade(connection: sa.Connection) -> None:
    """From any older revision, or from nothing."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(resources.files("broker.archive") / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


# -- errors ----------------------------------------------------------------------------------------------


class _from_database:
    """Translate the drivers' errors. Their messages go to the log only: they may name hosts and paths."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        is_our_fault = isinstance(error, sa.exc.IntegrityError | sa.exc.DataError)
        if isinstance(error, DBAPIError | PoolTimeout | OSError | TimeoutError) and not is_our_fault:
            raise ArchiveUnavailable(AWAY) from error
