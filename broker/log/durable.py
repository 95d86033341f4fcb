"""The events of a shared stream: a message of JSON, or an append of bytes. Pure functions.

`ds.message` {"m": message}: in the very bytes that it came in, on one line. `ds.bytes` {"b64": …}: base64 (RFC 4648).
"""

from __future__ import annotations

import base64

from broker.log.event import Event

MESSAGE, BYTES = "ds.message", "ds.bytes"


def message_data(message: bytes) -> bytes:
    return b'{"m":%b}' % message


def bytes_data(raw: bytes) -> bytes:
    return b'{"b64":"%b"}' % base64.b64encode(raw)


def content(event: Event) -> bytes:
    """A message's own bytes, or those of an append. Empty for an event of another kind."""
    if event.kind == MESSAGE:
        return event.data[5:-1]
    if event.kind == BYTES:
        return base64.b64decode(event.data[8:-2])
    return b""


def first_bytes(event: Event, length: int) -> Event | None:
    """An append cut to so many bytes; None if it has fewer."""
    raw = content(event)
    return event._replace(data=bytes_data(raw[:length])) if length <= len(raw) else None


def media_type(content_type: str) -> str:
    """Without parameters, in lower case: as types are compared."""
    return content_type.partition(";")[0].strip().lower()
