"""The archive's tables, on one screen. Times are ms since 1970. A new archive is made from here, an older one by
migrations/; a test compares the two.

STREAMS: one row a stream. The fields that a listing filters by are columns; they are in the sealed record too.
BRIEFS: each stream's record again, without the request, which may have 32 MiB: a listing does not read that. In a table
of its own, since SQLite walks through all columns before the one it reads. Streams of release 0.1 have none.
SEALS: one row a seal, the chain of each tenant. Rows are never removed from it.
VIEWS: one row a viewer's connection.
DEEDS: one row an act of a caller.

Erasing a stream empties its row except for (tenant, sid, state, created, finished, events, tail, archived, seal), and
its views except for (id, tenant, sid, digest, seal): the columns that are needed to check a seal. Erasing a person
empties the deeds by and about it except for (id, tenant, digest, seal).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, PrimaryKeyConstraint, String, Table

METADATA = MetaData()

REVISIONS = ("0001", "0002", "0003")
"""The schema's: those of migrations/, oldest first. The last one is this file's."""

STREAMS = Table(
    "streams",
    METADATA,
    Column("sid", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("session", String),
    Column("user", String),
    Column("model", String),
    Column("state", String, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("finished", BigInteger, nullable=False),
    Column("events", Integer, nullable=False),
    Column("tail", BigInteger, nullable=False),
    Column("archived", BigInteger, nullable=False),
    Column("seal", BigInteger, nullable=False),  # its number
    Column("erased", BigInteger),
    Column("erasure", BigInteger),  # the number of the seal of the erasure
    Column("salt", LargeBinary),
    Column("record", LargeBinary),  # canonical JSON, compressed
    Column("log", LargeBinary),  # packing.py
    # Every listing is newest first within a tenant; a filter's index gives that order too.
    Index("streams_newest", "tenant", "created", "sid"),
    Index("streams_by_session", "tenant", "session", "created", "sid"),
    Index("streams_by_user", "tenant", "user", "created", "sid"),
    Index("streams_by_model", "tenant", "model", "created", "sid"),
    Index("streams_by_state", "tenant", "state", "created", "sid"),
    Index("streams_kept", "tenant", "erased", "finished"),  # for retention
)

BRIEFS = Table(
    "briefs",
    METADATA,
    Column("sid", String, primary_key=True),
    Column("brief", LargeBinary, nullable=False),  # canonical JSON, compressed
)

CONTENT = ("session", "user", "model", "salt", "record", "log")
"""The columns of a stream that an erasure empties. Its brief is removed."""

SEALS = Table(
    "seals",
    METADATA,
    Column("tenant", String, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("statement", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    PrimaryKeyConstraint("tenant", "number"),
)

VIEWS = Table(
    "views",
    METADATA,
    Column("id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("sid", String, nullable=False),
    Column("opened", BigInteger),
    Column("record", LargeBinary),  # canonical JSON
    Column("digest", String, nullable=False),
    Column("seal", BigInteger, nullable=False),  # the number of the seal of its batch
    Index("views_of_a_stream", "sid", "opened", "id"),
    Index("views_of_a_seal", "tenant", "seal"),
)

DEEDS = Table(
    "deeds",
    METADATA,
    Column("id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("at", BigInteger),
    Column("who", String),
    Column("what", String),
    Column("stream", String),
    Column("person", String),  # whom it is by or about: user:…
    Column("record", LargeBinary),  # canonical JSON
    Column("digest", String, nullable=False),
    Column("seal", BigInteger, nullable=False),  # the number of the seal of its batch
    Index("deeds_newest", "tenant", "at", "id"),
    Index("deeds_of_a_stream", "tenant", "stream", "at", "id"),
    Index("deeds_of_a_person", "tenant", "person"),
    Index("deeds_of_a_seal", "tenant", "seal"),
)

DEED = ("at", "who", "what", "stream", "person", "record")
"""The columns of a deed that an erasure empties."""

REVISION = Table(  # Alembic's own
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def raw(value: Any) -> bytes:
    """A column's bytes. A value that cannot have been bytes (a number, NULL) gives b"", which no digest fits."""
    if isinstance(value, str):  # SQLite stores any type in any column; the same bytes as text count as the same bytes
        return value.encode(errors="surrogateescape")
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else b""
