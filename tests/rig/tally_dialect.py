"""A dialect whose every word depends on all that was said before: two payloads an event, and none of some."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from broker.dialects.fold import Facts, Text
from broker.dialects.sse import CONTENT_TYPE, Gap
from broker.log.event import RESTART, Event


class TallyFold:
    def __init__(self) -> None:
        self.number = 0
        self.is_over = False
        self.sum = 0
        self.text = Text()

    def step(self, event: Event) -> list[bytes]:
        self.is_over = False
        self.sum = zlib.crc32(event.data + event.kind.encode(), self.sum)
        self.text.add(event.kind)
        if self.sum % 3 == 0 and not event.is_terminal:
            return []
        if event.kind == RESTART:
            self.number += 100  # a jump
        return [self._payload() for _ in range(2)]

    def _payload(self) -> bytes:
        self.number += 1
        return b"%d %d %d" % (self.number - 1, self.sum, len(str(self.text)))

    def opening(self) -> list[bytes]:
        return [b"opening %d" % self.sum]

    def gap(self, gap: Gap) -> list[bytes]:
        return [b"gap %d" % gap.requested]

    def copy(self) -> TallyFold:
        copy = TallyFold()
        copy.number, copy.sum, copy.text = self.number, self.sum, self.text.copy()
        return copy


@dataclass(frozen=True, slots=True)
class Tally:
    name: str = "tally"
    content_type: str = CONTENT_TYPE
    heartbeat: bytes = b": ping\n"
    end: bytes = b"data: [DONE]\n\n"
    merges: bool = False
    needs_request: bool = False

    def begin(self, facts: Facts) -> TallyFold:
        return TallyFold()

    def frame(self, payload: bytes, event_id: int, index: int) -> bytes:
        return b"data: %b\nid: %d-%d\n\n" % (payload, event_id, index)


FACTS = Facts("a" * 32, "s", "m", 0, {}, {})
