"""The assistant's message, put together from the events of an answer."""

from __future__ import annotations

from typing import Any

import pytest

from broker.errors import LogDamaged
from broker.log.event import Event, encode_data
from broker.log.turn import literal, message


def events(*said: tuple[str, Any]) -> list[Event]:
    return [Event(at, kind, encode_data(data), 0) for at, (kind, data) in enumerate((("queued", {}), *said), 1)]


def text(said: str) -> tuple[str, Any]:
    return "text_delta", {"text": said}


def thought(said: str) -> tuple[str, Any]:
    return "thinking_delta", {"text": said}


def turn(native: Any, provider: str = "anthropic", model: str = "claude-haiku-4-5") -> tuple[str, Any]:
    return "internal.turn", {
        "turn": 0,
        "provider": provider,
        "model": model,
        "stop_reason": "tool_use",
        "native": native,
    }


def call(call_id: str, args: Any, *pieces: str, tool: str = "weather", client: bool = True) -> list[tuple[str, Any]]:
    names = {"tool_call_id": call_id, "tool": tool}
    return [
        ("tool_start", {**names, "client": True} if client else names),
        *(("tool_args_delta", {**names, "partial_json": piece}) for piece in pieces),
        ("tool_args", {**names, "args": args, "complete": True}),
    ]


def of(what: str, **which: Any) -> dict[str, Any]:
    return {"$lastevent": what, **which}


def said(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def block(of_text: str) -> dict[str, Any]:
    return {"type": "text", "text": of_text}


DONE = ("done", {"stop_reason": "end_turn"})
CLAUDE = {"provider": "anthropic", "model": "claude-haiku-4-5"}


def test_an_answer_of_one_text_is_one_block() -> None:
    assert message(events(("start", {}), text("Grüße, "), text("🙂"), DONE)) == said(block("Grüße, 🙂"))


def test_an_answer_without_words_is_no_block() -> None:
    assert message(events(text(" \n"), ("error", {"code": "provider_cut"}))) == said()


def test_what_came_before_the_last_restart_is_forgotten() -> None:
    before = [text("no"), *call("c1", {}), turn([block("no")]), ("restart", {"attempt": 2})]
    assert message(events(*before, text("yes"), DONE)) == said(block("yes"))


def test_anthropics_blocks_come_back_as_they_were() -> None:
    native = [
        {"type": "thinking", "thinking": of("thinking", characters=3), "signature": "sig=="},
        {"type": "redacted_thinking", "data": "xyz"},
        {"type": "text", "text": of("text", characters=2), "citations": [{"url": "http://a.example"}]},
        {"type": "text", "text": of("text", characters=3)},
        {"type": "tool_use", "id": "c1", "name": "weather", "input": of("input", tool_call_id="c1")},
    ]
    log = [thought("hm"), thought("m"), text("🙂a"), text("bc"), text("d"), *call("c1", {"at": "Győr"}), turn(native)]
    assert message(events(*log, ("done", {"stop_reason": "tool_use"}))) == {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hmm", "signature": "sig=="},
            {"type": "redacted_thinking", "data": "xyz"},
            {**block("🙂a"), "citations": [{"url": "http://a.example"}]},
            block("bcd"),
            {"type": "tool_use", "id": "c1", "name": "weather", "input": {"at": "Győr"}},
        ],
        "native": CLAUDE,
    }


NATIVE = {
    "openai": (
        [
            {"type": "reasoning", "summary": [{"text": of("thinking", characters=2)}], "encrypted_content": "e"},
            {"type": "message", "content": [{"type": "output_text", "text": of("text", characters=5)}]},
            {"type": "function_call", "call_id": "c1", "arguments": of("args", tool_call_id="c1")},
        ],
        [
            {"type": "reasoning", "summary": [{"text": "hm"}], "encrypted_content": "e"},
            {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]},
            {"type": "function_call", "call_id": "c1", "arguments": '{"at": "Győr"}'},
        ],
    ),
    "openai-chat": (
        {"role": "assistant", "content": of("text", characters=5), "tool_calls": [of("args", tool_call_id="c1")]},
        {"role": "assistant", "content": "Hello", "tool_calls": ['{"at": "Győr"}']},
    ),
    "gemini": (
        [
            {"text": of("thinking", characters=2), "thought": True},
            {"text": of("text", characters=5), "thoughtSignature": "c2ln"},
            {"functionCall": {"name": "weather", "args": of("input", tool_call_id="c1")}},
        ],
        [
            {"text": "hm", "thought": True},
            {"text": "Hello", "thoughtSignature": "c2ln"},
            {"functionCall": {"name": "weather", "args": {"at": "Győr"}}},
        ],
    ),
}


@pytest.mark.parametrize("provider", NATIVE)
def test_others_forms_stand_beside_blocks_for_any_model(provider: str) -> None:
    native, content = NATIVE[provider]
    log = [thought("hm"), text("Hel"), text("lo"), *call("c1", {"at": "Győr"}, '{"at": ', '"Győr"}')]
    made = message(events(*log, turn(native, provider, "m"), DONE))
    assert made == {
        **said(block("Hello"), {"type": "tool_use", "id": "c1", "name": "weather", "input": {"at": "Győr"}}),
        "native": {"provider": provider, "model": "m", "content": content},
    }


def test_blocks_for_any_model_are_in_the_order_in_which_they_were_said() -> None:
    log = [text("a"), *call("c1", {}, ""), text("b"), *call("c2", {"x": [1]}), turn([], "gemini")]
    assert message(events(*log))["content"] == [
        block("a"),
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {}},
        block("b"),
        {"type": "tool_use", "id": "c2", "name": "weather", "input": {"x": [1]}},
    ]


def test_a_call_that_the_provider_ran_itself_is_for_itself_alone() -> None:
    log = [text("a"), *call("s1", {"query": "q"}, client=False), turn([], "openai", "m")]
    assert message(events(*log))["content"] == [block("a")]


def test_turns_of_one_answer_are_one_message() -> None:
    """Anthropic's pause_turn: the turn was sent back, and it went on."""
    first = [{"type": "text", "text": of("text", characters=1)}, {"type": "server_tool_use", "id": "s1", "input": {}}]
    second = [{"type": "text", "text": of("text", characters=2)}]
    log = [text("a"), turn(first), text("bc"), turn(second), DONE]
    assert message(events(*log)) == {
        **said(block("a"), {"type": "server_tool_use", "id": "s1", "input": {}}, block("bc")),
        "native": CLAUDE,
    }


def test_turns_that_are_one_text_have_no_event_and_keep_their_places() -> None:
    native = [{"type": "text", "text": of("text", characters=2), "citations": []}]
    log = [text("plain"), text("ab"), turn(native), text("then"), DONE]
    assert message(events(*log))["content"] == [block("plain"), {**block("ab"), "citations": []}, block("then")]


def test_an_answer_of_two_models_is_for_any_model() -> None:
    log = [text("a"), turn([{"type": "text", "text": of("text", characters=1)}]), text("b"), turn([], "openai", "m")]
    assert message(events(*log)) == said(block("ab"))


@pytest.mark.parametrize("ending", [("error", {"code": "provider_cut"}), ("cancelled", {"reason": "requested"})])
def test_of_a_turn_that_was_cut_the_text_is_left(ending: tuple[str, Any]) -> None:
    """No provider takes a call back whose result never comes."""
    log = [text("Let me see."), *call("c1", {"at": "Győr"}), ending]
    assert message(events(*log)) == said(block("Let me see."))


def test_a_call_that_max_tokens_cut_is_left_out() -> None:
    cut = [("tool_start", {"tool_call_id": "c2", "tool": "t", "client": True})]
    log = [text("a"), *call("c1", {}), *cut, turn([{"text": of("text", characters=1)}], "gemini", "m")]
    assert [one["type"] for one in message(events(*log))["content"]] == ["text", "tool_use"]


def test_arguments_that_came_at_once_are_json_text_too() -> None:
    native = [{"arguments": of("args", tool_call_id="c1")}]
    made = message(events(*call("c1", {"a": 1}), turn(native, "openai", "m")))
    assert made["native"]["content"] == [{"arguments": '{"a":1}'}]


def kept_back(*said: tuple[str, Any]) -> list[tuple[str, Any]]:
    kinds = ("thinking_delta", "tool_args_delta", "tool_args")
    return [(f"internal.{kind}" if kind in kinds else kind, data) for kind, data in said]


TRACE = ("internal.trace", {"model": "anthropic/m", "code": "provider_cut", "message": "gone"})


@pytest.mark.parametrize("names", [list, lambda said: kept_back(*said)], ids=["public", "internal"])
def test_thinking_and_arguments_count_under_both_of_their_names(names: Any) -> None:
    native = [
        {"type": "thinking", "thinking": of("thinking", characters=3), "signature": "s"},
        {"type": "tool_use", "id": "c1", "name": "weather", "input": of("input", tool_call_id="c1")},
        {"json": of("args", tool_call_id="c1")},
    ]
    spoken = names([thought("hmm"), *call("c1", {"in": "Oslo"}, '{"in":', '"Oslo"}')])
    assert message(events(*spoken, turn(native)))["content"] == [
        {"type": "thinking", "thinking": "hmm", "signature": "s"},
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"in": "Oslo"}},
        {"json": '{"in":"Oslo"}'},
    ]


def test_a_try_that_failed_in_silence_leaves_its_thinking_and_nothing_of_it_is_in_the_message() -> None:
    native: list[Any] = [{"type": "thinking", "thinking": of("thinking", characters=6), "signature": "s"}]
    native.append({"type": "text", "text": of("text", characters=4)})
    in_vain = kept_back(thought("nonsense"), *call("c1", {"x": 1}, '{"x":1}', client=False))
    said_again = kept_back(thought("he "), thought("asks"))
    made = message(events(*in_vain, TRACE, *said_again, text("Oslo"), turn(native)))
    assert made["content"][0]["thinking"] == "he ask"
    with pytest.raises(LogDamaged):
        message(events(*in_vain, TRACE, turn([of("args", tool_call_id="c1")])))


def test_of_an_answer_that_ended_in_a_failure_the_text_is_left() -> None:
    assert message(events(thought("hm"), text("As far as "), TRACE, ("error", {}))) == said(block("As far as "))


def test_of_agents_the_text_alone_is_left_of_the_conversation() -> None:
    kind, told = turn(None)
    one, other = (kind, {**told, "agent": ""}), (kind, {**told, "agent": "researcher.1"})
    found = ("internal.thinking_delta", {"text": "deep", "agent": "researcher.1"})
    failed = (TRACE[0], {**TRACE[1], "agent": "researcher.1"})
    whole = events(text("Let me see. "), one, found, failed, other, text("Oslo."), one)
    assert message(whole) == said(block("Let me see. Oslo."))


def test_what_only_looks_like_a_reference_is_itself() -> None:
    """A tool may answer anything."""
    answer = {"rows": [{"$lastevent": "text", "characters": 3}, {"$lastevent": None}]}
    native = [{"type": "mcp_tool_result", "content": literal(answer)}, literal({"plain": 1})]
    assert message(events(turn(native)))["content"] == [{"type": "mcp_tool_result", "content": answer}, {"plain": 1}]


@pytest.mark.parametrize(
    "native",
    [
        of("text", characters=4),
        of("thinking", characters=1),
        *(of("text", characters=odd) for odd in (-1, True, 1.0, "1", None)),
        of("text"),
        *(of(what, tool_call_id="c9") for what in ("args", "input")),
        *(of("input", tool_call_id=odd) for odd in (None, 5, [])),
        *(of(odd) for odd in ("literal", "other", 7, None, ["text"], {})),
    ],
)
def test_a_reference_that_leads_nowhere_is_a_damaged_log(native: Any) -> None:
    with pytest.raises(LogDamaged, match="refers to what is not in its log"):
        message(events(text("abc"), *call("c1", {}), turn([native])))


@pytest.mark.parametrize("said_of_it", [{}, {"provider": "anthropic", "model": "m", "native": {}}, {"native": [1]}])
def test_a_turn_of_another_form_is_a_damaged_log(said_of_it: Any) -> None:
    with pytest.raises(LogDamaged):
        message(events(("internal.turn", said_of_it)))


def test_data_of_another_shape_says_nothing() -> None:
    """An external producer may write any."""
    odd = [
        ("text_delta", {"text": 5}),
        ("tool_start", {"tool_call_id": []}),
        ("tool_args_delta", {"tool_call_id": "c"}),
    ]
    assert message(events(*odd, text("ok"))) == said(block("ok"))
