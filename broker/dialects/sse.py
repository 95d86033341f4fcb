"""The wire of Server-Sent Events: event → bytes; and its plain sibling, NDJSON. Pure functions, no framework.

WHATWG HTML, section 9.2 "Server-sent events". A frame is `event:`, `data:` (one line of JSON), `id:` and a blank line.
A client sets its last event id only at the blank line: a frame cut anywhere does not count, and is sent again. `id:`
comes last for clients that set it at the end of its own line (@microsoft/fetch-event-source): from there on only the
blank line's byte is missing, and not the event.

A blank line stands behind events only. Many clients take any for an event without data (fetch-event-source, httpx-sse,
r3labs/sse). So comments and `retry:` alone end with their own line.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import orjson

from broker.log.event import GAP, TOKEN_EXPIRING, Event

HEARTBEAT = b": ping\n"
HEARTBEAT_EVENT = b"event: ping\ndata: {}\n\n"
NDJSON_HEARTBEAT = b"\n"
NDJSON_HEARTBEAT_EVENT = b'{"event":"ping","data":{}}\n'

MEDIA_TYPE = "text/event-stream"
NDJSON_MEDIA_TYPE = "application/x-ndjson"
CONTENT_TYPE = f"{MEDIA_TYPE}; charset=utf-8"
"""SSE is UTF-8 in any case, but Python's requests takes text without a charset for Latin-1."""


class Gap(NamedTuple):
    """Events after the viewer's cursor no longer exist anywhere; the viewer continues with `earliest`."""

    requested: int
    earliest: int
    reason: str


class Expiry(NamedTuple):
    """The viewer's token is good until then: time to get another."""

    expires_at: datetime


def encode(event: Event) -> bytes:
    return b"event: %s\ndata: %s\nid: %d\n\n" % (event.kind.encode(), event.data, event.id)


def encode_gap(gap: Gap) -> bytes:
    """No `id:` line: a notice is not an event, and leaves the client's cursor where it is."""
    return b"event: gap\ndata: %s\n\n" % orjson.dumps(gap._asdict())


def encode_gap_ndjson(gap: Gap) -> bytes:
    return orjson.dumps({"event": GAP, "data": gap._asdict()}) + b"\n"


def encode_expiry(expiry: Expiry) -> bytes:
    return b"event: token_expiring\ndata: %s\n\n" % orjson.dumps(_expiry_data(expiry))


def encode_expiry_ndjson(expiry: Expiry) -> bytes:
    return orjson.dumps({"event": TOKEN_EXPIRING, "data": _expiry_data(expiry)}) + b"\n"


def _expiry_data(expiry: Expiry) -> dict[str, str]:
    at = expiry.expires_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"expires_at": at}


def encode_cursor(cursor: int) -> bytes:
    """Where a viewer stands before its first event. Without data it is no event, and yet it sets the id (§9.2.6)."""
    return b"id: %d\n\n" % cursor


def retry_line(delay_ms: int) -> bytes:
    """When to come back."""
    return b"retry: %d\n" % delay_ms


def farewell(code: str, delay_ms: int) -> bytes:
    """What a viewer reads before a cut that is not its stream's end: when to come back, and why."""
    return retry_line(delay_ms) + b": %s\n" % code.encode()


def slowed(body: bytes, delay_ms: int) -> bytes:
    """This body, whose last frame is a terminal event's, with `retry:` in that frame.

    For clients that do not stop at the end, and would ask once a second for ever. As late in the frame as may be:
    whoever is cut within it has not got the event, and must come back soon.
    """
    at = body.rindex(b"id: ")
    return body[:at] + retry_line(delay_ms) + body[at:]
