"""What routes take from a request's address and headers."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Header, Query

from broker.dialects.format import Format
from broker.dialects.sse import NDJSON_MEDIA_TYPE

PAGE_LIMIT = 200
State = Literal["queued", "running", "done", "error", "cancelled"]
Accept = Annotated[str, Header()]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", description="The id of the last event received")]
CursorQuery = Annotated[str | None, Query(description="As Last-Event-ID, for clients that can send no header")]
Limit = Annotated[int, Query(ge=1, le=PAGE_LIMIT)]
Next = Annotated[str | None, Query(max_length=1200, description="The `next` of the page before")]
Include = Annotated[Literal["request"] | None, Query(description="request: records show it, as far as a page has room")]
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key")]


def wanted_format(accept: str, compact: bool) -> Format:
    if NDJSON_MEDIA_TYPE in accept:
        return Format.COMPACT_NDJSON if compact else Format.NDJSON
    return Format.COMPACT if compact else Format.EXACT
