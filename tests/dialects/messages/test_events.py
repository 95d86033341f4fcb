"""Events of an answer, and the whole message."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from pydantic import TypeAdapter

from broker.dialects.fold import step
from broker.dialects.messages import Messages, MessagesFold
from broker.dialects.sse import Gap
from tests.dialects.laws import require_function, said
from tests.dialects.logs import CALLS, DONE, FACTS, LOGS, START, Told, events, strange_logs, text, thought

THEIRS: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
PING = {"type": "ping"}


def read(told: list[Told]) -> list[dict[str, Any]]:
    """Its events. Each has the name that its data has."""
    return read_body(b"".join(said(Messages(), events(told))))


def read_body(body: bytes) -> list[dict[str, Any]]:
    found = []
    for frame in body.split(b"\n\n")[:-1]:
        assert len(frame.decode().splitlines()) == 2
        name, data = frame.split(b"\n")
        found.append(orjson.loads(data.removeprefix(b"data: ")))
        assert name == b"event: " + found[-1]["type"].encode()
    return found


def folded(told: list[Told]) -> MessagesFold:
    fold = Messages().begin(FACTS)
    for event in events(told):
        step(fold, event)
    return fold


def accumulated(told: list[Told]) -> dict[str, Any]:
    """What the SDK makes of it."""
    message: Message | None = None
    pieces: dict[int, bytes] = {}
    for event in read(told):
        if event != PING:
            message = accumulate_event(event=THEIRS.validate_python(event), current_snapshot=message, json_bufs=pieces)  # type: ignore[assignment]
    assert message
    return message.model_dump(exclude_unset=True)


def test_an_answer_to_the_byte() -> None:
    frames = said(Messages(), events([START, text("Hi\u2028"), DONE]))
    assert frames[2] == (
        b"event: content_block_start\n"
        b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":"","citations":null}}\n\n'
        b"event: content_block_delta\n"
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi\\u2028"}}\n\n'
    )
    assert frames[3].startswith(
        b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\nevent: message_delta\n'
    )
    assert frames[3].endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')


def test_first_of_all_comes_an_empty_message() -> None:
    start, ping = read([START])
    assert ping == PING
    message = start["message"]
    assert (message["id"], message["model"], message["content"]) == (f"msg_{FACTS.sid}", "fast", [])
    assert (message["usage"]["input_tokens"], message["usage"]["output_tokens"]) == (0, 0)


def test_blocks_follow_one_another() -> None:
    begun = [
        event for event in read(LOGS["thinking"]) if event["type"] in ("content_block_start", "content_block_stop")
    ]
    assert [(event["type"], event["index"]) for event in begun] == [
        (f"content_block_{what}", index) for index in range(4) for what in ("start", "stop")
    ]
    assert [event["content_block"]["type"] for event in begun[::2]] == ["thinking", "text", "thinking", "text"]


def test_a_block_of_a_call_is_open_until_its_arguments_are_whole() -> None:
    told = [
        (event["type"], event["index"])
        for event in read(LOGS["mixed calls"])
        if event["type"] in ("content_block_start", "content_block_stop")
    ]
    assert told == [
        *[("content_block_start", index) for index in range(3)],
        *[("content_block_stop", index) for index in range(3)],
    ]


def test_calls_that_the_caller_runs_are_told_and_others_are_not() -> None:
    blocks = accumulated([START, *CALLS, DONE])["content"]
    assert [(block["id"], block["name"], block["input"]) for block in blocks] == [
        ("c1", "find", {"q": "where?"}),
        ("c3", "pay", {"sum": 1.5}),
    ]


@pytest.mark.parametrize(
    ("done", "reason"),
    [
        *[({"stop_reason": word}, word) for word in ("end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal")],
        ({"stop_reason": "other", "provider_stop_reason": "pause_turn"}, "pause_turn"),
        ({"stop_reason": "other", "provider_stop_reason": "new"}, "end_turn"),
        ({"stop_reason": ["a"]}, "end_turn"),
        ({}, "end_turn"),
    ],
)
def test_why_it_ended(done: dict[str, Any], reason: str) -> None:
    delta = read([text("a"), ("done", done)])[-2]
    assert delta["delta"]["stop_reason"] == reason


def test_the_stop_sequence_and_the_tokens_are_those_of_the_ending() -> None:
    usage = DONE[1]["usage"]
    delta = read([text("a"), ("done", {"stop_reason": "stop_sequence", "stop_sequence": "END", "usage": usage})])[-2]
    assert delta["delta"]["stop_sequence"] == "END"
    assert delta["usage"]["output_tokens_details"] == {"thinking_tokens": 4}
    counted = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    assert {name: delta["usage"][name] for name in counted} == {name: usage[name] for name in counted}


def test_a_restart_ends_who_has_seen_something_and_nobody_else() -> None:
    fold = Messages().begin(FACTS)
    over = [(fold.step(event), fold.is_over) for event in events(LOGS["restart"])]
    errors = read_body(b"".join(payload for payloads, is_over in over if is_over for payload in payloads))
    assert [error["error"]["type"] for error in errors] == ["api_error"] * 2
    assert all(error["error"]["message"].startswith("generation_restarted: ") for error in errors)
    assert fold.opening() == over[0][0]
    assert read(LOGS["silent restart"]) == read([text("Yes."), DONE])


def test_failures_are_errors_with_our_codes() -> None:
    for name, kind, code in (
        ("error", "overloaded_error", "provider_overloaded"),
        ("cancelled", "api_error", "cancelled"),
    ):
        last = read(LOGS[name])[-1]
        assert (last["type"], last["error"]["type"]) == ("error", kind)
        assert last["error"]["message"].startswith(f"{code}: ")
    gone = Messages().begin(FACTS)
    [error] = read_body(b"".join(gone.gap(Gap(7, 9, "expired"))))
    assert error["error"]["message"].startswith("log_lost_tail: ")
    assert gone.is_over


@pytest.mark.parametrize("name", [name for name in LOGS if "restart" not in name and LOGS[name][-1][0] == "done"])
def test_the_sdk_makes_the_whole_message_of_the_events(name: str) -> None:
    answer = folded(LOGS[name]).answer()
    made = accumulated(LOGS[name])
    for part in ("id", "model", "content", "stop_reason", "stop_sequence"):
        assert made[part] == answer[part]
    assert made["usage"] == answer["usage"]


def test_the_whole_message_is_the_last_attempts() -> None:
    assert folded(LOGS["restart"]).answer()["content"] == [{"type": "text", "text": "Thrice", "citations": None}]
    assert folded([thought("a"), ("restart", {}), text("b"), DONE]).answer()["content"][0]["text"] == "b"


def test_arguments_that_broke_off_are_no_object_and_stand_in_one() -> None:
    told = [("tool_start", {"tool_call_id": "c", "tool": "f", "client": True})]
    told.append(("tool_args_delta", {"tool_call_id": "c", "partial_json": '{"a":'}))
    [block] = folded([*told, DONE]).answer()["content"]
    assert block["input"] == {"input": '{"a":'}


def test_nothing_is_added_to_arguments_that_are_whole() -> None:
    late: Told = ("tool_args_delta", {"tool_call_id": "c1", "partial_json": "late"})
    assert read([START, *CALLS, late, CALLS[4], DONE]) == read([START, *CALLS, DONE])


@pytest.mark.parametrize("name", LOGS)
def test_a_state_goes_on_from_any_event(name: str) -> None:
    require_function(Messages(), events(LOGS[name]))


@given(strange_logs)
def test_whatever_an_event_holds_a_frame_is_one_line_of_json(told: list[Told]) -> None:
    for event in read(told):
        if event["type"] not in ("ping", "error"):
            THEIRS.validate_python(event)
    require_function(Messages(), events(told))
    fold = folded(told)
    assert fold.failure or Message.model_validate(orjson.loads(orjson.dumps(fold.answer())))
