"""Views: any stream, in the words of a dialect, as a stream of JSON that Durable Streams' clients read.

All that an event says is one message or several of them. An offset is the event's id, and 0: what one event says goes
out together, so no reader stands within it. An event that says nothing is passed without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from broker.dialects.durable_streams import control, cursor_at, data_frame
from broker.dialects.fold import Dialect, Facts, Fold, step
from broker.dialects.sse import HEARTBEAT, MEDIA_TYPE, Gap
from broker.log.event import Event, to_ndjson

EVENTS, AI_SDK, AG_UI = "events", "ai-sdk", "ag-ui"

OPEN, CLOSED = b"o", b"c"

_UP_TO_DATE = b',"upToDate":true}\n\n'


def view_offset(event_id: int) -> str:
    """Behind all that this event says; 0: at the beginning."""
    return f"{event_id:016d}_{0:016d}"


class Events:
    """The events themselves: {"id", "event", "data", "t"}, as NDJSON has them."""

    number = 0
    is_over = False

    def step(self, event: Event) -> list[bytes]:
        return [to_ndjson(event).rstrip(b"\n")]

    def opening(self) -> list[bytes]:
        return []

    def gap(self, gap: Gap) -> list[bytes]:
        return []

    def copy(self) -> Self:
        return self


@dataclass(frozen=True, slots=True)
class EventsView:
    """A dialect (fold.py) for this alone."""

    name: str = EVENTS
    content_type: str = MEDIA_TYPE
    heartbeat: bytes = HEARTBEAT
    end: bytes = b""
    merges: bool = False
    needs_request: bool = False

    def begin(self, facts: Facts) -> Events:
        return Events()

    def frame(self, payload: bytes, event_id: int, index: int) -> bytes:
        return payload


class Said(NamedTuple):
    """What an event says, as one payload: the cursor at its time, whether it ends the stream, its messages."""

    cursor: int
    closed: bool
    messages: bytes

    def encode(self) -> bytes:
        return b"%d %b %b" % (self.cursor, CLOSED if self.closed else OPEN, self.messages)

    @classmethod
    def decode(cls, payload: bytes) -> Said:
        cursor, closed, messages = payload.split(b" ", 2)
        return cls(int(cursor), closed == CLOSED, messages)


class ViewFold:
    """A dialect's fold whose payloads of an event are one."""

    number = 0

    def __init__(self, inner: Fold, *, is_over: bool = False) -> None:
        self._inner = inner
        self.is_over = is_over

    def step(self, event: Event) -> list[bytes]:
        messages = step(self._inner, event)
        if not messages and not event.is_terminal:
            return []
        return [Said(cursor_at(event.t), event.is_terminal, b",".join(messages)).encode()]

    def opening(self) -> list[bytes]:
        return []

    def gap(self, gap: Gap) -> list[bytes]:
        self.is_over = True
        return []

    def copy(self) -> ViewFold:
        return ViewFold(self._inner.copy(), is_over=self.is_over)


@dataclass(frozen=True, slots=True)
class View:
    """A dialect's stream as SSE. `ahead`: see StreamForm."""

    inner: Dialect
    ahead: int = 0

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def needs_request(self) -> bool:
        return self.inner.needs_request

    content_type = MEDIA_TYPE
    heartbeat = HEARTBEAT
    end = b""
    merges = False

    def begin(self, facts: Facts) -> ViewFold:
        return ViewFold(self.inner.begin(facts))

    def frame(self, payload: bytes, event_id: int, index: int) -> bytes:
        said = Said.decode(payload)
        data = data_frame(b"[%b]" % said.messages) if said.messages else b""
        cursor = max(said.cursor, self.ahead)
        return data + control(view_offset(event_id), cursor, up_to_date=True, closed=said.closed)


def caught_up(body: bytes, *, is_last: bool) -> bytes:
    """Frames that a reader catches up with: the last one alone says that there is no more, if it is."""
    if not is_last:
        return body.replace(_UP_TO_DATE, b"}\n\n")
    rest, mark, end = body.rpartition(_UP_TO_DATE)
    return rest.replace(_UP_TO_DATE, b"}\n\n") + mark + end


def messages_of(fold: Fold, events: Sequence[Event]) -> list[bytes]:
    """What these events say, for an answer that is JSON; `fold` goes on with them."""
    said = [Said.decode(payload) for event in events for payload in fold.step(event)]
    return [one.messages for one in said if one.messages]
