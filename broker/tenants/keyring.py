"""API keys: for back ends. `lek_<id>_<secret>`, of which the SHA-256 of the secret is kept: the secret is random, so a
slow hash would buy nothing.

A key is found by its id, or by its digest if it is one of the settings', and compared in constant time: one comparison,
however many keys there are.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from broker.errors import RedisUnavailable
from broker.tenants.scopes import key_scopes

logger = logging.getLogger(__name__)

DEFAULT_TENANT = "default"
TENANT = r"[a-z0-9][a-z0-9-]{0,62}"
"""A tenant's name: it stands in keys of Redis, where no part of a name may be able to name something else."""

NAME_CHARACTERS = 200
SECRET_BYTES = 32
ID_BYTES = 8
"""12 characters of base32 are 60 bits: two keys never share one, and nobody has to keep it to himself."""

ID = r"[a-z2-7]{12}"
_ID = re.compile(ID)
_FORM = re.compile(rf"lek_({ID})_([A-Za-z0-9_-]{{43}})")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """`digest`: the SHA-256 of what the caller presents; empty once it is revoked. Times in s since 1970."""

    id: str
    tenant: str
    scopes: frozenset[str]
    digest: bytes
    name: str = ""
    created: int = 0
    expires: int | None = None
    revoked: int | None = None

    @property
    def is_good(self) -> bool:
        """At this moment."""
        return self.revoked is None and (self.expires is None or time.time() < self.expires)

    def revoked_at(self, at: int) -> ApiKey:
        """What is left of it: no digest, so nobody brings it back to life by taking a field away."""
        return replace(self, revoked=at, digest=b"")

    def shown(self) -> dict[str, Any]:
        """As the API and the command show it: nothing of its secret."""
        return {
            "id": self.id,
            "tenant": self.tenant,
            "name": self.name,
            "scopes": sorted(self.scopes),
            "created_at": rfc3339(self.created or None),
            "expires_at": rfc3339(self.expires),
            "revoked_at": rfc3339(self.revoked),
        }

    def to_json(self) -> bytes:
        """As it is kept in Redis: of the secret, a digest."""
        kept = {
            "tenant": self.tenant,
            "name": self.name,
            "scopes": sorted(self.scopes),
            "secret_sha256": self.digest.hex() or None,
            "created": self.created,
            "expires": self.expires,
            "revoked": self.revoked,
        }
        return json.dumps({name: value for name, value in kept.items() if value is not None}).encode()

    @classmethod
    def from_json(cls, key_id: str, kept: bytes | str) -> ApiKey:
        """Raises ValueError, which does not repeat what it was given."""
        try:
            return cls._checked(key_id, json.loads(kept))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError, OSError):
            raise ValueError("this is no API key as `lastevent keys` writes it") from None

    def to_line(self) -> str:
        """As it is exported: the same, with its id."""
        return json.dumps({"id": self.id, **json.loads(self.to_json())})

    @classmethod
    def from_line(cls, line: str) -> ApiKey:
        """Raises ValueError, as from_json."""
        try:
            key_id = json.loads(line)["id"]
        except (ValueError, TypeError, KeyError, RecursionError):
            key_id = ""
        return cls.from_json(key_id, line)

    @classmethod
    def _checked(cls, key_id: str, kept: Mapping[str, Any]) -> ApiKey:
        times = {name: None if kept.get(name) is None else _time(kept[name]) for name in ("expires", "revoked")}
        digest, name, scopes = kept.get("secret_sha256", ""), kept.get("name", ""), kept["scopes"]
        is_whole = times["revoked"] is not None or _DIGEST.fullmatch(digest)
        texts = [key_id, kept["tenant"], name, *scopes]
        if not (is_whole and _ID.fullmatch(key_id) and all(isinstance(text, str) for text in texts)):
            raise ValueError
        checked_name(name)
        key = cls(
            key_id,
            checked_tenant(kept["tenant"]),
            key_scopes(scopes),
            bytes.fromhex(digest),
            name,
            _time(kept["created"]),
        )
        key = replace(key, expires=times["expires"])
        return key if times["revoked"] is None else key.revoked_at(times["revoked"])


def _time(given: Any) -> int:
    """Raises ValueError, TypeError, OverflowError, OSError: a list of keys could not show it, and would show none."""
    at = int(given)
    rfc3339(at)
    return at


class Doors(Enum):
    """What a server asks of its callers. UNKNOWN: Redis has not said yet whether there are keys."""

    UNKNOWN = "unknown"
    OPEN = "open"
    KEYED = "keyed"


class Keyring:
    """The keys that this process knows. `given`: those of its settings, which Redis does not have.

    `may_open`: whether callers may do everything if there is no key at all, which is for loopback alone. Once a key was
    there it is asked for, for as long as this process lives: keys can be lost, and the way in must not open by that.
    """

    def __init__(self, given: Iterable[ApiKey] = (), *, may_open: bool = True) -> None:
        self._given = {key.digest: key for key in given}
        self._given_by_id = {key.id: key for key in self._given.values()}
        self._may_open = may_open
        self._read: Mapping[bytes, bytes] | None = None
        self._stored: dict[str, ApiKey] = {}
        self._lost: dict[str, ApiKey] = {}
        self.doors = Doors.KEYED if self._given else Doors.UNKNOWN

    @property
    def given(self) -> list[ApiKey]:
        return list(self._given.values())

    def know(self, stored: Mapping[bytes, bytes]) -> Mapping[str, ApiKey]:
        """What Redis has now: id → JSON. What it no longer has is not let in any more, and what this process has seen
        revoked never again. Returns those whose revocation Redis has lost, in a failover, say.
        """
        if stored == self._read:
            return self._lost
        revoked = {key.id: key for key in self._stored.values() if key.revoked is not None}
        read = {key.id: key for key in parsed(stored)}
        self._stored = read | revoked
        self._lost = {key.id: key for key in revoked.values() if key.id not in read or read[key.id].revoked is None}
        self._read = dict(stored)
        if stored or not self._may_open:
            self.doors = Doors.KEYED
        elif self.doors is Doors.UNKNOWN:
            self.doors = Doors.OPEN
        return self._lost

    def find(self, credential: str) -> ApiKey | None:
        """The key that this is, if it is good. Raises RedisUnavailable if it may be one that is not known yet."""
        if given := self._given.get(digest_of(credential)):
            return given
        if not (form := _FORM.fullmatch(credential)):
            return None
        if self._read is None:
            raise RedisUnavailable("The server is still connecting to Redis, which has the keys. Try again shortly.")
        key_id, secret = form.groups()
        key = self._stored.get(key_id)
        is_same = hmac.compare_digest(digest_of(secret), key.digest if key else digest_of(""))
        return key if key and is_same and key.is_good else None

    def is_good(self, key_id: str) -> bool:
        """Whether the key with this id would still be let in."""
        key = self._stored.get(key_id)
        return key_id in self._given_by_id or (key is not None and key.is_good)

    def is_given(self, key_id: str) -> bool:
        return key_id in self._given_by_id


def parsed(stored: Mapping[bytes, bytes]) -> Iterator[ApiKey]:
    for key_id, kept in stored.items():
        try:
            yield ApiKey.from_json(key_id.decode(errors="replace"), kept)
        except ValueError:
            logger.warning("a key in Redis cannot be read, and is not let in: something else has written it")


def new_key(tenant: str, scopes: frozenset[str], *, name: str = "", lasts_s: int | None = None) -> tuple[ApiKey, str]:
    """A key, and what its owner presents: shown once, kept nowhere."""
    now = int(time.time())
    key_id = base64.b32encode(secrets.token_bytes(ID_BYTES)).decode().lower()[:12]
    secret = secrets.token_urlsafe(SECRET_BYTES)
    key = ApiKey(key_id, tenant, scopes, digest_of(secret), name, now, None if lasts_s is None else now + lasts_s)
    return key, f"lek_{key_id}_{secret}"


def key_id_of(text: str) -> str:
    """The id that somebody means who gives an id, or a whole key."""
    form = _FORM.fullmatch(text)
    return form[1] if form else text.removeprefix("lek_")


def given_key(secret: str, scopes: frozenset[str], name: str = "") -> ApiKey:
    """A key of LASTEVENT_API_KEYS or LASTEVENT_MASKED_KEYS: the tenant `default`'s. Its id is a fingerprint."""
    fingerprint = hashlib.sha256(b"lastevent key " + secret.encode()).hexdigest()[:8]
    return ApiKey(fingerprint, DEFAULT_TENANT, scopes, digest_of(secret), name)


def digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def rfc3339(at: int | None) -> str | None:
    """A time in s since 1970 as all of the API writes times: UTC, with milliseconds."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def checked_tenant(tenant: str) -> str:
    """Raises ValueError."""
    if not re.fullmatch(TENANT, tenant):
        raise ValueError("a tenant is 1 to 63 of a-z, 0-9 and -, not beginning with -")
    return tenant


def checked_name(name: str) -> str:
    """Raises ValueError."""
    if len(name) > NAME_CHARACTERS or not name.isprintable():
        raise ValueError(f"a name has {NAME_CHARACTERS} characters at most, on one line")
    return name
