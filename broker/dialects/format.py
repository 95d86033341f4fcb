"""The forms that a viewer can ask for, and a batch of events in each of them. Pure functions, no framework."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from broker.dialects.sse import (
    CONTENT_TYPE,
    HEARTBEAT,
    HEARTBEAT_EVENT,
    NDJSON_HEARTBEAT,
    NDJSON_HEARTBEAT_EVENT,
    NDJSON_MEDIA_TYPE,
    Gap,
    encode,
    encode_gap,
    encode_gap_ndjson,
)
from broker.log.event import PUBLISHED_LINES, Event, from_published, merge_deltas, to_ndjson


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
    def access_name(self) -> str:
        """As the access record names it."""
        return _ACCESS_NAMES[self]

    def render_heartbeat(self, heartbeat: Heartbeat) -> bytes:
        if self.is_ndjson:
            return NDJSON_HEARTBEAT_EVENT if heartbeat.as_event else NDJSON_HEARTBEAT
        return HEARTBEAT_EVENT if heartbeat.as_event else HEARTBEAT

    @property
    def content_type(self) -> str:
        return NDJSON_MEDIA_TYPE if self.is_ndjson else CONTENT_TYPE

    def render(self, events: Sequence[Event]) -> bytes:
        merges = self in (Format.COMPACT, Format.COMPACT_NDJSON)
        return b"".join(map(to_ndjson if self.is_ndjson else encode, merge_deltas(events) if merges else events))

    def render_lines(self, lines: Sequence[bytes]) -> bytes:
        """`render` of a published batch. For EXACT its lines (id, t, kind, data) are what frames are made of."""
        if self is not _EXACT:
            return self.render(from_published(b"\n".join(lines)))
        if len(lines) == PUBLISHED_LINES:
            return b"event: %b\ndata: %b\nid: %b\n\n" % (lines[2], lines[3], lines[0])
        return b"".join(
            [self.render_lines(lines[at : at + PUBLISHED_LINES]) for at in range(0, len(lines), PUBLISHED_LINES)]
        )

    def render_gap(self, gap: Gap) -> bytes:
        return encode_gap_ndjson(gap) if self.is_ndjson else encode_gap(gap)


_ACCESS_NAMES = {
    Format.EXACT: "sse",
    Format.COMPACT: "sse-compact",
    Format.NDJSON: "ndjson",
    Format.COMPACT_NDJSON: "ndjson-compact",
}
_EXACT = Format.EXACT  # an enumeration's members are slow to look up, and this is done for each event


class Heartbeat(NamedTuple):
    """The signs of life that a viewer asked for. `every_s`: the longest silence; None: as the server is set.

    `as_event`: for pages that must see it, since an EventSource does not show comments.
    """

    every_s: float | None = None
    as_event: bool = False


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
