"""Places for viewers: how many may be connected to this process at once, by whom they are and what they follow.

Counted in this process, which is exact enough, and free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from broker.auth import Grant
from broker.errors import TooManyViewers
from broker.tenants.enforcement import Enforcement
from broker.tenants.issuers import OURS
from broker.tenants.limits import TenantLimits
from broker.tenants.token import ANYONE

Of = Literal["stream", "token", "subject", "tenant"]

NAMES_NOBODY = (OURS, "")
"""Issuers whose `anyone` is nobody: this server, and release 0.1. A user of another may be called so."""

_FULL: dict[Of, str] = {
    "stream": "This server has as many viewers of this stream as it takes.",
    "token": "This token has as many connections as it may have. Close one.",
    "subject": "This user has as many connections as a user may have. Close one.",
    "tenant": "This tenant has as many viewers on this server as it may have.",
}


class Places:
    """`limit`: of the process, which is always enforced. A tenant's is its own (`limits`)."""

    def __init__(
        self,
        *,
        limit: int,
        per_stream: int,
        per_token: int,
        per_subject: int,
        limits: TenantLimits,
        enforcement: Enforcement,
    ) -> None:
        self.taken = 0
        self._limit = limit
        self._most: dict[Of, int] = {"stream": per_stream, "token": per_token, "subject": per_subject}
        self._limits = limits
        self._enforcement = enforcement
        self._counts: dict[Of, Counter[Any]] = {of: Counter() for of in _FULL}

    async def require(self, grant: Grant, sid: str | None, *, again: bool = False, gives_up: int = 0) -> None:
        """One for this caller, of a stream that may not exist yet. Raises TooManyViewers, or RedisUnavailable.

        `again`: this viewer had one when it came, and may have been overtaken since. `gives_up`: places, of no stream,
        that it will leave for this one.
        """
        of_tenant = (await self._limits.of(grant.tenant)).viewers
        self.require_process(gives_up)
        if again and self._enforcement.observes:
            return  # it was counted when it came
        for of, name in _names(grant, sid):
            most = of_tenant if of == "tenant" else self._most[of]
            if most is None or self._counts[of][name] - (0 if of == "stream" else gives_up) < most:
                continue
            if self._enforcement.refuses(f"viewers_per_{of}"):
                raise TooManyViewers(_FULL[of], of)

    def require_process(self, gives_up: int = 0) -> None:
        """One of this process, for whomever. Raises TooManyViewers."""
        if self.taken - gives_up >= self._limit:
            self._enforcement.refuses_always("max_viewers")
            raise TooManyViewers("This server is at its viewer limit. Try again; another may have room.", "process")

    def take(self, grant: Grant, sid: str | None) -> None:
        self.taken += 1
        for of, name in _names(grant, sid):
            self._counts[of][name] += 1

    def free(self, grant: Grant, sid: str | None) -> None:
        self.taken -= 1
        for of, name in _names(grant, sid):
            counts = self._counts[of]
            counts[name] -= 1
            if not counts[name]:
                del counts[name]


def _names(grant: Grant, sid: str | None) -> Iterator[tuple[Of, Any]]:
    if sid is not None:
        yield "stream", sid
    if token := grant.token:
        yield "token", token.id
        if token.subject != ANYONE or token.issuer not in NAMES_NOBODY:
            yield "subject", (token.tenant, token.subject)
    yield "tenant", grant.tenant
