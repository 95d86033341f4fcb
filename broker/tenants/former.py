"""Read tokens as release 0.1 made them: `<expiry>.<random>.<signature>`, of one stream, in an address. They are
accepted for one release more, so that pages that are open at an upgrade stay connected, and no longer made.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Sequence
from functools import lru_cache

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker.errors import TokenExpired, Unauthorized
from broker.tenants.keyring import DEFAULT_TENANT
from broker.tenants.scopes import READ
from broker.tenants.token import ANYONE, Token

_FORM = re.compile(r"(\d{1,12}\.[\w-]{1,20})\.([\w-]{43})", re.ASCII)


def is_former(text: str) -> bool:
    return _FORM.fullmatch(text) is not None


def verified(text: str, sid: str, known: Sequence[bytes]) -> Token:
    """`known`: the secrets that may have signed it. Raises Unauthorized, TokenExpired."""
    found = _FORM.fullmatch(text)
    if found is None or not any(
        [hmac.compare_digest(found[2].encode(), _sign(secret, sid, found[1])) for secret in known]  # noqa: C419 - each of them, in constant time
    ):
        raise Unauthorized("The token in the address is not valid here.")
    expires = int(found[1].partition(".")[0])
    if expires <= time.time():
        raise TokenExpired("The token has expired. Get a new events_url.")
    name = hashlib.sha256(text.encode()).hexdigest()
    # When it was issued it does not say: its life is taken for none, and it ends at its end.
    return Token(name, "", DEFAULT_TENANT, ANYONE, frozenset({READ}), expires, expires, streams=frozenset({sid}))


@lru_cache(maxsize=16)
def _signing_key(secret: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=b"lastevent read tokens").derive(secret)


def _sign(secret: bytes, sid: str, signed: str) -> bytes:
    message = f"{sid} {signed}".encode("utf-8", "surrogateescape")
    digest = hmac.digest(_signing_key(secret), message, hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=")
