"""The forms that a viewer can ask for, and a batch of events in each of them. Pure functions, no framework.

A form is what several viewers are sent alike: they share its bytes. So it is a value: equal forms write the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

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
from broker.log.event import (
    PUBLISHED_LINES,
    RESTART,
    TERMINAL,
    Event,
    from_published,
    merge_deltas,
    public,
    public_lines,
    to_ndjson,
)

_PUBLIC = "public-"


class Form(Protocol):
    """What the log's way to a viewer asks of a form. Hashable. Of some batches it shows nothing."""

    @property
    def access_name(self) -> str:
        """In the access record."""

    @property
    def is_socket(self) -> bool:
        """Whether it brings its own frames; else a body's chunks are around its bytes."""

    def shown(self, events: Sequence[Event]) -> Sequence[Event]:
        """Those of the events that are in this form."""


class Plain(Form, Protocol):
    """A form in which each event says the same, whatever was before it. The others: live/folded.py."""

    def shown_lines(self, lines: Sequence[bytes]) -> Sequence[bytes]:
        """`shown` of a published batch."""

    def sent(self, events: Sequence[Event]) -> Sequence[Event]:
        """As a viewer gets them: shown, and merged if the form merges."""

    def encode(self, sent: Sequence[Event]) -> bytes:
        """Of what `sent` gave, all or a part."""

    def render(self, events: Sequence[Event]) -> bytes:
        """Empty if none of the events is shown."""

    def encode_lines(self, lines: Sequence[bytes]) -> bytes:
        """Of what `shown_lines` gave: as `render` has it."""

    def render_gap(self, gap: Gap) -> bytes: ...


class Format(Enum):
    """What a viewer asked for: exact SSE, SSE with text merged where it waits, or a JSON object a line; and for whom.

    A public form leaves out what is internal, whatever it is given. The value is the name in the access record.
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
    def is_socket(self) -> bool:
        return False

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
        return public(events) if self.is_public else events

    def shown_lines(self, lines: Sequence[bytes]) -> Sequence[bytes]:
        return public_lines(lines) if self.is_public else lines

    def sent(self, events: Sequence[Event]) -> Sequence[Event]:
        return merge_deltas(self.shown(events)) if self.is_compact else self.shown(events)

    def encode(self, sent: Sequence[Event]) -> bytes:
        return b"".join(map(to_ndjson if self.is_ndjson else encode, sent))

    def render(self, events: Sequence[Event]) -> bytes:
        return self.encode(self.sent(events))

    def encode_lines(self, lines: Sequence[bytes]) -> bytes:
        """For exact SSE the lines (id, t, kind, data) are what frames are made of."""
        if self is not _EXACT and self is not _PUBLIC_EXACT:
            return self.render(from_published(b"\n".join(lines)))
        if len(lines) == PUBLISHED_LINES:
            return b"event: %b\ndata: %b\nid: %b\n\n" % (lines[2], lines[3], lines[0])
        return b"".join(
            [self.encode_lines(lines[at : at + PUBLISHED_LINES]) for at in range(0, len(lines), PUBLISHED_LINES)]
        )

    def render_gap(self, gap: Gap) -> bytes:
        return encode_gap_ndjson(gap) if self.is_ndjson else encode_gap(gap)

    def render_expiry(self, expiry: Expiry) -> bytes:
        return encode_expiry_ndjson(expiry) if self.is_ndjson else encode_expiry(expiry)


# An enumeration's members are slow to look up, and this is done for each event.
_EXACT, _PUBLIC_EXACT = Format.EXACT, Format.PUBLIC_EXACT

ALWAYS = TERMINAL | {RESTART}
"""Kinds that no choice leaves out: who would not see them would wait for ever, or keep what was taken back."""


class Chosen:
    """A form with some kinds of events alone, besides ALWAYS."""

    __slots__ = ("_hash", "_lines", "form", "kinds")

    def __init__(self, form: Format, kinds: frozenset[str]) -> None:
        self.form = form
        self.kinds = kinds | ALWAYS
        self._lines = frozenset(kind.encode() for kind in self.kinds)
        self._hash = hash((form, self.kinds))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chosen) and (self.form, self.kinds) == (other.form, other.kinds)

    def __hash__(self) -> int:
        return self._hash

    @property
    def access_name(self) -> str:
        return f"{self.form.access_name}-kinds"

    @property
    def is_socket(self) -> bool:
        return False

    @property
    def is_public(self) -> bool:
        return self.form.is_public

    @property
    def is_ndjson(self) -> bool:
        return self.form.is_ndjson

    @property
    def is_compact(self) -> bool:
        return self.form.is_compact

    @property
    def content_type(self) -> str:
        return self.form.content_type

    def shown(self, events: Sequence[Event]) -> Sequence[Event]:
        return [event for event in self.form.shown(events) if event.kind in self.kinds]

    def shown_lines(self, lines: Sequence[bytes]) -> Sequence[bytes]:
        shown: list[bytes] = []
        given = self.form.shown_lines(lines)
        for at in range(0, len(given), PUBLISHED_LINES):
            if given[at + 2] in self._lines:
                shown += given[at : at + PUBLISHED_LINES]
        return shown

    def sent(self, events: Sequence[Event]) -> Sequence[Event]:
        return self.form.sent(self.shown(events))

    def encode(self, sent: Sequence[Event]) -> bytes:
        return self.form.encode(sent)

    def render(self, events: Sequence[Event]) -> bytes:
        return self.form.render(self.shown(events))

    def encode_lines(self, lines: Sequence[bytes]) -> bytes:
        return self.form.encode_lines(lines)

    def render_gap(self, gap: Gap) -> bytes:
        return self.form.render_gap(gap)

    def render_expiry(self, expiry: Expiry) -> bytes:
        return self.form.render_expiry(expiry)

    def render_heartbeat(self, heartbeat: Heartbeat) -> bytes:
        return self.form.render_heartbeat(heartbeat)


HttpForm = Format | Chosen
"""A form of an answer's body."""


class Heartbeat(NamedTuple):
    """The signs of life that a viewer asked for. `every_s`: the longest silence; None: as the server is set.

    `as_event`: for pages that must see it, since an EventSource does not show comments.
    """

    every_s: float | None = None
    as_event: bool = False


class Written(NamedTuple):
    """A batch in the words of a dialect (fold.py). `span`: the first and the last event that it says something of;
    `events`: how many those are. `is_over`: behind these bytes, the connection ends.
    """

    body: bytes
    span: tuple[int, int] | None
    events: int
    is_over: bool


class Batch:
    """Events that several viewers get: encoded once for each format that one of them wants.

    `after`: the cursor behind which it is, for whom it matters; it need not be the id before the first one's.
    """

    __slots__ = ("_rendered", "_spans", "_written", "after", "events")

    def __init__(self, events: Sequence[Event], after: int = -1) -> None:
        self.events = events
        self.after = after
        self._rendered: dict[Form, bytes] = {}
        self._spans: dict[Form, tuple[int, int] | None] = {}
        self._written: dict[Form, Written] = {}

    def __len__(self) -> int:
        return len(self.events)

    def span(self, form: Form) -> tuple[int, int] | None:
        """The ids of the first and the last event that this form shows; None if it shows none."""
        if form not in self._spans:
            shown = form.shown(self.events)
            self._spans[form] = (shown[0].id, shown[-1].id) if shown else None
        return self._spans[form]

    def render(self, form: Plain) -> bytes:
        """Empty if this form shows none of the events: that must not be written."""
        if form not in self._rendered:
            self._rendered[form] = form.render(self.events)
        return self._rendered[form]

    def written(self, form: Form) -> Written | None:
        """As a form that folds has written it, if one has."""
        return self._written.get(form)

    def keep(self, form: Form, written: Written) -> None:
        self._written[form] = written
        self._spans[form] = written.span
