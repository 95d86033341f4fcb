"""What of a RunAgentInput is passed on, what is refused, and what counts nothing."""

from __future__ import annotations

from typing import Any

import pytest

from broker.dialects.ag_ui_request import asked_of
from broker.errors import InvalidRequest
from broker.service.bodies import CreateStream


def body(**more: Any) -> dict[str, Any]:
    asked = {"threadId": "t", "runId": "r", "state": {}, "tools": [], "context": [], "forwardedProps": {}}
    return {**asked, "messages": [{"id": "1", "role": "user", "content": "Hi"}], **more}


def test_a_conversation_with_calls_results_and_images_is_passed_on() -> None:
    messages = [
        {"id": "0", "role": "developer", "content": "Be brief."},
        {"id": "1", "role": "user", "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image", "source": {"type": "url", "value": "https://example.com/a.png"}},
            {"type": "image", "source": {"type": "data", "value": "aGk=", "mimeType": "image/png"}},
            {"type": "binary", "mimeType": "image/png", "data": "aGk="},
        ]},
        {"id": "2", "role": "reasoning", "content": "Hm."},
        {"id": "3", "role": "assistant", "content": "I look.", "toolCalls": [
            {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q":1}'}},
        ]},
        {"id": "4", "role": "tool", "toolCallId": "c1", "content": "found"},
        {"id": "5", "role": "tool", "toolCallId": "c2", "content": "", "error": "no"},
        {"id": "6", "role": "activity", "activityType": "x", "content": {}},
    ]  # fmt: skip
    asked = asked_of(body(messages=messages, context=[{"description": "The page", "value": "/home"}]))
    assert asked.messages is messages
    assert asked.native["system"] == "Be brief.\n\nThe page:\n/home"
    user, assistant, results = asked.native["messages"]
    png = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    url = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    assert user == {"role": "user", "content": [{"type": "text", "text": "What is it?"}, url, png, png]}
    call = {"type": "tool_use", "id": "c1", "name": "find", "input": {"q": 1}}
    assert assistant == {"role": "assistant", "content": [{"type": "text", "text": "I look."}, call]}
    found = {"type": "tool_result", "tool_use_id": "c1", "content": "found"}
    failed = {"type": "tool_result", "tool_use_id": "c2", "content": "no", "is_error": True}
    assert results == {"role": "user", "content": [found, failed]}
    CreateStream.model_validate(asked.native)


def test_tools_are_the_callers_and_an_apps_own_fields_stand_in_forwarded_props() -> None:
    props = {"model": "anthropic/x", "output_schema": {"type": "object"}, "system": "Own.", "theme": "dark"}
    tools = [{"name": "ask", "description": "Asks.", "parameters": {"type": "object", "properties": {}}}]
    asked = asked_of(
        body(forwardedProps=props, tools=tools, state={"a": 1}, context=[{"description": "", "value": "c"}])
    )
    assert asked.native["tools"] == [{"name": "ask", "description": "Asks.", "input_schema": tools[0]["parameters"]}]
    assert asked.native["output_schema"] == {"type": "object"}
    assert asked.native["system"] == "Own.\n\nc"
    assert "theme" not in asked.native
    assert asked.ignored == ["state", "forwardedProps"]
    assert asked_of(body()).ignored == []


def test_thinking_that_is_asked_for_is_shown() -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    assert asked_of(body(forwardedProps={"thinking": thinking})).native["show"] == ["thinking"]
    assert asked_of(body(forwardedProps={"thinking": thinking, "show": []})).native["show"] == []
    assert "show" not in asked_of(body()).native


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"runId": ""}, "runId"),
        ({"threadId": "a\nb"}, "threadId"),
        ({"threadId": None}, "threadId"),
        ({"messages": "x"}, "messages"),
        ({"messages": [1]}, r"messages\[0\]"),
        ({"messages": [{"role": "robot"}]}, r"messages\[0\].role"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, r"messages\[0\].content\[0\].type"),
        ({"messages": [{"role": "assistant", "toolCalls": [{}]}]}, r"messages\[0\].toolCalls\[0\].function"),
        ({"resume": [{"interruptId": "1"}]}, "resume"),
        ({"tools": [{"name": 1}]}, r"tools\[0\].name"),
        ({"context": [{"description": "x"}]}, r"context\[0\].value"),
        ({"forwardedProps": {"system": 1}, "context": [{"description": "", "value": "c"}]}, "forwardedProps.system"),
    ],
)
def test_what_cannot_be_passed_on_is_refused_by_its_name(more: dict[str, Any], place: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{place}: "):
        asked_of(body(**more))
