"""Masks, as functions: what they find, wherever the deltas' borders fall, and what they leave as it is."""

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
from broker.service.masks import BadMasks, Mask, Redactor, Unwanted, Watch, load_masks

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
    masked = redactor.mask_events(log(*texts(*pieces)), Watch())
    assert "555-1234" not in text_since_restart(masked)
    assert "████████" in text_since_restart(masked)
    assert [len(one["text"]) for one in data(masked)] == [len(piece) for piece in pieces]


def test_ids_kinds_and_times_stay(redactor: Redactor) -> None:
    events = log(("queued", {}), *texts("call 555-1234"), ("done", {"stop_reason": "end_turn"}))
    masked = redactor.mask_events(events, Watch())
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
    masked = data(redactor.mask_events(events, Watch()))
    assert [one.get("text") or one["partial_json"] for one in masked] == [
        *("███", '{"n":"████', '{"n":"777-', "█████", '████"}', "x")
    ]


@pytest.mark.parametrize(
    ("parts", "pattern"),
    [(("Please call", "555-1234 now."), r"call\s555-1234"), (("Please call 555-", "1234 now."), r"call\s555-1234")],
)
def test_a_sentence_that_is_told_in_parts_is_read_joined_too(parts: tuple[str, str], pattern: str) -> None:
    """It was cut at a space, which is in neither part, or amid a word."""
    events = log(*texts(*parts, kind="sentence"))
    masked = data(Redactor([Mask("number", regex.compile(pattern))]).mask_events(events, Watch()))
    assert not set("".join(one["text"] for one in masked)) & set("0123456789-")
    assert [len(one["text"]) for one in masked] == [len(part) for part in parts]


def test_internal_deltas_are_read_joined_too_by_themselves_and_with_the_public_ones(redactor: Redactor) -> None:
    events = log(
        *texts("555", kind="internal.thinking_delta"),
        *texts("777", kind="thinking_delta"),
        ("internal.tool_args_delta", {"tool_call_id": "a", "partial_json": "666-"}),
        *texts("-1234", kind="internal.thinking_delta"),
        ("internal.tool_args_delta", {"tool_call_id": "a", "partial_json": "1234"}),
        *texts("888", kind="internal.agent_text_delta"),
        *texts("-1234", kind="internal.agent_text_delta"),
    )
    masked = data(redactor.mask_events(events, Watch()))
    said = [one.get("text") or one["partial_json"] for one in masked]
    assert said == ["███", "███", "████", "█████", "████", "███", "█████"]


def test_a_match_in_one_delta_hides_no_longer_one_across_two(redactor: Redactor) -> None:
    redactor = Redactor([Mask("number", regex.compile(r"[0-9]{6,}"))])
    masked = data(redactor.mask_events(log(*texts("411111", "1111", "9")), Watch()))
    assert [one["text"] for one in masked] == ["██████", "████", "█"]


def test_keys_and_numbers_are_looked_through_too(redactor: Redactor) -> None:
    events = log(("custom", {"call 555-1234": 1, "n": 5, "b": True}))
    assert data(redactor.mask_events(events, Watch())) == [{"call ████████": 1, "n": 5, "b": True}]
    digits = Redactor([Mask("number", regex.compile(r"[0-9]{6,}"))])
    assert data(digits.mask_events(log(("custom", {"n": 4111111, "m": 5})), Watch())) == [{"n": "███████", "m": 5}]


def woven(*pieces: tuple[str | None, str], kind: str = "text_delta", **more: str) -> list[tuple[str, Any]]:
    """Deltas of several agents."""
    field = "partial_json" if kind == "tool_args_delta" else "text"
    return [(kind, {field: piece, **({"agent": agent} if agent else {}), **more}) for agent, piece in pieces]


CARD = "4111-1111-1111-1111"
CARDS = Redactor([Mask("card", regex.compile(r"(?:\d{4}-){3}\d{4}"))])


@pytest.mark.parametrize(
    ("kind", "more"),
    [("text_delta", {}), ("thinking_delta", {}), ("tool_args_delta", {"tool_call_id": "a", "tool": "pay"})],
)
@pytest.mark.parametrize("agents", [("one", "two"), (None, "two"), ("one", None)], ids=str)
def test_a_secret_of_one_agent_is_found_between_the_deltas_of_another(
    agents: tuple[str | None, str | None], kind: str, more: dict[str, str]
) -> None:
    one, two = agents
    events = woven((one, "pay 4111-1111-"), (two, "let me see"), (one, "1111-1111 now"), kind=kind, **more)
    masked = data(CARDS.mask_events(log(*events), Watch()))
    assert [one.get("text") or one["partial_json"] for one in masked] == [
        *("pay ██████████", "let me see", "█████████ now")
    ]


def test_a_secret_that_several_agents_write_together_is_found_in_the_order_of_the_log() -> None:
    events = log(*woven(("one", "4111-1111-"), ("two", "1111-"), (None, "1111")))
    assert text_since_restart(CARDS.mask_events(events, Watch())) == "█" * len(CARD)


def test_both_orders_of_a_text_are_hidden_at_once() -> None:
    events = woven(("one", "4111-1111-1111-"), ("two", "4111-1111-1111-1111 "), ("one", "1111 4111-"))
    events += woven(("two", "1111-1111-1111"))
    masked = data(CARDS.mask_events(log(*events), Watch()))
    assert [one["text"] for one in masked] == ["█" * 15, "█" * 19 + " ", "████ █████", "█" * 14]


def test_a_restart_ends_the_texts_of_all_agents() -> None:
    events = log(
        *woven(("one", "4111-1111-"), ("two", "x")),
        ("restart", {"attempt": 2, "reason": "x"}),
        *woven(("two", "y"), ("one", "1111-1111")),
    )
    assert CARDS.mask_events(events, Watch()) == events


def test_a_pattern_that_takes_for_ever_is_given_up() -> None:
    redactor = Redactor([Mask("slow", regex.compile(r"(?:a|aa)+$"))])
    with pytest.raises(MasksTooSlow):
        redactor.mask_events(log(*texts("a" * 60 + "b")), Watch(0.05))


@pytest.mark.parametrize(
    "value",
    [["a" * 18 + "b"] * 500, ["x@y " * 100_000], list(range(100_000)), [[]] * 1_000_000],
    ids=["slow texts", "matches", "numbers", "values without text"],
)
def test_the_limit_is_one_for_all_that_a_stream_holds(value: list[Any]) -> None:
    redactor = Redactor([Mask("slow", regex.compile(r"(?:a|aa)+$|x@y"))])
    with pytest.raises(MasksTooSlow):
        redactor.mask_record({"metadata": value}, Watch(0.05))
    with pytest.raises(MasksTooSlow):
        redactor.mask_events(log(("custom", value)), Watch(0.05))


def test_what_nobody_wants_any_more_ends_before_its_next_text(redactor: Redactor) -> None:
    asked = iter([False, False, True])
    with pytest.raises(Unwanted):
        redactor.mask_record({"metadata": ["a", "b", "c"]}, Watch(is_unwanted=lambda: next(asked)))


def test_a_pattern_that_searches_backwards_hides_the_same() -> None:
    backwards = Redactor([Mask("number", regex.compile(r"(?r)\d{3}-\d{4}"))])
    events = log(*texts("call 555-1234 or 555-", "1235."))
    assert text_since_restart(backwards.mask_events(events, Watch())) == "call ████████ or ████████."


def test_a_text_of_nothing_but_matches_keeps_its_length() -> None:
    digits = Redactor([Mask("digit", regex.compile("[0-9]"))])
    assert digits.mask_record({"metadata": "a1b" * 5000 + "c"}, Watch()) == {"metadata": "a█b" * 5000 + "c"}


def test_a_restart_begins_a_new_text(redactor: Redactor) -> None:
    events = log(*texts("555"), ("restart", {"attempt": 2, "reason": "x"}), *texts("-1234"))
    assert [one.get("text") for one in data(redactor.mask_events(events, Watch()))] == ["555", None, "-1234"]


def test_every_text_in_every_event_and_record_is_looked_through(redactor: Redactor) -> None:
    events = log(("tool_end", {"result": [{"to": "x"}, "555-1234"], "n": 5}), ("error", {"message": "no 555-1234"}))
    assert data(redactor.mask_events(events, Watch())) == [
        {"result": ["█████", "████████"], "n": 5},
        {"message": "no ████████"},
    ]
    record = {
        "metadata": {"a": {"card": {"n": 1}}, "b": {"card": None, "c": 1}},
        "request": {"m": ["555-1234"]},
        "n": 1,
    }
    assert redactor.mask_record(record, Watch()) == {
        "metadata": {"a": {"card": "█████"}, "b": {"card": "█████", "c": 1}},
        "request": {"m": ["████████"]},
        "n": 1,
    }


def test_what_a_stream_is_found_by_stays(redactor: Redactor) -> None:
    record = {"id": "555-1234", "created_at": "555-1234", "session_id": "555-1234", "user_id": "555-1234"}
    hidden = "█" * 8
    assert redactor.mask_record(record, Watch()) == {**record, "session_id": hidden, "user_id": hidden}


def test_a_pattern_that_finds_the_word_data_leaves_events_their_data() -> None:
    redactor = Redactor([Mask("data", regex.compile("data"))])
    assert data(redactor.mask_events(log(("custom", {"data": "my data"})), Watch())) == [{"████": "my ████"}]


def test_odd_shapes_pass_through(redactor: Redactor) -> None:
    events = log(("text_delta", {"text": 5}), ("text_delta", []), ("text_delta", "555-1234"), ("custom", None))
    assert data(redactor.mask_events(events, Watch())) == [{"text": 5}, [], "████████", None]


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
