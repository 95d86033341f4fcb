"""What routes take from a request's address and headers.

What FastAPI calls for them (Depends) is async, though it waits for nothing: it would call anything else in a thread,
which costs more than the call, and lasts until a thread has its turn.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import Depends, Header, Query, Request

from broker.dialects.cursor import resume_at
from broker.dialects.format import Chosen, Format, Heartbeat, HttpForm
from broker.dialects.sse import NDJSON_MEDIA_TYPE
from broker.dialects.vector import Vector, newest
from broker.errors import InvalidRequest
from broker.log.event import KIND

PAGE_LIMIT = 200
MAX_KINDS = 32
"""Of one viewer: a stream has some dozens of kinds, and each viewer's choice is a form of its own."""
State = Literal["queued", "running", "done", "error", "cancelled"]
What = Literal[
    "created",
    "regenerated",
    "cancelled",
    "approved",
    "erased",
    "erasure_ordered",
    "minted",
    "webhook_sent",
    "revoked",
    "key_made",
    "key_revoked",
    "limits_set",
]
"""Deeds (log/deeds.py)."""

Accept = Annotated[str, Header()]
Limit = Annotated[int, Query(ge=1, le=PAGE_LIMIT)]
Next = Annotated[str | None, Query(max_length=1200, description="The `next` of the page before")]
Include = Annotated[Literal["request"] | None, Query(description="request: records show it, as far as a page has room")]
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key")]


def to_ms(moment: datetime | None) -> int | None:
    """Without a zone it is UTC. What was before 1970 is its beginning: nothing here is older, nor any id of Redis."""
    if moment is None:
        return None
    return max(0, round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000))


_QUERIES = ("last_event_id", "lastEventId")


class GivenCursors:
    """Every cursor in a request: each of its fields, where a framework would take one of them, and both queries."""

    def __init__(self, request: Request) -> None:
        self._fields = request.headers.getlist("last-event-id")
        self._queries = [at for name in _QUERIES for at in request.query_params.getlist(name)]

    def __bool__(self) -> bool:
        return any(self._fields + self._queries)

    def resume_in_several(self) -> Vector | None:
        """Where a caller of several streams resumes; None: it comes for the first time. Raises BadCursor."""
        return newest([part.strip(" \t") for field in self._fields for part in field.split(",")] + self._queries)

    def resume_at(self) -> int | None:
        """Where the caller resumes; None at the latest event. Raises BadCursor."""
        return resume_at(self._fields, self._queries)


async def _cursors(
    request: Request,
    _header: Annotated[str | None, Header(alias="Last-Event-ID", description="The last event received")] = None,
    _query: Annotated[str | None, Query(alias="last_event_id", description="For who can send no header")] = None,
    _camel: Annotated[str | None, Query(alias="lastEventId", description="The same")] = None,
) -> GivenCursors:
    return GivenCursors(request)


Cursors = Annotated[GivenCursors, Depends(_cursors)]


async def _heartbeat(
    heartbeat: Annotated[
        Literal["comment", "event"],
        Query(description="event: signs of life that an EventSource shows, named ping and without an id"),
    ] = "comment",
    heartbeat_s: Annotated[
        float | None, Query(ge=1, le=60, description="The longest silence. Default: LASTEVENT_HEARTBEAT_S")
    ] = None,
) -> Heartbeat:
    return Heartbeat(heartbeat_s, heartbeat == "event")


SignsOfLife = Annotated[Heartbeat, Depends(_heartbeat)]


async def _kinds(
    given: Annotated[
        list[str] | None,
        Query(alias="kinds", description="These kinds alone, separated by commas; `restart` and endings come always"),
    ] = None,
) -> frozenset[str] | None:
    return None if given is None else kinds_of(",".join(given))


Kinds = Annotated[frozenset[str] | None, Depends(_kinds)]


def kinds_of(names: str) -> frozenset[str]:
    """The kinds that a viewer asked for, with commas between them. Raises InvalidRequest."""
    # What is too much is not taken apart: thousands of commas are one name, and no good one.
    kinds = frozenset(names.split(",", MAX_KINDS))
    if len(kinds) > MAX_KINDS or not all(KIND.fullmatch(kind) for kind in kinds):
        raise InvalidRequest(
            f"kinds: the names of events, at most {MAX_KINDS}, with commas between them: ?kinds=sentence,status"
        )
    return kinds


def wanted_format(
    accept: str, *, compact: bool = False, is_public: bool = False, kinds: frozenset[str] | None = None
) -> HttpForm:
    if NDJSON_MEDIA_TYPE in accept:
        form = Format.COMPACT_NDJSON if compact else Format.NDJSON
    else:
        form = Format.COMPACT if compact else Format.EXACT
    form = form.for_public if is_public else form
    return form if kinds is None else Chosen(form, kinds)
