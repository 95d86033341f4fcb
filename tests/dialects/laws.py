"""What holds for the fold of every dialect."""

from __future__ import annotations

from collections.abc import Sequence

from broker.dialects.fold import Dialect
from broker.log.event import Event, is_internal
from tests.dialects.logs import FACTS


def said(dialect: Dialect, events: Sequence[Event]) -> list[bytes]:
    """What each event becomes, on the wire."""
    fold = dialect.begin(FACTS)
    return [
        b"".join(dialect.frame(payload, event.id, at) for at, payload in enumerate(fold.step(event)))
        for event in events
        if not is_internal(event.kind)
    ]


def require_function(dialect: Dialect, events: Sequence[Event]) -> None:
    """A copy at any event goes on as the fold itself does, whatever becomes of the other."""
    whole = said(dialect, events)
    fold = dialect.begin(FACTS)
    for at in range(len(events)):
        copy = fold.copy()
        assert [b"".join(_framed(dialect, copy.step(event), event)) for event in events[at:]] == whole[at:]
        assert b"".join(_framed(dialect, fold.step(events[at]), events[at])) == whole[at]


def _framed(dialect: Dialect, payloads: Sequence[bytes], event: Event) -> list[bytes]:
    return [dialect.frame(payload, event.id, at) for at, payload in enumerate(payloads)]
