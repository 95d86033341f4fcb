"""Where the archive is: LASTEVENT_ARCHIVE_URL, or SQLite in the data directory of `lastevent up`.

SQLAlchemy is loaded when an address is parsed, and not before: most processes and commands have none to parse.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def archive_url(data_dir: Path) -> str:
    """The archive of a data directory: SQLite, beside the embedded server's files."""
    return f"sqlite:///{quote(str(data_dir.resolve() / 'archive.db'), safe=' /')}"


def parse_archive_url(url: str) -> URL:
    """sqlite:///relative/path, sqlite:////absolute/path, or postgresql://… as libpq takes it. Raises ValueError."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError("an archive is sqlite:///path/to/archive.db or postgresql://user:password@host/name") from None
    if parsed.drivername not in DRIVERS or not parsed.database:
        raise ValueError("an archive is sqlite:///path/to/archive.db or postgresql://user:password@host/name")
    return parsed.set(drivername=DRIVERS[parsed.drivername])


def sqlite_path(url: URL) -> Path | None:
    return Path(str(url.database)) if url.drivername.startswith("sqlite") else None
