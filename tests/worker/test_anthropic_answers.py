"""Anthropic's wire, byte for byte, through the real SDK over loopback HTTP: what an answer becomes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.rig.wire_peer import WirePeer, sse, wire_peer
from tests.worker.anthropic_events import (
    ASKED,
    THOUGHT,
    begin,
    block,
    call,
    delta,
    end,
    failure,
    internal,
    said,
    shown,
    stop,
    text,
)
from worker.providers.anthropic import AnthropicProvider
from worker.providers.provider import Counted


@pytest.fixture(scope="module")
async def peer() -> AsyncIterator[WirePeer]:
    async with wire_peer() as peer:
        yield peer


@pytest.fixture(scope="module")
async def provider(peer: WirePeer) -> AsyncIterator[AnthropicProvider]:
    provider = AnthropicProvider(api_key="sk-secret", base_url=peer.url, silence_s=10)
    yield provider
    await provider.aclose()


async def test_text_and_thinking_are_two_kinds_and_the_signature_is_kept(
    peer: WirePeer, provider: AnthropicProvider
) -> None:
    peer.says(sse(begin(), *THOUGHT, *text(1, "Hel", "lo"), *end()))
    events, finish = await said(provider)
    assert shown(events) == [
        ("thinking_delta", {"text": "Hm. "}),
        ("thinking_delta", {"text": "Yes."}),
        ("text_delta", {"text": "Hel"}),
        ("text_delta", {"text": "lo"}),
    ]
    assert internal(events) == [THOUGHT[3]]
    assert finish.native == [
        {"type": "thinking", "thinking": {"$lastevent": "thinking", "characters": 8}, "signature": "c2ln"},
        {"type": "text", "text": {"$lastevent": "text", "characters": 5}},
    ]
    assert (finish.model, finish.response_id) == ("claude-x-20260101", "msg_1")


async def test_one_text_and_nothing_else_has_no_other_form(peer: WirePeer, provider: AnthropicProvider) -> None:
    peer.says(sse(begin(), *text(0, "Hello"), block(1, "text", text=""), stop(1), *end()))
    _, finish = await said(provider)
    assert finish.native is None


async def test_two_calls_in_a_turn_are_two_whatever_their_pieces_are(
    peer: WirePeer, provider: AnthropicProvider
) -> None:
    args = '{"cité": "Oslo \\u00e9", "n": [1, 2.5]}'
    for at in range(len(args) + 1):
        first = call(0, "t_1", args[:at], args[at:])
        second = call(1, "t_2", *args)
        woven = [first[0], second[0], *[e for pair in zip(second[1:], first[1:], strict=False) for e in pair]]
        peer.says(sse(begin(), *woven, *second[len(first) :], *end("tool_use")))
        events, finish = await said(provider)
        for call_id in ("t_1", "t_2"):
            mine = [event for event in shown(events) if event[1]["tool_call_id"] == call_id]
            start, *pieces, whole = mine
            assert start == ("tool_start", {"tool_call_id": call_id, "tool": "look", "client": True})
            assert {kind for kind, _ in pieces} == {"tool_args_delta"}
            assert "".join(data["partial_json"] for _, data in pieces) == args
            assert whole == (
                "tool_args",
                {"tool_call_id": call_id, "tool": "look", "args": json.loads(args), "complete": True},
            )
        assert finish.stop_reason == "tool_use"


async def test_a_body_of_single_bytes_is_read_like_a_whole_one(peer: WirePeer, provider: AnthropicProvider) -> None:
    body = sse(begin(), *THOUGHT, *text(1, "é€😀"), *call(2, "t_1", '{"a": "😀"}'), *end("tool_use"))
    peer.says(body)
    whole = await said(provider)
    for odd in ([body[i : i + 1] for i in range(len(body))], [b"\xef\xbb\xbf" + body.replace(b"\n", b"\r\n")]):
        peer.says(*odd)
        assert await said(provider) == whole


async def test_a_call_without_arguments_has_none_and_one_that_comes_whole_has_them(
    peer: WirePeer, provider: AnthropicProvider
) -> None:
    at_once = block(1, "tool_use", id="t_2", name="look", input={"a": 1})
    peer.says(sse(begin(), *call(0, "t_1", ""), at_once, stop(1), *end("tool_use")))
    events, _ = await said(provider)
    assert [data["args"] for kind, data in events if kind == "tool_args"] == [{}, {"a": 1}]
    assert [data["partial_json"] for kind, data in events if kind == "tool_args_delta"] == ['{"a":1}']


async def test_calls_without_an_id_or_with_one_twice_get_one(peer: WirePeer, provider: AnthropicProvider) -> None:
    peer.says(sse(begin(), *call(0, ""), *call(1, "t"), *call(2, "t"), *end("tool_use")))
    events, finish = await said(provider)
    assert [data["tool_call_id"] for kind, data in events if kind == "tool_start"] == ["call_0", "t", "call_2"]
    assert [one["input"]["tool_call_id"] for one in finish.native] == ["call_0", "t", "call_2"]
    assert [one["id"] for one in finish.native] == ["call_0", "t", "call_2"]


async def test_an_id_that_is_made_up_is_none_of_the_providers_own(peer: WirePeer, provider: AnthropicProvider) -> None:
    peer.says(sse(begin(), *call(0, "call_1"), *call(1, ""), *call(2, ""), *end("tool_use")))
    events, _ = await said(provider)
    ids = [data["tool_call_id"] for kind, data in events if kind == "tool_start"]
    assert len(set(ids)) == 3


async def test_arguments_that_are_no_json_are_a_bad_answer(peer: WirePeer, provider: AnthropicProvider) -> None:
    for args in ('{"a": ', "[1]", '{"a": NaN}'):
        peer.says(sse(begin(), *call(0, "t_1", args), *end("tool_use")))
        _, failed = await failure(provider)
        assert failed.code == "provider_bad_answer"


async def test_arguments_cut_short_for_want_of_tokens_are_an_ending(
    peer: WirePeer, provider: AnthropicProvider
) -> None:
    for reason in ("max_tokens", "model_context_window_exceeded"):
        peer.says(sse(begin(), *text(0, "I look."), *call(1, "t_1", '{"a": '), *end(reason)))
        events, finish = await said(provider)
        assert [kind for kind, _ in shown(events)] == ["text_delta", "tool_start", "tool_args_delta"]
        assert (finish.stop_reason, finish.provider_stop_reason, finish.native) == ("max_tokens", reason, None)


RESULTS = [
    ("web_search_tool_result", [{"type": "web_search_result", "url": "https://a/"}], None),
    ("web_search_tool_result", {"type": "web_search_tool_result_error", "error_code": "unavailable"}, "unavailable"),
    ("bash_code_execution_tool_result", {"type": "x", "return_code": 0, "stdout": "1", "content": []}, None),
    ("bash_code_execution_tool_result", {"type": "x", "return_code": 2, "stderr": "no"}, "exit_code"),
    ("a_tool_of_next_year_tool_result", {"type": "next_year_error", "error_message": "No."}, "tool_failed"),
]


@pytest.mark.parametrize(("kind", "content", "code"), RESULTS)
async def test_what_a_tool_of_the_providers_own_said_is_its_output_and_what_failed_is_no_success(
    peer: WirePeer, provider: AnthropicProvider, kind: str, content: Any, code: str | None
) -> None:
    result = block(1, kind, tool_use_id="s_1", content=content)
    peer.says(sse(begin(), *call(0, "s_1", "{}", kind="server_tool_use"), result, stop(1), *end()))
    events, finish = await said(provider)
    begun, _, args, (ended, data) = shown(events)
    assert begun == ("tool_start", {"tool_call_id": "s_1", "tool": "look"})
    assert args[0] == "tool_args"
    assert data["output"] == content
    assert (data["tool_call_id"], data["tool"], type(data["duration_ms"])) == ("s_1", "look", int)
    assert (ended, data.get("code")) == (("tool_error", code) if code else ("tool_end", None))
    assert not code or data["message"].isprintable()
    assert finish.native[1] == result["content_block"]


async def test_a_failure_after_an_mcp_servers_tool_says_that_it_ran(
    peer: WirePeer, provider: AnthropicProvider
) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": "req_9"}
    ran = call(0, "m_1", "{}", kind="mcp_tool_use", server_name="books")
    result = block(1, "mcp_tool_result", tool_use_id="m_1", is_error=True, content=[{"type": "text", "text": "Lost."}])
    for before, has_run in ((ran[:2], False), (ran, True), ([*ran, result], True)):
        peer.says(sse(begin(), *before, error))
        events, failed = await failure(provider)
        assert (failed.code, failed.request_id, failed.after_effects) == ("provider_overloaded", "req_9", has_run)
    assert events[-1][0] == "tool_error"
    assert (events[-1][1]["message"], events[-1][1]["code"]) == ("Lost.", "tool_failed")


async def test_citations_stand_beside_their_text_and_all_of_them_is_kept(
    peer: WirePeer, provider: AnthropicProvider
) -> None:
    cites: list[dict[str, Any]] = [
        {
            "type": "web_search_result_location",
            "url": "https://a/",
            "title": "A",
            "cited_text": "x",
            "encrypted_index": "E",
        },
        {"type": "char_location", "document_title": "D", "cited_text": "y", "file_id": "f", "start_char_index": 3},
        {"type": "search_result_location", "source": "https://s/", "title": None, "cited_text": "z"},
        {"type": "search_result_location", "source": "shelf 5", "title": "S", "cited_text": "z"},
    ]
    deltas = [delta(1, "citations_delta", citation=one) for one in cites]
    cited = [
        block(1, "text", text="", citations=[]),
        *deltas[:1],
        delta(1, "text_delta", text="wörld"),
        *deltas[1:],
        stop(1),
    ]
    peer.says(sse(begin(), *text(0, "Hello "), *cited, *text(2, "!"), *end()))
    events, finish = await said(provider)
    found = [data for kind, data in events if kind == "citation"]
    assert [(one["start"], one["end"]) for one in found] == [(6, 11)] * 4
    assert [one["url"] for one in found] == ["https://a/", None, "https://s/", None]
    assert [one["title"] for one in found] == ["A", "D", None, "S"]
    assert [one["cited_text"] for one in found] == ["x", "y", "z", "z"]
    assert [kind for kind, _ in shown(events)][1:7] == ["text_delta", *["citation"] * 4, "text_delta"]
    assert internal(events) == deltas
    assert [one.get("file_id") for one in finish.native[1]["citations"]] == [None] * 4


@pytest.mark.parametrize(
    ("said_reason", "reason"),
    [
        *((one, one) for one in ("end_turn", "tool_use", "max_tokens", "stop_sequence", "refusal")),
        ("model_context_window_exceeded", "max_tokens"),
        *((one, "other") for one in ("pause_turn", "compaction", "a_reason_of_next_year", None)),
    ],
)
async def test_stop_reasons_are_one_list_with_the_providers_own_word_beside_it(
    peer: WirePeer, provider: AnthropicProvider, said_reason: str | None, reason: str
) -> None:
    peer.says(sse(begin(), *text(0, "x"), *end(said_reason, stop_sequence="END", stop_details={"category": "bio"})))
    _, finish = await said(provider)
    assert (finish.stop_reason, finish.provider_stop_reason) == (reason, said_reason)
    assert (finish.stop_sequence, finish.stop_details) == ("END", {"category": "bio"})
    assert finish.is_paused is (said_reason == "pause_turn")


async def test_usage_is_what_the_api_sent_beside_the_common_form(peer: WirePeer, provider: AnthropicProvider) -> None:
    first = {
        "input_tokens": 7,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 0,
        "cache_creation": {"ephemeral_1h_input_tokens": 0},
        "output_tokens": 1,
        "service_tier": "priority",
    }
    last = {
        "output_tokens": 9,
        "output_tokens_details": {"thinking_tokens": 4},
        "server_tool_use": {"web_search_requests": 1},
    }
    ending = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {**last, "input_tokens": None}}
    peer.says(sse(begin(usage=first), *text(0, "x"), ending, {"type": "message_stop"}))
    events = [event async for event in provider.stream("m", ASKED)]
    counted = [event for event in events if isinstance(event, Counted)]
    assert isinstance(events[0], Counted)
    assert len(counted) == 2
    assert (
        counted[1].usage
        == events[-1].usage
        == {
            "input_tokens": 7,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 0,
            "output_tokens": 9,
            "thinking_tokens": 4,
            "provider": {**first, **last},
        }
    )


async def test_after_a_fallback_it_is_the_other_model_that_answered(
    peer: WirePeer, provider: AnthropicProvider
) -> None:
    hop = block(0, "fallback", **{"from": {"model": "a"}, "to": {"model": "b-2026"}, "trigger": {"type": "refusal"}})
    peer.says(sse(begin(), hop, stop(0), *text(1, "x"), *end()))
    events, finish = await said(provider)
    assert internal(events)[0] == hop
    assert finish.model == "b-2026"
    assert finish.native[0] == hop["content_block"]


# -- odd and broken wires --------------------------------------------------------------------------------


async def test_events_without_their_names_are_read_and_an_error_is_one(
    peer: WirePeer, provider: AnthropicProvider
) -> None:
    answer = [begin(), {"type": "ping"}, *THOUGHT, *text(1, "x"), *call(2, "t_1", "{}"), *end("tool_use")]
    peer.says(sse(*answer))
    named = await said(provider)
    peer.says(sse(*answer, named=False))
    assert await said(provider) == named
    for error in ({"type": "error", "error": {"type": "overloaded_error"}}, {"error": {"type": "overloaded_error"}}):
        peer.says(sse(begin(), *text(0, "x"), error, named=False))
        events, failed = await failure(provider)
        assert (len(events), failed.code) == (1, "provider_overloaded")


@pytest.mark.parametrize(
    ("error", "code", "moves_on"),
    [
        (b'{"type":"error","error":{"type":"not_found_error","message":"model: x"}}', "provider_refused", True),
        (b'{"type":"error","error":{"type":"billing_error"}}', "provider_refused", True),
        (b'{"type":"error","error":{"type":"an_error_of_next_year"}}', "provider_error", False),
        (b'{"type":"error","error":"no luck"}', "provider_error", False),
        (b'{"type":"overloaded_error","message":"busy"}', "provider_overloaded", False),
        (b'{"message":"no luck"}', "provider_error", False),
        (b"upstream timed out", "provider_error", False),
    ],
)
async def test_an_error_event_of_any_shape_is_a_failure(
    peer: WirePeer, provider: AnthropicProvider, error: bytes, code: str, moves_on: bool
) -> None:
    peer.says(sse(begin()) + b"event: error\ndata: " + error + b"\n\n")
    _, failed = await failure(provider)
    assert (failed.code, failed.moves_on) == (code, moves_on)


@pytest.mark.parametrize(
    "odd",
    [
        {"type": "an_event_of_next_year", "index": 9, "what": [1]},
        block(5, "a_block_of_next_year", text="?"),
        delta(0, "a_delta_of_next_year", what="?"),
        delta(0, "input_json_delta", partial_json="{"),
        {**stop(0), "what": "?"},
    ],
)
async def test_what_nobody_knows_yet_is_kept_whole(peer: WirePeer, provider: AnthropicProvider, odd: Any) -> None:
    opened = text(0, "x")
    peer.says(sse(begin(), *opened[:-1], odd, *([] if odd["type"].endswith("stop") else [opened[-1]]), *end()))
    events, _ = await said(provider)
    assert internal(events) == [odd]


async def test_an_unknown_event_need_not_be_json(peer: WirePeer, provider: AnthropicProvider) -> None:
    peer.says(sse(begin()) + b": keep alive\n\nevent: metrics\ndata: took 5 ms\n\n" + sse(*text(0, "x"), *end()))
    events, _ = await said(provider)
    assert internal(events)[0] == {"type": "metrics", "data": "took 5 ms"}


BAD = [
    b"event: content_block_delta\ndata: {\n\n",
    b"data: [DONE]\n\n",
    b"data: 5\n\n",
    sse(delta(7, "input_json_delta", partial_json="{")),
]


@pytest.mark.parametrize("sent", [0, 3])
@pytest.mark.parametrize("bad", BAD)
async def test_garbage_is_a_bad_answer_after_what_came_before_it(
    peer: WirePeer, provider: AnthropicProvider, sent: int, bad: bytes
) -> None:
    peer.says(sse(begin(), block(0, "text", text=""), *[delta(0, "text_delta", text="x")] * sent) + bad + sse(*end()))
    events, failed = await failure(provider)
    assert (len(events), failed.code) == (sent, "provider_bad_answer")


@pytest.mark.parametrize("ending", ["proper", "cut"])
async def test_an_answer_without_message_stop_is_a_cut_however_much_it_said(
    peer: WirePeer, provider: AnthropicProvider, ending: str
) -> None:
    answer = [begin(), *THOUGHT, *text(1, "x"), *call(2, "t_1", "{}"), *end("tool_use")]
    for length in range(len(answer)):
        peer.says(sse(*answer[:length]), end=ending)
        _, failed = await failure(provider)
        assert failed.code == "provider_cut"


async def test_a_megabyte_in_one_line_is_one_event(peer: WirePeer, provider: AnthropicProvider) -> None:
    peer.says(sse(begin(), *text(0, "é" * 2**20), *end()))
    events, _ = await said(provider)
    assert [len(data["text"]) for _, data in shown(events)] == [2**20]
