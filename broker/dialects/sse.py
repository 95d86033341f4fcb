"""The wire of Server-Sent Events: event → bytes, header → cursor. Pure functions, no framework.

WHATWG HTML, section 9.2 "Server-sent events". A frame is `id:`, `event:`, `data:` (one line of JSON) and a blank
line. `id:` comes first, and a client sets its last event id only at the blank line: a frame cut anywhere is not
counted, and comes again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import orjson

from broker.errors import BadCursor
from broker.log.event import GAP, Event, from_published, merge_deltas, to_ndjson

HEARTBEAT = b": ping\n\n"
NDJSON_HEARTBEAT = b"\n"

MEDIA_TYPE = "text/event-stream"
NDJSON_MEDIA_TYPE = "application/x-ndjson"

RETRY_MS = 1000
RETRY_JITTER_MS = 1000
"""Viewers that were cut together must not come back together."""


class Gap(NamedTuple):
    """Events after the viewer's cursor no longer exist anywhere; it goes on with `earliest`."""

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


def retry_line() -> bytes:
    """When to come back, in ms: every viewer its own."""
    return b"retry: %d\n" % (RETRY_MS + random.randrange(RETRY_JITTER_MS + 1))


def farewell(code: str) -> bytes:
    """What a viewer reads before a cut that is not its stream's end: when to come back, and why.

    The comment follows on its own: a browser's EventSource acts on `retry:` at once, the blank line ends the block.
    """
    return retry_line() + b": %s\n\n" % code.encode()


class Format(Enum):
    """What a viewer asked for: exact SSE, SSE with text merged where it waits, or a JSON object a line."""

    EXACT = "exact"
    COMPACT = "compact"
    NDJSON = "ndjson"
    COMPACT_NDJSON = "compact-ndjson"

    @property
    def is_ndjson(self) -> bool:
        return self in (Format.NDJSON, Format.COMPACT_NDJSON)

    @property
    def shown(self) -> str:
        """As the access record names it."""
        return _SHOWN[self]

    @property
    def heartbeat(self) -> bytes:
        return NDJSON_HEARTBEAT if self.is_ndjson else HEARTBEAT

    @property
    def media_type(self) -> str:
        return NDJSON_MEDIA_TYPE if self.is_ndjson else MEDIA_TYPE

    def render(self, events: Sequence[Event]) -> bytes:
        merges = self in (Format.COMPACT, Format.COMPACT_NDJSON)
        return b"".join(map(to_ndjson if self.is_ndjson else encode, merge_deltas(events) if merges else events))

    def render_lines(self, lines: Sequence[bytes]) -> bytes:
        """`render` of a published batch. For EXACT its lines (id, t, kind, data) are what frames are made of."""
        if self is not _EXACT:
            return self.render(from_published(b"\n".join(lines)))
        if len(lines) == 4:
            return b"id: %b\nevent: %b\ndata: %b\n\n" % (lines[0], lines[2], lines[3])
        return b"".join([self.render_lines(lines[at : at + 4]) for at in range(0, len(lines), 4)])

    def render_gap(self, gap: Gap) -> bytes:
        return encode_gap_ndjson(gap) if self.is_ndjson else encode_gap(gap)


_SHOWN = {
    Format.EXACT: "sse",
    Format.COMPACT: "sse-compact",
    Format.NDJSON: "ndjson",
    Format.COMPACT_NDJSON: "ndjson-compact",
}
_EXACT = Format.EXACT  # an enumeration's members are slow to look up, and this is done for each event


class Batch:
    """Events that several viewers get: encoded once for each format that one of them wants."""

    __slots__ = ("_rendered", "events")

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self._rendered: dict[Format, bytes] = {}

    def __len__(self) -> int:
        return len(self.events)

    def render(self, form: Format) -> bytes:
        if form not in self._rendered:
            self._rendered[form] = form.render(self.events)
        return self._rendered[form]


# -- header → cursor ---------------------------------------------------------------------------------

EARLIEST, LATEST = "earliest", "latest"
MAX_CURSOR = 2**53 - 1
"""Ids are numbers in JSON: beyond this, JavaScript would confuse them."""

_DIGITS = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)


def parse_cursor(text: str | None) -> int | None:
    """Where a viewer goes on: the id of the last event it has; 0 from the start; None at the latest event.

    Absent and empty count the same (an EventSource that has no id sends none; some clients send an empty one).
    Raises BadCursor for anything but a canonical integer from 0 to 2^53 - 1, `earliest` or `latest`: a cursor that
    is silently misread would repeat or skip events.
    """
    if not text or text == EARLIEST:
        return 0
    if text == LATEST:
        return None
    if _DIGITS.fullmatch(text) and int(text) <= MAX_CURSOR:
        return int(text)
    raise BadCursor("A cursor is the id of the last event received (0 to 9007199254740991), `earliest` or `latest`.")
