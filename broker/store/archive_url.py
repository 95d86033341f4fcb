"""Where the archive is: LASTEVENT_ARCHIVE_URL, or SQLite in the data directory of `lastevent up`.

SQLAlchemy is loaded when an address is parsed, and not before: most processes and commands have none to parse.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from broker.store.host import require_host

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}

WITHOUT_EFFECT = "prepare_threshold"
"""A driver's option, as URLs for PgBouncer have it: we never prepare statements."""

FORM = "an archive is sqlite:///path/to/archive.db or postgresql://user:password@host/name"


def archive_url(data_dir: Path) -> str:
    """The archive of a data directory: SQLite, beside the embedded server's files."""
    return f"sqlite:///{quote(str(data_dir.resolve() / 'archive.db'), safe=' /')}"


def parse_archive_url(url: str) -> URL:
    """sqlite:///relative/path, sqlite:////absolute/path, or postgresql://… as libpq takes it.

    Raises ValueError. Its message repeats nothing of the address, which may hold a password.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
        if parsed.drivername not in DRIVERS or not parsed.database:
            raise ValueError(FORM)
        parsed = parsed.set(drivername=DRIVERS[parsed.drivername])
        if sqlite_path(parsed) is None:
            parsed = parsed.difference_update_query([WITHOUT_EFFECT])
        _require_options(parsed)
    except (ValueError, ArgumentError):  # their messages repeat what they could not use
        raise ValueError(FORM) from None
    return parsed


def _require_options(url: URL) -> None:
    """What SQLAlchemy and libpq would say at the first connection. Raises ValueError, ArgumentError."""
    if sqlite_path(url) and url.query:
        raise ValueError(FORM)
    options = _options(url)
    if sqlite_path(url):
        return
    from psycopg import ProgrammingError
    from psycopg.conninfo import make_conninfo

    try:
        make_conninfo(**options)
    except ProgrammingError:
        raise ValueError(FORM) from None
    for host in hosts_of(url):
        if host and not host.startswith(("/", "@")):  # a socket
            require_host(host)
    for port in str(options.get("port", "")).split(","):
        if port and not (port.isdecimal() and 0 < int(port) <= 65535):
            raise ValueError(FORM)


def hosts_of(url: URL) -> list[str]:
    """Of a PostgreSQL URL, in its order; a folder is where a socket is, nothing the default one."""
    return str(_options(url).get("host", "")).split(",")


def _options(url: URL) -> dict[str, Any]:
    _, options = url.get_dialect()().create_connect_args(url)
    return dict(options)


def sqlite_path(url: URL) -> Path | None:
    return Path(str(url.database)) if url.drivername.startswith("sqlite") else None
