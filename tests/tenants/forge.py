"""Tokens of any kind, also those that no library would make."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from typing import Any

import orjson
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

from broker.tenants.issuers import Issuers
from broker.tenants.tokens import Tokens

SECRET = b"what-signs-the-tokens-in-these-tests"
SID = "0f3c0f3c0f3c0f3c0f3c0f3c0f3c0f3c"


def tokens(*secrets: bytes, issuers: Issuers | None = None, max_ttl_s: int = 86_400) -> Tokens:
    known = secrets or (SECRET,)
    return Tokens(lambda: known, issuers or Issuers(), audience="lastevent", max_ttl_s=max_ttl_s)


def claims(**changed: Any) -> dict[str, Any]:
    """Good ones of an issuer; `...`: without it."""
    now = int(time.time())
    good = {"iss": "https://login.example.com", "aud": "lastevent", "iat": now, "exp": now + 600, "sub": "ann"}
    all_claims = {**good, "scope": "streams:read", "streams": [SID], **changed}
    return {name: value for name, value in all_claims.items() if value is not ...}


def segment(value: Any) -> str:
    raw = value if isinstance(value, bytes) else orjson.dumps(value)
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def by_hmac(secret: bytes, header: Any, payload: Any, algorithm: str = "sha256") -> str:
    """Signed by hand: header and payload may be anything."""
    signed = f"{segment(header)}.{segment(payload)}"
    return f"{signed}.{segment(hmac.digest(secret, signed.encode(), getattr(hashlib, algorithm)))}"


def signed(key: Key, algorithm: str, payload: dict[str, Any], **header: Any) -> str:
    return jwt.encode({"alg": algorithm, **header}, payload, key, algorithms=[algorithm])


def a_key(algorithm: str) -> Key:
    """A private key for this algorithm."""
    match algorithm[:2]:
        case "HS":
            return OctKey.generate_key(int(algorithm[2:]))
        case "RS" | "PS":
            return RSAKey.generate_key(2048)
        case "ES":
            return ECKey.generate_key({"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[algorithm])
        case _:
            return OKPKey.generate_key("Ed25519")
