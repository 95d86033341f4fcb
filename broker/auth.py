"""What each caller may do: API keys for back ends, tokens for phones and browsers (RFC 6750), in one Grant.

A browser's EventSource cannot send a header, so `events_url` carries a token: signed, expiring, valid for reading that
one stream. Without keys the server listens on loopback only, every caller is the tenant `default`, and web/door.py
keeps web pages out.
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

from broker.errors import Forbidden, InsufficientScope, RedisUnavailable, StreamNotFound, TokenExpired, Unauthorized
from broker.log.meta import Meta
from broker.tenants.keyring import DEFAULT_TENANT, Keyring
from broker.tenants.scopes import AUDIT, EVERYTHING, INSPECT, MASKED, READ, opens
from broker.tenants.token import ANYONE, Token

TOKEN_CHARACTERS = 4096
"""More than any token may have."""


class Audience(Enum):
    """Whose eyes a stream's events are for: operators see all of them, users what is not internal (log/event.py)."""

    ALL = "all"
    PUBLIC = "public"


class Grant(NamedTuple):
    """What a caller may do, and with which streams: a tenant's; of a token, those that it opens.

    `who`: the caller's name in the access record. `key`: the id of its key; `token`: its token, if it has no key.
    `audience`: what it sees of events.
    """

    tenant: str
    who: str = "anyone"
    scopes: frozenset[str] = EVERYTHING
    token: Token | None = None
    audience: Audience = Audience.ALL
    key: str | None = None

    @property
    def is_masked(self) -> bool:
        """It reads what has ended, with masks applied. Such a key has no other scope that shows content."""
        return MASKED in self.scopes

    @property
    def is_public(self) -> bool:
        return self.audience is Audience.PUBLIC

    @property
    def is_viewer(self) -> bool:
        """It sees of a record what viewers see."""
        return self.token is not None or not opens(self.scopes, INSPECT, MASKED)

    def masked(self) -> Grant:
        return self._replace(scopes=frozenset({MASKED}))

    def require(self, *scopes: str) -> None:
        """Raises InsufficientScope unless one of them is held."""
        if not opens(self.scopes, *scopes):
            raise InsufficientScope(scopes)

    def opens(self, sid: str, meta: Meta) -> bool:
        """Whether this stream exists for this caller."""
        return meta.tenant == self.tenant and (self.token is None or self.token.opens(sid, meta.session, meta.user))

    def names(self, form: str) -> str:
        """What the access record calls a reading in this form: it says for whose eyes it was."""
        return f"public-{form}" if self.is_public else form

    def narrowed(self, wanted: Audience | None) -> Grant:
        """For a caller that asked for this audience. Raises Forbidden if it may not see so much."""
        if wanted is Audience.ALL and self.is_public:
            raise Forbidden("This credential shows what users see. `audience=all` takes an API key that may inspect.")
        return self if wanted is None else self._replace(audience=wanted)


class Auth:
    """The keys and tokens that this server knows. `is_open`: it has no keys, and every caller may do everything.

    `token_secrets`: those that sign read tokens, the first of them new ones; empty while they are not known yet.
    """

    def __init__(self, keyring: Keyring, token_secrets: Callable[[], Sequence[bytes]], token_ttl_s: int) -> None:
        self._keyring = keyring
        self._token_secrets = token_secrets
        self._token_ttl_s = token_ttl_s

    @property
    def is_open(self) -> bool:
        return self._keyring.is_empty

    @property
    def is_ready(self) -> bool:
        """Whether tokens can be made and checked."""
        return self.is_open or bool(self._token_secrets())

    def open_grant(self) -> Grant:
        """Of a server without keys."""
        return Grant(DEFAULT_TENANT)

    def grant(self, credential: str, sid: str | None = None) -> Grant:
        """What a key or a token opens. `sid`: the stream of the request, if it names one.

        Raises Unauthorized, TokenExpired, RedisUnavailable.
        """
        if key := self._keyring.find(credential):
            sees_all = opens(key.scopes, INSPECT, AUDIT, MASKED)
            audience = Audience.ALL if sees_all else Audience.PUBLIC
            return Grant(key.tenant, f"key:{key.id}", key.scopes, audience=audience, key=key.id)
        return self._by_token(sid or "", credential)

    def is_good(self, grant: Grant) -> bool:
        """Whether the credential behind it would still be let in: a connection outlives the check at its beginning."""
        if grant.token:
            return True
        return self._keyring.is_good(grant.key) if grant.key else self.is_open

    def _by_token(self, sid: str, token: str) -> Grant:
        signed, _, signature = token.rpartition(".")
        given = signature.encode("utf-8", "replace")
        if len(token) <= TOKEN_CHARACTERS and any(
            [hmac.compare_digest(given, _sign(key, sid, signed)) for key in self._signing_keys()]  # noqa: C419 - each of them, in constant time
        ):
            expires = int(signed.partition(".")[0])
            if expires <= time.time():
                raise TokenExpired("The token has expired. Get a new events_url.")
            name = hashlib.sha256(token.encode()).hexdigest()
            scopes = frozenset({READ})
            held = Token(name, "", DEFAULT_TENANT, ANYONE, scopes, 0, expires, streams=frozenset({sid}))
            return Grant(DEFAULT_TENANT, "token", scopes, held, Audience.PUBLIC)
        raise Unauthorized("Send the header Authorization: Bearer <an API key>, or a token that is valid here.")

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


def require_visible(sid: str, meta: Meta, grant: Grant) -> None:
    """Raises StreamNotFound for another tenant's stream, or one that a token does not open: for this caller it does not
    exist (G8).
    """
    if not grant.opens(sid, meta):
        raise StreamNotFound("There is no stream with this id.")
