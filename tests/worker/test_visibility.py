"""What is written of what a model says: public, or internal, by what the stream shows."""

from __future__ import annotations

from itertools import chain, combinations
from typing import Any

import orjson
import pytest

from worker.visibility import visible

CALL = {"tool_call_id": "a", "tool": "find"}
EVERYTHING = frozenset({"thinking", "args", "results"})
SECRET = "the-customer-is-wrong"


@pytest.mark.parametrize(
    ("kind", "data", "shown_by"),
    [
        ("thinking_delta", {"text": SECRET}, "thinking"),
        ("tool_args_delta", {**CALL, "partial_json": SECRET}, "args"),
        ("tool_args", {**CALL, "args": {"q": SECRET}, "complete": True}, "args"),
    ],
)
def test_thoughts_and_arguments_are_internal_unless_they_are_shown(
    kind: str, data: dict[str, Any], shown_by: str
) -> None:
    for show in map(frozenset, chain.from_iterable(combinations(EVERYTHING, n) for n in range(4))):
        expected = kind if shown_by in show else f"internal.{kind}"
        assert list(visible(kind, data, show, ())) == [(expected, data)]


@pytest.mark.parametrize("kind", ["tool_args_delta", "tool_args"])
def test_the_arguments_of_a_call_that_the_caller_runs_are_public(kind: str) -> None:
    assert list(visible(kind, CALL, frozenset(), {"a"})) == [(kind, CALL)]
    assert list(visible(kind, CALL, frozenset(), {"b"})) == [(f"internal.{kind}", CALL)]


def test_what_a_tool_gave_comes_before_its_end_and_is_internal() -> None:
    ended = {**CALL, "agent": "researcher.1", "duration_ms": 7, "output": [{"text": SECRET}]}
    assert list(visible("tool_end", ended, frozenset({"thinking", "args"}), ())) == [
        ("internal.tool_result", {**CALL, "agent": "researcher.1", "output": [{"text": SECRET}]}),
        ("tool_end", {**CALL, "agent": "researcher.1", "duration_ms": 7}),
    ]
    assert list(visible("tool_end", ended, frozenset({"results"}), ())) == [("tool_end", ended)]


@pytest.mark.parametrize("output", [{}, {"output": None}, {"output": SECRET}])
def test_of_a_failure_users_see_the_code_and_operators_the_words(output: dict[str, Any]) -> None:
    failed = {**CALL, "duration_ms": 7, "code": "unavailable", "message": SECRET, **output}
    assert list(visible("tool_error", failed, frozenset(), ())) == [
        ("internal.tool_result", {**CALL, **output, "error": {"code": "unavailable", "message": SECRET}}),
        ("tool_error", {**CALL, "duration_ms": 7, "code": "unavailable"}),
    ]
    assert list(visible("tool_error", failed, EVERYTHING, ())) == [("tool_error", failed)]


@pytest.mark.parametrize("kind", ["tool_end", "tool_error"])
def test_an_end_that_says_nothing_of_a_result_stays_as_it_is(kind: str) -> None:
    ended = {**CALL, "duration_ms": 7, "code": "timeout"}
    assert list(visible(kind, ended, frozenset(), ())) == [(kind, ended)]


@pytest.mark.parametrize(
    "kind", ["text_delta", "tool_start", "tool_progress", "citation", "status", "internal.provider", "custom"]
)
def test_everything_else_is_written_as_it_is(kind: str) -> None:
    data = {**CALL, "output": SECRET}
    assert list(visible(kind, data, frozenset(), ())) == [(kind, data)]


def test_nothing_of_what_is_not_shown_is_in_a_public_event() -> None:
    said = [
        ("thinking_delta", {"text": SECRET}),
        ("tool_start", CALL),
        ("tool_args_delta", {**CALL, "partial_json": SECRET}),
        ("tool_args", {**CALL, "args": SECRET, "complete": True}),
        ("tool_end", {**CALL, "output": SECRET}),
        ("tool_error", {**CALL, "code": "failed", "message": SECRET, "output": SECRET}),
    ]
    events = [event for one in said for event in visible(*one, frozenset(), ())]
    public = [event for event in events if not event[0].startswith("internal.")]
    assert [kind for kind, _ in public] == ["tool_start", "tool_end", "tool_error"]
    assert SECRET.encode() not in orjson.dumps(public)
    assert orjson.dumps(events).count(SECRET.encode()) == 6, "and operators have all of it"
