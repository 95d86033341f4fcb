"""A token that has been verified: who holds it, and which streams it opens."""

from __future__ import annotations

from dataclasses import dataclass

ANYONE = "anyone"
"""The subject of a token that names nobody, as in an `events_url` of a stream without a user."""


@dataclass(frozen=True, slots=True)
class Token:
    """`id`: names the token in this process (the SHA-256 of its text). Times in s since 1970.

    It opens the streams that one of these names: `streams` their ids, `sessions` their sessions, `own` those whose user
    is its subject.
    """

    id: str
    issuer: str
    tenant: str
    subject: str
    scopes: frozenset[str]
    issued: int
    expires: int
    jti: str | None = None
    streams: frozenset[str] | None = None
    sessions: frozenset[str] | None = None
    own: bool = False

    def may_open(self, sid: str) -> bool:
        """As far as an id can say: before the stream is looked up."""
        return self.streams is None or sid in self.streams

    def opens(self, sid: str, session: str | None, user: str | None) -> bool:
        if self.streams is not None:
            return sid in self.streams
        if self.sessions is not None:
            return session in self.sessions
        return self.own and user == self.subject
