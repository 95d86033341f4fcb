"""The wire of the socket: an event is one text message, of one frame (RFC 6455 §5.2, §5.6). Pure functions.

A server's frames have no mask, so all that follow a stream are written the same bytes. So the message names its stream
by id, and never by a number of the socket's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from broker.dialects.format import HttpForm
from broker.dialects.sse import Gap
from broker.log.event import GAP, PUBLISHED_LINES, Event, from_published

_TEXT = 0x81
"""FIN, and the opcode of a text frame."""


def text_frame(payload: bytes) -> bytes:
    """A whole message in one frame."""
    size = len(payload)
    if size < 126:
        return b"%c%c%b" % (_TEXT, size, payload)
    if size < 65_536:
        return b"%c~%b%b" % (_TEXT, size.to_bytes(2, "big"), payload)
    return b"%c\x7f%b%b" % (_TEXT, size.to_bytes(8, "big"), payload)


def notice(event: str, data: Any, **more: Any) -> bytes:
    """A message without an id. `more`: what stands between its name and its data."""
    return text_frame(orjson.dumps({"event": event, **more, "data": data}))


class SocketForm:
    """A stream's events on a socket: the object of NDJSON with `stream` first. `inner`: what is shown, and merged."""

    __slots__ = ("_hash", "_head", "inner", "stream")

    def __init__(self, stream: str, inner: HttpForm) -> None:
        self.stream = stream
        self.inner = inner
        self._head = b'{"stream":%b,"id":' % orjson.dumps(stream)
        self._hash = hash((stream, inner))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SocketForm) and (self.stream, self.inner) == (other.stream, other.inner)

    def __hash__(self) -> int:
        return self._hash

    @property
    def access_name(self) -> str:
        return "public-socket" if self.inner.is_public else "socket"

    @property
    def is_socket(self) -> bool:
        return True

    def shown(self, events: Sequence[Event]) -> Sequence[Event]:
        return self.inner.shown(events)

    def shown_lines(self, lines: Sequence[bytes]) -> Sequence[bytes]:
        return self.inner.shown_lines(lines)

    def sent(self, events: Sequence[Event]) -> Sequence[Event]:
        return self.inner.sent(events)

    def encode(self, sent: Sequence[Event]) -> bytes:
        return b"".join(
            [self._frame(b"%d" % event.id, b"%d" % event.t, event.kind.encode(), event.data) for event in sent]
        )

    def render(self, events: Sequence[Event]) -> bytes:
        return self.encode(self.sent(events))

    def encode_lines(self, lines: Sequence[bytes]) -> bytes:
        if len(lines) == PUBLISHED_LINES:  # by far the most, and nothing to merge with
            return self._frame(*lines)
        if self.inner.is_compact:
            return self.render(from_published(b"\n".join(lines)))
        return b"".join(
            [self._frame(*lines[at : at + PUBLISHED_LINES]) for at in range(0, len(lines), PUBLISHED_LINES)]
        )

    def render_gap(self, gap: Gap) -> bytes:
        return text_frame(orjson.dumps({"stream": self.stream, "event": GAP, "data": gap._asdict()}))

    def _frame(self, event_id: bytes, t: bytes, kind: bytes, data: bytes) -> bytes:
        return text_frame(b'%b%b,"event":"%b","data":%b,"t":%b}' % (self._head, event_id, kind, data, t))
