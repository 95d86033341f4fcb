"""A token that has been verified: who holds it, and which streams it opens."""

from __future__ import annotations

from dataclasses import dataclass

from broker.tenants.scopes import READ

ANYONE = "anyone"
"""The subject of a token that names nobody, as in an `events_url` of a stream without a user."""


LAST_PART, LAST_PART_S = 0.1, 60.0
"""Connections end within this part of a token's life, each token's at a moment of its own: those made together would
otherwise come back together."""

EXPIRING_S = 30.0
"""So long before that its viewers are told. A token that lives for less than twice as long is not spoken of."""


@dataclass(frozen=True, slots=True)
class Token:
    """`id`: names the token in this process (the SHA-256 of what is signed). Times in s since 1970.

    It opens the streams that one of these names: `streams` their ids, `sessions` their sessions, `own` those whose user
    is its subject.
    """

    id: str
    issuer: str
    tenant: str
    subject: str
    scopes: frozenset[str]
    issued: float
    expires: float
    jti: str | None = None
    streams: frozenset[str] | None = None
    sessions: frozenset[str] | None = None
    own: bool = False

    @property
    def cuts_at(self) -> float:
        """When its connections end. By the token alone, so that every server, and every reconnect, finds the same."""
        last_s = min((self.expires - self.issued) * LAST_PART, LAST_PART_S)
        return self.expires - last_s * int(self.id[:8], 16) / 2**32

    @property
    def tells_at(self) -> float | None:
        """When its viewers are told that it expires; None: never."""
        return self.cuts_at - EXPIRING_S if self.expires - self.issued >= 2 * EXPIRING_S else None

    @property
    def only_reads_one_stream(self) -> bool:
        """So little may be in an address, which is kept in histories and logs."""
        return self.scopes == {READ} and self.streams is not None and len(self.streams) == 1

    def may_open(self, sid: str) -> bool:
        """As far as an id can say: before the stream is looked up."""
        return self.streams is None or sid in self.streams

    def opens(self, sid: str, session: str | None, user: str | None) -> bool:
        if self.streams is not None:
            return sid in self.streams
        if self.sessions is not None:
            return session in self.sessions
        return self.own and user == self.subject
