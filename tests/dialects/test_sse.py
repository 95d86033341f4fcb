"""The wire, to the byte, read back by a parser written from the specification alone (WHATWG HTML, 9.2)."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.dialects.cursor import parse_cursor, resume_at
from broker.dialects.format import Format, Heartbeat
from broker.dialects.sse import (
    HEARTBEAT,
    HEARTBEAT_EVENT,
    Gap,
    encode,
    encode_cursor,
    encode_gap,
    farewell,
    retry_line,
    slowed,
)
from broker.errors import BadCursor
from broker.log.event import Event, encode_data, merge_deltas
from broker.web.endings import ended_delay_ms, retry_delay_ms
from tests.log.test_event import EVENTS, KINDS, OBJECTS, STREAMS


class Message(NamedTuple):
    type: str
    data: str
    last_event_id: str


class EventSource:
    """What section 9.2.6, "Interpreting an event stream", makes of bytes, as far as they have come."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.last_event_id = ""
        self.retry_ms: int | None = None

    def read(self, body: bytes) -> EventSource:
        """The bytes of one connection. A block without its blank line is discarded at the end, as is half a line."""
        text = body.decode("utf-8", errors="replace").removeprefix("\ufeff")
        *lines, _unfinished = re.split("\r\n|\n|\r", text)
        self._type = self._data = ""
        self._id = self.last_event_id
        for line in lines:
            self._take(line)
        return self

    def _take(self, line: str) -> None:
        if not line:
            self._dispatch()
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            self._process(field, value.removeprefix(" "))

    def _process(self, field: str, value: str) -> None:
        if field == "event":
            self._type = value
        elif field == "data":
            self._data += value + "\n"
        elif field == "id" and "\0" not in value:
            self._id = value
        elif field == "retry" and re.fullmatch("[0-9]+", value):
            self.retry_ms = int(value)

    def _dispatch(self) -> None:
        self.last_event_id = self._id
        if self._data:
            self.messages.append(Message(self._type or "message", self._data.removesuffix("\n"), self.last_event_id))
        self._type = self._data = ""


def message(event: Event) -> Message:
    return Message(event.kind, event.data.decode(), str(event.id))


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        # The four examples of section 9.2.6: if this parser reads them, it can judge our bytes.
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [Message("message", "YHOO\n+2\n10", "")]),
        (
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
            [Message("message", "first event", "1"), Message("message", "second event", "")],
        ),
        (b"data\n\ndata\ndata\n\ndata:", [Message("message", "", ""), Message("message", "\n", "")]),
        (b"data:test\n\ndata: test\n\n", [Message("message", "test", ""), Message("message", "test", "")]),
    ],
)
def test_the_parser_of_these_tests_reads_the_specifications_examples(body: bytes, messages: list[Message]) -> None:
    assert EventSource().read(body).messages == messages


def test_a_frame_is_event_data_id_and_a_blank_line() -> None:
    event = Event(7, "text_delta", b'{"text":"Salt"}', 1700000000000)
    assert encode(event) == b'event: text_delta\ndata: {"text":"Salt"}\nid: 7\n\n'


def test_who_takes_an_id_at_its_line_has_the_event_but_for_one_byte() -> None:
    """@microsoft/fetch-event-source sets its cursor there, and hands the event over at the blank line."""
    frame = encode(Event(7, "text_delta", b'{"text":"id: 9"}', 0))
    assert [cut for cut in range(len(frame)) if b"id: 7\n" in frame[:cut]] == [len(frame) - 1]


@given(st.lists(EVENTS, max_size=5))
def test_every_kind_and_data_survives_the_wire(events: list[Event]) -> None:
    assert EventSource().read(b"".join(map(encode, events))).messages == [message(event) for event in events]


@pytest.mark.parametrize("character", ["\r", "\n", "\r\n", "\u2028", "\u2029", "\x85", "\x00", "\ufeff", "🧂", '"'])
def test_no_character_breaks_a_frame(character: str) -> None:
    [read] = EventSource().read(encode(Event(1, "text_delta", encode_data({"text": character}), 0))).messages
    assert json.loads(read.data) == {"text": character}


def test_a_retry_line_is_part_of_the_frame_that_follows_it() -> None:
    event = Event(1, "queued", b"{}", 0)
    source = EventSource().read(retry_line(1500) + encode(event))
    assert source.messages == [message(event)]
    assert source.retry_ms is not None


def test_retry_is_between_one_and_two_seconds_and_every_viewers_own() -> None:
    asked = [EventSource().read(retry_line(retry_delay_ms())).retry_ms for _ in range(200)]
    assert all(retry_ms is not None and 1000 <= retry_ms <= 2000 for retry_ms in asked)
    assert len(set(asked)) > 20


def test_a_heartbeat_says_nothing() -> None:
    source = EventSource().read(encode(Event(3, "status", b"{}", 0)) + HEARTBEAT)
    assert (len(source.messages), source.last_event_id) == (1, "3")
    read = source.read(2 * HEARTBEAT + encode(Event(4, "status", b"{}", 0))).messages
    assert read[1:] == [Message("status", "{}", "4")], "a comment before a frame is not of it"


@pytest.mark.parametrize("words", [HEARTBEAT, farewell("draining", 1500), retry_line(1500)], ids=str)
def test_what_is_no_event_ends_no_block(words: bytes) -> None:
    """Many clients take any blank line for the end of an event, here one without data."""
    assert words.endswith(b"\n")
    assert b"\n\n" not in words


def test_a_heartbeat_that_pages_can_see_has_no_id() -> None:
    source = EventSource().read(encode(Event(3, "status", b"{}", 0)) + HEARTBEAT_EVENT)
    assert source.messages[-1] == Message("ping", "{}", "3")


def test_a_viewer_is_told_where_it_stands_without_an_event() -> None:
    source = EventSource().read(retry_line(1500) + encode_cursor(7))
    assert (source.messages, source.last_event_id) == ([], "7")


def test_the_terminal_frame_slows_down_who_comes_back_nevertheless() -> None:
    events = [Event(3, "text_delta", b'{"text":"id: 3"}', 0), Event(4, "done", b'{"id: ":1}', 0)]
    body = slowed(Format.EXACT.render(events), ended_delay_ms())
    source = EventSource().read(body)
    assert source.messages == [message(event) for event in events]
    assert source.retry_ms
    assert 60_000 <= source.retry_ms <= 90_000
    cut = EventSource().read(body[: body.index(b"retry")])
    assert cut.retry_ms is None, "who has not got the event comes back soon"


def test_a_farewell_says_when_to_come_back_and_leaves_the_cursor() -> None:
    source = EventSource().read(encode(Event(3, "status", b"{}", 0)) + farewell("draining", 1500))
    assert (len(source.messages), source.last_event_id) == (1, "3")
    assert source.retry_ms is not None
    assert b": draining\n" in farewell("draining", 1500)


def test_a_gap_is_told_and_leaves_the_cursor() -> None:
    source = EventSource().read(encode(Event(3, "status", b"{}", 0)) + encode_gap(Gap(3, 1_000_001, "log_lost_tail")))
    assert source.last_event_id == "3"
    assert source.messages[-1] == Message(
        "gap", '{"requested":3,"earliest":1000001,"reason":"log_lost_tail"}', source.last_event_id
    )


@given(st.lists(st.tuples(KINDS, OBJECTS), max_size=6), st.lists(st.floats(0, 1), max_size=8))
def test_cut_at_any_byte_and_resumed_nothing_is_lost_doubled_or_reordered(
    said: list[tuple[str, dict[str, object]]], cuts: list[float]
) -> None:
    events = [Event(n, kind, encode_data(value), 0) for n, (kind, value) in enumerate(said, 1)]

    def answer(last_event_id: str) -> bytes:
        return b"retry: 1500\n" + Format.EXACT.render(events[parse_cursor(last_event_id) :])

    source = EventSource()
    for share in cuts:
        body = answer(source.last_event_id)
        source.read(body[: round(share * len(body))])
    source.read(answer(source.last_event_id))
    assert source.messages == [message(event) for event in events]


def test_a_frame_counts_only_with_its_blank_line() -> None:
    first, second = encode(Event(1, "queued", b"{}", 0)), encode(Event(2, "start", b"{}", 0))
    for cut in range(len(second)):
        assert EventSource().read(first + second[:cut]).last_event_id == "1"


# -- formats -----------------------------------------------------------------------------------------------


@given(STREAMS)
def test_each_format_renders_the_same_events(events: list[Event]) -> None:
    batch = events
    merged = merge_deltas(events)
    assert EventSource().read(Format.EXACT.render(batch)).messages == [message(event) for event in events]
    assert EventSource().read(Format.COMPACT.render(batch)).messages == [message(event) for event in merged]
    assert [json.loads(line)["id"] for line in Format.NDJSON.render(batch).splitlines()] == [e.id for e in events]
    assert [json.loads(line)["id"] for line in Format.COMPACT_NDJSON.render(batch).splitlines()] == [
        event.id for event in merged
    ]


def test_ndjson_heartbeats_by_an_empty_line_and_tells_a_gap_without_an_id() -> None:
    assert Format.NDJSON.render_heartbeat(Heartbeat()) == b"\n"
    assert json.loads(Format.NDJSON.render_heartbeat(Heartbeat(as_event=True))) == {"event": "ping", "data": {}}
    assert json.loads(Format.NDJSON.render_gap(Gap(5, 9, "log_lost_tail"))) == {
        "event": "gap",
        "data": {"requested": 5, "earliest": 9, "reason": "log_lost_tail"},
    }


def test_sse_says_that_it_is_utf_8() -> None:
    """Python's requests takes text without a charset for Latin-1, and tears it at U+0085."""
    assert Format.EXACT.content_type == Format.COMPACT.content_type == "text/event-stream; charset=utf-8"
    assert Format.NDJSON.content_type == Format.COMPACT_NDJSON.content_type == "application/x-ndjson"


def test_merged_text_is_at_most_16_kb_in_an_event() -> None:
    events = [Event(n, "text_delta", encode_data({"text": "x" * 1000}), 0) for n in range(1, 101)]
    events.append(Event(101, "text_delta", encode_data({"text": "y" * 50_000}), 0))
    merged = merge_deltas(events)
    assert "".join(json.loads(event.data)["text"] for event in merged) == "x" * 100_000 + "y" * 50_000
    assert max(len(event.data) for event in merged[:-1]) <= 16 * 1024
    assert len(merged) == 8
    assert merged[-1] == events[-1], "what is larger by itself stays as it is"


# -- header → cursor ---------------------------------------------------------------------------------------


@given(st.integers(0, 2**53 - 1))
def test_every_id_is_a_cursor(id: int) -> None:
    assert parse_cursor(str(id)) == id


@pytest.mark.parametrize(
    ("text", "cursor"), [(None, 0), ("", 0), ("earliest", 0), ("latest", None), ("0", 0), (str(2**53 - 1), 2**53 - 1)]
)
def test_words_and_absence_are_cursors_too(text: str | None, cursor: int | None) -> None:
    assert parse_cursor(text) == cursor


@pytest.mark.parametrize(
    "text",
    [
        *("1_0", "+1", "-1", " 1", "1 ", " 1x", "01", "00", "1.0", "1e3", "0x1", "1-0", "１", "٣", "²", "1\n", "1\x00"),
        *(" ", "\n", "é", "null", "$", "Latest", "latest ", str(2**53), "9" * 16, "9" * 400),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadCursor):
        parse_cursor(text)


@given(st.text())
def test_only_canonical_integers_and_the_two_words_are_accepted(text: str) -> None:
    try:
        cursor = parse_cursor(text)
    except BadCursor:
        return
    assert text in ("", "earliest", "latest") or str(cursor) == text


@pytest.mark.parametrize(
    ("given", "cursor"),
    [
        ([], 0),
        ([""], 0),
        (["3 "], 3),
        (["\t3"], 3),
        (["5, 7"], 7),
        (["7,5"], 7),
        (["5", "7"], 7),
        (["7", "latest"], 7),
        (["latest,7"], 7),
        (["earliest", "7"], 7),
        (["0", "latest"], 0),
        (["latest", "earliest"], None),
        (["earliest", "latest"], 0),
        (["", "latest"], None),
        ([" , ,"], 0),
    ],
)
def test_of_all_cursors_the_greatest_counts_and_words_where_there_is_none(given: list[str], cursor: int | None) -> None:
    assert resume_at(given) == cursor


def test_one_cursor_that_is_none_spoils_all() -> None:
    for cursors in (["5", "x"], ["5, 07"], ["5 7"], ["5;7"], ["5\x007"]):
        with pytest.raises(BadCursor):
            resume_at(cursors)


def test_what_is_refused_is_not_echoed() -> None:
    with pytest.raises(BadCursor) as refused:
        parse_cursor("<script>")
    assert "script" not in str(refused.value)


def test_ids_grow_along_a_stream_of_frames() -> None:
    read = EventSource().read(Format.EXACT.render([Event(n, "status", b"{}", 0) for n in (1, 2, 1_000_001)]))
    assert all(int(a.last_event_id) < int(b.last_event_id) for a, b in pairwise(read.messages))
