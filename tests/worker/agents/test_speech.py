"""What of a model's turn is written, under which name, and which calls are in it."""

from __future__ import annotations

from typing import Any

import pytest

from worker.agents.speech import Speech, attributed

Event = tuple[str, dict[str, Any]]


def call(call_id: str, tool: str = "look", **fields: Any) -> list[Event]:
    told = {"tool_call_id": call_id, "tool": tool}
    return [
        ("tool_start", {**told, **fields}),
        ("tool_args_delta", {**told, "partial_json": "{}"}),
        ("tool_args", {**told, "args": {}, "complete": True}),
    ]


def shown(speech: Speech, *events: Event) -> list[Event]:
    return [told for event in events for told in speech.shown(*event)]


def test_our_calls_begin_later_and_a_providers_own_are_told_as_they_come() -> None:
    speech = Speech("")
    events = shown(speech, *call("ours", client=True), *call("search", "web_search"))
    assert [(kind, data["tool_call_id"]) for kind, data in events] == [
        ("internal.tool_args_delta", "ours"),
        ("tool_start", "search"),
        ("internal.tool_args_delta", "search"),
        ("internal.tool_args", "search"),
    ]
    assert [one.id for one in speech.calls()] == ["ours"]


def test_arguments_are_shown_where_the_stream_shows_them_and_the_tool_is_public() -> None:
    speech = Speech("", show=frozenset({"args"}), hidden=["secret"])
    events = shown(speech, *call("a", client=True), *call("b", "secret", client=True))
    assert [(kind, data["tool_call_id"]) for kind, data in events] == [
        ("tool_args_delta", "a"),
        ("tool_args", "a"),
        ("internal.tool_args_delta", "b"),
    ]


def test_ids_that_a_model_uses_again_are_made_unique_and_it_is_answered_by_its_own() -> None:
    speech = Speech("", show=frozenset({"args"}))
    found = []
    for number in range(2):
        speech.begin(number)
        events = shown(speech, *call("call_0", client=True))
        [one] = speech.calls()
        found.append((one.id, one.native_id))
        assert {data["tool_call_id"] for _, data in events} == {one.id}
    assert found == [("call_0", "call_0"), ("call_0.1", "call_0")]


@pytest.mark.parametrize(("is_public", "prefix"), [(True, ""), (False, "internal.")])
def test_a_sub_agents_words_bear_its_path_and_are_never_the_answers_text(is_public: bool, prefix: str) -> None:
    speech = Speech("researcher.1", show=frozenset({"thinking"}), is_public=is_public)
    said = [("text_delta", {"text": "x"}), ("thinking_delta", {"text": "y"}), ("citation", {"url": "z"})]
    assert shown(speech, *said) == [
        (f"{prefix}agent_text_delta", {"agent": "researcher.1", "text": "x"}),
        (f"{prefix}thinking_delta", {"agent": "researcher.1", "text": "y"}),
        (f"{prefix}citation", {"agent": "researcher.1", "url": "z"}),
    ]
    assert speech.text == "x"


def test_of_a_sub_agent_that_is_not_public_users_see_that_its_tools_are_at_work_and_nothing_else() -> None:
    said = [("status", {"message": "Reading their letters"}), ("chart", {}), ("tool_progress", {"tool": "look"})]
    told = [attributed(*event, "reader.1", is_public=False)[0] for event in said]
    assert told == ["internal.status", "internal.chart", "tool_progress"]


def test_a_try_that_is_begun_again_has_said_nothing() -> None:
    speech = Speech("")
    shown(speech, ("text_delta", {"text": "x"}), *call("a", client=True))
    speech.begin(0)
    assert (speech.text, speech.calls()) == ("", [])
