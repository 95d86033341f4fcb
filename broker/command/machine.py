"""doctor, of this machine: descriptors, disks, clocks, certificates, and the files that a worker needs."""

from __future__ import annotations

import os
import resource
import shutil
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.archive.schema import REVISION, REVISIONS, SEALS
from broker.archive.setup import HEADS_NAME, key_of_seals
from broker.archive.signing import BadKey, load_signer
from broker.command.findings import Finding
from broker.process.descriptors import RAISE_IT, room_of
from broker.settings import PREFIX, Settings
from broker.store.archive_url import parse_archive_url, sqlite_path

FEW_CONNECTIONS = 1000
LITTLE_DISK = 2**30
CLOCK_S = 2.0
"""Nothing is ordered by this machine's clock, but keys and tokens expire by it."""

RIGHTS = "Give the user that runs workers the right to, or name another place."
SAID_CHARACTERS = 400

DATA_DIR = Path(".lastevent")


def descriptors() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    room = room_of(limit)
    shown = "no limit of descriptors" if limit == sys.maxsize else f"{limit} descriptors, of which {room} for callers"
    return Finding(room >= FEW_CONNECTIONS, shown, f"A process does less at a time than it is asked to. {RAISE_IT}")


def data_directory() -> Iterator[Finding]:
    """Of `lastevent up`, as it would be used from here."""
    yield from _folder(DATA_DIR, "the data directory")


def _folder(folder: Path, what: str) -> Iterator[Finding]:
    there = folder.resolve()
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK):
        yield Finding(False, f"{what} {folder}: {there} cannot be written", RIGHTS)
        return
    free = shutil.disk_usage(there).free
    yield Finding(
        free >= LITTLE_DISK,
        f"{what} {folder}: {free / 2**30:,.1f} GiB free",
        "Free some disk space: on a full disk starts are refused, and nothing is archived.",
    )


def clock(redis_s: float) -> Finding:
    apart_s = time.time() - redis_s
    shown = f"the clocks of this machine and Redis are {abs(apart_s):.1f} s apart"
    advice = "Let NTP set both: keys and tokens expire early or late."
    return Finding(abs(apart_s) < CLOCK_S, shown, advice)


def certificate(error: BaseException) -> str:
    """What is wrong with a server's certificate, if that is what is behind an error."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"Its certificate is not accepted: {cause.verify_message}."
        cause = cause.__cause__ or cause.__context__
    return ""


def driver_says(error: BaseException | None) -> str:
    """The database's or its driver's own words: for whoever sits at this terminal. libpq names no password."""
    return " ".join(str(getattr(error, "orig", None) or "").split())[:SAID_CHARACTERS]


# -- the archive -------------------------------------------------------------------------------------------


async def ask_archive(connection: AsyncConnection) -> list[Finding]:
    """What is in it, and what may be done with it by this address."""
    seals = (await connection.execute(sa.select(sa.func.count()).select_from(SEALS))).scalar_one()
    revision = (await connection.execute(sa.select(REVISION.c.version_num))).scalar_one()
    found = [Finding(True, f"the archive holds {seals} seals")]
    if revision not in REVISIONS:
        found.append(Finding(True, "the archive's schema is of a newer release, which shares it"))
    if connection.dialect.name == "postgresql":
        found.append(await _postgresql(connection))
    return found


async def _postgresql(connection: AsyncConnection) -> Finding:
    asked = "SELECT has_table_privilege('seals', 'INSERT'), current_setting('transaction_read_only') = 'on'"
    may_write, is_read_only = (await connection.execute(sa.text(asked))).one()
    if is_read_only:
        advice = f"Workers need the primary: name all hosts in {PREFIX}ARCHIVE_URL, or its address."
        return Finding(False, "the archive's server is a standby, or read-only", advice)
    if not may_write:
        return Finding(True, "the archive may only be read from here: right for servers, not for workers")
    return Finding(True, "the archive may be written from here")


def archive_files(settings: Settings) -> Iterator[Finding]:
    """What lies beside a SQLite archive, or is named by settings: the disk, the seal key, the heads."""
    path = sqlite_path(parse_archive_url(settings.archive_url))
    if path:
        yield from _folder(path.parent, "the archive in")
        if path.exists() and not os.access(path, os.W_OK):
            yield Finding(False, f"{path} cannot be written", RIGHTS)
    key = key_of_seals(settings)
    if key is None:
        yield Finding(True, f"{PREFIX}SEAL_KEY is not set: right for servers, not for workers")
        return
    if not key.exists() and not settings.seal_key:
        return  # the first worker makes it
    try:
        load_signer(key)
    except BadKey as bad:
        yield Finding(False, "the key that seals cannot be used", str(bad))
        return
    heads = settings.seal_heads or str(key.with_name(HEADS_NAME))
    if "://" not in heads and not _can_be_replaced(Path(heads)):
        yield Finding(False, f"the heads of the seals, {heads}, cannot be written", RIGHTS)


def _can_be_replaced(file: Path) -> bool:
    folder = file.parent
    return os.access(folder, os.W_OK | os.X_OK) if folder.exists() else True
