"""Durable Streams' words: messages as they came, offsets, cursors, frames."""

from __future__ import annotations

import base64
import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.dialects.durable_streams import (
    EPOCH_MS,
    INTERVAL_MS,
    StreamForm,
    body_of,
    cursor_at,
    data_frame,
    events_of,
    messages_of,
    moment,
    offset,
    parse_offset,
)
from broker.dialects.durable_views import EventsView, View, caught_up
from broker.dialects.fold import Facts
from broker.errors import BadCursor, BodyTooLarge, InvalidJson, InvalidRequest
from broker.log.event import Event

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | TEXTS | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        (b' {"a" :  1.0}\n', [b'{"a" :  1.0}']),
        (b"[]", []),
        (b"[1]", [b"1"]),
        (b"[1.50,\t12345678901234567890123 , -0.0]", [b"1.50", b"12345678901234567890123", b"-0.0"]),
        (b"[[1,2],[3]]", [b"[1,2]", b"[3]"]),
        (b'["a,]","\\n"]', [b'"a,]"', b'"\\n"']),
        ('["\u2028","\x85"]'.encode(), [b'"\\u2028"', b'"\\u0085"']),
        (b'{"b":1,"a":2,"b":3}', [b'{"b":1,"a":2,"b":3}']),
    ],
)
def test_a_message_is_kept_as_it_came(body: bytes, messages: list[bytes]) -> None:
    assert messages_of(body) == messages


@given(st.lists(VALUES, max_size=5), st.sampled_from([None, 1]), st.booleans())
def test_what_is_read_is_what_was_written(values: list[object], indent: int | None, is_ascii: bool) -> None:
    body = json.dumps(values, indent=indent, ensure_ascii=is_ascii)
    messages = messages_of(body.encode())
    assert [json.loads(message) for message in messages] == values
    assert not any(b"\n" in message or b"\r" in message for message in messages)


@pytest.mark.parametrize("body", [b"", b"{", b"NaN", b'"\\ud800"', b"\xff", b"1 2", b"[1,]", b"[" * 5000])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJson):
        messages_of(body)


def test_an_append_has_a_body_and_not_too_many_messages() -> None:
    for given_type, body in (("application/json", b"[]"), ("text/plain", b"")):
        with pytest.raises((InvalidRequest, InvalidJson)):
            events_of(given_type, body)
    with pytest.raises(BodyTooLarge):
        events_of("application/json", b"[" + b"1," * 10_000 + b"1]")


def test_the_first_event_of_a_stream_is_its_zero_offset() -> None:
    assert offset(1) == "0000000000000000_0000000000000000"
    assert parse_offset([offset(1)]) == 1
    assert [parse_offset([]), parse_offset(["-1"]), parse_offset(["now"])] == [0, 0, None]


@pytest.mark.parametrize(
    "given_ones",
    [[""], ["1"], ["a", "b"], ["-2"], [offset(1)[:-1]], [offset(1)[:-1] + "1"], ["٣" * 16 + "_" + "0" * 16]],
)
def test_what_is_no_offset_is_refused(given_ones: list[str]) -> None:
    with pytest.raises(BadCursor):
        parse_offset(given_ones)


@given(st.integers(EPOCH_MS, EPOCH_MS + 10**12), st.integers(0, 10**8))
def test_a_cursor_is_more_than_the_one_that_was_brought_and_never_behind_the_time(ms: int, brought: int) -> None:
    assert cursor_at(ms, str(brought)) >= cursor_at(ms) == (ms - EPOCH_MS) // INTERVAL_MS
    assert cursor_at(ms, str(brought)) > brought


@pytest.mark.parametrize("text", ["2026-12-01", "yesterday", "2026-12-01T00:00:00", "2026-13-01T00:00:00Z", ""])
def test_a_moment_has_a_date_a_time_and_a_zone(text: str) -> None:
    with pytest.raises(InvalidRequest):
        moment("Stream-Expires-At", text)


@given(st.text(alphabet="a \n\r:\u2028é"))
def test_no_payload_ends_its_frame(payload: str) -> None:
    frame = data_frame(payload.encode()).decode()
    assert frame.endswith("\n\n")
    assert frame.count("\n\n") == 1
    lines = [line.removeprefix("data:") for line in frame.split("\n")[1:-2]]
    said = "\n".join(line.removeprefix(" ") for line in lines)
    assert said == payload.replace("\r\n", "\n").replace("\r", "\n")


def test_a_stream_of_bytes_goes_as_base64_and_text_as_it_is() -> None:
    events = [
        Event(at, "ds.bytes", b'{"b64":"%b"}' % base64.b64encode(raw), 0) for at, raw in ((2, b"\xff"), (3, b"\x00"))
    ]
    assert body_of("image/png", events) == b"\xff\x00"
    assert b"data:" + base64.b64encode(b"\xff\x00") in StreamForm("image/png").frames(events)
    assert "data:\ufffd\x00\n".encode() in StreamForm("text/plain").frames(events)


def test_a_view_says_that_there_is_no_more_behind_the_last_of_what_was_there() -> None:
    fold = View(EventsView()).begin(Facts("sid", "s", "", 0, {}, {}))
    frames = [
        View(EventsView()).frame(payload, at, 0)
        for at in (1, 2)
        for payload in fold.step(Event(at, "text_delta", b'{"upToDate":true}', 0))
    ]
    body = b"".join(frames)
    assert [caught_up(body, is_last=is_last).count(b',"upToDate":true}\n\n') for is_last in (False, True)] == [0, 1]
    for frame in frames:
        data = frame.split(b"\n")[1].removeprefix(b"data:")
        assert orjson.loads(data)[0]["data"] == {"upToDate": True}


def test_an_ending_that_says_nothing_closes_a_view_all_the_same() -> None:
    view = View(EventsView())
    [payload] = view.begin(Facts("sid", "s", "", 0, {}, {})).step(Event(7, "done", b"{}", 0))
    assert b'"streamClosed":true' in view.frame(payload, 7, 0)
