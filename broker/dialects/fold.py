"""A dialect: the same log in the words of another ecosystem's client. A pure fold over events: state → frames.

What is sent follows from a stream's facts and its events alone: no clock, no chance, nothing of the process. So any
server, now or from the archive, says the same bytes, and a cursor of one is a cursor of all.

A native event becomes none, one or several *payloads*. A payload in its dialect's frame is what a client reads.
Payloads of one event go out in one write. So a place in a dialect's stream is (event id, which of its payloads).

The state after event N is a function of the stream, the dialect and N. So all viewers share it (live/folded.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Self

from broker.dialects.sse import Gap
from broker.log.event import Event

logger = logging.getLogger(__name__)


class Facts(NamedTuple):
    """What a stream is from its creation on.

    `model`: as its creator called it. `echo`: what the dialect that created it keeps for its answers (meta.dialect);
    empty if another did. `request`: the neutral request (docs/API.md), for dialects that need it; else empty.
    `request_size`: in characters of JSON.
    """

    sid: str
    session: str
    model: str
    created_ms: int
    echo: Mapping[str, Any]
    request: Mapping[str, Any]
    request_size: int = 0


class Fold(Protocol):
    """A dialect's state after some events of one stream. Small: each viewer that lags behind may need a copy.

    `number`: of the next payload, where the dialect's cursor is a number. `is_over`: the payloads of the last step end
    the connection, although the stream goes on: those of a `restart`, or of a gap, and of nothing else.
    """

    number: int
    is_over: bool

    def step(self, event: Event) -> list[bytes]:
        """The payloads of the next event that is public. It may be of any shape: external producers write any."""

    def opening(self) -> list[bytes]:
        """Right after a `restart`: what a viewer that begins here, and has seen nothing before, is told first."""

    def gap(self, gap: Gap) -> list[bytes]:
        """Events that its viewer had, or should have had, are lost. `is_over`: that ends the connection. Else what was
        said is taken back, and the viewer goes on with the attempt that there is, from its beginning.
        """

    def copy(self) -> Self:
        """What happens to one does not happen to the other. Text is shared (Text)."""


class Dialect(Protocol):
    """One way to say a stream, with its options. Hashable: equal ones share their bytes.

    `name`: in the access record. `heartbeat`: a sign of life. `end`: what closes a body that ends properly.
    `merges`: text that waits goes out as one payload; only where no cursor counts payloads. `needs_request`: its folds
    look at the request.
    """

    @property
    def name(self) -> str: ...

    @property
    def content_type(self) -> str: ...

    @property
    def heartbeat(self) -> bytes: ...

    @property
    def end(self) -> bytes: ...

    @property
    def merges(self) -> bool: ...

    @property
    def needs_request(self) -> bool: ...

    def begin(self, facts: Facts) -> Fold:
        """Before the first event."""

    def frame(self, payload: bytes, event_id: int, index: int) -> bytes:
        """As it is on the wire. `index`: which of its event's payloads, from 0."""


def step(fold: Fold, event: Event) -> list[bytes]:
    """`fold.step`. What an encoder cannot cope with it says nothing of: one strange event must not end a stream."""
    try:
        return fold.step(event)
    except Exception:
        logger.exception("event %d (%s) could not be said in a dialect; it is left out", event.id, event.kind)
        return []


class Text:
    """A text that grows, and whose copies share its parts: a hundred states of one answer hold it once."""

    __slots__ = ("_count", "_parts")

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._count = 0

    def __bool__(self) -> bool:
        return self._count > 0

    def __str__(self) -> str:
        return "".join(self._parts[: self._count])

    def add(self, part: str) -> None:
        if self._count < len(self._parts) and self._parts[self._count] != part:
            self._parts = self._parts[: self._count]  # another log than the copy's: Redis has lost a part
        if self._count == len(self._parts):
            self._parts.append(part)
        self._count += 1

    def copy(self) -> Text:
        copy = Text()
        copy._parts, copy._count = self._parts, self._count
        return copy
