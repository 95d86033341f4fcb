"""What each caller may do: bearer keys (RFC 6750, section 2.1), and read tokens for browsers.

With LASTEVENT_API_KEYS set, every call needs `Authorization: Bearer <key>`. A browser's EventSource cannot send a
header, so `events_url` carries a token: signed, expiring, valid for reading that one stream. Without keys the server
listens on loopback only, every caller is the tenant `default`, and web/door.py keeps web pages out.

A token is <expiry, s since 1970>.<random>.<signature>. It is signed with a secret of its own, never with an API key:
whoever holds a token could try keys on it without asking any server.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker.errors import Forbidden, RedisUnavailable, StreamNotFound, TokenExpired, Unauthorized
from broker.log.meta import Meta

DEFAULT_TENANT = "default"

TOKEN_CHARACTERS = 200
"""More than any token has."""


class Audience(Enum):
    """Whose eyes a stream's events are for: operators see all of them, users what is not internal (log/event.py)."""

    ALL = "all"
    PUBLIC = "public"


class Grant(NamedTuple):
    """What a caller may touch: a tenant's streams. (A read token is checked against the one stream of the request.)

    `who`: the caller's name in the access record. `is_masked`: the caller may only read, with masks applied.
    `token`: the read token, if it was one; `expires`: when it ends, in s since 1970. `audience`: what it sees of them.
    """

    tenant: str
    who: str = "anyone"
    is_masked: bool = False
    token: str | None = None
    expires: int | None = None
    audience: Audience = Audience.ALL

    @property
    def is_public(self) -> bool:
        return self.audience is Audience.PUBLIC

    def names(self, form: str) -> str:
        """What the access record calls a reading in this form: it says for whose eyes it was."""
        return f"public-{form}" if self.is_public else form

    def narrowed(self, wanted: Audience | None) -> Grant:
        """For a caller that asked for this audience. Raises Forbidden if it may not see so much."""
        if wanted is Audience.ALL and self.is_public:
            raise Forbidden("A read token shows what users see. `audience=all` takes an API key.")
        return self if wanted is None else self._replace(audience=wanted)


class Auth:
    """The keys of this server. `is_open`: it has none, and every caller gets a full grant.

    `token_secrets`: those that sign read tokens, the first of them new ones; empty while they are not known yet.
    """

    def __init__(
        self,
        keys: Sequence[str],
        token_secrets: Callable[[], Sequence[bytes]],
        token_ttl_s: int,
        masked_keys: Sequence[str] = (),
    ) -> None:
        self._keys = [key.encode() for key in keys]
        self._masked_keys = [key.encode() for key in masked_keys]
        self._token_secrets = token_secrets
        self._token_ttl_s = token_ttl_s

    @property
    def is_open(self) -> bool:
        return not self._keys

    @property
    def is_ready(self) -> bool:
        """Whether read tokens can be made and checked."""
        return self.is_open or bool(self._token_secrets())

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
        """The grant for a read token of this stream. Raises Unauthorized, TokenExpired, RedisUnavailable."""
        signed, _, signature = token.rpartition(".")
        given = signature.encode("utf-8", "replace")
        if len(token) <= TOKEN_CHARACTERS and any(
            [hmac.compare_digest(given, _sign(key, sid, signed)) for key in self._signing_keys()]  # noqa: C419 - all of them, see above
        ):
            expires = int(signed.partition(".")[0])
            if expires > time.time():
                return Grant(DEFAULT_TENANT, who="token", token=token, expires=expires, audience=Audience.PUBLIC)
            raise TokenExpired("The token in this URL has expired. Get a new events_url.")
        raise Unauthorized("The token in this URL is not valid for this stream. Get a new events_url.")

    def token(self, sid: str) -> str | None:
        """A read token for one stream, valid for `token_ttl_s`; None if open. Raises RedisUnavailable."""
        if self.is_open:
            return None
        signed = f"{int(time.time()) + self._token_ttl_s}.{secrets.token_urlsafe(6)}"
        return f"{signed}.{_sign(self._signing_keys()[0], sid, signed).decode()}"

    def _signing_keys(self) -> list[bytes]:
        if keys := [signing_key(secret) for secret in self._token_secrets()]:
            return keys
        raise RedisUnavailable("The server is still connecting to Redis. Try again shortly.")


@lru_cache(maxsize=16)
def signing_key(secret: bytes) -> bytes:
    """HKDF (RFC 5869): what signs is of no use for anything else that the secret may one day be used for."""
    return HKDF(SHA256(), 32, salt=None, info=b"lastevent read tokens").derive(secret)


def _sign(key: bytes, sid: str, signed: str) -> bytes:
    message = f"{sid} {signed}".encode("utf-8", "surrogateescape")
    return base64.urlsafe_b64encode(hmac.digest(key, message, hashlib.sha256)).rstrip(b"=")


def _fingerprint(key: bytes) -> str:
    """Enough to distinguish keys; it cannot be used as a key."""
    return hashlib.sha256(b"lastevent key " + key).hexdigest()[:8]


def require_visible(meta: Meta, grant: Grant) -> None:
    """Raises StreamNotFound for another tenant's stream: for this caller it does not exist (G8)."""
    if meta.tenant != grant.tenant:
        raise StreamNotFound("There is no stream with this id.")
