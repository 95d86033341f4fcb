"""An event's forms: each is read back as what was written, whatever a model or a producer says."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.log.event import (
    TERMINAL,
    Event,
    encode_data,
    from_entry,
    from_published,
    merge_deltas,
    text_since_restart,
    to_ndjson,
)

ANYTHING_SAYABLE = st.text(st.characters(exclude_categories=["Cs"]))
NASTY = st.text(st.sampled_from('\r\n\x00\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\ufeff"\\:é🧂a'))
TEXT = ANYTHING_SAYABLE | NASTY
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=3)
KINDS = st.from_regex(r"[a-z][a-z0-9_.]{0,63}", fullmatch=True)
IDS = st.integers(1, 2**53 - 1)
EVENTS = st.builds(Event, IDS, KINDS, OBJECTS.map(encode_data), st.integers(0, 2**45))


def delta(id: int, text: str, kind: str = "text_delta", **more: Any) -> Event:
    return Event(id, kind, encode_data({"text": text, **more}), 1000 + id)


@pytest.mark.parametrize("kind", ["done", "error", "cancelled"])
def test_three_kinds_end_a_stream(kind: str) -> None:
    assert Event(1, kind, b"{}", 0).is_terminal


def test_no_other_kind_ends_a_stream() -> None:
    assert frozenset({"done", "error", "cancelled"}) == TERMINAL
    assert not Event(1, "text_delta", b"{}", 0).is_terminal


@given(JSON)
def test_data_says_what_was_meant_on_one_line_by_everybodys_idea_of_a_line(value: Any) -> None:
    data = encode_data(value)
    assert json.loads(data) == value
    assert len(data.decode().splitlines()) == 1


def test_line_separators_of_unicode_are_escaped_and_emoji_are_not() -> None:
    assert encode_data({"text": "a\u2028b\u2029c\x85d🧂"}) == b'{"text":"a\\u2028b\\u2029c\\u0085d\xf0\x9f\xa7\x82"}'


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(TypeError):
        encode_data({"text": "\ud83e"})


@given(EVENTS)
def test_an_entry_of_the_log_is_read_as_its_event(event: Event) -> None:
    fields = {b"k": event.kind.encode(), b"d": event.data, b"t": b"%d" % event.t}
    assert from_entry((b"%d-0" % event.id, fields)) == event


@given(st.lists(EVENTS, min_size=1, max_size=5))
def test_a_published_batch_is_read_as_its_events(events: list[Event]) -> None:
    lines = [line for e in events for line in (b"%d" % e.id, b"%d" % e.t, e.kind.encode(), e.data)]
    assert from_published(b"\n".join(lines)) == events


@given(EVENTS)
def test_an_event_is_one_line_of_ndjson(event: Event) -> None:
    line = to_ndjson(event)
    assert line.endswith(b"\n")
    assert len(line.decode().splitlines()) == 1
    assert json.loads(line) == {"id": event.id, "event": event.kind, "data": json.loads(event.data), "t": event.t}


# -- merged deltas -----------------------------------------------------------------------------------------


def test_neighbouring_text_arrives_as_one_event_under_the_last_ones_id_and_time() -> None:
    assert merge_deltas([delta(4, "Salt, "), delta(5, "bread"), delta(6, ".")]) == [delta(6, "Salt, bread.")]


def test_thinking_is_not_merged_with_text() -> None:
    events = [delta(1, "a"), delta(2, "b", "thinking_delta"), delta(3, "c", "thinking_delta"), delta(4, "d")]
    assert merge_deltas(events) == [delta(1, "a"), delta(3, "bc", "thinking_delta"), delta(4, "d")]


def test_anything_between_two_texts_keeps_them_apart() -> None:
    restart = Event(2, "restart", b'{"attempt":2,"reason":"worker_lost"}', 0)
    events = [delta(1, "a"), restart, delta(3, "b")]
    assert merge_deltas(events) == events


@pytest.mark.parametrize(
    "odd",
    [
        delta(2, "b", agent="scout"),
        Event(2, "text_delta", b'{"text":1}', 0),
        Event(2, "text_delta", b"[]", 0),
        Event(2, "text_delta", b"{}", 0),
    ],
)
def test_a_delta_that_carries_more_or_other_than_text_stays_as_it_is(odd: Event) -> None:
    events = [delta(1, "a"), odd, delta(3, "c")]
    assert merge_deltas(events) == events


DELTAS = st.tuples(st.sampled_from(["text_delta", "thinking_delta"]), st.fixed_dictionaries({"text": TEXT}))
OTHERS = st.tuples(st.sampled_from(["text_delta", "restart", "tool_start", "done"]), OBJECTS)
STREAMS = st.lists(DELTAS | OTHERS, max_size=12).map(
    lambda said: [Event(n, kind, encode_data(data), n) for n, (kind, data) in enumerate(said, 1)]
)


def _said(events: list[Event]) -> list[tuple[str, str | bytes]]:
    """What a reader is told, with no regard to how it is cut into events."""
    told: list[tuple[str, str | bytes]] = []
    for event in events:
        data = orjson.loads(event.data)
        plain = event.kind in ("text_delta", "thinking_delta") and list(data) == ["text"] and type(data["text"]) is str
        if plain and told and told[-1][0] == event.kind and isinstance(told[-1][1], str):
            told[-1] = (event.kind, told[-1][1] + data["text"])
        else:
            told.append((event.kind, data["text"] if plain else event.data))
    return told


@given(STREAMS)
def test_merging_changes_nothing_that_is_said(events: list[Event]) -> None:
    merged = merge_deltas(events)
    assert _said(merged) == _said(events)
    assert text_since_restart(merged) == text_since_restart(events)


@given(STREAMS)
def test_merging_keeps_ids_in_order_and_the_last_one(events: list[Event]) -> None:
    ids = [event.id for event in merge_deltas(events)]
    assert ids == sorted(set(ids))
    assert ids[-1:] == [event.id for event in events[-1:]]


@given(STREAMS)
def test_merging_twice_is_merging_once(events: list[Event]) -> None:
    assert merge_deltas(merge_deltas(events)) == merge_deltas(events)


# -- the text so far ---------------------------------------------------------------------------------------


def test_the_text_is_what_came_since_the_last_restart() -> None:
    restart = Event(3, "restart", b"{}", 0)
    assert text_since_restart([delta(1, "wrong"), delta(2, "hm", "thinking_delta"), restart, delta(4, "right")]) == (
        "right"
    )


def test_a_text_delta_without_text_adds_none() -> None:
    assert text_since_restart([Event(1, "text_delta", b"[1]", 0), Event(2, "text_delta", b'{"text":7}', 0)]) == ""


@given(STREAMS, st.integers(0, 12))
def test_the_text_so_far_and_what_follows_is_the_whole_text(events: list[Event], cut: int) -> None:
    before, after = events[:cut], events[cut:]
    restarted = any(event.kind == "restart" for event in after)
    so_far = "" if restarted else text_since_restart(before)
    assert so_far + text_since_restart(after) == text_since_restart(events)
