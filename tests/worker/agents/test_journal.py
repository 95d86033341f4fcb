"""The journal: what a log says of an agent's calls, and which call is which."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import RedisUnavailable, StreamNotFound
from broker.log.event import Event, encode_data
from broker.log.steps import Page
from worker.agents import caps, journal
from worker.agents.journal import UNKNOWN, Decision, Finished, Journal, UnderWay, Unfinished, canonical, read_journal

KEYED = ("order_id",)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXTS, values, max_size=3),
    max_leaves=8,
)


def log(*events: tuple[str, dict[str, Any]]) -> list[Event]:
    return [Event(at, kind, encode_data(data), 0) for at, (kind, data) in enumerate(events, 2)]


def begun(key: str, tool_call_id: str) -> tuple[str, dict[str, Any]]:
    return "internal.tool_args", {"tool_call_id": tool_call_id, "tool": "refund", "args": {}, "key": key}


def ended(key: str, tool_call_id: str, **outcome: Any) -> tuple[str, dict[str, Any]]:
    return "internal.tool_result", {"key": key, "tool_call_id": tool_call_id, "tool": "refund", **outcome}


# -- which call is which -------------------------------------------------------------------------------------


def _shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        items = list(value.items())
        random.Random(0).shuffle(items)
        return {name: _shuffled(inner) for name, inner in items}
    return [_shuffled(inner) for inner in value] if isinstance(value, list) else value


@settings(max_examples=40, deadline=None)
@given(JSON)
def test_one_value_has_one_text_whatever_the_order_of_its_members(value: Any) -> None:
    assert canonical(value) == canonical(_shuffled(value)) == canonical(orjson.loads(canonical(value)))
    assert orjson.loads(canonical(value)) == value


@settings(max_examples=40, deadline=None)
@given(JSON, JSON)
def test_two_values_have_two_texts(one: Any, other: Any) -> None:
    assert (canonical(one) == canonical(other)) == (orjson.dumps(_sorted(one)) == orjson.dumps(_sorted(other)))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [1.0, -0.0, 1e300, True, None]}, b'{"a":[1.0,-0.0,1e+300,true,null],"b":1}'),
        ({"ű": "e\u0301\u2028"}, '{"ű":"e\u0301\u2028"}'.encode()),
    ],
)
def test_the_text_is_the_same_on_each_machine(value: Any, text: bytes) -> None:
    assert canonical(value) == text


@pytest.mark.parametrize("value", ["\ud800", 2**70, {1: 2}, object()])
def test_what_the_log_cannot_hold_names_no_call(value: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Journal("s").begin("", "refund", value)


@given(
    st.permutations([("", "find", {"id": 1}), ("", "find", {"id": 2}), ("", "look", {"id": 1}), ("r.1", "find", {})])
)
def test_calls_keep_their_keys_whatever_their_order(order: list[tuple[str, str, Any]]) -> None:
    first, again = Journal("s"), Journal("s")
    for path, tool, args in order:
        first.begin(path, tool, args)
    keys = {
        (path, tool, canonical(args)): again.begin(path, tool, args).key for path, tool, args in sorted(order, key=str)
    }
    assert len(set(keys.values())) == len(order)
    assert keys == {
        (path, tool, canonical(args)): Journal("s").begin(path, tool, args).key for path, tool, args in order
    }


def test_calls_that_are_alike_are_counted_in_each_attempt() -> None:
    first = Journal("s")
    alike = [first.begin("", "find", {"id": 1}) for _ in range(3)]
    assert len({call.key for call in alike}) == len({call.tool_call_id for call in alike}) == 3
    assert [call.found for call in alike] == [None, None, None]
    second = Journal("s")
    assert [second.begin("", "find", {"id": 1}).key for _ in range(3)] == [call.key for call in alike]


def test_a_key_names_the_effect_whatever_else_differs() -> None:
    journal = Journal("s")
    first = journal.begin("", "refund", {"order_id": "A", "cents": 1}, key=KEYED, turn_call=(0, "c"))
    journal.note_run(first.tool_call_id)
    same = journal.begin("", "refund", {"cents": 2, "order_id": "A"}, key=KEYED, turn_call=(3, "d"))
    assert same == (first.key, "c", UnderWay())
    journal.end(first.tool_call_id, Finished("done"))
    assert journal.begin("", "refund", {"order_id": "A"}, key=KEYED).found == Finished("done")
    assert journal.begin("", "refund", {"order_id": "B"}, key=KEYED).found is None


def test_a_turns_call_has_its_own_id_unless_another_turn_has_used_it() -> None:
    journal = Journal("s")
    first, second = (journal.begin("", "find", {}, turn_call=(turn, "call_0")) for turn in (0, 1))
    assert (first.key, first.tool_call_id) == ("s/0.call_0", "call_0")
    assert second.key == "s/1.call_0"
    assert second.tool_call_id != "call_0"
    taken_over = Journal("s", log(begun(second.key, second.tool_call_id)))
    assert taken_over.begin("", "find", {}, turn_call=(1, "call_0")).tool_call_id == second.tool_call_id


@settings(max_examples=30, deadline=None)
@given(TEXTS, TEXTS)
def test_keys_fit_into_a_header_and_imitate_no_other_agents(tool: str, call_id: str) -> None:
    for key in (Journal("s").begin("", tool, {}).key, Journal("s").begin("", "t", {}, turn_call=(1, call_id)).key):
        assert key.isascii()
        assert key.isprintable()
        assert key.count("/") == 1
    assert Journal("s").begin("a.1/b.2", "t", {}).key.startswith("s/a.1/b.2/t.")


# -- what a takeover finds -----------------------------------------------------------------------------------

ONE = Journal("s").begin("", "refund", {"id": 1})


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([], None),
        ([("tool_start", {"tool_call_id": ONE.tool_call_id, "tool": "refund"})], None),
        ([begun(*ONE[:2])], Unfinished()),
        ([begun(*ONE[:2]), begun(*ONE[:2]), ("restart", {})], Unfinished()),
        ([begun(*ONE[:2]), ended(*ONE[:2], output=[1], duration_ms=7)], Finished([1], None, 7)),
        ([begun(*ONE[:2]), ended(*ONE[:2], output=None), ("restart", {})], Finished()),
        ([begun(*ONE[:2]), ended(*ONE[:2], error={"code": "failed", "message": "no"})],
         Finished(error={"code": "failed", "message": "no"})),
        ([begun(*ONE[:2]), ended(*ONE[:2], output=1), ended(*ONE[:2], output=2)], Finished(1)),
        ([ended(*ONE[:2], error={"code": "too_many_calls", "message": "m"})],
         Finished(error={"code": "too_many_calls", "message": "m"})),
        ([begun(*ONE[:2]), ("tool_error", {"tool_call_id": ONE.tool_call_id, "code": "outcome_unknown"})],
         Finished(error=UNKNOWN)),
        ([begun(*ONE[:2]), ("internal.tool_error", {"tool_call_id": ONE.tool_call_id, "code": "outcome_unknown"}),
          ended(*ONE[:2], output=1)], Finished(error=UNKNOWN)),
        ([("internal.tool_args", {"tool_call_id": ONE.tool_call_id, "args": {}}),
          ("internal.tool_result", {"tool_call_id": ONE.tool_call_id, "output": 1})], None),
        ([("internal.tool_args", {"key": 1, "tool_call_id": []}), ("internal.tool_result", {"key": "x"}),
          ("internal.turn", {}), ("internal.approval", {"approve": "yes"})], None),
    ],
)  # fmt: skip
def test_what_the_log_says_of_a_call(events: list[tuple[str, dict[str, Any]]], found: Any) -> None:
    begins_again = Journal("s", log(*events)).begin("", "refund", {"id": 1})
    assert (begins_again.key, begins_again.found) == (ONE.key, found)
    assert found is None or begins_again.tool_call_id == ONE.tool_call_id


def test_a_call_that_was_cut_is_unfinished_and_one_that_never_ran_is_not_there() -> None:
    journal = Journal("s")
    call = journal.begin("", "refund", {"order_id": 1}, key=KEYED)
    journal.drop(call.tool_call_id)
    call = journal.begin("", "refund", {"order_id": 1}, key=KEYED)
    assert call.found is None
    journal.note_run(call.tool_call_id)
    journal.drop(call.tool_call_id)
    assert journal.begin("", "refund", {"order_id": 1}, key=KEYED).found == Unfinished()


def test_turns_approvals_and_inputs_of_all_attempts_are_read() -> None:
    journal = Journal("s", log(
        ("internal.turn", {"turn": 0, "agent": "", "text": "a"}),
        ("input", {"text": "wait"}),
        ("internal.turn", {"turn": 0, "agent": "r.1", "text": "b"}),
        ("restart", {"attempt": 2}),
        ("input", {"text": "wait", "replayed": True}),
        ("internal.approval", {"approval_id": "x", "approve": False, "reason": "no", "by": "key:k"}),
        ("internal.approval", {"approval_id": "x", "approve": True, "reason": "", "by": "key:k"}),
    ))  # fmt: skip
    texts = [turn and turn["text"] for turn in (journal.turn("", 0), journal.turn("r.1", 0), journal.turn("", 1))]
    assert texts == ["a", "b", None]
    assert journal.approvals == {"x": Decision(approve=False, reason="no", by="key:k")}
    assert journal.inputs == [{"text": "wait"}]


class Pages:
    """A log of this length, a page at a time."""

    def __init__(self, events: list[Event], count: int) -> None:
        self.events = events
        self.count = count

    async def read_page(self, sid: str, cursor: int, count: int = 0) -> Page:
        await asyncio.sleep(0)
        first = max(0, cursor - 1)
        events = self.events[first : first + self.count]
        return Page("running", len(self.events) + 1, True, events, first + self.count < len(self.events))


async def test_a_long_log_is_read_page_by_page() -> None:
    said = [("text_delta", {"text": "a"})] * 700 + [begun(*ONE[:2])] + [("text_delta", {"text": "b"})] * 700
    pages: Any = Pages(log(*said), 500)
    assert (await read_journal(pages, "s")).begin("", "refund", {"id": 1}).found == Unfinished()


async def test_a_log_that_has_less_than_its_writer_wrote_is_read_again_until_it_is_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a restart of Redis that lost its last second: a finished call must not be taken for one in flight."""
    monkeypatch.setattr(journal, "RETRY_S", 0)
    monkeypatch.setattr(caps, "RETRY_S", 0)
    whole = log(begun(*ONE[:2]), ended(*ONE[:2], output="paid"), ("restart", {"attempt": 2}))
    answers: list[Any] = [RedisUnavailable("away"), StreamNotFound("gone"), whole[:1], whole]

    class Recovering:
        async def read_page(self, sid: str, cursor: int, count: int = 0) -> Page:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return Page("running", 5, True, answer, False)

    recovering: Any = Recovering()
    found = (await read_journal(recovering, "s", up_to=whole[-1].id)).begin("", "refund", {"id": 1}).found
    assert isinstance(found, Finished)
    assert found.result == "paid"
    assert not answers


# -- what viewers see of a call ------------------------------------------------------------------------------


def test_an_id_is_the_same_in_each_attempt_and_tells_nothing_of_the_arguments() -> None:
    call = ("", "check_pin", {"pin": 1234})
    first, other = (Journal("s").begin(*call) for _ in range(2))
    assert first.key == other.key
    assert first.tool_call_id != other.tool_call_id
    asked = {"approval_id": "a", "of": "o", "key": first.key, "tool_call_id": first.tool_call_id}
    for said in (begun(first.key, first.tool_call_id), ("internal.approval_request", asked)):
        assert Journal("s", log(said)).begin(*call).tool_call_id == first.tool_call_id
    waits = Journal("s", log(("internal.approval_request", asked)))
    assert waits.approval_ids == {"o": "a"}
    assert waits.begin(*call).found is None  # it has not run
