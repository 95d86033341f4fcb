"""What the settings say about the archive: where it is, which key seals it, which keys check it, where its heads are.

A SQLite archive has everything beside it. With PostgreSQL, which several machines share, the key and the place of the
heads must be set: keys that each machine made for itself would prove nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from broker.archive.audit import Finding, check_stream
from broker.archive.copies import check_sealed_copy
from broker.archive.database import Database
from broker.archive.heads import Head, HeadStore, HeadsUnavailable, open_heads
from broker.archive.reader import ArchiveReader
from broker.archive.seal import Seal, Signer
from broker.archive.signing import (
    PRIVATE_NAME,
    PUBLIC_NAME,
    BadKey,
    PublicKeys,
    load_or_make_signer,
    load_public_keys,
    load_signer,
)
from broker.archive.stamps import Stamper, open_stamps
from broker.archive.writer import ArchiveWriter
from broker.log.stream_log import StreamLog
from broker.settings import PREFIX, Settings
from broker.store.archive_url import parse_archive_url, sqlite_path

logger = logging.getLogger(__name__)

HEADS_NAME = "seal-heads.json"


class Verdict(NamedTuple):
    """The result of checking one stream. `verdict`: verified, erased, differs, broken or not_sealed (docs/API.md).

    `erasure`: the seal of its erasure.
    """

    verdict: str
    seal: Seal | None = None
    erasure: Seal | None = None
    is_head_known: bool = False
    findings: Sequence[Finding] = ()


NOT_SEALED = Verdict("not_sealed")


class Archive:
    """A server's view of the archive: it reads streams and checks them against their seals."""

    def __init__(self, settings: Settings) -> None:
        self._database = Database(settings.archive_url)
        self.reader = ArchiveReader(self._database)
        self._settings = settings

    async def verify(self, sid: str, log: StreamLog) -> Verdict:
        """One stream against its seal, and Redis' copy of it (`log`) too: that is what viewers were shown.

        Raises ArchiveUnavailable or RedisUnavailable.
        """
        # The heads first: each is written after its seal, so the chain that is read then has what it names. The other
        # way round, a seal that is made in between would be taken for one that was cut off.
        heads = await self._heads()
        sealed = await self.reader.sealed(sid)
        if sealed is None:
            return NOT_SEALED
        head = heads.get(sealed.row["tenant"])
        keys = await asyncio.to_thread(self._public_keys)
        findings = await asyncio.to_thread(check_stream, sealed, keys, head)  # a long log takes tens of milliseconds
        verdict = "broken" if findings else "erased" if sealed.row["erased"] is not None else "verified"
        if not findings and (findings := await check_sealed_copy(log, self.reader, sealed)):
            verdict = "differs"
        return Verdict(verdict, sealed.seal, sealed.erasure, head is not None, findings)

    async def aclose(self) -> None:
        await self._database.aclose()

    def _public_keys(self) -> PublicKeys:
        # Read each time: the first worker makes the keys beside a new SQLite archive, and a rotation adds one.
        try:
            return find_public_keys(self._settings)
        except BadKey as bad:
            logger.error("seals cannot be checked: %s", bad)  # noqa: TRY400 - the message is complete
            return {}

    async def _heads(self) -> Mapping[str, Head]:
        try:
            return await asyncio.to_thread(find_heads(self._settings).read)
        except (BadKey, HeadsUnavailable):
            return {}


def open_archive(settings: Settings) -> Archive | None:
    return Archive(settings) if settings.archive_url else None


def open_writer(settings: Settings) -> ArchiveWriter:
    """Raises BadKey, which names the setting to set."""
    database, authority = Database(settings.archive_url, writes=True), settings.seal_timestamps
    stamper = Stamper(authority, open_stamps(place_of_heads(settings))) if authority else None
    return ArchiveWriter(database, _signer(settings), find_heads(settings), stamper)


def find_heads(settings: Settings) -> HeadStore:
    """Raises BadKey, which names the setting to set."""
    return open_heads(place_of_heads(settings))


def place_of_heads(settings: Settings) -> str:
    """The file or URL. Raises as `find_heads`."""
    beside = _beside(settings, HEADS_NAME)
    if settings.seal_heads or beside:
        return settings.seal_heads or str(beside)
    raise BadKey(
        f"{PREFIX}SEAL_HEADS is not set. With PostgreSQL the head of the seals must be kept outside of the database. "
        "Set it to a file, or to a URL that accepts GET and PUT."
    )


def find_public_keys(settings: Settings) -> PublicKeys:
    """The keys that check seals; {} if no setting names any. Raises BadKey for a file without keys."""
    path = settings.seal_public_keys or _beside(settings, PUBLIC_NAME)
    if settings.seal_public_keys or (path and path.exists()):
        return load_public_keys(path) if path else {}
    if settings.seal_key:
        signer = load_signer(settings.seal_key)
        return {signer.key_id: signer.public_key}
    return {}


def key_of_seals(settings: Settings) -> Path | None:
    """Where a worker has the private key, or makes it; None: with PostgreSQL, where none is named."""
    return settings.seal_key or _beside(settings, PRIVATE_NAME)


def _signer(settings: Settings) -> Signer:
    if settings.seal_key:
        return load_signer(settings.seal_key)
    if beside := _beside(settings, PRIVATE_NAME):
        return load_or_make_signer(beside)
    raise BadKey(
        f"{PREFIX}SEAL_KEY is not set. With PostgreSQL all workers share one Ed25519 private key. "
        "Make it with: openssl genpkey -algorithm ed25519 -out seal-key.pem"
    )


def _beside(settings: Settings, name: str) -> Path | None:
    path = sqlite_path(parse_archive_url(settings.archive_url))
    return path and path.with_name(name)
