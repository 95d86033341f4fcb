"""Tokens, on the wire: JSON Web Tokens (RFC 7519), ours and those of the issuers that are configured.

A token is checked here alone, and nobody else is asked: a reconnect storm must not be one of somebody else's, too.
Everything that a token says of itself is input until its signature was right; then it is its issuer's word, and holds
as far as its issuer's entry goes (issuers.py).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import Key, OctKey
from joserfc.jws import JWSRegistry, deserialize_compact

from broker.errors import InvalidRequest, InvalidToken, RedisUnavailable, TokenExpired
from broker.tenants.issuers import OURS, Issuer, Issuers
from broker.tenants.keyring import TENANT
from broker.tenants.scopes import OF_TOKENS
from broker.tenants.token import Token

TOKEN_CHARACTERS = 4096
"""More than any token may have: it is in the head of each request, which servers and proxies bound."""

LEEWAY_S = 30
"""Of two machines' clocks."""

KEPT = 10_000
"""Verified tokens that are known again by their text alone: a reconnect pays 1 µs."""

MAX_STREAMS, MAX_SESSIONS = 64, 16

_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", re.ASCII)
_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,200}")
"""Without controls, and without halves of a character, which cannot be written anywhere."""

_TYPES = frozenset({"jwt", "at+jwt"})
"""Of RFC 7519 and RFC 9068. An ID token, or a logout token, must not open a stream."""

_OF_JOSERFC = (JoseError, ValueError, TypeError, KeyError, AttributeError)
"""What it raises at input: mostly its own, but it looks into some headers before it knows their type."""


class _Registry(JWSRegistry):
    """joserfc warns at each use of the name EdDSA; ours are of the curve Ed25519, which is what RFC 9864 names."""

    def get_alg(self, name: str) -> Any:
        return super().get_alg("Ed25519" if name == "EdDSA" else name)


class Minted(NamedTuple):
    text: str
    expires: int


def is_jwt(text: str) -> bool:
    """Whether it has a token's form: what has not is perhaps an API key."""
    return _JWT.fullmatch(text) is not None


def is_name(text: object) -> bool:
    """Whether it can be a subject, a session or an id: 1 to 200 characters without controls."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def require_ttl(ttl_s: int | None, longest_s: int) -> None:
    """Raises InvalidRequest."""
    if (ttl_s or 0) > longest_s:
        raise InvalidRequest(f"ttl_s: a token lives for {longest_s} s at the most (LASTEVENT_TOKEN_MAX_TTL_S).")


class Tokens:
    """Makes ours, and verifies all. `secrets`: those that sign ours, the first of them new ones; empty while they are
    not known yet.
    """

    def __init__(
        self, secrets: Callable[[], Sequence[bytes]], issuers: Issuers, *, audience: str, max_ttl_s: int
    ) -> None:
        self._secrets = secrets
        self._issuers = issuers
        self._audience = audience
        self._max_ttl_s = max_ttl_s
        self._ours = Issuer(
            name=OURS,
            iss=OURS,
            algorithms=frozenset({"HS256"}),
            keys=OurKeys(secrets),
            tenants=None,
            is_fixed=False,
            audience=audience,
            max_ttl_s=max_ttl_s,
            scopes=OF_TOKENS,
            leeway_s=0,  # the clock is ours
        )
        self._verified: dict[bytes, tuple[Token, int]] = {}
        self._version = issuers.version

    @property
    def is_ready(self) -> bool:
        """Whether ours can be made and checked."""
        return bool(self._secrets())

    def knows(self, text: str) -> bool:
        """Whether this very token was verified before, and is kept."""
        return _digest(text) in self._verified

    def verified(self, text: str) -> Token:
        """Raises InvalidToken, TokenExpired; RedisUnavailable, IssuerUnavailable while it cannot be known."""
        if self._version != self._issuers.version:  # an issuer has taken a key back
            self._version = self._issuers.version
            self._verified.clear()
        digest = _digest(text)
        if (known := self._verified.get(digest)) is None:
            known = self._verify(text)
            if len(self._verified) >= KEPT:
                del self._verified[next(iter(self._verified))]
            self._verified[digest] = known
        token, leeway_s = known
        if token.expires + leeway_s <= time.time():
            self._verified.pop(digest, None)
            raise TokenExpired("The token has expired. Get a new one.")
        return token

    def mint(self, tenant: str, subject: str, scopes: frozenset[str], opens: Mapping[str, Any], ttl_s: int) -> Minted:
        """`opens`: one of `streams`, `sessions`, `own`. Raises InvalidRequest: it would be longer than a token may be,
        or live longer. Raises RedisUnavailable.
        """
        require_ttl(ttl_s, self._max_ttl_s)
        # To the millisecond: who revokes a subject's tokens and makes it a new one means those before.
        issued = int(time.time() * 1000) / 1000
        expires = int(issued) + ttl_s
        kid, key = _signing_key(_require(self._secrets())[0])
        claims = {"iss": OURS, "aud": self._audience, "sub": subject, "iat": issued, "exp": expires, **opens}
        claims |= {"jti": secrets.token_urlsafe(12), "tenant": tenant, "scope": " ".join(sorted(scopes))}
        text = jwt.encode({"alg": "HS256", "kid": kid}, claims, key, algorithms=["HS256"])
        if len(text) > TOKEN_CHARACTERS:
            raise InvalidRequest(f"A token may have {TOKEN_CHARACTERS} characters. Name fewer streams or sessions.")
        return Minted(text, expires)

    def _verify(self, text: str) -> tuple[Token, int]:
        if len(text) > TOKEN_CHARACTERS:
            raise InvalidToken(f"A token may have {TOKEN_CHARACTERS} characters.")
        if not is_jwt(text):
            raise InvalidToken("This has not the form of a token.")
        header_part, claims_part, _ = text.split(".")
        header, claims = _read_header(header_part), _read(claims_part)
        issuer = self._ours if claims.get("iss") == OURS else self._issuers.find(claims.get("iss"))
        if issuer is None:
            raise InvalidToken("Nobody here knows the token's issuer.")
        _require_signature(text, header, issuer)
        return _token(f"{header_part}.{claims_part}", claims, issuer), issuer.leeway_s


class OurKeys:
    version = 0  # a secret that is no longer known has been away for longer than a token lives

    def __init__(self, secrets: Callable[[], Sequence[bytes]]) -> None:
        self._secrets = secrets

    def find(self, algorithm: str, kid: str | None) -> Key:
        for name, key in map(_signing_key, _require(self._secrets())):
            if name == kid:
                return key
        raise InvalidToken("The token was signed with a secret that is not used here.")


def _require(known: Sequence[bytes]) -> Sequence[bytes]:
    if known:
        return known
    raise RedisUnavailable("The server is still connecting to Redis. Try again shortly.")


@lru_cache(maxsize=16)
def _signing_key(secret: bytes) -> tuple[str, Key]:
    """(kid, key). HKDF (RFC 5869): what signs tokens is of no use for anything else that the secret is used for."""
    key = HKDF(SHA256(), 32, salt=None, info=b"lastevent tokens HS256").derive(secret)
    return hashlib.sha256(b"lastevent kid " + key).hexdigest()[:16], OctKey.import_key(key)


# -- checks, in their order ------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _read_header(part: str) -> Mapping[str, Any]:
    """The same for all tokens of one key: to look at it once is a fifth of what a token takes."""
    return MappingProxyType(_read(part))


def _read(part: str) -> dict[str, Any]:
    """One of a token's two objects. Of a member that is there twice, two readers may see two things: refused
    (RFC 7515 §4, RFC 7519 §4).
    """
    try:
        text = base64.b64decode(part + "=" * (-len(part) % 4), b"-_", validate=True).decode()
        found = _JSON.decode(text)
    except (binascii.Error, ValueError, RecursionError):
        raise InvalidToken("This has not the form of a token.") from None
    if not isinstance(found, dict):
        raise InvalidToken("This has not the form of a token.")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a member is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError("not JSON")


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _require_signature(text: str, header: Mapping[str, Any], issuer: Issuer) -> None:
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or algorithm not in issuer.algorithms:
        raise InvalidToken("The token's algorithm is not one that its issuer uses.")
    if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in _TYPES:
        raise InvalidToken("The token is of another type: `typ` is JWT or at+jwt, or absent.")
    if kid is not None and not isinstance(kid, str):
        raise InvalidToken("The token's `kid` is no text.")
    if "crit" in header or "b64" in header:
        raise InvalidToken("The token needs an extension that is not known here.")
    key = issuer.keys.find(algorithm, kid)
    try:
        deserialize_compact(text, key, registry=_registry(issuer.algorithms))
    except _OF_JOSERFC:
        raise InvalidToken("The token's signature is not its issuer's.") from None


@lru_cache(maxsize=64)
def _registry(algorithms: frozenset[str]) -> _Registry:
    """Of a header beyond RFC 7515 nothing is asked: issuers put in what they like. `crit` is looked at before."""
    allowed = algorithms | {"Ed25519"} if "EdDSA" in algorithms else algorithms
    return _Registry(algorithms=allowed, strict_check_header=False)


def _token(signed: str, claims: Mapping[str, Any], issuer: Issuer) -> Token:
    issued, expires = _times(claims, issuer)
    audience = claims.get("aud")
    if issuer.audience not in (audience if isinstance(audience, list) else [audience]):
        raise InvalidToken("The token is for another audience.")
    subject, jti = claims.get("sub"), claims.get("jti")
    if not is_name(subject) or not (jti is None or is_name(jti)):
        raise InvalidToken("The token's `sub`, and its `jti`, have 1 to 200 characters without controls.")
    return Token(
        # Of what is signed: the same claims may have many signatures, and their limits are one token's.
        id=hashlib.sha256(signed.encode()).hexdigest(),
        issuer=issuer.iss,
        tenant=_tenant(claims, issuer),
        subject=str(subject),
        scopes=_scopes(claims, issuer),
        issued=issued,
        expires=expires,
        jti=jti,
        **_opened(claims),
    )


def _times(claims: Mapping[str, Any], issuer: Issuer) -> tuple[float, float]:
    issued, expires = _time(claims.get("iat")), _time(claims.get("exp"))
    begins = _time(claims.get("nbf", issued))
    if not 0 < expires - issued <= issuer.max_ttl_s:
        raise InvalidToken(f"The token lives longer than tokens may: {issuer.max_ttl_s} s.")
    if max(begins, issued) > time.time() + LEEWAY_S:
        raise InvalidToken("The token is not valid yet.")
    return issued, expires


def _time(value: Any) -> float:
    if type(value) in (int, float) and 0 <= value < 2**53:
        return float(value)
    raise InvalidToken("The token does not say when it was issued and when it expires (`iat`, `exp`).")


def _tenant(claims: Mapping[str, Any], issuer: Issuer) -> str:
    if issuer.is_fixed and issuer.tenants:
        return next(iter(issuer.tenants))
    tenant = claims.get("tenant")
    if not isinstance(tenant, str) or not re.fullmatch(TENANT, tenant, re.ASCII):
        raise InvalidToken("The token names no tenant (`tenant`).")
    if issuer.tenants is not None and tenant not in issuer.tenants:
        raise InvalidToken("The token names a tenant that its issuer does not speak for.")
    return tenant


def _scopes(claims: Mapping[str, Any], issuer: Issuer) -> frozenset[str]:
    """Those that its issuer may grant. A token may have others, which are for other systems: they open nothing here."""
    scope = claims.get("scope")
    found = issuer.scopes.intersection(scope.split(" ")) if isinstance(scope, str) else frozenset()
    if not found:
        raise InvalidToken("The token has no scope that its issuer may grant here (`scope`).")
    return frozenset(found)


def _opened(claims: Mapping[str, Any]) -> dict[str, Any]:
    """Exactly one of the three."""
    given = {name: claims[name] for name in ("streams", "sessions", "own") if claims.get(name, False) is not False}
    if len(given) != 1:
        raise InvalidToken("The token names what it opens by one of `streams`, `sessions` and `own`.")
    [(name, value)] = given.items()
    if name == "own":
        if value is not True:
            raise InvalidToken("The token's `own` is neither true nor false.")
        return {"own": True}
    limit = MAX_STREAMS if name == "streams" else MAX_SESSIONS
    if not isinstance(value, list) or not 0 < len(value) <= limit or not all(map(is_name, value)):
        raise InvalidToken(f"The token's `{name}` is no list of 1 to {limit} names.")
    return {name: frozenset(value)}
