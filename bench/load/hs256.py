"""Tokens of peers that ask for one: JWT, HMAC with SHA-256 (RFC 7519), by the standard library."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any


def signed(claims: dict[str, Any], secret: str) -> str:
    head = _part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    text = f"{head}.{_part(json.dumps(claims).encode())}"
    return f"{text}.{_part(hmac.digest(secret.encode(), text.encode(), hashlib.sha256))}"


def _part(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
