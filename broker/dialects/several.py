"""The wire of several streams on one connection: what is added to a stream's own bytes. Pure functions.

A frame is shared by all who follow its stream; its `id:` is each viewer's own, since it says where this viewer stands
in all of its streams (vector.py). So the viewer's prefix is put before the ids of the shared bytes. Nothing else of a
frame has a line that begins so: data is one line.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from broker.dialects.format import HttpForm
from broker.dialects.sse import Gap
from broker.log.event import GAP

STREAM = "stream"

_OBJECT = re.compile(rb'^\{"id":([0-9]+),', re.MULTILINE)


def personal(body: bytes, form: HttpForm, sid: str, prefix: str) -> bytes:
    """A stream's events, as a viewer gets them that stands at `prefix` with all others."""
    if form.is_ndjson:
        head = b'{"stream":"%b","cursor":"%b\\g<1>","id":\\g<1>,' % (sid.encode(), prefix.encode())
        return _OBJECT.sub(head, body)
    return body.replace(b"\nid: ", b"\nid: " + prefix.encode())


def encode_stream(form: HttpForm, sid: str, state: str, created_at: str | None) -> bytes:
    """Before a stream's first event on a connection."""
    return _notice(form, STREAM, {"stream": sid, "state": state, "created_at": created_at})


def encode_gap_of(form: HttpForm, sid: str, gap: Gap) -> bytes:
    """Some of this stream's events are gone, and it goes on after them."""
    return _notice(form, GAP, {"stream": sid, **gap._asdict()})


def encode_missing(form: HttpForm, sid: str, reason: str) -> bytes:
    """There is nothing more of this stream."""
    return _notice(form, GAP, {"stream": sid, "reason": reason})


def encode_position(cursor: str) -> bytes:
    """Where a viewer stands before its first event. Without data it is no event, and yet it sets the id (§9.2.6)."""
    return b"id: %b\n\n" % cursor.encode()


def _notice(form: HttpForm, event: str, data: dict[str, Any]) -> bytes:
    """Without an id: it leaves the client's cursor where it is."""
    if form.is_ndjson:
        return orjson.dumps({"event": event, "data": data}) + b"\n"
    return b"event: %b\ndata: %b\n\n" % (event.encode(), orjson.dumps(data))
