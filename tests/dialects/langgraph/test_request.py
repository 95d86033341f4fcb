"""A run as it is asked for, and the start that it becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker.dialects.langgraph_messages import Asked, ai, asked, plain, shown
from broker.dialects.langgraph_request import ABANDON_AFTER_S, asked_run, checkpoint_of, modes_of, strategy_of
from broker.errors import InvalidRequest

HI = {"messages": [{"role": "user", "content": "Hi"}]}


def run(**body: Any) -> dict[str, Any]:
    return asked_run({"assistant_id": "agent", "input": HI, **body}, [], None).start


def refusal(**body: Any) -> str:
    with pytest.raises(InvalidRequest) as raised:
        run(**body)
    return str(raised.value)


# -- messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"role": "user", "content": "Hi"},
        {"type": "human", "content": "Hi"},
        ["user", "Hi"],
        "Hi",
        {
            "lc": 1,
            "type": "constructor",
            "id": ["langchain_core", "messages", "HumanMessage"],
            "kwargs": {"content": "Hi"},
        },
    ],
)
def test_a_message_is_taken_in_each_form_that_langgraph_s_servers_take(given: Any) -> None:
    assert [one.message for one in asked([given], "m")] == [{"role": "user", "content": "Hi"}]


def test_parts_of_langchain_s_forms_become_blocks_and_come_back_as_image_urls() -> None:
    url, data = "https://example.com/a.png", "data:image/png;base64,AAAA"
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image", "source_type": "base64", "mime_type": "image/png", "data": "AAAA"},
        {"type": "image", "base64": "AAAA", "mime_type": "image/png"},
        {"type": "reasoning", "reasoning": "dropped"},
    ]
    [one] = asked({"type": "human", "content": parts}, "m")
    assert [block.get("source", {}).get("type") for block in one.message["content"]] == [
        None,
        "url",
        "base64",
        "base64",
    ]
    urls = [part["image_url"]["url"] for part in one.shown[0]["content"][1:]]
    assert urls == [url, data, data]


def test_what_parallel_calls_gave_is_one_message_of_the_request_and_one_each_of_the_thread() -> None:
    calls = [{"name": "find", "args": {"n": n}, "id": f"c{n}", "type": "tool_call"} for n in (1, 2)]
    results = [{"type": "tool", "content": f"r{n}", "tool_call_id": f"c{n}", "id": f"t{n}"} for n in (1, 2)]
    answer, given = asked([{"type": "ai", "content": "Looking.", "tool_calls": calls}, *results], "m")
    assert [block["type"] for block in answer.message["content"]] == ["text", "tool_use", "tool_use"]
    assert answer.shown[0]["tool_calls"] == calls
    assert [block["tool_use_id"] for block in given.message["content"]] == ["c1", "c2"]
    assert [(one["id"], one["tool_call_id"], one["content"]) for one in given.shown] == [
        *(("t1", "c1", "r1"), ("t2", "c2", "r2")),
    ]


def test_a_thread_shows_nothing_of_an_answer_but_its_text_and_the_calls_that_its_caller_runs() -> None:
    blocks = [
        {"type": "thinking", "thinking": "secret", "signature": "s"},
        {"type": "server_tool_use", "id": "s", "name": "search", "input": {"q": "secret"}},
        {"type": "text", "text": "So"},
        {"type": "tool_use", "id": "c", "name": "t", "input": {"a": 1}},
    ]
    [one] = shown({"role": "assistant", "content": blocks})
    assert one == ai("So", None, [{"name": "t", "args": {"a": 1}, "id": "c", "type": "tool_call"}])


def test_a_thread_shows_no_system_message_and_the_model_is_told_it() -> None:
    [one] = asked([{"type": "system", "content": "Be brief."}], "m")
    assert (one.message, one.shown) == ({"role": "system", "content": "Be brief."}, [])


def test_a_request_keeps_ids_and_of_what_does_not_follow_from_its_messages_all() -> None:
    [human] = asked([{"type": "human", "content": "Hi", "id": "h"}], "m")
    assert human.kept() == ["h"]
    said = [ai("a", "1"), plain("tool", "r", "2"), ai("b", "3")]
    assert Asked({"role": "assistant", "content": "ab"}, said).kept() == said


@pytest.mark.parametrize(
    ("given", "place"),
    [
        (5, "input.messages"),
        ({"content": "x"}, "input.messages.type"),
        ([{"type": "remove", "id": "1"}], "input.messages[0].type"),
        ([{"type": "human", "content": 5}], "input.messages[0].content"),
        ([{"type": "human", "content": [{"type": "file"}]}], "input.messages[0].content[0].type"),
        ([{"type": "human", "content": [{"type": "image_url"}]}], "input.messages[0].content[0]"),
        ([{"type": "ai", "content": "", "tool_calls": 5}], "input.messages[0].tool_calls"),
        ([{"type": "ai", "content": "", "tool_calls": [5]}], "input.messages[0].tool_calls[0]"),
        ([{"type": "tool", "content": "x"}], "input.messages[0].tool_call_id"),
    ],
)
def test_a_message_that_cannot_be_had_is_refused_by_its_place(given: Any, place: str) -> None:
    assert refusal(input={"messages": given}).startswith(f"{place}:")


# -- a run ---------------------------------------------------------------------------------------------------------


def test_what_a_graph_would_be_configured_with_are_the_fields_of_a_start() -> None:
    schema = {"type": "object"}
    start = run(
        config={"configurable": {"model": "a/b", "max_tokens": 5}}, context={"output_schema": schema, "model": "c/d"}
    )
    assert start == {
        "model": "c/d",
        "max_tokens": 5,
        "output_schema": schema,
        "messages": [{"role": "user", "content": "Hi"}],
    }


def test_thinking_is_shown_if_it_was_asked_for() -> None:
    asked_for = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    assert run(context=asked_for)["show"] == ["thinking"]
    assert "show" not in run(context={"thinking": {"type": "disabled"}})


def test_tools_may_have_the_form_that_langchain_converts_them_to() -> None:
    function = {"name": "find", "description": "Finds.", "parameters": {"type": "object", "properties": {}}}
    own = {"name": "find", "description": "Finds.", "input_schema": {"type": "object", "properties": {}}}
    assert run(context={"tools": [{"type": "function", "function": function}, own]})["tools"] == [own, own]


@pytest.mark.parametrize(
    ("assistant", "start"),
    [("agent", {}), ("lastevent", {}), ("openai/gpt-5", {"model": "openai/gpt-5"}), ("support", {"agent": "support"})],
)
def test_an_assistant_is_an_agent_a_model_or_the_default_model(assistant: str, start: dict[str, str]) -> None:
    assert run(assistant_id=assistant) == {**start, "messages": [{"role": "user", "content": "Hi"}]}


def test_an_agent_may_be_given_what_is_no_messages() -> None:
    assert run(assistant_id="desk", input={"order": 5}) == {"agent": "desk", "input": {"order": 5}}


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"command": {"resume": "yes"}}, "command"),
        ({"interrupt_before": "*"}, "interrupt_before"),
        ({"after_seconds": 5}, "after_seconds"),
        ({"assistant_id": None}, "assistant_id"),
        ({"assistant_id": "what is this"}, "assistant_id"),
        ({"input": None}, "input"),
        ({"input": {"question": "x"}}, "input.question"),
        ({"stream_mode": ["values", "debug"]}, "stream_mode"),
        ({"on_disconnect": "stay"}, "on_disconnect"),
        ({"config": ["model"]}, "config"),
    ],
)
def test_what_cannot_be_had_is_refused_by_its_name(body: dict[str, Any], place: str) -> None:
    assert refusal(**body).startswith(f"{place}:")


def test_what_changes_nothing_is_named() -> None:
    body = {"assistant_id": "agent", "input": HI, "durability": "exit", "new_field": 1, "stream_subgraphs": False}
    body |= {"config": {"recursion_limit": 5, "configurable": {"user_name": "ann"}}, "feedback_keys": None}
    assert asked_run(body, [], None).ignored == [
        *("config.recursion_limit", "config.configurable.user_name", "durability", "new_field"),
    ]


def test_a_run_ends_without_a_client_only_after_the_time_in_which_one_comes_back() -> None:
    assert run(on_disconnect="cancel")["abandon_after_s"] == ABANDON_AFTER_S > 20
    assert "abandon_after_s" not in run(on_disconnect="continue")


@pytest.mark.parametrize(
    ("given", "modes"),
    [
        ("values", ("values",)),
        (["values", "values", "updates"], ("values", "updates")),
        ([json.dumps(["custom", "messages"])], ("custom", "messages")),
        (["values", "custom", json.dumps(["values", "custom"])], ("values", "custom")),
        ([""], ()),
        (None, ()),
    ],
)
def test_modes_are_one_several_or_a_list_in_one(given: Any, modes: tuple[str, ...]) -> None:
    assert modes_of(given) == modes


def test_a_run_that_finds_another_one_waits_for_nobody_unless_it_says_so() -> None:
    assert strategy_of({}) == "enqueue"
    assert strategy_of({"multitask_strategy": "rollback"}) == "rollback"
    assert checkpoint_of({"checkpoint": {"checkpoint_id": "c", "checkpoint_ns": ""}}) == "c"
    assert checkpoint_of({"checkpoint_id": "d"}) == "d"


# -- in a thread ---------------------------------------------------------------------------------------------------


def test_a_run_s_messages_come_behind_those_of_the_thread_or_take_the_place_of_those_with_their_ids() -> None:
    before = asked([{"type": "human", "content": "One", "id": "1"}], "m")
    before.append(Asked({"role": "assistant", "content": [{"type": "text", "text": "A"}]}, [ai("A", "2")]))
    same = {"type": "ai", "content": "A", "id": "2"}
    changed = {"type": "human", "content": "Won", "id": "1"}
    made = asked_run({"assistant_id": "agent", "input": {"messages": [changed, same, "Two"]}}, before, "c")
    assert [message["content"] for message in made.start["messages"]] == ["Won", [{"type": "text", "text": "A"}], "Two"]
    assert made.kept["messages"] == [["1"], ["2"], [None]]
    assert made.echo["parent"] == "c"


def test_without_input_a_run_answers_again_what_the_thread_held() -> None:
    before = asked([{"type": "human", "content": "One", "id": "1"}], "m")
    assert asked_run({"assistant_id": "agent"}, before, "c").start["messages"] == [{"role": "user", "content": "One"}]


@pytest.mark.parametrize("kind", [[], ["text"], {}, {"a": 1}])
def test_a_part_whose_type_is_no_text_is_refused(kind: Any) -> None:
    assert "content[0].type" in refusal(input={"messages": [{"role": "user", "content": [{"type": kind}]}]})


@pytest.mark.parametrize("given", [None, True, False, 1])
def test_messages_that_are_none_are_refused(given: Any) -> None:
    assert refusal(input={"messages": given}).startswith("input.messages")


def test_more_texts_than_a_start_would_take_are_refused_before_they_are_read() -> None:
    assert refusal(input={"messages": ["Hi"] * 1001}) == "input.messages: at most 1000 messages"
    for message in ({"type": "human", "content": ["Hi"] * 20_001}, {"type": "human", "content": ["Hi"] * 7000}):
        assert "at most 20000 parts" in refusal(input={"messages": [message] * 3})
    result = {"type": "tool", "tool_call_id": "c1", "content": ["Hi"] * 7000}
    assert "at most 20000 parts" in refusal(input={"messages": [result] * 3})
    assert run(input={"messages": [{"type": "human", "content": ["Hi"] * 19_999}]})
