"""What a stream says as a run of LangGraph's."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from broker.dialects.fold import step
from broker.dialects.langgraph import MODES, LangGraph, run_id_of, sid_of
from broker.dialects.sse import Gap
from broker.log.event import Event
from tests.dialects.langgraph.logs import (
    DONE,
    LOGS,
    OF_AN_AGENT,
    QUEUED,
    RESTARTED,
    RUN_ID,
    SID,
    START,
    WITH_TOOLS,
    begun,
    call,
    frames,
    log_of,
    parsed,
    result,
    text,
    told,
)

ANSWER = "run-" + RUN_ID

Told = list[tuple[str, Any]]


def of(name: str, said: Told) -> list[Any]:
    return [data for event, data in said if event == name]


def test_a_run_s_id_is_the_stream_s_as_a_uuid_and_both_forms_are_taken() -> None:
    assert (run_id_of(SID), sid_of(RUN_ID), sid_of(SID)) == (RUN_ID, SID, SID)
    assert (run_id_of("another"), sid_of("another-one")) == ("another", "another-one")


def test_a_frame_ends_with_its_event_s_id_and_which_of_its_frames_it_is() -> None:
    assert frames(begun("values"), log_of([QUEUED]))[1].split(b"\n")[2:] == [b"id: 1-1", b"", b""]


def test_values_are_the_thread_s_messages_before_the_answer_and_behind_it() -> None:
    said = told([QUEUED, START, *text("Sent", "."), DONE], "values")
    assert [name for name, _ in said] == ["metadata", "values", "values", "end"]
    before, behind = of("values", said)
    assert [message["content"] for message in before["messages"]] == ["Where is A17?"]
    assert behind["messages"][0] == before["messages"][0]
    answer = behind["messages"][1]
    assert (answer["type"], answer["id"], answer["content"]) == ("ai", f"{ANSWER}-1", "Sent.")
    assert answer["usage_metadata"] == {
        "input_tokens": 10,
        "output_tokens": 5,
        "total_tokens": 15,
        "input_token_details": {"cache_read": 2, "cache_creation": 1},
    }
    assert answer["response_metadata"] == {"finish_reason": "end_turn", "model_name": "m/n-2026"}
    assert of("end", said) == [{"run_id": RUN_ID, "status": "success"}]


def test_chunks_add_up_to_the_messages_of_the_last_values() -> None:
    said = told([*WITH_TOOLS, DONE], "values", "messages-tuple")
    whole: dict[str, Any] = {}
    for chunk, about in of("messages", said):
        assert (about["run_id"], about["thread_id"]) == (RUN_ID, "thread-1")
        one = whole.setdefault(chunk["id"], {"content": "", "thinking": "", "args": {}})
        one["content"] += chunk["content"]
        one["thinking"] += chunk["additional_kwargs"].get("reasoning_content", "")
        for piece in chunk.get("tool_call_chunks", ()):
            one["args"][piece["index"]] = one["args"].get(piece["index"], "") + piece["args"]
    first, found, failed, last = of("values", said)[-1]["messages"][1:]
    assert [one["type"] for one in (first, found, failed, last)] == ["ai", "tool", "tool", "ai"]
    assert list(whole) == [one["id"] for one in (first, found, failed, last)]
    assert [one["content"] for one in whole.values()] == [one["content"] for one in (first, found, failed, last)]
    assert whole[first["id"]]["thinking"] == first["additional_kwargs"]["reasoning_content"] == "Hm. "
    asked = [json.loads(args) for args in whole[first["id"]]["args"].values()]
    assert asked == [one["args"] for one in first["tool_calls"]] == [{"order": "A17"}, {"order": "B2"}]
    assert (found["tool_call_id"], found["status"], json.loads(found["content"])) == (
        "c1",
        "success",
        {"state": "sent"},
    )
    assert (failed["tool_call_id"], failed["status"], failed["content"]) == ("c2", "error", "no such order")


def test_messages_are_told_whole_each_time_and_once_when_they_are_complete() -> None:
    said = told([QUEUED, START, *text("a", "b"), DONE], "messages")
    assert [name.partition("/")[2] for name, _ in said[1:-1]] == ["metadata", "partial", "partial", "complete"]
    assert [message["content"] for [message] in of("messages/partial", said)] == ["a", "ab"]
    assert [message["content"] for [message] in of("messages/complete", said)] == ["ab"]


def test_of_a_long_text_partials_are_some_sixty_times_its_size_at_most() -> None:
    said = told([QUEUED, *text(*["word " * 20] * 5000), DONE], "messages")
    partials = [message["content"] for [message] in of("messages/partial", said)]
    size = 5000 * 100
    assert sum(map(len, partials)) < 100 * size
    assert size - len(partials[-1]) <= size // 64 + 100
    assert [len(message["content"]) for [message] in of("messages/complete", said)] == [size]


def test_updates_name_the_node_that_a_message_comes_from() -> None:
    updates = of("updates", told([*WITH_TOOLS, DONE], "updates"))
    said = [
        (node, one["type"]) for update in updates for node, of_node in update.items() for one in of_node["messages"]
    ]
    assert said == [("agent", "ai"), ("tools", "tool"), ("tools", "tool"), ("agent", "ai")]


def test_other_kinds_are_custom_events_under_their_names() -> None:
    said = of("custom", told(OF_AN_AGENT, "custom"))
    assert [one["event"] for one in said] == [
        *("start", "agent_start", "tool_start", *["tool_args_delta"] * 3, "tool_args", "tool_end", "agent_text_delta"),
        *("status", "shop.progress"),
    ]
    assert said[-1] == {"event": "shop.progress", "done": 1}


def test_what_an_agent_that_was_asked_calls_is_no_part_of_the_answer() -> None:
    [_, behind] = of("values", told(OF_AN_AGENT, "values"))
    assert [message.get("tool_calls", []) for message in behind["messages"]] == [[], []]
    assert behind["result"] == {"answer": 42}


def test_what_an_agent_was_given_is_in_the_thread_s_state() -> None:
    asked = {"agent": "desk", "input": {"order": "A17"}}
    assert of("values", told([QUEUED], "values", request=asked)) == [{"order": "A17", "messages": []}]


def test_a_restart_takes_back_each_message_in_each_mode_and_the_next_attempt_has_other_ids() -> None:
    said = told(RESTARTED)
    at = next(number for number, one in enumerate(said) if one == ("metadata", {"run_id": RUN_ID, "attempt": 2}))
    before, behind = said[:at], said[at:]
    ids = [f"{ANSWER}-1", *(f"{ANSWER}-1-{number}" for number in (2, 3, 4))]
    assert list(dict.fromkeys(chunk["id"] for chunk, _ in of("messages", before))) == ids
    assert [message["content"] for [message] in of("messages/partial", behind)[:4]] == [""] * 4
    assert [message["id"] for [message] in of("messages/partial", behind)[:4]] == ids
    assert [(one["type"], one["id"]) for one, _ in of("messages", behind)[:4]] == [("remove", one) for one in ids]
    assert [one["id"] for one in of("updates", behind)[0]["agent"]["messages"]] == ids
    assert of("values", behind)[0] == of("values", before)[0]
    assert of("custom", behind)[0]["event"] == "restart"
    answer = of("values", behind)[-1]["messages"][1]
    assert (answer["id"], answer["content"]) == (f"{ANSWER}-2", "Sent.")
    assert answer["tool_calls"] == [{"name": "refund", "args": {}, "id": "c3", "type": "tool_call"}]


def test_a_gap_takes_back_what_was_said_and_goes_on_with_the_attempt_that_there_is() -> None:
    events = log_of([*WITH_TOOLS, DONE])
    run = begun()
    frames(run, events[:-1])
    said = [parsed(payload + b"id: \n\n") for payload in run.gap(Gap(9, 2, "log_lost_tail"))]
    assert not run.is_over
    assert of("custom", said) == [{"event": "gap", "requested": 9, "earliest": 2, "reason": "log_lost_tail"}]
    assert of("metadata", said) == [{"run_id": RUN_ID, "attempt": 1}]
    assert len(of("values", said)[0]["messages"]) == 1
    assert frames(run, events[1:]) == frames(begun(), events)[2:]


def test_a_gap_takes_back_what_any_attempt_has_said_and_moves_no_cursor() -> None:
    run = begun("messages-tuple")
    frames(run, log_of(RESTARTED))
    payloads = run.gap(Gap(9, 2, "log_lost_tail"))
    said = [parsed(payload + b"id: \n\n") for payload in payloads]
    removed = [message["id"] for message, _ in of("messages", said) if message["type"] == "remove"]
    assert {f"{ANSWER}-1", f"{ANSWER}-2"} <= set(removed)
    assert not [frame for at, one in enumerate(payloads) if b"\nid: " in (frame := LangGraph().frame(one, 70, at))]


@pytest.mark.parametrize("modes", [MODES, ("values",), ("messages-tuple",)], ids=", ".join)
def test_whatever_the_modes_the_last_word_is_end_or_error(modes: tuple[str, ...]) -> None:
    last = {name: told(written, *modes)[-1] for name, written in LOGS.items()}
    assert {name: said[0] for name, said in last.items()} == dict.fromkeys(LOGS, "end") | {"error": "error"}
    assert last["error"][1] == {"error": "provider_cut", "message": "It broke off."}
    assert last["cancelled"][1]["status"] == "interrupted"


def test_what_failed_or_was_cancelled_keeps_what_it_had_said() -> None:
    for name in ("error", "cancelled"):
        assert len(of("values", told(LOGS[name], "values"))[-1]["messages"]) == 5


def test_an_answer_that_a_schema_asked_for_is_in_the_state_by_itself() -> None:
    asked = {"messages": [], "output_schema": {"type": "object"}}
    behind = of("values", told([QUEUED, *text('{"a":', "1}"), DONE], "values", request=asked))[-1]
    assert behind["structured_response"] == {"a": 1}
    violated = ("done", {**DONE[1], "schema_violation": {"place": "", "message": "x"}})
    behind = of("values", told([QUEUED, *text('{"a":', "1}"), violated], "values", request=asked))[-1]
    assert "structured_response" not in behind


def test_arguments_that_are_no_object_make_no_call() -> None:
    written = [QUEUED, ("tool_start", {"tool_call_id": "c", "tool": "t"})]
    written += [("tool_args_delta", {"tool_call_id": "c", "tool": "t", "partial_json": '{"a'}), DONE]
    answer = of("values", told(written, "values"))[-1]["messages"][1]
    assert answer["tool_calls"] == []
    assert [one["args"] for one in answer["invalid_tool_calls"]] == ['{"a']


def test_a_result_that_comes_when_the_next_message_has_begun_stands_before_that() -> None:
    written = [
        QUEUED,
        *call("a", "t", {}),
        *call("b", "t", {}),
        result("a", "t", "1"),
        *text("so"),
        result("b", "t", "2"),
    ]
    said = of("values", told([*written, *text(" on"), DONE], "values"))[-1]["messages"][1:]
    assert [(one["type"], one["content"]) for one in said] == [
        ("ai", ""),
        ("tool", "1"),
        ("tool", "2"),
        ("ai", "so on"),
    ]


def test_a_message_has_some_calls_and_a_state_does_not_grow_with_all_of_them() -> None:
    events = log_of([QUEUED, *(each for number in range(2000) for each in call(str(number), "t", {}))])
    run = begun("values")
    frames(run, events)
    turn = run._turn
    assert turn
    assert len(turn.calls) + len(run._late) <= 2 * 64
    [_, *answers] = json.loads(run.values())["messages"]
    assert sum(len(one["tool_calls"]) for one in answers) == 2000


# -- a function of the log -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOGS)
def test_a_copy_at_any_event_goes_on_as_the_run_does_and_neither_changes_the_other(name: str) -> None:
    events = log_of(LOGS[name])
    run = begun()
    said = [frames(run, [event]) for event in events]
    walking = begun()
    for at, event in enumerate(events):
        copy = walking.copy()
        assert [frames(copy, [each]) for each in events[at:]] == said[at:]
        assert frames(walking, [event]) == said[at]
    assert walking.values() == run.values()


STRANGE: list[Any] = [
    *(None, True, 0, -1.5, "", "text", [], [1], {}, {"text": None}, {"text": 1}, {"text": ["a"]}, {"a": {"b": []}}),
    *({"tool_call_id": 1}, {"tool_call_id": "c", "tool": 1}, {"tool_call_id": "c", "tool": "t"}),
    *({"tool_call_id": "c", "tool": "t", "client": "yes"}, {"tool_call_id": "c", "partial_json": 1}),
    *({"tool_call_id": "c", "args": "x"}, {"tool_call_id": "c", "args": [1]}, {"tool_call_id": "c", "output": [1]}),
    *(
        {"tool_call_id": "c", "message": {"a": 1}},
        {"tool_call_id": []},
        {"usage": "x"},
        {"usage": {"input_tokens": "1"}},
    ),
    *({"model": 5, "usage": []}, {"code": 1, "message": []}, {"attempt": "x"}, {"agent": 1}, {"event": "values"}),
    *({"result": object.__name__}, {"text": "\u2028\u0085 \x00"}),
]
KINDS = (
    *("queued", "start", "status", "restart", "text_delta", "thinking_delta", "tool_start", "tool_args_delta"),
    *("tool_args", "tool_end", "tool_error", "tool_progress", "citation", "done", "error", "cancelled", "own.kind"),
)


@pytest.mark.parametrize("seed", range(20))
def test_strange_shapes_under_known_kinds_raise_nothing_and_every_frame_is_one(seed: int) -> None:
    chosen = random.Random(seed)
    run = begun()
    for number in range(1, 200):
        event = log_of([(chosen.choice(KINDS), chosen.choice(STRANGE))], [number])[0]
        for at, payload in enumerate(run.step(event)):
            frame = LangGraph().frame(payload, number, at)
            parsed(frame)
            assert len(frame.decode().splitlines()) == 4
        json.loads(run.values())
        run.answer()


STRANGELY_ASKED: list[dict[str, Any]] = [
    *({}, {"messages": None}, {"messages": [1, {"role": 5}, {"role": "user"}]}, {"input": []}),
    *({"messages": [{"role": "user", "content": "x"}], "echo": echo} for echo in (1, {"messages": [1, [1], ["a"]]})),
]


@pytest.mark.parametrize("asked", STRANGELY_ASKED)
def test_a_request_of_any_shape_makes_a_thread(asked: dict[str, Any]) -> None:
    assert isinstance(of("values", told([QUEUED], "values", request=asked))[0]["messages"], list)


def test_an_event_that_is_no_json_is_left_out() -> None:
    assert step(begun(), Event(2, "text_delta", b"{", 0)) == []
