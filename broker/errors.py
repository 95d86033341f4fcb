"""Everything that can go wrong, as a tree.

LasteventError
├── StreamNotFound          no stream of that id (or another tenant's)
├── StreamExpired           it existed; its retention is over
├── StreamClosed            it has its terminal event
├── StreamRunning           it has none yet; only what has ended can be erased
├── WriterSuperseded        another writer holds the pen
├── AppendGap               the log is shorter than the writer thinks; it sends again from tail + 1
├── StreamLimit             the stream holds as many events or bytes as one may
├── LeaseHeld               a living writer holds the pen
├── BadCursor               a Last-Event-ID that is none
├── InvalidJson             a body that is not JSON as RFC 8259 and this API want it
├── InvalidRequest          JSON of the wrong shape; an Idempotency-Key used for another body
├── UnsupportedMediaType    a body that does not say it is JSON
├── BodyTooLarge
├── TooManyViewers
├── Unauthorized            no key, or none that is known
├── Forbidden               a browser page of another origin, a proxy in front of a keyless server
├── StoreUnavailable        a state that passes: nothing is lost, and the same call may succeed shortly
│   ├── RedisUnavailable    Redis did not answer, or cannot serve: whether the call was carried out is not known
│   └── LogHealing          it answered: not now. It is back since a moment; writers are putting lost events back first
├── ArchiveDamaged          a row of it is not as it was written
├── MasksTooSlow            a mask's pattern takes too long on this text
├── ArchiveUnavailable      the archive's database cannot be reached, or cannot serve
└── Draining                this server is going away

Redis' own errors are translated by the client (store/connect.py), the archive's in archive/database.py. What each means
over HTTP stands in the class.
Messages say what happened, what it means and what to do, and never repeat the caller's input.
"""

from __future__ import annotations

from typing import ClassVar


class LasteventError(Exception):
    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Something went wrong in the server"
    retry_after_s: float | None = None


class StreamNotFound(LasteventError):
    status, code, title = 404, "stream_not_found", "There is no such stream"


class StreamExpired(LasteventError):
    status, code, title = 410, "stream_expired", "The stream is no longer kept"


class StreamClosed(LasteventError):
    status, code, title = 409, "stream_closed", "The stream has ended; nothing can be added"


class StreamRunning(LasteventError):
    status, code, title = 409, "stream_running", "The stream has not ended"


class WriterSuperseded(LasteventError):
    status, code, title = 409, "writer_superseded", "Another writer has taken the stream over"


class AppendGap(LasteventError):
    status, code, title = 409, "append_gap", "Events are missing before the first one sent"

    def __init__(self, tail: int) -> None:
        super().__init__(f"The last event of the stream is {tail}; send again from the one after it.")
        self.tail = tail


class StreamLimit(LasteventError):
    status, code, title = 409, "stream_limit", "The stream holds as much as one may"


class LeaseHeld(LasteventError):
    status, code, title = 409, "lease_held", "A living writer holds the stream"

    def __init__(self, until_ms: int) -> None:
        super().__init__("A living writer holds the stream.")
        self.until_ms = until_ms


class BadCursor(LasteventError):
    status, code, title = 400, "bad_cursor", "That is no place in a stream"


class InvalidJson(LasteventError):
    status, code, title = 400, "invalid_json", "The body is not valid JSON"


class InvalidRequest(LasteventError):
    status, code, title = 422, "invalid_request", "The request does not have the form it needs"


class UnsupportedMediaType(LasteventError):
    status, code, title = 415, "unsupported_media_type", "The body must be JSON"


class BodyTooLarge(LasteventError):
    status, code, title = 413, "body_too_large", "The body is too large"


class TooManyViewers(LasteventError):
    status, code, title = 429, "too_many_viewers", "This server serves as many viewers as it may"
    retry_after_s = 5.0


class Unauthorized(LasteventError):
    status, code, title = 401, "unauthorized", "A key is needed"


class Forbidden(LasteventError):
    status, code, title = 403, "forbidden", "This is not allowed"


class StoreUnavailable(LasteventError):
    status, code, title = 503, "redis_unavailable", "The store cannot be reached for the moment"
    retry_after_s = 2.0


class RedisUnavailable(StoreUnavailable):
    """Redis did not answer, or cannot serve: a step that was sent may have been carried out."""


class LogHealing(StoreUnavailable):
    """Redis has restarted a moment ago. For one lease, living writers alone may write (design: the boot rule)."""

    retry_after_s: float

    def __init__(self, wait_s: float) -> None:
        super().__init__("Redis has just restarted, and writers are putting lost events back. Try again shortly.")
        self.retry_after_s = wait_s


class ArchiveDamaged(LasteventError):
    status, code, title = 500, "archive_damaged", "What the archive holds of this stream cannot be read"


class MasksTooSlow(LasteventError):
    status, code, title = 503, "masks_too_slow", "The masks could not be laid over this stream in time"
    retry_after_s = 60.0


class ArchiveUnavailable(LasteventError):
    status, code, title = 503, "archive_unavailable", "The archive cannot be reached for the moment"
    retry_after_s = 5.0


class Draining(LasteventError):
    status, code, title = 503, "draining", "This server is going away; another one answers"
    retry_after_s = 1.0
