"""Who else makes tokens that are accepted here: the app's own identity provider. LASTEVENT_ISSUERS, TOML:

[issuer.shop]                          # a name of your own, for messages
iss = "https://login.example.com/"     # the claim, to the letter
tenant = "acme"                        # or tenants = ["acme", "globex"]: a closed list, one of which the claim names
algorithms = ["ES256"]
jwks_url = "https://login.example.com/.well-known/jwks.json"    # or jwks_file, public_key (PEM), secret_env
audience = "chat"                      # default: LASTEVENT_TOKEN_AUDIENCE
max_ttl_s = 3600                       # default, and at most: LASTEVENT_TOKEN_MAX_TTL_S
scopes = ["streams:read"]              # the most that it may grant

A key belongs to its issuer, and the algorithm comes from this file: what a token says of both only chooses among them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol
from urllib.parse import urlsplit

import httpx2
import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, Key, OctKey, OKPKey, RSAKey
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from broker.errors import InvalidToken, IssuerUnavailable
from broker.store.host import require_http_url
from broker.tenants.keyring import TENANT
from broker.tenants.scopes import OF_TOKENS, READ

logger = logging.getLogger(__name__)

OURS = "lastevent"
"""The issuer of the tokens that are made here."""

KEPT_S = 300.0
ASK_AGAIN_S = 30.0
"""At the most so often an unknown `kid` asks: whoever sends tokens may send any."""

FETCH_S = 15.0
"""For all of it: each read has a limit of its own, and an answer could come a byte at a time."""

JWKS_BYTES = 256 * 1024
JWKS_KEYS = 64
RSA_BITS = 2048

KEY_FORMS: Mapping[str, tuple[str, str | None]] = {
    **dict.fromkeys(("HS256", "HS384", "HS512"), ("oct", None)),
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", None)),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    # RFC 9864 gives EdDSA on this curve a name of its own; many issuers still use the old one.
    **dict.fromkeys(("Ed25519", "EdDSA"), ("OKP", "Ed25519")),
}
"""Each algorithm that there is, and its keys' type and curve. `none` is not among them."""

_SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
"""As long as the hash, at least (RFC 7518 §3.2)."""

_UNUSABLE = (JoseError, ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm)
"""What joserfc and cryptography raise at a key that is none."""

Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
    "ES256", "ES384", "ES512", "Ed25519", "EdDSA",
]  # fmt: skip
Tenant = Annotated[str, StringConstraints(pattern=rf"^{TENANT}$")]


class BadIssuers(ValueError):
    """The file cannot be used. It has a line for each entry that is wrong, and no secret in it."""


class Keys(Protocol):
    """The keys of one issuer."""

    version: int
    """Another one, and a token verified before may no longer be."""

    def find(self, algorithm: str, kid: str | None) -> Key:
        """Raises InvalidToken: there is none. Raises IssuerUnavailable: it cannot be known yet."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """`tenants`: of ours, any (None). `is_fixed`: there is one, and the claim is not looked at."""

    name: str
    iss: str
    algorithms: frozenset[str]
    keys: Keys
    tenants: frozenset[str] | None
    is_fixed: bool
    audience: str
    max_ttl_s: int
    scopes: frozenset[str]
    leeway_s: int


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    iss: Annotated[str, Field(min_length=1, max_length=500)]
    tenant: Tenant | None = None
    tenants: Annotated[list[Tenant], Field(min_length=1)] | None = None
    algorithms: Annotated[list[Algorithm], Field(min_length=1)]
    jwks_url: str | None = None
    jwks_file: str | None = None
    public_key: str | None = None
    secret_env: str | None = None
    audience: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    max_ttl_s: Annotated[int, Field(gt=0)] | None = None
    scopes: Annotated[list[str], Field(min_length=1)] = [READ]

    @field_validator("scopes")
    @classmethod
    def _are_of_tokens(cls, scopes: list[str]) -> list[str]:
        if not OF_TOKENS.issuperset(scopes):
            raise ValueError(f"a token may have {', '.join(sorted(OF_TOKENS))}, and no other scope")
        return scopes

    @field_validator("jwks_url")
    @classmethod
    def _is_safe(cls, url: str) -> str:
        require_http_url(url)
        parts = urlsplit(url)
        if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise ValueError("keys are fetched by https alone: who is on the way could put in others")
        return url

    @model_validator(mode="after")
    def _fits_together(self) -> _Entry:
        if (self.tenant is None) == (self.tenants is None):
            raise ValueError("give tenant, or tenants: the closed list of those that its tokens may name")
        sources = ("jwks_url", "jwks_file", "public_key", "secret_env")
        if sum(getattr(self, source) is not None for source in sources) != 1:
            raise ValueError(f"give one of {', '.join(sources)}")
        takes_secret = self.secret_env is not None
        if any((KEY_FORMS[name][0] == "oct") != takes_secret for name in self.algorithms):
            # Or a public key, which everybody has, would be taken for the secret of an HMAC.
            raise ValueError("algorithms: HS256, HS384 and HS512 go with secret_env, and nothing else does")
        if self.iss == OURS:
            raise ValueError(f"iss: `{OURS}` is the name of the tokens that are made here")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    issuer: dict[str, _Entry] = {}


class Issuers:
    """By the claim `iss`. `start` and `close`: the threads that fetch keys."""

    def __init__(self, issuers: Iterable[Issuer] = ()) -> None:
        self._by_iss = {issuer.iss: issuer for issuer in issuers}

    def find(self, iss: object) -> Issuer | None:
        return self._by_iss.get(iss) if isinstance(iss, str) else None

    @property
    def version(self) -> int:
        return sum(issuer.keys.version for issuer in self._by_iss.values())

    def start(self) -> None:
        for issuer in self._by_iss.values():
            if isinstance(issuer.keys, FetchedKeys):
                issuer.keys.start()

    def close(self) -> None:
        for issuer in self._by_iss.values():
            if isinstance(issuer.keys, FetchedKeys):
                issuer.keys.close()


class GivenKeys:
    """A secret, or one public key. The `kid` of a token says nothing here."""

    version = 0

    def __init__(self, key: Key) -> None:
        self._key = key

    def find(self, algorithm: str, kid: str | None) -> Key:
        if fits(self._key, algorithm):
            return self._key
        raise InvalidToken("The token's algorithm is not one of its issuer's key.")


class FetchedKeys:
    """A JSON Web Key Set (RFC 7517), fetched by a thread of its own: a resolver or an issuer may take its time.

    While it is away, what is known goes on.
    """

    def __init__(self, name: str, fetch: Callable[[], bytes]) -> None:
        self.version = 0
        self._name = name
        self._fetch = fetch
        self._keys: tuple[Key, ...] = ()
        self._asked = threading.Event()
        self._is_closed = False
        self._may_ask_at = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._asked.set()
        self._thread = threading.Thread(target=self._run, name=f"keys of issuer {self._name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """It ends when its fetch does: nobody waits for that."""
        self._is_closed = True
        self._asked.set()

    def find(self, algorithm: str, kid: str | None) -> Key:
        found = [key for key in self._keys if kid in (None, key.kid) and fits(key, algorithm)]
        if len(found) == 1 or (found and kid is not None):
            return found[0]
        # An issuer that changes its keys signs with one that we have not seen. 401 would end an EventSource for good.
        if self._asked.is_set() or not self._keys or time.monotonic() >= self._may_ask_at:
            if time.monotonic() >= self._may_ask_at:
                self._asked.set()
            raise IssuerUnavailable("The keys of the token's issuer are being fetched. Try again shortly.")
        raise InvalidToken("The token's issuer has no such key.")

    def _run(self) -> None:
        while not self._is_closed:
            # The next may be asked for only when this one is over: a slow issuer must not be asked all the time.
            try:
                self._take(read_jwks(self._fetch()))
            except (OSError, httpx2.HTTPError, *_UNUSABLE) as error:
                # Not its text: it has the URL in it, and that may hold a password.
                logger.warning("issuer %s: its keys could not be read (%s)", self._name, type(error).__name__)
            self._may_ask_at = time.monotonic() + ASK_AGAIN_S
            self._asked.clear()
            if not self._is_closed:
                self._asked.wait(KEPT_S if self._keys else ASK_AGAIN_S)

    def _take(self, keys: tuple[Key, ...]) -> None:
        if [key.thumbprint() for key in keys] != [key.thumbprint() for key in self._keys]:
            self.version += 1
        self._keys = keys


def fits(key: Key, algorithm: str) -> bool:
    """Whether this key is for this algorithm, by its type, its curve and what it says of itself."""
    form, curve = KEY_FORMS[algorithm]
    if key.key_type != form or (curve is not None and getattr(key, "curve_name", None) != curve):
        return False
    names = {"Ed25519", "EdDSA"} if form == "OKP" else {algorithm}
    return (key.alg is None or key.alg in names) and key.get("use") in (None, "sig")


def read_jwks(body: bytes) -> tuple[Key, ...]:
    """The keys of a set that can verify. Others are passed over (RFC 7517 §5). Raises ValueError if none is left."""
    given = orjson.loads(body)["keys"]
    keys = tuple(key for one in given[:JWKS_KEYS] if (key := _usable(one)))
    if not keys:
        raise ValueError("none of its keys can be used")
    return keys


def _usable(given: Any) -> Key | None:
    try:
        if given["kty"] == "oct" or "verify" not in given.get("key_ops", ["verify"]):
            return None
        if given["kty"] == "RSA" and len(given["n"]) * 6 < RSA_BITS:  # base64
            return None
        return JWKRegistry.import_key({name: value for name, value in given.items() if name in _PUBLIC})
    except _UNUSABLE:
        return None


_PUBLIC = frozenset({"kty", "kid", "alg", "use", "n", "e", "crv", "x", "y"})
"""Of a key: what is private has no business here, and certificates are not looked at."""


def load_issuers(path: Path | None, *, audience: str, max_ttl_s: int, leeway_s: int) -> Issuers:
    """Of this file. Raises BadIssuers."""
    if path is None:
        return Issuers()
    try:
        file = _File.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise BadIssuers(f"{path} cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise BadIssuers(f"{path} is no TOML") from None
    except ValidationError as error:
        raise BadIssuers("\n".join(_line(problem["loc"], problem["msg"]) for problem in error.errors())) from None
    issuers = []
    for name, entry in file.issuer.items():
        try:
            issuers.append(_issuer(name, entry, audience, max_ttl_s, leeway_s, path.parent))
        except ValueError as error:
            raise BadIssuers(f"issuer.{name}.{error}") from None
    if len({issuer.iss for issuer in issuers}) < len(issuers):
        raise BadIssuers("two entries have the same iss")
    return Issuers(issuers)


def _issuer(name: str, entry: _Entry, audience: str, max_ttl_s: int, leeway_s: int, folder: Path) -> Issuer:
    if (entry.max_ttl_s or 0) > max_ttl_s:
        raise ValueError(f"max_ttl_s: at most LASTEVENT_TOKEN_MAX_TTL_S, {max_ttl_s}")
    return Issuer(
        name=name,
        iss=entry.iss,
        algorithms=frozenset(entry.algorithms),
        keys=_keys_of(name, entry, folder),
        tenants=frozenset(entry.tenants or [entry.tenant or ""]),
        is_fixed=entry.tenant is not None,
        audience=entry.audience or audience,
        max_ttl_s=entry.max_ttl_s or max_ttl_s,
        scopes=frozenset(entry.scopes),
        leeway_s=leeway_s,
    )


def _keys_of(name: str, entry: _Entry, folder: Path) -> Keys:
    if entry.secret_env is not None:
        return GivenKeys(_secret(entry.secret_env, entry.algorithms))
    if entry.public_key is not None:
        key = _public_key(entry.public_key)
        if not any(fits(key, algorithm) for algorithm in entry.algorithms):
            raise ValueError("public_key: it is for none of the algorithms")
        return GivenKeys(key)
    if entry.jwks_file is not None:
        file = folder / entry.jwks_file
        try:
            read_jwks(file.read_bytes())
        except OSError as error:
            raise ValueError(f"jwks_file: it cannot be read ({error.strerror})") from None
        except _UNUSABLE:
            raise ValueError("jwks_file: it is no JSON Web Key Set with a public key that can be used") from None
        return FetchedKeys(name, file.read_bytes)
    return FetchedKeys(name, lambda: fetch_jwks(str(entry.jwks_url)))


def _secret(variable: str, algorithms: Iterable[str]) -> Key:
    secret = os.environ.get(variable, "").encode()
    wanted = max(_SECRET_BYTES[name] for name in algorithms)
    if len(secret) < wanted:
        raise ValueError(f"secret_env: {variable} is not set, or has fewer than {wanted} characters")
    return OctKey.import_key(secret)


def _public_key(pem: str) -> Key:
    try:
        match load_pem_public_key(pem.encode()):  # of a private key it says that it is none
            case RSAPublicKey(key_size=bits) if bits >= RSA_BITS:
                return RSAKey.import_key(pem)
            case EllipticCurvePublicKey():
                return ECKey.import_key(pem)
            case Ed25519PublicKey():
                return OKPKey.import_key(pem)
    except _UNUSABLE:
        pass
    raise ValueError(f"public_key: it is no public key in PEM that can be used; RSA has {RSA_BITS} bits at least")


def fetch_jwks(url: str) -> bytes:
    """Raises httpx2.HTTPError, or ValueError for an answer that is too long, too slow, or none."""
    deadline = time.monotonic() + FETCH_S
    body = b""
    with (
        httpx2.Client(timeout=5.0, follow_redirects=False) as http,
        http.stream("GET", url, headers={"Accept": "application/json"}) as answer,
    ):
        if answer.status_code != 200:  # a redirect may lead to where nobody has vouched for
            raise ValueError("the answer is not 200")
        for piece in answer.iter_bytes():
            body += piece
            if len(body) > JWKS_BYTES or time.monotonic() > deadline:
                raise ValueError("the answer is too long, or takes too long")
    return body


def _line(place: tuple[int | str, ...], message: str) -> str:
    return f"{'.'.join(str(part) for part in place)}: {message.removeprefix('Value error, ')}"
