"""What POST /v1/responses takes, as the native request has it; what is refused by its name; what is left out."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.dialects.responses_input import input_items
from broker.dialects.responses_request import (
    Asked,
    Former,
    former_of,
    previous,
    referred,
    sid_of_item,
    to_native,
)
from broker.errors import InvalidRequest
from broker.service.bodies import CreateStream

Json = dict[str, Any]
SID = "0f" * 16
PNG = "data:image/png;base64,AAAA"
ANSWER: Json = {"role": "assistant", "content": [{"type": "text", "text": "Said."}], "native": {"provider": "p"}}
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}


def asked(**fields: Any) -> Asked:
    answers, former = fields.pop("answers", {}), fields.pop("former", None)
    body = {"model": "m", "input": "Hi", **fields}
    made = to_native(body, answers=answers, former=former, shows_thinking=False, abandon_after_s=60)
    CreateStream.model_validate(made.body)
    return made


def messages(*items: Json, **fields: Any) -> list[Json]:
    said: list[Json] = asked(input=list(items), **fields).body["messages"]
    return said


def user(content: Any) -> Json:
    return {"role": "user", "content": content}


def text(said: str) -> Json:
    return {"type": "text", "text": said}


# ---- What is said


def test_a_text_is_a_users_message() -> None:
    assert asked().body == {"model": "m", "messages": [user("Hi")], "abandon_after_s": 60}


def test_an_item_without_a_type_is_a_message() -> None:
    assert messages({"role": "user", "content": "Hi"}) == [user("Hi")]


def test_texts_and_images_are_blocks() -> None:
    parts = [{"type": "input_text", "text": "Look."}, {"type": "input_image", "image_url": PNG, "detail": "low"}]
    [said] = messages({"type": "message", "role": "user", "content": parts})
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    assert said == user([text("Look."), image])


def test_what_is_said_in_the_roles_system_and_developer_stands_behind_the_instructions() -> None:
    made = asked(
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
            {"role": "user", "content": "Hi"},
            {"role": "system", "content": "Be true."},
        ],
    )
    assert made.body["system"] == "Be brief.\n\nBe kind.\n\nBe true."
    assert made.kept == {"system": "Be kind.\n\nBe true."}
    assert made.echo == {"instructions": "Be brief."}


def test_an_answer_of_ours_sent_back_is_one_message_and_the_results_of_its_calls_are_the_next() -> None:
    call = {"type": "function_call", "id": f"fc_{SID}_2", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
    said = messages(
        {"role": "user", "content": "Hi"},
        {"type": "reasoning", "id": f"rs_{SID}_0", "summary": []},
        {"type": "message", "id": f"msg_{SID}_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        call,
        {**call, "call_id": "c2"},
        {"type": "mcp_call", "id": f"mcp_{SID}_3", "name": "g", "arguments": "", "server_label": "lastevent"},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
        {"role": "user", "content": "And?"},
    )  # fmt: skip
    uses = [{"type": "tool_use", "id": name, "name": "f", "input": {"a": 1}} for name in ("c1", "c2")]
    assert said == [
        user("Hi"),
        {"role": "assistant", "content": [text("I look."), *uses]},
        user(
            [
                {"type": "tool_result", "tool_use_id": "c1", "content": "one"},
                {"type": "tool_result", "tool_use_id": "c2", "content": [text("two")]},
            ]
        ),
        user("And?"),
    ]


def test_what_two_users_messages_say_stays_two_messages() -> None:
    parts = [{"type": "input_text", "text": "b"}]
    assert messages({"role": "user", "content": "a"}, {"role": "user", "content": parts}) == [
        user("a"),
        user([text("b")]),
    ]


def test_an_assistants_empty_message_is_none() -> None:
    empty = {"role": "assistant", "content": [{"type": "output_text", "text": ""}]}
    assert messages({"role": "user", "content": "a"}, empty) == [user("a")]


def test_items_that_are_referred_to_stand_for_the_answer_they_are_of_once() -> None:
    items = [{"type": "item_reference", "id": f"msg_{SID}_{index}"} for index in range(2)]
    assert referred({"input": [*items, {"id": f"rs_{SID}_7"}]}) == [SID]
    said = messages(
        {"role": "user", "content": "Hi"}, *items, {"role": "user", "content": "And?"}, answers={SID: ANSWER}
    )
    assert said == [user("Hi"), ANSWER, user("And?")]


def test_a_call_of_an_answer_that_is_referred_to_is_not_made_twice() -> None:
    called = {**ANSWER, "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {}}]}
    said = messages(
        user("Hi"),
        {"type": "item_reference", "id": f"rs_{SID}_0"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        answers={SID: called},
    )
    assert said == [user("Hi"), called, user([{"type": "tool_result", "tool_use_id": "c1", "content": "one"}])]


def test_an_id_that_is_none_of_ours_is_refused() -> None:
    assert sid_of_item("msg_abc") is None
    with pytest.raises(InvalidRequest, match=r"^input\[0\]\.id: "):
        referred({"input": [{"type": "item_reference", "id": "msg_from_elsewhere"}]})


def test_a_former_response_goes_on_with_its_messages_and_without_its_instructions() -> None:
    assert previous({"previous_response_id": f"resp_{SID}"}) == SID
    former = former_of(
        {"messages": [user("Hi")], "system": "Be brief.\n\nBe kind.", "echo": {"system": "Be kind."}},
        *(ANSWER, "s-1"),
        is_ours=True,
    )
    assert former == Former([user("Hi"), ANSWER], "Be kind.", "s-1")
    made = asked(input="And?", previous_response_id=f"resp_{SID}", former=former, instructions="Be long.")
    assert made.body["messages"] == [user("Hi"), ANSWER, user("And?")]
    assert made.body["system"] == "Be long.\n\nBe kind."
    assert made.body["session_id"] == "s-1"


def test_a_former_stream_that_was_started_otherwise_goes_on_with_its_whole_system_prompt() -> None:
    asked_before = {"messages": [user("Hi")], "system": [text("One."), text("Two.")]}
    assert former_of(asked_before, ANSWER, "s", is_ours=False).system == "One.\n\nTwo."


def test_what_an_agent_was_asked_does_not_go_on() -> None:
    with pytest.raises(InvalidRequest, match=r"^previous_response_id: "):
        former_of({"agent": "a", "input": 1}, ANSWER, "s", is_ours=False)


# ---- How


@pytest.mark.parametrize(
    ("fields", "native"),
    [
        ({"max_output_tokens": 5}, {"max_tokens": 5}),
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"user": "ann"}, {"user_id": "ann"}),
        ({"metadata": {"a": "b"}}, {"metadata": {"a": "b"}}),
        ({"reasoning": {"effort": "low"}}, {"effort": "low"}),
        (
            {"reasoning": {"effort": "low", "summary": "auto"}},
            {"effort": "low", "thinking": {"type": "adaptive"}, "show": ["thinking"]},
        ),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {}),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}},
            {"output_schema": {"type": "object"}},
        ),
        ({"tools": [TOOL]}, {"tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]}),
        ({"tools": [], "tool_choice": "none", "parallel_tool_calls": False}, {}),
    ],
)
def test_fields(fields: Json, native: Json) -> None:
    assert asked(**fields).body == {**asked().body, **native}


@pytest.mark.parametrize(
    ("choice", "native"),
    [
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        ({"type": "function", "name": "f"}, {"type": "tool", "name": "f"}),
    ],
)
def test_tool_choice(choice: Any, native: Json) -> None:
    assert asked(tools=[TOOL], tool_choice=choice).body["tool_choice"] == native
    one = asked(tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
    assert one.body["tool_choice"] == {**native, "disable_parallel_tool_use": True}
    assert one.echo["parallel_tool_calls"] is False


def test_in_the_background_it_runs_on_without_a_viewer() -> None:
    made = asked(background=True, stream=True)
    assert made.is_background
    assert made.is_streamed
    assert "abandon_after_s" not in made.body


def test_what_cannot_hurt_is_left_out_and_named() -> None:
    made = asked(top_p=0.5, truncation="auto", store=True, service_tier="flex", include=[], something="new")
    assert made.ignored == ["top_p", "service_tier", "truncation"]
    assert made.body == asked().body
    assert made.echo == {}


def test_what_is_long_is_not_repeated() -> None:
    assert "instructions" not in asked(instructions="x" * 5000).echo
    assert asked(instructions="x" * 5000).kept == {"system": None}


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"model": None}, "model"),
        ({"model": 1}, "model"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x"]}, r"input\[0\]"),
        ({"input": [{"role": "nobody", "content": "x"}]}, r"input\[0\].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, r"input\[0\].content\[0\].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
         r"input\[0\].content\[0\].file_id"),
        ({"input": [{"type": "computer_call_output"}]}, r"input\[0\].type"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, r"input\[0\].name"),
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\].type"),
        ({"tools": [{"type": "function", "name": "f", "parameters": 1}]}, r"tools\[0\].parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format.type"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"reasoning": "much"}, "reasoning"),
    ],
)  # fmt: skip
def test_refused_by_its_name(fields: Json, place: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{place}: "):
        asked(**fields)


# ---- What was asked, once more


def test_what_any_stream_was_asked_can_be_listed_as_items() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    use = {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [text("one"), image]}
    request = {
        "messages": [
            user([text("Hi"), image]),
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, text("I look."), use]},
            user([result]),
        ]
    }
    items = input_items(request, SID)
    assert [item["type"] for item in items] == ["message", "message", "function_call", "function_call_output"]
    assert [part["type"] for part in items[0]["content"]] == ["input_text", "input_image"]
    assert items[1]["content"][0]["text"] == "I look."
    assert (items[2]["arguments"], items[3]["output"]) == ('{"a":1}', "one")
    assert len({item["id"] for item in items}) == 4


def test_of_blocks_that_nobody_has_looked_into_there_is_what_can_be_read() -> None:
    blocks: list[Json] = [{}, {"type": 1}, {"type": "text"}, {"type": "image", "source": 1}, {"type": "tool_use"}]
    results: list[Json] = [{"type": "tool_result", "content": content} for content in (None, 5, [1, {"text": 2}])]
    items = input_items({"messages": [user([*blocks, *results])]}, SID)
    assert [item["type"] for item in items] == ["message", "function_call", *["function_call_output"] * 3]


# ---- Anything

_NAMED = st.sampled_from(
    [
        *("type", "role", "content", "text", "image_url", "call_id", "name", "arguments", "output", "id", "parameters"),
        *("format", "schema", "effort", "summary"),
    ]
)
_WORDS = st.sampled_from(
    [
        *("message", "user", "assistant", "system", "input_text", "input_image", "function_call", "item_reference"),
        *("function_call_output", "function", "json_schema", "refusal", PNG, "c1", "", "{}", f"msg_{SID}_1"),
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMED, inner, max_size=4),
    max_leaves=12,
)
_FIELDS = st.sampled_from(
    [
        *("model", "input", "instructions", "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning", "user"),
        *("metadata", "max_output_tokens", "temperature", "stream", "background", "include", "top_logprobs"),
    ]
)


@given(fields=st.dictionaries(_FIELDS, _JSON, max_size=4), item=st.dictionaries(_NAMED, _JSON, max_size=5))
def test_whatever_is_asked_is_taken_or_refused_by_its_name(fields: Json, item: Json) -> None:
    body = {"model": "m", "input": [user("Hi"), item], **fields}
    try:
        answers = dict.fromkeys(referred(body), ANSWER)
        made = to_native(body, answers=answers, former=None, shows_thinking=True, abandon_after_s=None)
    except InvalidRequest as error:
        refusal = str(error)
    else:
        refusal = "model: it was taken"
        assert made.body["messages"]
        input_items(made.body, SID)
    assert re.match(r"[a-z_]+[\w.\[\]]*: ", refusal)
