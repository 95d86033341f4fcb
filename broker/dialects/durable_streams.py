"""Durable Streams (protocol 1.0, PROTOCOL.md of durable-streams/durable-streams): its headers, offsets and bodies.

A stream of JSON has an event `ds.message` {"m": message} for each message, in the very bytes that it came in; any other
stream has an event `ds.bytes` {"b64": …} for each append. Its end is `done`.

An offset is where a reader stands: `%016d_%016d` of an event's id less one, and 0. So the first event of every stream,
which says that it exists, is the zero offset, and the ending has none of its own. Of a view (views.py) it is an event's
id and which of its payloads.

SSE (section 5.8): each event `data` is followed by a `control`, which says where the reader stands. One that is written
live says that there is no more; what a reader catches up with says so in its last one.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from broker.dialects.sse import Gap
from broker.errors import BadCursor, BodyTooLarge, InvalidJson, InvalidRequest
from broker.log.durable import BYTES, MESSAGE, bytes_data, content, media_type, message_data
from broker.log.event import PUBLISHED_LINES, Event, from_published

JSON, DEFAULT_TYPE = "application/json", "application/octet-stream"

NOW, BEGINNING = "now", "-1"

LONG_POLL, SSE = "long-poll", "sse"

MAX_MESSAGES = 10_000
"""In one append. Redis takes 30 ms for them, in which nobody else is served."""

MAX_PATH_BYTES = 1024
MAX_PRODUCER_BYTES = 256
MAX_NUMBER = 2**53 - 1
MAX_TTL_S = 10 * 366 * 86_400

INTERVAL_MS = 20_000
EPOCH_MS = 1_728_432_000_000
"""2024-10-09T00:00:00Z (section 10.1)."""

MOST_AHEAD = 180
"""Intervals in an hour: by so many at the most a cursor is moved on that has not moved by itself."""

RESERVED = "__ds"
"""First segment of the subscriptions' paths, which are not served."""

VIEWS = ("events", "ai-sdk", "ag-ui")

_OFFSET = re.compile(r"([0-9]{16})_([0-9]{16})", re.ASCII)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)
_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+/[!#$%&'*+.^_`|~0-9a-z-]+", re.ASCII)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


# -- offsets and cursors -------------------------------------------------------------------------------------


def offset(event_id: int) -> str:
    """Behind this event of a stream."""
    return f"{event_id - 1:016d}_{0:016d}"


def parse_offset(given: Sequence[str], *, zero: int = 1) -> int | None:
    """The id of the event behind which a reader begins, 0 for the beginning; None: at the tail.

    `given`: each `offset` of the query. `zero`: the event behind which the zero offset is. Raises BadCursor.
    """
    if not given:
        return 0
    if given == [NOW]:
        return None
    if given == [BEGINNING]:
        return 0
    if len(given) == 1 and (found := _OFFSET.fullmatch(given[0])) and int(found[2]) == 0:
        return int(found[1]) + zero
    raise BadCursor("An offset is -1, now, or what Stream-Next-Offset said.")


def cursor_at(ms: int, ahead_of: str | None = None) -> int:
    """The number of the interval in which this is; more than the client's last one, if that has not passed."""
    now = max(0, (ms - EPOCH_MS) // INTERVAL_MS)
    if ahead_of is None or not _NUMBER.fullmatch(ahead_of) or int(ahead_of) < now:
        return now
    # By chance, says the protocol, so that readers part. They do so as well by what they bring.
    return min(int(ahead_of) + 1 + int(ahead_of) % MOST_AHEAD, MAX_NUMBER)


# -- what a request says -------------------------------------------------------------------------------------


def path_of(raw: str) -> str:
    """A stream's path, decoded, without a slash in front. Raises InvalidRequest."""
    path = raw.strip("/")
    if not path or len(path.encode(errors="surrogateescape")) > MAX_PATH_BYTES:
        raise InvalidRequest(f"A path has 1 to {MAX_PATH_BYTES} bytes.")
    if _CONTROLS.search(path) or "\ufffd" in path or not _is_utf8(path):  # what stands for bytes that are no text
        raise InvalidRequest("A path is text without control characters.")
    if path.partition("/")[0] == RESERVED:
        raise InvalidRequest("Subscriptions are not served here.")
    return path


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_json(content_type: str) -> bool:
    return media_type(content_type) == JSON


def is_text(content_type: str) -> bool:
    """Whether SSE carries it as it is (section 5.8); any other goes as base64."""
    return is_json(content_type) or media_type(content_type).startswith("text/")


def require_type(content_type: str) -> str:
    """Raises InvalidRequest."""
    if not _TYPE.fullmatch(media_type(content_type)) or len(content_type) > 256:
        raise InvalidRequest("Content-Type: a media type.")
    return content_type.strip()


def closes(value: str | None) -> bool:
    """Stream-Closed, of which any other value is as good as none (section 4.1)."""
    return (value or "").strip().lower() == "true"


def whole_number(name: str, value: str | None, most: int = MAX_NUMBER) -> int | None:
    """Raises InvalidRequest."""
    if value is None:
        return None
    if not _NUMBER.fullmatch(value) or int(value) > most:
        raise InvalidRequest(f"{name}: a whole number from 0 to {most}, in digits.")
    return int(value)


def moment(name: str, value: str | None) -> int | None:
    """An RFC 3339 time in ms since 1970. Raises InvalidRequest."""
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value.strip().upper().replace("Z", "+00:00"))
        if at.tzinfo is None or "T" not in value.upper():
            raise ValueError
        return round(at.astimezone(UTC).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{name}: a time as RFC 3339 has it.") from None


class Session(NamedTuple):
    """A request of a producer: its id, its session, the number of the request (section 5.2.1)."""

    id: str
    epoch: int
    number: int


def session_of(headers: Mapping[str, str]) -> Session | None:
    """Raises InvalidRequest, also for some of the three headers alone."""
    given = [headers.get(f"producer-{name}") for name in ("id", "epoch", "seq")]
    if given == [None, None, None]:
        return None
    epoch, number = whole_number("Producer-Epoch", given[1]), whole_number("Producer-Seq", given[2])
    if not given[0] or epoch is None or number is None:
        raise InvalidRequest("Producer-Id, Producer-Epoch and Producer-Seq go together, and none is empty.")
    if len(given[0].encode()) > MAX_PRODUCER_BYTES:
        raise InvalidRequest(f"Producer-Id: at most {MAX_PRODUCER_BYTES} bytes.")
    return Session(given[0], epoch, number)


def events_of(content_type: str, body: bytes, *, may_be_empty: bool = False) -> list[tuple[str, bytes]]:
    """What an append of this body adds to a stream of this type: kind, data.

    Raises InvalidJson, InvalidRequest for what adds nothing, or BodyTooLarge.
    """
    if not is_json(content_type):
        if not body and not may_be_empty:
            raise InvalidRequest("An append has a body.")
        return [(BYTES, bytes_data(body))] if body else []
    if not body and may_be_empty:
        return []
    messages = messages_of(body)
    if not messages and not may_be_empty:
        raise InvalidRequest("An empty list adds nothing.")
    return [(MESSAGE, message_data(message)) for message in messages]


_LINE_BREAKS = (("\u2028", b"\\u2028"), ("\u2029", b"\\u2029"), ("\x85", b"\\u0085"))
_BLANKS = bytes.maketrans(b"\n\r\t", b"   ")
_KINDS = (MESSAGE.encode(), BYTES.encode())
_DECODER = json.JSONDecoder()
_BETWEEN = re.compile(r"[ \t\n\r]*")


def messages_of(body: bytes) -> list[bytes]:
    """The messages of a JSON body, each on one line, otherwise as it came: a list is taken apart, once (section 9.1.2).

    Numbers keep their digits, objects their order. Raises InvalidJson or BodyTooLarge.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidJson("The body cannot be read as JSON (UTF-8, no NaN or Infinity, no lone surrogates).") from error
    # Between texts alone: within one, these characters are escaped.
    line = bytes(body).translate(_BLANKS).strip(b" ")
    for character, escape in _LINE_BREAKS:
        line = line.replace(character.encode(), escape)
    if not isinstance(value, list):
        return [line]
    if len(value) > MAX_MESSAGES:
        raise BodyTooLarge(f"At most {MAX_MESSAGES} messages in one append.")
    if len(value) <= 1:
        return [line[1:-1].strip(b" ")] if value else []
    return _elements(line.decode())


def _elements(text: str) -> list[bytes]:
    """Of a list with several, which is known to be JSON."""
    elements, at = [], 1
    try:
        while at < len(text):
            start = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
            _, end = _DECODER.raw_decode(text, start)
            elements.append(text[start:end].encode())
            at = _BETWEEN.match(text, end).end() + 1  # type: ignore[union-attr]  # as above; the comma, or the end
    except (RecursionError, ValueError) as error:  # of a number with thousands of digits, which Python refuses
        raise InvalidJson("The body is nested too deeply, or one of its numbers is too long.") from error
    return elements


# -- what an answer says -------------------------------------------------------------------------------------


def body_of(content_type: str, events: Sequence[Event]) -> bytes:
    """What a reader gets of these events (sections 5.6 and 9.1.5)."""
    if is_json(content_type):
        return b"[%b]" % b",".join([content(event) for event in events if event.kind == MESSAGE])
    return b"".join([content(event) for event in events if event.kind == BYTES])


def etag(sid: str, start: int, end: int, *, is_closed: bool) -> str:
    """Of what is between two events of a stream. A stream's id is of one generation alone: a path may get another."""
    return f'"{sid}:{start}:{end}{":c" if is_closed else ""}"'


def control(next_offset: str, cursor: int, *, up_to_date: bool, closed: bool = False) -> bytes:
    said: dict[str, Any] = {"streamNextOffset": next_offset}
    if closed:
        said |= {"upToDate": True, "streamClosed": True}
    else:
        said |= {"streamCursor": str(cursor)} | ({"upToDate": True} if up_to_date else {})
    return b"event: control\ndata:%b\n\n" % orjson.dumps(said)


def data_frame(payload: bytes) -> bytes:
    """Each line of the payload for itself: whatever ends a line would end the field (WHATWG HTML, section 9.2.6)."""
    if b"\n" not in payload and b"\r" not in payload:
        return b"event: data\ndata:%b%b\n\n" % (b" " if payload.startswith(b" ") else b"", payload)
    lines = payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    # A reader drops one blank in front.
    return b"event: data\n%b\n" % b"".join(b"data:%b%b\n" % (b" " if line[:1] == b" " else b"", line) for line in lines)


@dataclass(frozen=True, slots=True)
class StreamForm:
    """A shared stream as SSE, as several readers get it. Each event says when it was written: so the cursor in a
    `control` depends on the event alone, and all readers share its bytes. `ahead`: of a reader that has brought one
    which has not passed; 0: of all others.
    """

    content_type_of_stream: str
    ahead: int = 0
    is_socket = False
    access_name = "durable-streams"

    def shown(self, events: Sequence[Event]) -> Sequence[Event]:
        return [event for event in events if event.kind in (MESSAGE, BYTES) or event.is_terminal]

    def shown_lines(self, lines: Sequence[bytes]) -> Sequence[bytes]:
        if len(lines) == PUBLISHED_LINES:
            return lines if lines[2] in _KINDS else ()
        shown: list[bytes] = []
        for at in range(0, len(lines), PUBLISHED_LINES):
            if lines[at + 2] in _KINDS:
                shown += lines[at : at + PUBLISHED_LINES]
        return shown

    def sent(self, events: Sequence[Event]) -> Sequence[Event]:
        return self.shown(events)

    def encode(self, sent: Sequence[Event]) -> bytes:
        """Of what is written live, the ending apart: whoever is told of that is told by its own task."""
        return self.frames(sent)

    def render(self, events: Sequence[Event]) -> bytes:
        return self.encode(self.shown(events))

    def encode_lines(self, lines: Sequence[bytes]) -> bytes:
        return self.render(from_published(b"\n".join(lines)))

    def render_gap(self, _: Gap) -> bytes:
        return b""  # whose place is lost is told with 410, or cut

    def frames(
        self, events: Sequence[Event], *, up_to_date: bool = True, stands_at: int = 0, since_ms: int = 0
    ) -> bytes:
        """`data` and `control` of these events together, or the `control` of the ending alone.

        `stands_at`: the event behind which the reader stands, for that. `since_ms`: no cursor is older than that.
        """
        said = [event for event in events if not event.is_terminal]
        closed = bool(events) and events[-1].is_terminal
        at = said[-1].id if said else stands_at
        cursor = max(cursor_at(max(events[-1].t, since_ms)), self.ahead) if events else 0
        data = data_frame(self.payload(said)) if said else b""
        return data + control(offset(at), cursor, up_to_date=up_to_date, closed=closed)

    def payload(self, events: Sequence[Event]) -> bytes:
        body = body_of(self.content_type_of_stream, events)
        if is_json(self.content_type_of_stream):
            return body
        if is_text(self.content_type_of_stream):
            return body.decode(errors="replace").encode()
        return base64.b64encode(body)
