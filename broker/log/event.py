"""Event, the one thing that travels: from a provider through the log to a viewer.

An event is `id` (its number in its stream: 1, 2, 3 …), `kind`, `data` (one line of JSON, already encoded: it is not
parsed again on the way to a viewer) and `t` (ms since 1970, stamped by Redis).
This file knows the forms that an event takes: a Redis Stream entry, a published batch, a line of NDJSON.
Its SSE form is in dialects/sse.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

QUEUED, START, STATUS, RESTART, GAP = "queued", "start", "status", "restart", "gap"
TEXT_DELTA, THINKING_DELTA = "text_delta", "thinking_delta"
TOOL_ARGS_DELTA = "tool_args_delta"
SENTENCE = "sentence"
DONE, ERROR, CANCELLED = "done", "error", "cancelled"

INTERNAL = "internal."
"""An event whose kind begins so is for operators; any other is public. Who writes it decides, once: a kind that is
shown to some viewers only has its name with this before it, and whoever compares kinds without knowing of this cannot
take the one for the other."""

TERMINAL = frozenset({DONE, ERROR, CANCELLED})
"""Every stream ends with exactly one of these. The state of a finished stream has the same name."""

OURSELVES = "lastevent"
"""Who cancelled or erased a stream, where no caller did."""

RESERVED = frozenset({QUEUED, RESTART, GAP})
"""Kinds that only the broker and its workers may write."""

TOKEN_EXPIRING = "token_expiring"
OVER, HELLO, OK, REFUSED, PRESENCE = "over", "hello", "ok", "refused", "presence"
NOTICES = frozenset({GAP, "ping", TOKEN_EXPIRING, PRESENCE, "stream", OVER, HELLO, OK, REFUSED})
"""Names of what is sent without an id, or may be: a viewer must not take an event for one."""

OF_CLIENTS = frozenset({"open", "close", "end", "message"})
"""Names that libraries give to what they themselves tell their user of a connection: an event would look like it.
`error` is one too, and a kind of ours all the same (docs/API.md says what that means)."""

_INTERNAL_LINE = INTERNAL.encode()

PUBLISHED_LINES = 4
"""A published event is four lines: id, t, kind, data (scripts/prelude.lua)."""

MERGED_BYTES = 16 * 1024
"""Of merged deltas in one event: readers that go by lines take 64 KB of one, and then ask for the same for ever."""

KIND = re.compile(r"[a-z][a-z0-9_.]{0,63}", re.ASCII)

# Python's str.splitlines(), and with it many hand-written SSE clients, also breaks lines at these characters.
# Inside JSON an escape stands for the same character, so the escapes break no reader.
_LINE_BREAKS_BEYOND_ASCII = (("\u2028", b"\\u2028"), ("\u2029", b"\\u2029"), ("\x85", b"\\u0085"))
_ESCAPES = tuple((character.encode(), escape) for character, escape in _LINE_BREAKS_BEYOND_ASCII)


class Event(NamedTuple):
    id: int
    kind: str
    data: bytes
    t: int

    @property
    def is_terminal(self) -> bool:
        return self.kind in TERMINAL


def is_terminal(state: str) -> bool:
    """Whether a stream in this state has ended."""
    return state in TERMINAL


def is_internal(kind: str) -> bool:
    """Whether events of this kind are for operators alone."""
    return kind.startswith(INTERNAL)


def public(events: Sequence[Event]) -> list[Event]:
    """Those of them that everybody may see who may see the stream."""
    return [event for event in events if not event.kind.startswith(INTERNAL)]


def public_lines(lines: Sequence[bytes]) -> Sequence[bytes]:
    """`public` of a published batch, which is PUBLISHED_LINES for each event."""
    if len(lines) == PUBLISHED_LINES:
        return () if lines[2].startswith(_INTERNAL_LINE) else lines
    shown: list[bytes] = []
    for at in range(0, len(lines), PUBLISHED_LINES):
        if not lines[at + 2].startswith(_INTERNAL_LINE):
            shown += lines[at : at + PUBLISHED_LINES]
    return shown


def encode_data(value: Any) -> bytes:
    """JSON on one line, in UTF-8 (RFC 8259), without any character that some reader takes for a line break.

    Raises TypeError for what JSON cannot express (including a lone surrogate in a text).
    """
    # Copied: orjson's result keeps its buffer of 4 KB, and writers keep every event.
    data = b"%b" % orjson.dumps(value)
    if data.isascii():
        return data
    for raw, escape in _ESCAPES:
        if raw in data:
            data = data.replace(raw, escape)
    return data


def from_entry(entry: tuple[bytes, dict[bytes, bytes]]) -> Event:
    """An event from an entry of the Redis Stream, as XRANGE gives it."""
    entry_id, fields = entry
    return Event(int(entry_id[:-2]), fields[b"k"].decode(), fields[b"d"], int(fields[b"t"]))


def from_published(message: bytes) -> list[Event]:
    """The events of one published batch: four lines each (id, t, kind, data), see scripts/prelude.lua."""
    lines = message.split(b"\n")
    return [
        Event(int(lines[at]), lines[at + 2].decode(), lines[at + 3], int(lines[at + 1]))
        for at in range(0, len(lines), PUBLISHED_LINES)
    ]


def to_ndjson(event: Event) -> bytes:
    """One line of NDJSON: {"id":N,"event":kind,"data":{…},"t":ms since 1970}."""
    return b'{"id":%d,"event":"%s","data":%s,"t":%d}\n' % (event.id, event.kind.encode(), event.data, event.t)


def merge_deltas(events: Sequence[Event]) -> list[Event]:
    """The same text in fewer events: a run of deltas of one kind becomes one event, with the id and time of the last.

    Only deltas that hold nothing but text are merged. Any other key (`agent`, say) keeps an event separate.
    No more than MERGED_BYTES become one event; what has more by itself stays as it is.
    """
    merged: list[Event] = []
    texts: list[str] = []
    size = 0

    def close_run() -> None:
        if len(texts) > 1:
            merged[-1] = merged[-1]._replace(data=encode_data({"text": "".join(texts)}))
        texts.clear()

    for event in events:
        text = _plain_text(event)
        size += len(event.data)
        if text is not None and texts and merged[-1].kind == event.kind and size <= MERGED_BYTES:
            merged[-1] = event
        else:
            close_run()
            merged.append(event)
            size = len(event.data)
        if text is not None:
            texts.append(text)
    close_run()
    return merged


_OF_TEXT = frozenset({TEXT_DELTA, THINKING_DELTA, INTERNAL + THINKING_DELTA})


def _plain_text(event: Event) -> str | None:
    if event.kind not in _OF_TEXT:
        return None
    data = orjson.loads(event.data)
    if isinstance(data, dict) and data.keys() == {"text"} and isinstance(data["text"], str):
        return data["text"]
    return None


def text_since_restart(events: Sequence[Event]) -> str:
    """The answer as a person reads it: the text_delta events since the last restart, joined."""
    texts: list[str] = []
    for event in events:
        if event.kind == RESTART:
            texts.clear()
        elif event.kind == TEXT_DELTA:
            data = orjson.loads(event.data)
            # An external producer may write any shape under this kind; a value that is not text adds nothing.
            if isinstance(data, dict) and isinstance(data.get("text"), str):
                texts.append(data["text"])
    return "".join(texts)
