"""The wire of Server-Sent Events: event → bytes; and its plain sibling, NDJSON. Pure functions, no framework.

WHATWG HTML, section 9.2 "Server-sent events". A frame is `id:`, `event:`, `data:` (one line of JSON) and a blank
line. `id:` comes first, and a client sets its last event id only at the blank line: a frame cut anywhere does
not count, and is sent again.
"""

from __future__ import annotations

from typing import NamedTuple

import orjson

from broker.log.event import GAP, Event

HEARTBEAT = b": ping\n\n"
NDJSON_HEARTBEAT = b"\n"

MEDIA_TYPE = "text/event-stream"
NDJSON_MEDIA_TYPE = "application/x-ndjson"


class Gap(NamedTuple):
    """Events after the viewer's cursor no longer exist anywhere; the viewer continues with `earliest`."""

    requested: int
    earliest: int
    reason: str


def encode(event: Event) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.id, event.kind.encode(), event.data)


def encode_gap(gap: Gap) -> bytes:
    """No `id:` line: a notice is not an event, and leaves the client's cursor where it is."""
    return b"event: gap\ndata: %s\n\n" % orjson.dumps(gap._asdict())


def encode_gap_ndjson(gap: Gap) -> bytes:
    return orjson.dumps({"event": GAP, "data": gap._asdict()}) + b"\n"


def retry_line(delay_ms: int) -> bytes:
    """When to come back."""
    return b"retry: %d\n" % delay_ms


def farewell(code: str, delay_ms: int) -> bytes:
    """What a viewer reads before a cut that is not its stream's end: when to come back, and why.

    The comment follows on its own: a browser's EventSource acts on `retry:` at once, the blank line ends the block.
    """
    return retry_line(delay_ms) + b": %s\n\n" % code.encode()
