"""What each caller may do: bearer keys (RFC 6750, section 2.1), and read tokens for browsers.

With LASTEVENT_API_KEYS set, every call needs `Authorization: Bearer <key>`. A browser's EventSource cannot send a
header, so `events_url` carries a token: signed, expiring, valid for reading that one stream. Without keys the server
listens on loopback only, every caller is the tenant `default`, and web/door.py keeps web pages out.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Sequence
from typing import NamedTuple

from broker.errors import StreamNotFound, Unauthorized
from broker.log.meta import Meta

DEFAULT_TENANT = "default"


class Grant(NamedTuple):
    """What a caller may touch: a tenant's streams. (A read token is checked against the one stream of the request.)

    `who`: the caller's name in the access record. `is_masked`: the caller may only read, with masks applied.
    """

    tenant: str
    who: str = "anyone"
    is_masked: bool = False


class Auth:
    """The keys of this server. `is_open`: it has none, and every caller gets a full grant."""

    def __init__(self, keys: Sequence[str], token_ttl_s: int, masked_keys: Sequence[str] = ()) -> None:
        self._keys = [key.encode() for key in keys]
        self._masked_keys = [key.encode() for key in masked_keys]
        self._token_ttl_s = token_ttl_s

    @property
    def is_open(self) -> bool:
        return not self._keys

    def by_key(self, authorization: str | None) -> Grant:
        """The grant for an Authorization header. Raises Unauthorized."""
        if self.is_open:
            return Grant(DEFAULT_TENANT)
        scheme, _, key = (authorization or "").partition(" ")
        given = key.strip().encode("utf-8", "surrogateescape")
        # Every key is compared, in constant time: the time it takes reveals nothing about any key.
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        matches_masked = [hmac.compare_digest(given, known) for known in self._masked_keys]
        if scheme.lower() == "bearer" and (any(matches) or any(matches_masked)):
            return Grant(DEFAULT_TENANT, who=f"key:{_fingerprint(given)}", is_masked=not any(matches))
        raise Unauthorized("Send the header Authorization: Bearer <one of LASTEVENT_API_KEYS>.")

    def by_token(self, sid: str, token: str) -> Grant:
        """The grant for a read token of this stream. Raises Unauthorized."""
        expires, _, signature = token.partition(".")
        if expires.isascii() and expires.isdigit() and len(expires) < 16 and int(expires) > time.time():
            given = signature.encode("utf-8", "replace")
            if any([hmac.compare_digest(given, _sign(key, sid, expires)) for key in self._keys]):  # noqa: C419 - all of them, see above
                return Grant(DEFAULT_TENANT, who="token")
        raise Unauthorized("The token in this URL has expired or is not valid for this stream. Get a new events_url.")

    def token(self, sid: str) -> str | None:
        """A read token for one stream, valid for `token_ttl_s`: <expiry in s since 1970>.<signature>. None if open."""
        if self.is_open:
            return None
        expires = str(int(time.time()) + self._token_ttl_s)
        return f"{expires}.{_sign(self._keys[0], sid, expires).decode()}"


def _sign(key: bytes, sid: str, expires: str) -> bytes:
    message = f"lastevent read {sid} {expires}".encode("utf-8", "surrogateescape")
    return base64.urlsafe_b64encode(hmac.digest(key, message, hashlib.sha256)).rstrip(b"=")


def _fingerprint(key: bytes) -> str:
    """Enough to distinguish keys; it cannot be used as a key."""
    return hashlib.sha256(b"lastevent key " + key).hexdigest()[:8]


def require_visible(meta: Meta, grant: Grant) -> None:
    """Raises StreamNotFound for another tenant's stream: for this caller it does not exist (G8)."""
    if meta.tenant != grant.tenant:
        raise StreamNotFound("There is no stream with this id.")
