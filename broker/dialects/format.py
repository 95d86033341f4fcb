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
    Expiry,
    Gap,
    encode,
    encode_expiry,
    encode_expiry_ndjson,
    encode_gap,
    encode_gap_ndjson,
)
from broker.log.event import PUBLISHED_LINES, Event, from_published, merge_deltas, public, public_lines, to_ndjson

_PUBLIC = "public-"


class Format(Enum):
    """What a viewer asked for: exact SSE, SSE with text merged where it waits, or a JSON object a line; and for whom.

    A public form leaves out what is internal, whatever it is given: of some batches it shows nothing.
    The value is the name in the access record.
    """

    EXACT = "sse"
    COMPACT = "sse-compact"
    NDJSON = "ndjson"
    COMPACT_NDJSON = "ndjson-compact"
    PUBLIC_EXACT = "public-sse"
    PUBLIC_COMPACT = "public-sse-compact"
    PUBLIC_NDJSON = "public-ndjson"
    PUBLIC_COMPACT_NDJSON = "public-ndjson-compact"

    def __init__(self, access_name: str) -> None:
        self.access_name = access_name
        self.is_public = access_name.startswith(_PUBLIC)
        self.is_ndjson = "ndjson" in access_name
        self.is_compact = access_name.endswith("compact")

    @property
    def for_public(self) -> Format:
        """The same, without what is internal."""
        return self if self.is_public else Format(_PUBLIC + self.access_name)

    def render_heartbeat(self, heartbeat: Heartbeat) -> bytes:
        if self.is_ndjson:
            return NDJSON_HEARTBEAT_EVENT if heartbeat.as_event else NDJSON_HEARTBEAT
        return HEARTBEAT_EVENT if heartbeat.as_event else HEARTBEAT

    @property
    def content_type(self) -> str:
        return NDJSON_MEDIA_TYPE if self.is_ndjson else CONTENT_TYPE

    def shown(self, events: Sequence[Event]) -> Sequence[Event]:
        """Those of the events that are in this form."""
        return public(events) if self.is_public else events

    def shown_lines(self, lines: Sequence[bytes]) -> Sequence[bytes]:
        """`shown` of a published batch."""
        return public_lines(lines) if self.is_public else lines

    def render(self, events: Sequence[Event]) -> bytes:
        """Empty if none of the events is shown."""
        shown = self.shown(events)
        return b"".join(map(to_ndjson if self.is_ndjson else encode, merge_deltas(shown) if self.is_compact else shown))

    def render_lines(self, lines: Sequence[bytes]) -> bytes:
        """`render` of a published batch. For EXACT its lines (id, t, kind, data) are what frames are made of."""
        if self is not _EXACT:
            if self is _PUBLIC_EXACT:
                return _EXACT.render_lines(public_lines(lines))
            return self.render(from_published(b"\n".join(lines)))
        if len(lines) == PUBLISHED_LINES:
            return b"event: %b\ndata: %b\nid: %b\n\n" % (lines[2], lines[3], lines[0])
        return b"".join(
            [self.render_lines(lines[at : at + PUBLISHED_LINES]) for at in range(0, len(lines), PUBLISHED_LINES)]
        )

    def render_gap(self, gap: Gap) -> bytes:
        return encode_gap_ndjson(gap) if self.is_ndjson else encode_gap(gap)

    def render_expiry(self, expiry: Expiry) -> bytes:
        return encode_expiry_ndjson(expiry) if self.is_ndjson else encode_expiry(expiry)


# An enumeration's members are slow to look up, and this is done for each event.
_EXACT, _PUBLIC_EXACT = Format.EXACT, Format.PUBLIC_EXACT


class Heartbeat(NamedTuple):
    """The signs of life that a viewer asked for. `every_s`: the longest silence; None: as the server is set.

    `as_event`: for pages that must see it, since an EventSource does not show comments.
    """

    every_s: float | None = None
    as_event: bool = False


class Batch:
    """Events that several viewers get: encoded once for each format that one of them wants."""

    __slots__ = ("_rendered", "_spans", "events")

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self._rendered: dict[Format, bytes] = {}
        self._spans: dict[Format, tuple[int, int] | None] = {}

    def __len__(self) -> int:
        return len(self.events)

    def span(self, form: Format) -> tuple[int, int] | None:
        """The ids of the first and the last event that this form shows; None if it shows none."""
        if form not in self._spans:
            shown = form.shown(self.events)
            self._spans[form] = (shown[0].id, shown[-1].id) if shown else None
        return self._spans[form]

    def render(self, form: Format) -> bytes:
        """Empty if this form shows none of the events: that must not be written."""
        if form not in self._rendered:
            self._rendered[form] = form.render(self.events)
        return self._rendered[form]
