"""What a request of Messages asks, in the native form."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.dialects.messages_request import read
from broker.errors import InvalidRequest
from broker.service.bodies import CreateStream

HELLO = [{"role": "user", "content": "Hello"}]
LEAST = {"model": "fast", "max_tokens": 10, "messages": HELLO}
FIND = {"name": "find", "description": "Finds", "input_schema": {"type": "object"}}


def native(**body: Any) -> dict[str, Any]:
    """A start takes it."""
    asked = read({**LEAST, **body}, 60).native
    CreateStream.model_validate(orjson.loads(orjson.dumps(asked)))
    return asked


def test_the_least_request() -> None:
    asked = read(LEAST, 60)
    assert asked.native == {**LEAST, "abandon_after_s": 60}
    assert (asked.model, asked.streams, asked.ignored) == ("fast", False, [])
    assert "abandon_after_s" not in read(LEAST, 0).native


def test_a_conversation_stays_as_it_is_but_for_thoughts_without_a_signature() -> None:
    signed = {"type": "thinking", "thinking": "Well", "signature": "c2ln"}
    call = {"type": "tool_use", "id": "c1", "name": "find", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "one"}]}
    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    unsigned = {"type": "thinking", "thinking": "Well", "signature": ""}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}, image]},
        {"role": "assistant", "content": [unsigned, signed, call]},
        {"role": "user", "content": [result]},
        {"role": "assistant", "content": [unsigned]},
        *HELLO,
    ]
    assert native(messages=messages)["messages"] == [
        messages[0],
        {"role": "assistant", "content": [signed, call]},
        messages[2],
        *HELLO,
    ]


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"system": [{"type": "text", "text": "Be brief."}]}, {"system": [{"type": "text", "text": "Be brief."}]}),
        ({"temperature": 1, "stop_sequences": ["A"]}, {"temperature": 1, "stop_sequences": ["A"]}),
        ({"tools": [FIND], "tool_choice": {"type": "any"}}, {"tools": [FIND], "tool_choice": {"type": "any"}}),
        (
            {"tools": [{"type": "bash_20250124", "name": "bash"}]},
            {"tools": [{"type": "bash_20250124", "name": "bash"}]},
        ),
        ({"metadata": {"user_id": "ann"}}, {"user_id": "ann"}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
            {"thinking": {"type": "enabled", "budget_tokens": 2048}, "show": ["thinking"]},
        ),
        ({"thinking": {"type": "disabled"}}, {"thinking": {"type": "disabled"}}),
        (
            {"thinking": {"type": "adaptive", "display": "omitted"}},
            {"thinking": {"type": "adaptive", "display": "omitted"}},
        ),
        (
            {"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {"effort": "low", "output_schema": {"type": "object"}},
        ),
        (
            {"output_format": {"type": "json_schema", "schema": {"type": "object"}}},
            {"output_schema": {"type": "object"}},
        ),
        ({"mcp_servers": [], "container": None}, {}),
    ],
)
def test_parameters(given: dict[str, Any], asked: dict[str, Any]) -> None:
    assert native(**given) == {**LEAST, "abandon_after_s": 60, **asked}


@pytest.mark.parametrize(
    ("place", "given"),
    [
        ("model", {"model": None}),
        ("max_tokens", {"max_tokens": None}),
        ("max_tokens", {"max_tokens": True}),
        ("messages", {"messages": {}}),
        ("messages[0].role", {"messages": [{"content": "a"}]}),
        ("messages[0].content", {"messages": [{"role": "user"}]}),
        ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]}),
        (
            "messages[0].content[0].source.type",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "a"}}]}
                ]
            },
        ),
        (
            "messages[0].content[0].content[0].type",
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "audio"}]}]}]},
        ),
        ("tools[0].type", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        ("mcp_servers", {"mcp_servers": [{"type": "url"}]}),
        ("container", {"container": "a"}),
        ("fallbacks", {"fallbacks": [{"model": "a"}]}),
        ("output_config.format.type", {"output_config": {"format": {"type": "xml"}}}),
        ("stream", {"stream": 1}),
    ],
)
def test_what_cannot_be_had_is_refused_by_its_name(place: str, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read({**LEAST, **given}, 60)
    assert str(refused.value).partition(": ")[0] == place


def test_what_cannot_hurt_is_named_if_its_name_is_one() -> None:
    odd = {"top_p": 1, "top_k": 3, "service_tier": "auto", "context_management": {}, "Bad\r\nName": 1, "x" * 99: 1}
    config = {"effort": "low", "task_budget": {}}
    asked = read({**LEAST, "metadata": {"user_id": "a\nb"}, "output_config": config, **odd}, 60)
    assert "user_id" not in asked.native
    assert asked.ignored == [
        *("context_management", "metadata.user_id", "output_config.task_budget"),
        *("service_tier", "top_k", "top_p"),
    ]


_SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "user", "thinking", "image", "text"])
_ANY = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "role", "content", "source", "format", "user_id", "display"]), inner)
    ),
    max_leaves=8,
)
_FIELDS = (
    *("messages", "tools", "tool_choice", "stop_sequences", "stream", "system", "thinking", "output_config"),
    *("output_format", "metadata", "max_tokens", "mcp_servers", "x"),
)


@given(st.dictionaries(st.sampled_from(_FIELDS), _ANY | st.sampled_from([HELLO, [FIND]])))
def test_any_body_is_taken_or_refused(body: dict[str, Any]) -> None:
    with suppress(InvalidRequest, ValidationError):
        native(**body)


@pytest.mark.parametrize(
    "block",
    [{"type": ["text"]}, {"type": {"a": 1}}, {"type": "image", "source": {"type": [], "data": "AAAA"}}],
)
def test_a_type_that_is_no_text_is_refused(block: dict[str, Any]) -> None:
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [block]}
    for content in ([block], [result]):
        with pytest.raises(InvalidRequest):
            read({**LEAST, "messages": [{"role": "user", "content": content}]}, 60)
