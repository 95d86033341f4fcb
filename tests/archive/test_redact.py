"""Masks, as pure functions: what they find, wherever the deltas' borders fall, and what they leave as it is."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import MasksTooSlow
from broker.log.event import Event, encode_data, text_since_restart
from broker.service.masks import BadMasks, Mask, Redactor, load_masks

MASKS = r"""
[[mask]]
name = "number"
pattern = '\d{3}-\d{4}'
[[mask]]
name = "card"
path = "$.metadata.*.card"
[[mask]]
name = "result"
path = "data.result.0"
"""


@pytest.fixture(scope="module")
def redactor(tmp_path_factory: pytest.TempPathFactory) -> Redactor:
    path = tmp_path_factory.mktemp("masks") / "masks.toml"
    path.write_text(MASKS)
    return load_masks(path)


def log(*events: tuple[str, Any]) -> list[Event]:
    return [Event(at, kind, encode_data(data), 1000 + at) for at, (kind, data) in enumerate(events, start=1)]


def texts(*pieces: str, kind: str = "text_delta") -> list[tuple[str, Any]]:
    return [(kind, {"text": piece}) for piece in pieces]


def data(events: list[Event]) -> list[Any]:
    return [orjson.loads(event.data) for event in events]


@given(st.text(max_size=9), st.text(max_size=9), st.lists(st.integers(0, 40), max_size=8))
def test_a_match_is_found_wherever_the_deltas_are_cut(before: str, after: str, cuts: list[int]) -> None:
    text = f"{before} 555-1234 {after}"
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(places)]
    redactor = Redactor([Mask("number", regex.compile(r"\d{3}-\d{4}"))])
    masked = redactor.mask_events(log(*texts(*pieces)))
    assert "555-1234" not in text_since_restart(masked)
    assert "████████" in text_since_restart(masked)
    assert [len(one["text"]) for one in data(masked)] == [len(piece) for piece in pieces]


def test_ids_kinds_and_times_stay(redactor: Redactor) -> None:
    events = log(("queued", {}), *texts("call 555-1234"), ("done", {"stop_reason": "end_turn"}))
    masked = redactor.mask_events(events)
    assert [(one.id, one.kind, one.t) for one in masked] == [(one.id, one.kind, one.t) for one in events]
    assert data(masked) == [{}, {"text": "call ████████"}, {"stop_reason": "end_turn"}]


def test_thinking_and_each_tool_calls_arguments_are_read_joined_too(redactor: Redactor) -> None:
    def arguments(call: str, piece: str) -> tuple[str, Any]:
        return "tool_args_delta", {"tool_call_id": call, "tool": "dial", "partial_json": piece}

    events = log(
        *texts("555", kind="thinking_delta"),
        arguments("a", '{"n":"555-'),
        arguments("b", '{"n":"777-'),
        *texts("-1234", kind="thinking_delta"),
        arguments("a", '1234"}'),
        arguments("b", "x"),
    )
    masked = data(redactor.mask_events(events))
    assert [one.get("text") or one["partial_json"] for one in masked] == [
        *("███", '{"n":"████', '{"n":"777-', "█████", '████"}', "x")
    ]


def test_a_match_in_one_delta_hides_no_longer_one_across_two(redactor: Redactor) -> None:
    redactor = Redactor([Mask("number", regex.compile(r"[0-9]{6,}"))])
    masked = data(redactor.mask_events(log(*texts("411111", "1111", "9"))))
    assert [one["text"] for one in masked] == ["██████", "████", "█"]


def test_keys_and_numbers_are_looked_through_too(redactor: Redactor) -> None:
    events = log(("custom", {"call 555-1234": 1, "n": 5, "b": True}))
    assert data(redactor.mask_events(events)) == [{"call ████████": 1, "n": 5, "b": True}]
    digits = Redactor([Mask("number", regex.compile(r"[0-9]{6,}"))])
    assert data(digits.mask_events(log(("custom", {"n": 4111111, "m": 5})))) == [{"n": "███████", "m": 5}]


def test_a_pattern_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.service.masks.LIMIT_S", 0.05)
    redactor = Redactor([Mask("slow", regex.compile(r"(?:a|aa)+$"))])
    with pytest.raises(MasksTooSlow):
        redactor.mask_events(log(*texts("a" * 60 + "b")))


def test_a_restart_begins_a_new_text(redactor: Redactor) -> None:
    events = log(*texts("555"), ("restart", {"attempt": 2, "reason": "x"}), *texts("-1234"))
    assert [one.get("text") for one in data(redactor.mask_events(events))] == ["555", None, "-1234"]


def test_every_text_in_every_event_and_record_is_looked_through(redactor: Redactor) -> None:
    events = log(("tool_end", {"result": [{"to": "x"}, "555-1234"], "n": 5}), ("error", {"message": "no 555-1234"}))
    assert data(redactor.mask_events(events)) == [
        {"result": ["█████", "████████"], "n": 5},
        {"message": "no ████████"},
    ]
    record = {
        "metadata": {"a": {"card": {"n": 1}}, "b": {"card": None, "c": 1}},
        "request": {"m": ["555-1234"]},
        "n": 1,
    }
    assert redactor.mask_record(record) == {
        "metadata": {"a": {"card": "█████"}, "b": {"card": "█████", "c": 1}},
        "request": {"m": ["████████"]},
        "n": 1,
    }


def test_what_a_stream_is_found_by_stays(redactor: Redactor) -> None:
    record = {"id": "555-1234", "created_at": "555-1234", "session_id": "555-1234", "user_id": "555-1234"}
    hidden = "█" * 8
    assert redactor.mask_record(record) == {**record, "session_id": hidden, "user_id": hidden}


def test_odd_shapes_pass_through(redactor: Redactor) -> None:
    events = log(("text_delta", {"text": 5}), ("text_delta", []), ("text_delta", "555-1234"), ("custom", None))
    assert data(redactor.mask_events(events)) == [{"text": 5}, [], "████████", None]


@pytest.mark.parametrize(
    ("masks", "why"),
    [
        ("", "must be a list of"),
        ("mask = 5", "must be a list of"),
        ("[[mask]]\npattern = 'a'", "must be a list of"),
        ("[[mask]]\nname = 'a'", "must be a list of"),
        ("[[mask]]\nname = 'a'\npattern = 'a'\npath = 'b'", "must be a list of"),
        ("[[mask]]\nname = 'a'\npattern = 'a'\nmore = 'b'", "must be a list of"),
        ("[[mask]]\nname = 'a'\npattern = '('", "not a regular expression"),
        ("[[mask", "must be a list of"),
    ],
)
def test_a_file_that_holds_no_masks_is_refused(tmp_path: Path, masks: str, why: str) -> None:
    (tmp_path / "masks.toml").write_text(masks)
    with pytest.raises(BadMasks, match=why):
        load_masks(tmp_path / "masks.toml")
    with pytest.raises(BadMasks, match="cannot be read"):
        load_masks(tmp_path / "missing")
