"""The seal: what makes a change to an archived stream visible. Pure functions; docs/AUDIT.md is their specification.

A seal is a *statement* (canonical JSON) and its Ed25519 signature (RFC 8032, section 5.1). The seals of a tenant are
numbered 1, 2, 3 … and each names the digest of the one before it. What a statement claims, by its kind:
- stream    this stream, with this record (request, times, usage …) and this log, has been archived
- erasure   this stream's content has been erased
- views     these viewers' records have been archived
- deeds     these acts of callers have been archived
- erasures  a person has been erased: these streams, and the content of these deeds

So a changed event breaks the log's digest, a changed statement its signature, and a removed, inserted or exchanged seal
the chain. If the newest seals were cut off, the head that is kept elsewhere shows it (heads.py).
Digests begin with a random salt that is erased with the content: what remains reveals nothing about it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from broker.log.event import Event, to_ndjson

STREAM, ERASURE, VIEWS, DEEDS, ERASURES = "stream", "erasure", "views", "deeds", "erasures"

VERSIONS = {STREAM: 1, ERASURE: 2, VIEWS: 1, DEEDS: 1, ERASURES: 1}
"""Of the statements' forms (docs/AUDIT.md). An erasure's 1, of release 0.1, does not say who erased."""

NOTHING = "0" * 64
"""The digest that the first seal of a tenant names as `previous`."""

_LOG, _RECORD, _VIEW, _DEED, _SIGNED = (
    f"lastevent {what} 1\n".encode() for what in ("log", "record", "view", "deed", "seal")
)


class Seal(NamedTuple):
    """`statement`: the signed bytes. `digest`: the next seal names it as `previous` (64 hex digits)."""

    statement: bytes
    signature: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.statement).hexdigest()

    def claims(self) -> dict[str, Any]:
        """The statement as a dictionary; {} if it is not a JSON object (it was tampered with)."""
        try:
            claims = orjson.loads(self.statement)
        except orjson.JSONDecodeError:
            return {}
        return claims if isinstance(claims, dict) else {}

    @property
    def is_known(self) -> bool:
        """Whether this release knows its kind, in this version of its form."""
        claims = self.claims()
        newest, version = VERSIONS.get(str(claims.get("kind")), 0), claims.get("v")
        return isinstance(version, int) and 1 <= version <= newest


def new_salt() -> bytes:
    return secrets.token_bytes(16)


def canonical(value: Any) -> bytes:
    """JSON in exactly one form: keys sorted, no spaces, UTF-8."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def log_digest(salt: bytes, events: Iterable[Event]) -> str:
    return lines_digest(salt, map(to_ndjson, events))


def lines_digest(salt: bytes, lines: Iterable[bytes]) -> str:
    """A chain over a log's events, each as its line of NDJSON in an export: d = SHA-256(d, line). 64 hex digits."""
    digest = hashlib.sha256(_LOG + salt).digest()
    for line in lines:
        digest = hashlib.sha256(digest + line).digest()
    return digest.hex()


def record_digest(salt: bytes, record: bytes) -> str:
    return hashlib.sha256(_RECORD + salt + record).hexdigest()


def view_digest(record: bytes) -> str:
    """Of one viewer's record, which has a salt of its own."""
    return hashlib.sha256(_VIEW + record).hexdigest()


def views_digest(views: Iterable[tuple[str, str, str]]) -> str:
    """Of many viewers' records: (id, stream, digest) of each, sorted by id, a line each. Erasing leaves these three."""
    lines = (f"{view} {stream} {digest}\n" for view, stream, digest in sorted(views))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def deed_digest(record: bytes) -> str:
    """Of one deed's record, which has a salt of its own."""
    return hashlib.sha256(_DEED + record).hexdigest()


def deeds_digest(deeds: Iterable[tuple[str, str]]) -> str:
    """Of many deeds' records: (id, digest) of each, sorted by id, a line each. Erasing leaves these two."""
    lines = (f"{deed} {digest}\n" for deed, digest in sorted(deeds))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


class Signer:
    """Makes seals. `key_id`: the first 16 hex digits of the SHA-256 of the raw public key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key()
        self.key_id = key_id(self.public_key)

    def seal(self, tenant: str, number: int, previous: str, at_ms: int, kind: str, claims: Mapping[str, Any]) -> Seal:
        statement = canonical(
            {
                "v": VERSIONS[kind],
                "kind": kind,
                "tenant": tenant,
                "number": number,
                "previous": previous,
                "at": at_ms,
                "key": self.key_id,
                **claims,
            }
        )
        return Seal(statement, self._key.sign(_SIGNED + statement))


def key_id(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def is_signed(seal: Seal, keys: Mapping[str, Ed25519PublicKey]) -> bool:
    """Whether the key that the seal names is one of these (key id → key) and has signed the statement."""
    key = keys.get(str(seal.claims().get("key")))
    if key is None:
        return False
    try:
        key.verify(seal.signature, _SIGNED + seal.statement)
    except InvalidSignature:
        return False
    return True
