"""A tool's arguments while they are said: snapshots that a page can show, and what they may cost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import jiter
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.arguments import FIRST_AT, Snapshots
from worker.providers.reading import parse

CALL = {"tool_call_id": "c1", "tool": "write"}
CLIENTS = ("tool_start", {**CALL, "client": True})
WORKERS = ("tool_start", CALL)
LETTER = {
    "to": ["Åsa", "Bo"],
    "text": "It rains 🌧 in “Oslo”.\nStill.\t" * 40,
    "urgent": True,
    "copies": 3.5,
    "at": None,
}


def deltas(text: str, size: int) -> list[tuple[str, dict[str, Any]]]:
    return [("tool_args_delta", {**CALL, "partial_json": text[at : at + size]}) for at in range(0, len(text), size)]


def taken(snapshots: Snapshots, events: Iterable[tuple[str, dict[str, Any]]]) -> list[Any]:
    """The arguments in each snapshot."""
    found = [said for event in events for said in snapshots.take(*event)]
    assert all(
        kind == "tool_args" and data == {**CALL, "args": data["args"], "complete": False} for kind, data in found
    )
    return [data["args"] for _, data in found]


def is_begun(part: Any, whole: Any) -> bool:
    """Whether what is there is what will be there, as far as it goes."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and is_begun(value, whole[key]) for key, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) <= len(whole) and all(map(is_begun, part, whole))
    return whole.startswith(part) if isinstance(part, str) and isinstance(whole, str) else bool(part == whole)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_snapshots_show_what_is_there_and_grow_by_half(size: int) -> None:
    text = json.dumps(LETTER, ensure_ascii=False)
    shown = taken(Snapshots(True), [WORKERS, *deltas(text, size)])
    assert shown
    assert all(is_begun(args, LETTER) for args in shown)
    written = [len(orjson.dumps(args)) for args in shown]
    assert size > 7 or written[0] >= FIRST_AT - 16
    assert sum(written) <= 3 * len(text.encode())


@pytest.mark.parametrize("at", range(FIRST_AT, 200))
def test_arguments_may_be_looked_at_after_any_character(at: int) -> None:
    whole = {"a": 'é🌧\\"\n', "b": [1, -2.5e3, True, None, {"ü": "\u2028" * 9}], "ccccccccccc": "x" * 160}
    text = json.dumps(whole, ensure_ascii=at % 2 == 0)
    first, rest = text[:at], text[at:]
    shown = taken(Snapshots(True), [WORKERS, *deltas(first, len(first)), *deltas(rest, len(rest))])
    assert all(is_begun(args, whole) for args in shown)


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), st.lists, max_leaves=20))
def test_each_beginning_of_json_is_a_beginning_of_its_value(value: Any) -> None:
    whole = {"pad": "p" * FIRST_AT, "value": value}
    text = json.dumps(whole, ensure_ascii=False)
    assert all(is_begun(args, whole) for args in taken(Snapshots(True), [WORKERS, *deltas(text, 1)]))


def test_half_a_number_is_not_shown() -> None:
    text = json.dumps({"pad": "p" * 50, "cents": 50_000})
    half = text.removesuffix("000}") + "0"
    assert len(half) > FIRST_AT
    assert taken(Snapshots(True), [WORKERS, *deltas(half, len(half))]) == [{"pad": "p" * 50}]


def test_only_public_arguments_are_parsed() -> None:
    text = json.dumps(LETTER)
    assert taken(Snapshots(False), [WORKERS, *deltas(text, 9)]) == []
    assert taken(Snapshots(False), [CLIENTS, *deltas(text, 9)]) != []


def test_two_calls_that_are_said_at_once_stay_apart() -> None:
    snapshots = Snapshots(True)
    other = {**CALL, "tool_call_id": "c2"}
    text = json.dumps(LETTER)
    for kind, data in [WORKERS, *deltas(text, 9)]:
        list(snapshots.take(kind, {**data, "tool_call_id": "c2"}))
        for _, said in snapshots.take(kind, data):
            assert said["tool_call_id"] == CALL["tool_call_id"] != other["tool_call_id"]
            assert is_begun(said["args"], LETTER)


def test_after_the_whole_arguments_there_are_no_snapshots() -> None:
    whole = ("tool_args", {**CALL, "args": LETTER, "complete": True})
    assert taken(Snapshots(True), [WORKERS, whole, *deltas(json.dumps(LETTER), 9)]) == []


@pytest.mark.parametrize(
    "text",
    [
        '{"a": NaN, "b": "' + "b" * 200,
        '{"a": ' + "9" * 400,
        '{"a": "\\ud83dx' + "b" * 200,
        "no JSON at all, but a text that is longer than " + "x" * 200,
        "[" * 5_000,
        '{"n": [' + "1e15," * 200,
    ],
    ids=["NaN", "too many digits", "half a character", "no JSON", "nested too deep", "numbers that grow"],
)
def test_what_is_no_json_or_none_that_can_be_written_is_not_shown(text: str) -> None:
    shown = taken(Snapshots(True), [WORKERS, *deltas(text, 5)])
    assert sum(len(orjson.dumps(args)) for args in shown) <= 3 * len(text)


def test_37_kb_of_arguments_are_parsed_three_times_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    # In bytes, not in ms, which say more about the machine: some 0.3 ms of the 8 that they may hold the loop.
    parsed = 0
    original = jiter.from_json

    def counting(text: bytes, **how: Any) -> Any:
        nonlocal parsed
        parsed += len(text)
        return original(text, **how)

    monkeypatch.setattr("worker.arguments.jiter.from_json", counting)
    text = json.dumps({"text": "All work and no play. " * 1_700})
    assert len(text) > 37_000
    taken(Snapshots(True), [WORKERS, *deltas(text, 4)])
    assert parsed <= 3 * len(text)


@pytest.mark.parametrize(
    "text", ['{"a": NaN}', '{"a": Infinity}', '{"a": 1} and more', '{"a": 1}{"b": 2}', '{"a": 1,}', ""]
)
def test_whole_arguments_are_parsed_strictly(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|column"):
        parse(text.encode())
