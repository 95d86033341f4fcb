"""What a request of Chat Completions asks, in the native form."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.dialects.chat_request import read
from broker.errors import InvalidRequest
from broker.service.bodies import CreateStream

HELLO = [{"role": "user", "content": "Hello"}]
SAID = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
FIND = {"type": "function", "function": {"name": "find", "description": "Finds", "parameters": {"type": "object"}}}
PNG = "data:image/png;base64,QUJD"


def native(**body: Any) -> dict[str, Any]:
    """A start takes it."""
    asked = read({"model": "fast", "messages": HELLO, **body}, 60).native
    CreateStream.model_validate(orjson.loads(orjson.dumps(asked)))
    return asked


def test_the_least_request() -> None:
    asked = read({"model": "fast", "messages": HELLO}, 60)
    assert asked.native == {"model": "fast", "messages": SAID, "abandon_after_s": 60}
    assert (asked.model, asked.streams, asked.include_usage, asked.ignored) == ("fast", False, False, [])
    assert "abandon_after_s" not in read({"model": "fast", "messages": HELLO}, 0).native


def test_a_conversation_with_tools_and_an_image() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": PNG}}],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Well",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q":1}'}},
                {"id": "c2", "type": "function", "function": {"name": "find", "arguments": "{"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "two"}]},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": "And?"},
    ]
    asked = native(messages=messages, tools=[FIND])
    assert asked["system"] == "Be brief.\n\nBe kind."
    assert asked["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What?"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "c1", "name": "find", "input": {"q": 1}},
                {"type": "tool_use", "id": "c2", "name": "find", "input": "{"},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "one"},
                {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "two"}]},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    assert asked["tools"] == [{"name": "find", "description": "Finds", "input_schema": {"type": "object"}}]


@pytest.mark.parametrize(
    ("given", "choice"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": {"type": "function", "function": {"name": "find"}}}, {"type": "tool", "name": "find"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": True}, None),
    ],
)
def test_which_tool(given: dict[str, Any], choice: dict[str, Any] | None) -> None:
    assert native(tools=[FIND], **given).get("tool_choice") == choice


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 9}, {"max_tokens": 5}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["A", "B"]}, {"stop_sequences": ["A", "B"]}),
        (
            {"temperature": 0.5, "user": "ann", "metadata": {"a": "b"}},
            {"temperature": 0.5, "user_id": "ann", "metadata": {"a": "b"}},
        ),
        ({"reasoning_effort": "low"}, {"effort": "low", "show": ["thinking"]}),
        ({"reasoning_effort": "none"}, {"effort": "none"}),
        ({"response_format": {"type": "text"}}, {}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}},
            {"output_schema": {"type": "object"}},
        ),
        ({"n": 1, "logprobs": False, "logit_bias": {}, "modalities": ["text"], "seed": None, "tools": []}, {}),
    ],
)
def test_parameters(given: dict[str, Any], asked: dict[str, Any]) -> None:
    assert native(**given) == {"model": "fast", "messages": SAID, "abandon_after_s": 60, **asked}


@pytest.mark.parametrize(
    ("place", "given"),
    [
        ("model", {"model": None}),
        ("model", {"model": 7}),
        ("messages", {"messages": []}),
        ("messages", {"messages": None}),
        ("messages", {"messages": [{"role": "system", "content": "a"}]}),
        ("messages[1].role", {"messages": [*HELLO, {"role": "function", "name": "f", "content": "a"}]}),
        ("messages[0]", {"messages": ["a"]}),
        ("messages[0].content", {"messages": [{"role": "user"}]}),
        ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}),
        ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}),
        (
            "messages[0].content[0].image_url.url",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///a"}}]}]},
        ),
        ("messages[0].audio", {"messages": [{"role": "assistant", "audio": {"id": "a"}}]}),
        ("messages[0].tool_calls[0].function", {"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}),
        ("messages[0].tool_call_id", {"messages": [{"role": "tool", "content": "a"}]}),
        ("n", {"n": 2}),
        ("n", {"n": True}),
        ("logprobs", {"logprobs": True}),
        ("top_logprobs", {"top_logprobs": 3}),
        ("logit_bias", {"logit_bias": {"50256": -100}}),
        ("seed", {"seed": 0}),
        ("audio", {"audio": {"voice": "a"}}),
        ("modalities", {"modalities": ["text", "audio"]}),
        ("web_search_options", {"web_search_options": {}}),
        ("functions", {"functions": [{"name": "a"}]}),
        ("response_format.type", {"response_format": {"type": "json_object"}}),
        ("response_format.json_schema", {"response_format": {"type": "json_schema"}}),
        ("tools[0].type", {"tools": [{"type": "custom", "custom": {"name": "a"}}]}),
        ("tools[0].function.name", {"tools": [{"type": "function", "function": {}}]}),
        ("tool_choice", {"tools": [FIND], "tool_choice": {"type": "allowed_tools"}}),
        ("tool_choice", {"tool_choice": "required"}),
        ("stream", {"stream": "yes"}),
        ("stream_options", {"stream_options": [1]}),
    ],
)
def test_what_cannot_be_had_is_refused_by_its_name(place: str, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read({"model": "fast", "messages": HELLO, **given}, 60)
    assert str(refused.value).partition(": ")[0] == place


def test_what_cannot_hurt_is_named_if_its_name_is_one() -> None:
    odd = {
        "top_p": 1,
        "seed": None,
        "verbosity": "low",
        "new_field": 1,
        "Bad\r\nName": 1,
        "x" * 99: 1,
        "prediction": {},
    }
    named = [{"role": "user", "content": "Hello", "name": "ann"}]
    asked = read({"model": "fast", "messages": named, "max_tokens": 1, "max_completion_tokens": 1, **odd}, 60)
    assert asked.ignored == ["max_tokens", "messages.name", "new_field", "prediction", "top_p", "verbosity"]


def test_arguments_that_would_take_long_to_read_are_refused() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "[" + "1," * 40_000 + "1]"}}
    few, many = ([*HELLO, {"role": "assistant", "tool_calls": [call] * count}] for count in (4, 6))
    assert native(messages=few)["messages"][1]["content"][3]["input"][-1] == 1
    with pytest.raises(InvalidRequest, match=r"^messages: the arguments of all calls"):
        native(messages=many)


def test_how_it_is_answered() -> None:
    asked = read({"model": "fast", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}, 60)
    assert (asked.streams, asked.include_usage) == (True, True)


_SCALARS = (
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "user", "assistant", "tool", "function"])
)
_ANY = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "role", "content", "function", "tool_calls", "url", "text"]), inner)
    ),
    max_leaves=8,
)
_FIELDS = (
    *("messages", "tools", "tool_choice", "stop", "stream", "stream_options", "response_format", "reasoning_effort"),
    *("parallel_tool_calls", "max_tokens", "n", "logit_bias", "modalities", "user", "x"),
)


@given(st.dictionaries(st.sampled_from(_FIELDS), _ANY | st.sampled_from([HELLO, [FIND]])))
def test_any_body_is_taken_or_refused(body: dict[str, Any]) -> None:
    with suppress(InvalidRequest, ValidationError):
        native(**body)
