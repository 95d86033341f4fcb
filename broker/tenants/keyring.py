"""API keys: for back ends. `lek_<id>_<secret>`, of which the SHA-256 of the secret is kept: the secret is random, so a
slow hash would buy nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

DEFAULT_TENANT = "default"
TENANT = r"[a-z0-9][a-z0-9-]{0,62}"
"""A tenant's name: it stands in keys of Redis, where no part of a name may be able to name something else."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """`digest`: the SHA-256 of what the caller presents. Times in s since 1970."""

    id: str
    tenant: str
    scopes: frozenset[str]
    digest: bytes
    name: str = ""
    created: int = 0
    expires: int | None = None
    revoked: int | None = None


class Keyring:
    """The keys that this process knows. `given`: those of its settings, which Redis does not have."""

    def __init__(self, given: Iterable[ApiKey] = ()) -> None:
        self._by_digest = {key.digest: key for key in given}

    @property
    def is_empty(self) -> bool:
        return not self._by_digest

    def is_good(self, key_id: str) -> bool:
        return any(key.id == key_id for key in self._by_digest.values())

    def find(self, credential: str) -> ApiKey | None:
        """One look-up, however many keys there are: by the digest of a secret that nobody can guess a part of."""
        return self._by_digest.get(hashlib.sha256(credential.encode("utf-8", "surrogateescape")).digest())


def given_key(secret: str, scopes: frozenset[str]) -> ApiKey:
    """A key of LASTEVENT_API_KEYS or LASTEVENT_MASKED_KEYS: the tenant `default`'s. Its id is a fingerprint."""
    fingerprint = hashlib.sha256(b"lastevent key " + secret.encode()).hexdigest()[:8]
    return ApiKey(fingerprint, DEFAULT_TENANT, scopes, hashlib.sha256(secret.encode()).digest())
