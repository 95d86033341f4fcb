"""What useChat and WorkflowChatTransport send, as native requests."""

from __future__ import annotations

from typing import Any

import pytest

from broker.dialects.ai_sdk_request import asked_of
from broker.errors import InvalidRequest
from broker.service.bodies import CreateStream

TEXT = {"type": "text", "text": "Hello"}


def user(*parts: Any) -> dict[str, Any]:
    return {"id": "u", "role": "user", "parts": list(parts) or [TEXT]}


def answer(*parts: Any) -> dict[str, Any]:
    return {"id": "a1", "role": "assistant", "parts": list(parts)}


def call(state: str = "output-available", **more: Any) -> dict[str, Any]:
    return {"type": "tool-ask", "toolCallId": "c1", "state": state, "input": {"q": 1}, **more}


def messages(*given: Any, **body: Any) -> Any:
    native = asked_of({"messages": list(given), **body}).native
    CreateStream.model_validate(native)
    return native["messages"]


def test_a_chat_is_a_session_and_texts_are_texts() -> None:
    body = {"id": "chat", "messages": [user()], "trigger": "submit-message", "messageId": None}
    native, message_id, ignored = asked_of(body)
    assert native == {"messages": [{"role": "user", "content": "Hello"}], "session_id": "chat"}
    assert (message_id, ignored) == (None, [])


def test_images_are_passed_on_and_other_files_are_refused() -> None:
    image = {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,QUJD", "filename": "a.png"}
    [said] = messages(user(TEXT, image, {**image, "url": "https://example.com/a.png", "mediaType": "image"}))
    assert [block["type"] for block in said["content"]] == ["text", "image", "image"]
    for media_type in ("audio/mp3", "application/pdf", "text/plain"):
        with pytest.raises(InvalidRequest, match=r"^messages\[0\]\.parts\[1\]\.mediaType: "):
            messages(user(TEXT, {**image, "mediaType": media_type}))


def test_an_answer_of_ours_sent_back_is_what_it_said() -> None:
    theirs = {**call("output-available", output=1), "providerExecuted": True}
    said = answer(
        {"type": "step-start"},
        {"type": "reasoning", "text": "Hm", "state": "done"},
        {"type": "text", "text": "One. ", "state": "done"},
        {"type": "source-url", "sourceId": "s1", "url": "https://example.com"},
        {**theirs, "type": "dynamic-tool", "toolName": "find", "input": None},
        {"type": "text", "text": "Two."},
        {"type": "data-restart", "data": {}},
        {"type": "text", "text": ""},
    )
    assert messages(user(), said, user())[1] == {
        "role": "assistant",
        "content": [{"type": "text", "text": "One. "}, {"type": "text", "text": "Two."}],
    }
    assert messages(user(), answer({"type": "reasoning", "text": "Hm"}), user())[0]["content"] == [
        {"type": "text", "text": "Hello"},
        {"type": "text", "text": "Hello"},
    ]


def test_a_pages_tool_is_a_call_and_behind_its_step_the_result() -> None:
    step = {"type": "step-start"}
    given = messages(user(), answer(step, TEXT, call(output={"a": "\u2028"}), step, {"type": "text", "text": "So."}))
    assert given[1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Hello"},
                {"type": "tool_use", "id": "c1", "name": "ask", "input": {"q": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": '{"a":"\\u2028"}'}]},
        {"role": "assistant", "content": "So."},
    ]


@pytest.mark.parametrize(
    ("part", "result"),
    [
        (call(output="plain"), {"content": "plain"}),
        (call(), {"content": "null"}),
        (call("output-error", errorText="No."), {"content": "No.", "is_error": True}),
        (call("output-denied"), {"content": "The call was not approved.", "is_error": True}),
        ({**call(output=1), "type": "dynamic-tool", "toolName": "ask"}, {"content": "1"}),
    ],
)
def test_how_a_call_ended(part: dict[str, Any], result: dict[str, Any]) -> None:
    said = messages(user(), answer(part))
    assert said[2]["content"] == [{"type": "tool_result", "tool_use_id": "c1", **result}]


@pytest.mark.parametrize("state", ["input-streaming", "input-available", "approval-requested", "approval-responded"])
def test_a_call_without_a_result_is_left_out(state: str) -> None:
    assert len(messages(user(), answer(call(state)))) == 1


def test_unparsable_arguments_come_back_as_the_text_that_they_were() -> None:
    broken = {**call("output-error", errorText="x"), "input": None, "rawInput": '{"q":'}
    assert messages(user(), answer(broken))[1]["content"][0]["input"] == '{"q":'


def test_an_answer_that_goes_on_names_its_message() -> None:
    assert asked_of({"messages": [user(), answer(call(output=1))]}).message_id == "a1"
    assert asked_of({"messages": [user(), answer(TEXT), user()]}).message_id is None
    with pytest.raises(InvalidRequest, match=r"^messages\[1\]\.id: "):
        asked_of({"messages": [user(), {**answer(TEXT), "id": "x" * 300}]})


def test_an_app_says_more_in_native_fields_and_of_others_it_is_told() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    more = {"model": "fast", "max_tokens": 5, "output_schema": schema, "tools": [{"name": "ask"}], "user_id": "ann"}
    native, _, ignored = asked_of({"messages": [user()], **more, "color": "red", "session_id": "x", "producer": "y"})
    assert {name: native[name] for name in more} == more
    assert ignored == ["color", "session_id", "producer"]
    assert "session_id" not in native


def test_system_messages_are_the_system_beside_the_apps_own() -> None:
    given = [{"id": "s", "role": "system", "parts": [{"type": "text", "text": "Be kind."}]}, user()]
    blocks = [{"type": "text", "text": "Be brief."}]
    for own, system in (
        (None, "Be kind."),
        ("Be brief.", "Be brief.\n\nBe kind."),
        (blocks, [*blocks, {"type": "text", "text": "Be kind."}]),
    ):
        assert asked_of({"messages": given, "system": own}).native["system"] == system
    assert asked_of({"messages": [user()], "system": "Be brief."}).native["system"] == "Be brief."
    with pytest.raises(InvalidRequest, match=r"^system: "):
        asked_of({"messages": given, "system": 7})


def test_thinking_is_shown_to_who_asks_for_it() -> None:
    shown = [
        asked_of({"messages": [user()], **body}, show=show).native.get("show")
        for body, show in (
            ({}, None),
            ({}, "thinking"),
            ({"thinking": {"type": "adaptive"}}, None),
            ({"thinking": {"type": "disabled"}}, None),
            ({"thinking": {"type": "enabled"}, "show": []}, None),
            ({"agent": "support"}, "thinking"),
        )
    ]
    assert shown == [None, ["thinking"], ["thinking"], None, [], None]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [7]}, r"messages\[0\]"),
        ({"messages": [{"role": "user", "content": "x"}]}, r"messages\[0\]\.parts"),
        ({"messages": [{"parts": []}]}, r"messages\[0\]\.role"),
        ({"messages": [{"role": "tool", "parts": []}]}, r"messages\[0\]\.role"),
        ({"messages": [user({"text": "x"})]}, r"messages\[0\]\.parts\[0\]\.type"),
        ({"messages": [user({"type": "text", "text": 7})]}, r"messages\[0\]\.parts\[0\]\.text"),
        ({"messages": [user({"type": "video-part"})]}, r"messages\[0\]\.parts\[0\]\.type"),
        ({"messages": [answer({"type": "file", "mediaType": "image/png"})]}, r"messages\[0\]\.parts\[0\]\.type"),
        ({"messages": [answer(call("lost"))]}, r"messages\[0\]\.parts\[0\]\.state"),
        ({"messages": [user()], "id": 7}, "id"),
    ],
)
def test_what_cannot_be_passed_on_is_refused_at_its_place(body: dict[str, Any], place: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{place}: "):
        asked_of(body)
