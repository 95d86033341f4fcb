"""The archive's tables, on one screen. Times are ms since 1970. migrations/ makes them; a test compares the two.

STREAMS, a row a stream. What a listing filters by stands in columns; it is in the record too, which is sealed.
SEALS, a row a seal: the chain of each tenant. Nothing is ever removed here.
VIEWS, a row a viewer's connection.

Erasing a stream empties its row but for (tenant, sid, state, created, finished, events, tail, archived, seal), and
its views but for (id, tenant, sid, digest, seal): what a seal needs to be checked.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, PrimaryKeyConstraint, String, Table

METADATA = MetaData()

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
    Column("erasure", BigInteger),  # the number of the seal that says so
    Column("salt", LargeBinary),
    Column("record", LargeBinary),  # canonical JSON, compressed
    Column("log", LargeBinary),  # packing.py
    # Every listing is newest first within a tenant; a filter's index gives that order too.
    Index("streams_newest", "tenant", "created", "sid"),
    Index("streams_by_session", "tenant", "session", "created", "sid"),
    Index("streams_by_user", "tenant", "user", "created", "sid"),
    Index("streams_by_model", "tenant", "model", "created", "sid"),
    Index("streams_by_state", "tenant", "state", "created", "sid"),
    Index("streams_kept", "tenant", "erased", "finished"),  # what retention looks for
)

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


def raw(value: Any) -> bytes:
    """A column's bytes; of what never was any (a number, nothing) none, which no digest and no signature fits."""
    if isinstance(value, str):  # SQLite takes anything anywhere; the same bytes as text are the same bytes
        return value.encode(errors="surrogateescape")
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else b""
