"""Chunks of an answer, and the whole one."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given

from broker.dialects.chat import Chat, ChatFold
from broker.dialects.fold import step
from broker.dialects.sse import Gap
from tests.dialects.laws import require_function, said
from tests.dialects.logs import CALLS, DONE, FACTS, LOGS, START, Told, events, strange_logs, text

HEAD = b'data: {"id":"chatcmpl-%b","object":"chat.completion.chunk","created":1796000000,"model":"fast","choices":['
HEAD %= FACTS.sid.encode()


def chunk(delta: bytes, finish: bytes = b"null") -> bytes:
    return b'%b{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]}\n\n' % (HEAD, delta, finish)


def chunks(told: list[Told], *, include_usage: bool = False) -> list[dict[str, Any]]:
    body = b"".join(said(Chat(include_usage), events(told)))
    return [orjson.loads(frame.removeprefix(b"data: ")) for frame in body.split(b"\n\n")[:-1]]


def folded(told: list[Told]) -> ChatFold:
    fold = Chat().begin(FACTS)
    for event in events(told):
        step(fold, event)
    return fold


def test_an_answer_to_the_byte() -> None:
    assert said(Chat(), events([START, text("Hi\u2028"), DONE])) == [
        chunk(b'{"role":"assistant","content":""}'),
        b"",
        chunk(b'{"content":"Hi\\u2028"}'),
        chunk(b"{}", b'"stop"'),
    ]


def test_calls_that_the_caller_runs_are_told_and_others_are_not() -> None:
    deltas = [one["choices"][0]["delta"]["tool_calls"] for one in chunks([START, *CALLS, DONE])[1:-1]]
    assert [call for [call] in deltas] == [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "find", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"q":'}},
        {"index": 0, "function": {"arguments": '"where?"}'}},
        {"index": 1, "id": "c3", "type": "function", "function": {"name": "pay", "arguments": ""}},
        {"index": 1, "function": {"arguments": '{"sum":1.5}'}},
    ]


@pytest.mark.parametrize(
    ("done", "finish"),
    [
        ({"stop_reason": "end_turn"}, "stop"),
        ({"stop_reason": "stop_sequence"}, "stop"),
        ({"stop_reason": "max_tokens"}, "length"),
        ({"stop_reason": "tool_use"}, "tool_calls"),
        ({"stop_reason": "refusal"}, "content_filter"),
        ({"stop_reason": "other"}, "stop"),
        ({"stop_reason": 7}, "stop"),
        ({}, "stop"),
    ],
)
def test_why_it_ended(done: dict[str, Any], finish: str) -> None:
    assert chunks([text("a"), ("done", done)])[-1]["choices"][0]["finish_reason"] == finish


def test_usage_comes_last_and_only_if_it_was_asked_for_and_counted() -> None:
    plain, asked = chunks([text("a"), DONE]), chunks([text("a"), DONE], include_usage=True)
    assert all("usage" not in one for one in plain)
    assert [one["usage"] for one in asked[:-1]] == [None] * 3
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 9,
        "total_tokens": 21,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    assert len(chunks([text("a"), ("done", {})], include_usage=True)) == 3


def test_a_restart_ends_who_has_seen_something_and_nobody_else() -> None:
    fold = Chat().begin(FACTS)
    over = [(fold.step(event), fold.is_over) for event in events(LOGS["restart"])]
    errors = [orjson.loads(payload)["error"] for payloads, is_over in over if is_over for payload in payloads]
    assert [(error["code"], error["type"]) for error in errors] == [("generation_restarted", "server_error")] * 2
    assert fold.opening() == over[0][0]
    assert chunks(LOGS["silent restart"]) == chunks([text("Yes."), DONE])


def test_behind_a_restart_it_is_over_for_nobody_who_begins_there() -> None:
    fold = Chat().begin(FACTS)
    for event in events([text("a"), ("restart", {})]):
        fold.step(event)
    assert fold.is_over
    assert not fold.copy().is_over


def test_failures_are_errors_with_our_codes() -> None:
    for name, kind, code in (
        ("error", "server_error", "provider_overloaded"),
        ("cancelled", "server_error", "cancelled"),
    ):
        last = chunks(LOGS[name])[-1]
        assert (last["error"]["type"], last["error"]["code"]) == (kind, code)
    gone = Chat().begin(FACTS)
    [payload] = gone.gap(Gap(7, 9, "expired"))
    assert (orjson.loads(payload)["error"]["code"], gone.is_over) == ("log_lost_tail", True)


@pytest.mark.parametrize("name", LOGS)
def test_the_whole_answer_is_what_the_chunks_of_the_last_attempt_say(name: str) -> None:
    fold = folded(LOGS[name])
    if fold.failure:
        return
    answer = fold.answer()
    last = max((at for at, (kind, _) in enumerate(LOGS[name]) if kind == "restart"), default=0)
    deltas = [one["choices"][0] for one in chunks(LOGS[name][last:])]
    [choice] = answer["choices"]
    assert (choice["message"]["content"] or "") == "".join(one["delta"].get("content") or "" for one in deltas)
    assert choice["message"].get("reasoning_content", "") == "".join(
        one["delta"].get("reasoning_content", "") for one in deltas
    )
    arguments: dict[int, str] = {}
    for one in deltas:
        for call in one["delta"].get("tool_calls", ()):
            arguments[call["index"]] = arguments.get(call["index"], "") + call["function"]["arguments"]
    calls = choice["message"].get("tool_calls", [])
    assert [call["function"]["arguments"] for call in calls] == list(arguments.values())
    assert choice["finish_reason"] == deltas[-1]["finish_reason"]


@pytest.mark.parametrize("name", LOGS)
def test_a_state_goes_on_from_any_event(name: str) -> None:
    require_function(Chat(include_usage=True), events(LOGS[name]))


@given(strange_logs)
def test_whatever_an_event_holds_a_frame_is_one_line_of_json(told: list[Told]) -> None:
    for dialect in (Chat(), Chat(include_usage=True)):
        body = b"".join(said(dialect, events(told)))
        for frame in body.split(b"\n\n")[:-1]:
            assert len(frame.decode().splitlines()) == 1
            assert {"choices", "error"} & orjson.loads(frame.removeprefix(b"data: ")).keys()
        require_function(dialect, events(told))
    fold = folded(told)
    assert fold.failure or orjson.dumps(fold.answer())
