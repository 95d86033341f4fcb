"""Everything that can go wrong, as a tree.

LasteventError
├── StreamNotFound          no stream has this id (or it is another tenant's)
├── StreamExpired           it existed; its retention is over, or its content was erased
├── StreamClosed            it has its terminal event
├── StreamRunning           it has no terminal event yet; only a stream that has ended can be erased
├── WriterSuperseded        another writer holds the pen
├── PathTaken               another stream is at this path, or one that was waits for its forks
├── ProducerFenced          a newer session of this producer of a shared stream has begun
├── ProducerGap             requests of this producer are missing before this one
├── SessionGap              a session of a producer that does not begin with its first request
├── OutOfOrder              a Stream-Seq that is not larger than the last one
├── AppendGap               the log is shorter than the writer thinks; it sends again from tail + 1
├── ApprovalNotFound        the stream has not asked for this approval
├── ApprovalDecided         somebody has decided otherwise
├── StreamLimit             the stream is at its limit of events or bytes
├── LeaseHeld               a live writer holds the pen
├── BadCursor               not a cursor: a Last-Event-ID, or the `next` of a listing
├── InvalidJson             the body is not JSON as RFC 8259 and this API require
├── InvalidRequest          JSON of the wrong shape
│   ├── KeyReused           an Idempotency-Key, or a run's id, that was used for another body
│   ├── UnknownModel        of a provider that no worker has
│   ├── UnknownAgent        no worker has an agent of this name
│   ├── UnknownOp           a socket's message that asks for nothing that there is
│   └── InvalidInput        not what the agent takes
├── UnsupportedMediaType    the body is not declared as JSON
├── UpgradeRequired         this address takes WebSockets alone, of one version
├── BadHandshake            a WebSocket's, which is none
├── NoSockets               another server than ours runs this application
├── BodyTooLarge
├── TooManyViewers          of this server, a stream, a token, a subject or a tenant
├── TooManyStreams          a tenant has as many running as it may
├── RateLimited             a caller comes too often; more inputs wait than may
├── TooManyFollows          a socket follows as many streams as one may
├── AlreadyFollowed         this socket follows that already
├── Unauthorized            no credential, or no known one
│   └── InvalidToken        a token that is not valid here
│       ├── TokenExpired    it was
│       └── TokenRevoked    it would be, had nobody revoked it
├── Forbidden               a browser page of another origin, a proxy in front of a keyless server
├── InsufficientScope       the credential is good, and does not open this
├── KeyNotFound             no API key has this id
├── ErasureNotFound         no erasure has this id
├── StoreFull               Redis keeps its last memory for the streams that run: none is created
├── StoreUnavailable        a state that passes: nothing is lost, and the same call may succeed shortly
│   ├── RedisUnavailable    Redis did not answer or cannot serve: the call may have been carried out
│   │   └── RedisRefuses    Redis refuses what Lastevent needs, until an operator changes something
│   ├── IssuerUnavailable   the keys of a token's issuer are not known yet
│   └── LogHealing          Redis answered: not now. It has just restarted; writers restore lost events first
├── WrongType               one key in Redis is not of Lastevent's making; all others are as they were
├── LogDamaged              an event refers to what is not in its log
├── ArchiveDamaged          a row of the archive is not as it was written
├── MasksTooSlow            the masks take too long on this stream
│   └── MasksBusy           too many masked reads wait for their turn; it passes
├── ArchiveUnavailable      the archive's database cannot be reached or cannot serve
├── OtherRelease            a newer release's stream in a dialect: another server of the roll-out answers
└── Draining                this server is shutting down

The client translates Redis' own errors (store/connect.py), archive/database.py the archive's. Each class has its HTTP
status, its code and its title. A message says what happened, what it means and what to do. It never repeats the
caller's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

REDIS_AWAY = {"lasting": "Redis is away"}
"""`extra` of a log line that each part of a process would write for as long as Redis is away (process/logs.py)."""


NO_SOCKETS = "WebSockets need Lastevent's own server: lastevent serve. Follow each stream by its events_url."


class LasteventError(Exception):
    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal server error"
    retry_after_s: float | None = None


class StreamNotFound(LasteventError):
    status, code, title = 404, "stream_not_found", "Stream not found"


class StreamExpired(LasteventError):
    status, code, title = 410, "stream_expired", "The stream is no longer available"


class StreamClosed(LasteventError):
    status, code, title = 409, "stream_closed", "The stream has ended and accepts no more events"


class StreamRunning(LasteventError):
    status, code, title = 409, "stream_running", "The stream has not ended yet"


class WriterSuperseded(LasteventError):
    status, code, title = 409, "writer_superseded", "Another writer has taken over this stream"


class AppendGap(LasteventError):
    status, code, title = 409, "append_gap", "Events are missing before the first one in this batch"

    def __init__(self, tail: int) -> None:
        super().__init__(f"The last event of the stream is {tail}. Send the events after it again.")
        self.tail = tail


class PathTaken(LasteventError):
    status, code, title = 409, "path_taken", "Another stream is at this path"


class ProducerFenced(LasteventError):
    """`epoch`: of the newer session."""

    status, code, title = 403, "producer_fenced", "A newer session of this producer has begun"

    def __init__(self, epoch: int) -> None:
        super().__init__("A newer session of this producer has written to the stream. Stop, or begin a newer one.")
        self.epoch = epoch


class ProducerGap(LasteventError):
    """`expected`: the number of the request that comes next."""

    status, code, title = 409, "producer_gap", "Requests of this producer are missing before this one"

    def __init__(self, expected: int) -> None:
        super().__init__(f"The next request of this producer is {expected}. Send it, and those behind it, again.")
        self.expected = expected


class SessionGap(LasteventError):
    status, code, title = 400, "session_gap", "A session of a producer begins with its request 0"


class OutOfOrder(LasteventError):
    status, code, title = 409, "out_of_order", "Stream-Seq must grow"


class ApprovalNotFound(LasteventError):
    status, code, title = 404, "approval_not_found", "There is no such approval"


class ApprovalDecided(LasteventError):
    status, code, title = 409, "approval_decided", "The approval has been decided otherwise"


class StreamLimit(LasteventError):
    status, code, title = 409, "stream_limit", "The stream has reached its size limit"


class LeaseHeld(LasteventError):
    status, code, title = 409, "lease_held", "A live writer holds this stream"

    def __init__(self, until_ms: int) -> None:
        super().__init__("A live writer holds this stream. Try again when its lease has expired.")
        self.until_ms = until_ms


class BadCursor(LasteventError):
    status, code, title = 400, "bad_cursor", "Not a valid position in a stream"


class InvalidJson(LasteventError):
    status, code, title = 400, "invalid_json", "The body is not valid JSON"


class InvalidRequest(LasteventError):
    status, code, title = 422, "invalid_request", "The request is not valid"


class KeyReused(InvalidRequest):
    pass


class UnknownModel(InvalidRequest):
    code, title = "unknown_model", "There is no such provider"


class UnknownAgent(InvalidRequest):
    code, title = "unknown_agent", "There is no such agent"


class UnknownOp(InvalidRequest):
    code, title = "unknown_op", "There is no such op"


class InvalidInput(InvalidRequest):
    code, title = "invalid_input", "The agent does not take this input"


class UnsupportedMediaType(LasteventError):
    status, code, title = 415, "unsupported_media_type", "The body must be JSON"


class BodyTooLarge(LasteventError):
    status, code, title = 413, "body_too_large", "The body is too large"


class UpgradeRequired(LasteventError):
    status, code, title = 426, "upgrade_required", "This takes a WebSocket"


class BadHandshake(LasteventError):
    status, code, title = 400, "bad_handshake", "The handshake of a WebSocket is not valid"


class NoSockets(LasteventError):
    status, code, title = 501, "no_sockets", "This server has no WebSockets"


class TooManyViewers(LasteventError):
    """`limit`: whose places are taken."""

    status, code, title = 429, "too_many_viewers", "There are too many viewers"
    retry_after_s = 5.0

    def __init__(self, message: str, limit: Literal["process", "stream", "token", "subject", "tenant"]) -> None:
        super().__init__(message)
        self.limit = limit


class TooManyStreams(LasteventError):
    """Of external streams: those of workers wait."""

    status, code, title = 429, "too_many_streams", "There are too many streams running"
    retry_after_s = 15.0
    limit = "streams_running"


class RateLimited(LasteventError):
    """`limit`: the setting's name, in lower case."""

    status, code, title = 429, "rate_limited", "Too many requests"
    retry_after_s = 15.0

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


class TooManyFollows(LasteventError):
    status, code, title = 429, "too_many_follows", "This socket follows too many streams"


class AlreadyFollowed(LasteventError):
    status, code, title = 409, "already_followed", "This socket follows it already"


class Unauthorized(LasteventError):
    status, code, title = 401, "unauthorized", "A valid API key or token is required"


class InvalidToken(Unauthorized):
    code, title = "invalid_token", "The token is not valid"


class TokenExpired(InvalidToken):
    """Only if its signature was right, as the next one: others learn nothing about it."""

    code, title = "token_expired", "The token has expired"


class TokenRevoked(InvalidToken):
    code, title = "token_revoked", "The token has been revoked"


class Forbidden(LasteventError):
    status, code, title = 403, "forbidden", "This is not allowed"


class InsufficientScope(LasteventError):
    """`scopes`: one of them would open it."""

    status, code, title = 403, "insufficient_scope", "The credential does not open this"

    def __init__(self, scopes: Sequence[str], message: str | None = None) -> None:
        wanted = " or ".join(scopes)
        super().__init__(message or f"This takes the scope {wanted}, which the credential does not have.")
        self.scopes = tuple(scopes)


class KeyNotFound(LasteventError):
    status, code, title = 404, "key_not_found", "There is no such API key"


class ErasureNotFound(LasteventError):
    status, code, title = 404, "erasure_not_found", "There is no such erasure"


class StoreFull(LasteventError):
    status, code, title = 503, "store_full", "There is no room for a new stream"
    retry_after_s = 10.0


class StoreUnavailable(LasteventError):
    status, code, title = 503, "redis_unavailable", "Redis is temporarily unavailable"
    retry_after_s = 2.0


class RedisUnavailable(StoreUnavailable):
    """Redis did not answer or cannot serve: a step that was sent may have been carried out."""


class RedisRefuses(RedisUnavailable):
    """Redis answers, and refuses: a permission, a password, a cluster. Trying again alone does not help."""

    code, title = "redis_refuses", "Redis refuses what Lastevent needs"
    retry_after_s = 10.0


class IssuerUnavailable(StoreUnavailable):
    """They are being fetched: the token may turn out to be good."""

    code, title = "issuer_unavailable", "The keys of the token's issuer are not known yet"


class LogHealing(StoreUnavailable):
    """Redis has just restarted. For one lease, only live writers may write (the boot rule: log/servers.py)."""

    retry_after_s: float

    def __init__(self, wait_s: float) -> None:
        super().__init__("Redis has just restarted and writers are restoring lost events. Try again shortly.")
        self.retry_after_s = wait_s


class WrongType(LasteventError):
    """Not a StoreUnavailable: whoever serves many streams goes on with the others."""

    status, code, title = 503, "redis_wrong_type", "A key in Redis is not of the type that Lastevent gives it"
    retry_after_s = 60.0


class LogDamaged(LasteventError):
    status, code, title = 500, "log_damaged", "The log of this stream is damaged"


class ArchiveDamaged(LasteventError):
    status, code, title = 500, "archive_damaged", "The archived copy of this stream is damaged"


class MasksTooSlow(LasteventError):
    status, code, title = 503, "masks_too_slow", "The masks took too long to apply"
    retry_after_s = 60.0


class MasksBusy(MasksTooSlow):
    """As many masked reads wait as may. Unlike a stream that takes too long, this passes."""

    retry_after_s = 5.0


class ArchiveUnavailable(LasteventError):
    status, code, title = 503, "archive_unavailable", "The archive is temporarily unavailable"
    retry_after_s = 5.0


class OtherRelease(LasteventError):
    status, code, title = 503, "other_release", "A server of a newer release must answer"
    retry_after_s = 1.0


class Draining(LasteventError):
    status, code, title = 503, "draining", "This server is shutting down"
    retry_after_s = 1.0
