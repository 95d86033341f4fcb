"""Chat Completions by the real SDK over loopback HTTP: what is asked, what is handed on, and how each failure is named.

The odd answers that compatible servers give are bytes in corpus/chat, each with what comes of it beside it.
"""

from __future__ import annotations

import asyncio
import re
import sys
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, get_args

import anyio
import orjson
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion_message_tool_call import ChatCompletionMessageToolCallUnion
from pydantic import BaseModel

from broker.log.event import Event
from broker.log.turn import message as message_of
from broker.settings import Settings
from tests.rig.wire_peer import WirePeer, sse, wire_peer
from tests.worker.providers_table import DOCS, documented
from worker.providers.chat_answer import FAILED, STOPS
from worker.providers.choose import Providers
from worker.providers.failures import ProviderFailure
from worker.providers.openai_chat import OpenAIChatProvider, asked
from worker.providers.provider import Counted, Finish, Provider, ProviderEvent
from worker.standin.server import StandIn

CORPUS = Path(__file__).parent / "corpus" / "chat"
FAST = "rate=0 ttft_ms=0"
ENVELOPE = {"id": "c1", "model": "m-1", "object": "chat.completion.chunk", "created": 1}


@pytest.fixture(scope="module")
async def peer() -> AsyncIterator[WirePeer]:
    async with wire_peer() as peer:
        yield peer


@pytest.fixture(scope="module")
async def provider(peer: WirePeer) -> AsyncIterator[OpenAIChatProvider]:
    provider = OpenAIChatProvider(api_key="sk-secret", base_url=f"{peer.url}/v1", silence_s=10)
    yield provider
    await provider.aclose()


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.close()


@pytest.fixture(scope="module")
async def served(standin: StandIn) -> AsyncIterator[OpenAIChatProvider]:
    provider = OpenAIChatProvider(api_key="sk-secret", base_url=f"{standin.base_url}/v1", silence_s=10)
    yield provider
    await provider.aclose()


def request(message: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": message}], "max_tokens": 10, **fields}


async def outcome(
    provider: Provider, request: dict[str, Any], model: str = "m"
) -> tuple[list[ProviderEvent], Finish | ProviderFailure]:
    """Its events, and how it ended."""
    events: list[ProviderEvent] = []
    end: Finish | ProviderFailure | None = None
    try:
        async for said in provider.stream(model, request):
            if isinstance(said, Finish):
                end = said
            elif not isinstance(said, Counted):
                events.append(said)
    except ProviderFailure as failed:
        end = failed
    assert end is not None
    if isinstance(end, ProviderFailure):
        assert end.message.isprintable()
        assert "sk-secret" not in end.message + str(end.said)
    return events, end


async def answer(provider: Provider, request: dict[str, Any]) -> tuple[list[ProviderEvent], Finish]:
    events, end = await outcome(provider, request)
    assert isinstance(end, Finish), end
    return events, end


async def failure(provider: Provider, request: dict[str, Any]) -> tuple[list[ProviderEvent], ProviderFailure]:
    events, end = await outcome(provider, request)
    assert isinstance(end, ProviderFailure), end
    return events, end


def public(events: list[ProviderEvent]) -> list[ProviderEvent]:
    return [event for event in events if not event[0].startswith("internal.")]


def delta(said: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {**ENVELOPE, "choices": [{"index": 0, "delta": said, "finish_reason": reason}]}


# ---- The corpus


@pytest.mark.parametrize("cut", ["in one piece", "every byte by itself"])
@pytest.mark.parametrize("name", sorted(path.stem for path in CORPUS.glob("*.sse")))
async def test_an_odd_answer_is_read_to_its_named_end(
    peer: WirePeer, provider: OpenAIChatProvider, name: str, cut: str
) -> None:
    body = (CORPUS / f"{name}.sse").read_bytes()
    expected = orjson.loads((CORPUS / f"{name}.json").read_bytes())
    peer.says(*([body] if cut == "in one piece" else [body[i : i + 1] for i in range(len(body))]))
    events, end = await outcome(provider, request())
    assert [list(event) for event in events] == expected["events"]
    if isinstance(end, ProviderFailure):
        assert end.code == expected.get("failure")
    else:
        assert {key: getattr(end, key) for key in expected["finish"]} == expected["finish"]


async def test_a_line_of_a_megabyte_is_one_event(peer: WirePeer, provider: OpenAIChatProvider) -> None:
    text = "é" * 500_000
    body = sse(delta({"content": text}), delta({}, "stop"), b"[DONE]")
    peer.says(*(body[i : i + 4096] for i in range(0, len(body), 4096)))
    events, _ = await answer(provider, request())
    assert public(events) == [("text_delta", {"text": text})]


async def test_two_calls_cut_at_every_position_are_the_same_two_calls(
    peer: WirePeer, provider: OpenAIChatProvider
) -> None:
    args = ['{"city":"Tromsø","n":[1,2]}', '{"q":"a \\"b\\" c"}']
    for cut in range(max(map(len, args)) + 1):
        begun = [
            {"index": i, "id": f"id-{i}", "type": "function", "function": {"name": f"f{i}", "arguments": text[:cut]}}
            for i, text in enumerate(args)
        ]
        rest = [{"index": i, "function": {"arguments": text[cut:]}} for i, text in reversed(list(enumerate(args)))]
        peer.says(sse(delta({"tool_calls": begun}), delta({"tool_calls": rest}), delta({}, "tool_calls"), b"[DONE]"))
        events, finish = await answer(provider, request())
        for i, text in enumerate(args):
            call = {"tool_call_id": f"id-{i}", "tool": f"f{i}"}
            of_call = [event for event in public(events) if event[1]["tool_call_id"] == f"id-{i}"]
            assert of_call[0] == ("tool_start", {**call, "client": True})
            assert "".join(data["partial_json"] for kind, data in of_call if kind == "tool_args_delta") == text
            assert of_call[-1] == ("tool_args", {**call, "args": orjson.loads(text), "complete": True})
        assert finish.stop_reason == "tool_use"


async def test_where_the_models_file_says_so_done_alone_is_an_end(peer: WirePeer, tmp_path: Path) -> None:
    own = f'[provider.mlx]\nkind = "openai-chat"\nbase_url = "{peer.url}/v1"\nends_by_done = true'
    (tmp_path / "models.toml").write_text(own)
    peer.says((CORPUS / "done_without_finish.sse").read_bytes())
    providers = Providers(Settings(models_file=tmp_path / "models.toml"), None)
    (target,) = await providers.chain("mlx/qwen3")
    events, finish = await answer(target.client, request())
    await providers.aclose()
    assert (finish.stop_reason, finish.provider_stop_reason) == ("other", None)
    assert len(public(events)) == 2


async def test_a_second_choice_that_was_asked_for_is_kept_for_operators(
    peer: WirePeer, provider: OpenAIChatProvider
) -> None:
    other = {"id": "c2", "choices": [{"index": 1, "delta": {"content": "x"}, "finish_reason": None}]}
    peer.says(sse(other, {**delta({"content": "a"}, "stop"), "id": "c2"}, b"[DONE]"))
    events, _ = await answer(provider, request(provider_options={"openai-chat": {"n": 2}}))
    assert public(events) == [("text_delta", {"text": "a"})]
    assert events[0][1]["event"]["choices"] == other["choices"]


async def test_the_end_is_told_though_the_server_holds_the_body_open(
    peer: WirePeer, provider: OpenAIChatProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.providers.reading.LAST_WORDS_S", 0.05)
    peer.says(sse(delta({"content": "a"}), delta({}, "stop")), end="hold")
    with anyio.fail_after(5):
        _, finish = await answer(provider, request())
    assert finish.stop_reason == "end_turn"


@pytest.mark.parametrize("n", [1, 2])
async def test_of_two_choices_in_a_chunk_the_first_by_its_index_is_the_answer(
    peer: WirePeer, provider: OpenAIChatProvider, n: int
) -> None:
    other, first = {"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}
    peer.says(sse({**ENVELOPE, "choices": [other, first]}, delta({}, "stop"), b"[DONE]"))
    events, _ = await answer(provider, request(provider_options={"openai-chat": {"n": n}}))
    assert public(events) == [("text_delta", {"text": "a"})]
    assert events[-1][1]["event"]["choices"] == [other]


async def test_signs_of_life_after_the_end_do_not_unsay_it(peer: WirePeer) -> None:
    provider = OpenAIChatProvider(base_url=f"{peer.url}/v1", silence_s=10, idle_s=0.001)
    peer.says(sse(delta({"content": "a"}), delta({}, "stop")), *[b": ping\n\n"] * 2000, end="hold")
    with anyio.fail_after(10):
        _, finish = await answer(provider, request())
    await provider.aclose()
    assert finish.stop_reason == "end_turn"


async def test_what_is_counted_is_told_as_it_is_counted(peer: WirePeer, provider: OpenAIChatProvider) -> None:
    peer.says((CORPUS / "usage_in_every_chunk.sse").read_bytes())
    counted = [said async for said in provider.stream("m", request()) if isinstance(said, Counted)]
    assert [one.usage["output_tokens"] for one in counted] == [1, 2]


# ---- Asking


def wire(model: str = "m", *, is_openai: bool = False, **fields: Any) -> dict[str, Any]:
    """What the wire is asked, without what every request says."""
    body = asked(model, request(**fields), "openai-chat", is_openai=is_openai)
    plain = {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 10}
    return {key: value for key, value in body.items() if plain.get(key) != value}


def messages(*turns: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = wire(messages=list(turns), **fields)["messages"]
    return found


async def test_a_request_is_sent_by_the_sdk(peer: WirePeer, provider: OpenAIChatProvider) -> None:
    peer.says(sse(delta({}, "stop"), b"[DONE]"))
    await answer(provider, request())
    (sent,) = peer.asked
    assert sent.line == "POST /v1/chat/completions HTTP/1.1"
    assert sent.header("authorization") == "Bearer sk-secret"
    assert sent.header("content-type") == "application/json"
    assert sent.json == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 10,
    }


PHOTO = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
PDF = {
    "type": "document",
    "title": "a.pdf",
    "source": {"type": "base64", "media_type": "application/pdf", "data": "BB"},
}
CALL = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
CALLED = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}


def test_each_block_becomes_a_part_or_a_message() -> None:
    said = [
        {"type": "text", "text": "Look:"},
        PHOTO,
        {"type": "image", "source": {"type": "url", "url": "https://x"}},
        PDF,
    ]
    note = {"type": "document", "title": "Note", "source": {"type": "text", "data": "n"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "r"}, PHOTO]}
    wrong = {"type": "tool_result", "tool_use_id": "t2", "content": "no such file", "is_error": True}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    file = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,BB"}}
    assert messages(
        {"role": "user", "content": said},
        {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "Well"}, CALL]},
        {"role": "user", "content": [{"type": "text", "text": "so"}, result, wrong, note]},
        {"role": "system", "content": "Be kind."},
        {"role": "assistant", "content": "ok"},
        system=[{"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "B"}],
    ) == [
        {"role": "system", "content": "A\n\nB"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look:"},
                image,
                {"type": "image_url", "image_url": {"url": "https://x"}},
                file,
            ],
        },
        {"role": "assistant", "content": "Well", "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "t1", "content": "r"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no such file"},
        {"role": "user", "content": [image, {"type": "text", "text": "so"}, {"type": "text", "text": "Note\n\nn"}]},
        {"role": "system", "content": "Be kind."},
        {"role": "assistant", "content": "ok"},
    ]


def test_a_message_goes_back_as_the_model_said_it_and_to_others_as_text_and_calls() -> None:
    native = {"role": "assistant", "content": None, "tool_calls": [{**CALLED, "extra_content": {"google": {}}}]}
    said = {"role": "assistant", "content": [THOUGHT, CALL]}
    for model, provider, expected in (
        ("m", "openai-chat", native),
        ("other", "openai-chat", {"role": "assistant", "content": None, "tool_calls": [CALLED]}),
        ("m", "vllm", {"role": "assistant", "content": None, "tool_calls": [CALLED]}),
    ):
        own = {**said, "native": {"provider": provider, "model": model, "content": native}}
        assert messages(own) == [expected]


def test_a_result_of_a_call_from_before_tools_goes_back_by_its_function() -> None:
    native = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    own = {
        "role": "assistant",
        "content": [CALL],
        "native": {"provider": "openai-chat", "model": "m", "content": native},
    }
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "r"}]}
    assert messages(own, result) == [native, {"role": "function", "name": "f", "content": "r"}]


TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
STRICT = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
GREP = {"type": "custom", "custom": {"name": "grep"}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tools": [TOOL, GREP]}, {"tools": [FUNCTION, GREP]}),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, {"tools": [FUNCTION], "tool_choice": "required"}),
        ({"tools": [TOOL], "tool_choice": {"type": "none"}}, {"tools": [FUNCTION], "tool_choice": "none"}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True}},
            {
                "tools": [FUNCTION],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
                "parallel_tool_calls": False,
            },
        ),
        ({"temperature": 0, "stop_sequences": ["END"]}, {"temperature": 0, "stop": ["END"]}),
        ({"stop_sequences": []}, {}),
        ({"effort": "xhigh", "thinking": {"type": "disabled"}}, {"reasoning_effort": "xhigh"}),
        ({"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"reasoning_effort": "low"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 10_000}}, {"reasoning_effort": "medium"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 30_000}}, {"reasoning_effort": "high"}),
        (
            {"output_schema": {"type": "object"}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                }
            },
        ),
        (
            {"provider_options": {"openai-chat": {"seed": 7, "max_completion_tokens": 5}}},
            {"seed": 7, "max_completion_tokens": 5},
        ),
        ({"provider_options": {"openai-chat": {"extra_body": {"top_k": 3}}, "openai": {"x": 1}}}, {"top_k": 3}),
        (
            {"output_schema": STRICT},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": STRICT, "strict": True},
                }
            },
        ),
        (
            {"tools": [TOOL], "provider_options": {"openai-chat": {"tools": [GREP]}}},
            {"tools": [FUNCTION, GREP]},
        ),
        (
            {"provider_options": {"openai-chat": {"stream_options": {"include_obfuscation": False}}}},
            {"stream_options": {"include_usage": True, "include_obfuscation": False}},
        ),
        ({"max_tokens": None}, {}),
    ],
)
def test_each_field_has_its_place_on_the_wire(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    found = wire(**fields)
    del found["messages"]
    assert found == expected


def test_null_in_provider_options_leaves_out_what_a_server_refuses() -> None:
    body = asked("m", request(provider_options={"x": {"stream_options": None}}), "x", is_openai=False)
    assert "stream_options" not in body


@pytest.mark.parametrize(
    ("base_url", "limit"),
    [
        (None, "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "max_completion_tokens"),
        ("https://x.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("https://openrouter.ai/api/v1", "max_tokens"),
        ("https://notopenai.com/v1", "max_tokens"),
    ],
)
async def test_the_limit_has_the_name_that_the_host_takes(
    base_url: str | None, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    provider = OpenAIChatProvider(api_key="k", base_url=base_url, silence_s=1)
    body = asked("m", request(), provider.name, is_openai=provider._is_openai)
    await provider.aclose()
    assert {"max_tokens", "max_completion_tokens"} & body.keys() == {limit}


AUDIO = {"type": "audio", "source": {"type": "base64", "data": "SECRET"}}
LINK = {"type": "document", "source": {"type": "url", "url": "https://SECRET"}}


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, AUDIO]}]}, "messages[0].content[1]"),
        ({"messages": [{"role": "user", "content": [LINK]}]}, "messages[0].content[0].source"),
        ({"messages": [{"role": "assistant", "content": [PHOTO]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "system", "content": [PHOTO]}]}, "messages[0].content[0]"),
        ({"system": [PHOTO]}, "system[0]"),
        ({"tools": [TOOL], "tool_choice": {"type": "SECRET"}}, "tool_choice.type"),
        ({"provider_options": {"openai-chat": {"seed": "SECRET"}}}, "provider_options.openai-chat.seed"),
        ({"provider_options": {"openai-chat": {"sead": 1}}}, "provider_options.openai-chat.sead"),
        ({"provider_options": {"openai-chat": {"model": "SECRET"}}}, "provider_options.openai-chat.model"),
        (
            {"provider_options": {"openai-chat": {"extra_body": {"stream": False}}}},
            "provider_options.openai-chat.stream",
        ),
    ],
)
async def test_what_cannot_be_asked_is_invalid_input_that_names_the_place(
    peer: WirePeer, provider: OpenAIChatProvider, fields: dict[str, Any], place: str
) -> None:
    peer.says()
    _, failed = await failure(provider, request(**fields))
    assert (failed.code, failed.retryable, peer.asked) == ("invalid_input", False, [])
    assert f" {place}" in failed.message
    assert "SECRET" not in failed.message


# ---- Keys


async def test_nothing_of_openais_environment_is_sent_to_another_server(
    peer: WirePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer secret\nX-Key: secret")
    provider = OpenAIChatProvider(base_url=f"{peer.url}/v1", silence_s=5, name="vllm")
    peer.says(sse(delta({}, "stop"), b"[DONE]"))
    await answer(provider, request())
    await provider.aclose()
    (sent,) = peer.asked
    assert b"secret" not in sent.head
    assert sent.header("authorization") == "Bearer none"


async def test_key_and_address_may_come_from_the_sdks_own_variables(
    peer: WirePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{peer.url}/v9")
    provider = OpenAIChatProvider(silence_s=5)
    peer.says(sse(delta({}, "stop"), b"[DONE]"))
    await answer(provider, request())
    await provider.aclose()
    assert peer.asked[0].line.startswith("POST /v9/chat/completions")
    assert peer.asked[0].header("authorization") == "Bearer sk-other"


async def test_no_key_at_all_is_unauthorized(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    provider = OpenAIChatProvider(silence_s=5)
    _, failed = await failure(provider, request())
    with pytest.raises(ProviderFailure, match="OPENAI_API_KEY"):
        await provider.check()
    await provider.aclose()
    assert (failed.code, failed.moves_on) == ("provider_unauthorized", True)
    assert "OPENAI_API_KEY" in failed.message


@pytest.mark.parametrize("key", ["sk-secret\nkey", "sk-secretö€"])
async def test_a_key_that_no_header_can_carry_is_unauthorized_and_told_to_nobody(peer: WirePeer, key: str) -> None:
    provider = OpenAIChatProvider(api_key=key, base_url=peer.url, silence_s=5)
    _, failed = await failure(provider, request())
    await provider.aclose()
    assert failed.code == "provider_unauthorized"
    assert "sk-secret" not in "".join(traceback.format_exception(failed))


async def test_a_key_is_checked_by_listing_models(peer: WirePeer, provider: OpenAIChatProvider) -> None:
    peer.says(b'{"object":"list","data":[]}', content_type="application/json")
    await provider.check()
    assert peer.asked[0].line == "GET /v1/models HTTP/1.1"
    peer.refuses(401, {"error": {"message": "Incorrect API key provided: sk-secret", "code": "invalid_api_key"}})
    with pytest.raises(ProviderFailure) as caught:
        await provider.check()
    assert caught.value.code == "provider_unauthorized"


async def test_warming_up_makes_a_connection_and_sends_no_key(peer: WirePeer) -> None:
    provider = OpenAIChatProvider(api_key="sk-secret", base_url=f"{peer.url}/v1", silence_s=5)
    peer.says(b"")
    await provider.warm_up()
    await provider.aclose()
    assert [(sent.line[:4], b"sk-secret" in sent.head) for sent in peer.asked] == [("HEAD", False)]


# ---- Failing


@pytest.mark.parametrize(
    ("status", "error", "code", "moves_on"),
    [
        (400, {"message": "bad", "type": "invalid_request_error"}, "provider_refused", False),
        (400, {"message": "long", "code": "context_length_exceeded"}, "provider_refused", False),
        (401, {"message": "no", "code": "invalid_api_key"}, "provider_unauthorized", True),
        (402, {"message": "pay", "code": 402}, "provider_refused", False),
        (403, {"message": "no"}, "provider_unauthorized", True),
        (404, {"message": "no model", "code": "model_not_found"}, "provider_refused", True),
        (429, {"message": "slow", "type": "requests", "code": "rate_limit_exceeded"}, "provider_rate_limited", False),
        (429, {"message": "pay", "type": "insufficient_quota", "code": "insufficient_quota"}, "provider_refused", True),
        (429, {"message": "x", "type": "engine_overloaded_error"}, "provider_overloaded", False),
        (500, {"message": "x", "type": "server_error"}, "provider_error", False),
        (503, {"message": "busy", "type": "server_overloaded"}, "provider_overloaded", False),
        (503, {"message": "x"}, "provider_error", False),
        (529, {"message": "x"}, "provider_overloaded", False),
    ],
)
async def test_a_refusal_and_an_error_in_the_stream_have_the_same_code(
    peer: WirePeer, provider: OpenAIChatProvider, status: int, error: dict[str, Any], code: str, moves_on: bool
) -> None:
    peer.refuses(status, {"error": error}, retry_after="7", x_request_id="req_1")
    events, refusal = await failure(provider, request())
    assert (events, refusal.code, refusal.moves_on, refusal.status) == ([], code, moves_on, status)
    assert (refusal.retry_after_s, refusal.request_id, refusal.said) == (7, "req_1", error["message"])
    in_stream = {**error, "code": error.get("code", status)}
    peer.says(sse(delta({"content": "a"}), {"error": in_stream}, b"[DONE]"), headers=(("x-request-id", "req_2"),))
    events, failed = await failure(provider, request())
    assert (len(public(events)), failed.code, failed.moves_on) == (1, code, moves_on)
    assert (failed.said, failed.request_id) == (error["message"], "req_2")


@pytest.mark.parametrize("body", [b"<html>502</html>", b'{"detail":"boom"}', b"[]", b" "])
async def test_a_refusal_of_any_form_has_a_code(peer: WirePeer, provider: OpenAIChatProvider, body: bytes) -> None:
    peer.says(body, status=502, content_type="text/html")
    _, failed = await failure(provider, request())
    assert failed.code == "provider_error"


# ---- By the stand-in, which speaks the wire too


async def test_the_stand_in_says_text_and_usage(served: OpenAIChatProvider) -> None:
    events, finish = await answer(served, request(f"[[tokens=20 cached=5 {FAST}]]"))
    assert [kind for kind, _ in public(events)] == ["text_delta"] * 20
    assert (finish.stop_reason, finish.usage["output_tokens"], finish.native) == ("end_turn", 20, None)
    assert finish.usage["cache_read_input_tokens"] == 5
    assert finish.usage["input_tokens"] + 5 == finish.usage["provider"]["prompt_tokens"]


async def test_the_stand_in_thinks_and_cites(served: OpenAIChatProvider) -> None:
    events, _ = await answer(served, request(f"[[tokens=4 thinking=3 citations=1 {FAST}]]"))
    assert [kind for kind, _ in public(events)] == ["thinking_delta"] * 3 + ["text_delta"] * 4 + ["citation"]


@pytest.mark.parametrize("odd", ["args_piece=1", "call_ids=0", "ollama=1", "ollama=1 call_ids=0"])
async def test_the_stand_ins_parallel_calls_are_two_however_it_says_them(served: OpenAIChatProvider, odd: str) -> None:
    events, finish = await answer(served, request(f"[[tokens=0 tools=2 parallel=1 {odd} {FAST}]]"))
    calls = [data for kind, data in events if kind == "tool_args"]
    assert len({data["tool_call_id"] for data in calls}) == 2
    assert all(data["args"]["city"] == "Oslo" for data in calls)
    assert finish.stop_reason == "tool_use"
    assert len(finish.native["tool_calls"]) == 2


@pytest.mark.parametrize(
    ("directive", "reason"),
    [("max=1", "max_tokens"), ("stop_seq=1", "stop_sequence"), ("refuse=1", "refusal"), ("stop=refusal", "refusal")],
)
async def test_the_stand_ins_endings_have_their_reasons(
    served: OpenAIChatProvider, directive: str, reason: str
) -> None:
    _, finish = await answer(served, request(f"[[tokens=2 {directive} {FAST}]]", stop_sequences=["END"]))
    assert finish.stop_reason == reason
    assert finish.stop_sequence == ("END" if reason == "stop_sequence" else None)


@pytest.mark.parametrize("sent", [0, 3])
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("error_at", "provider_overloaded"),
        ("cut_at", "provider_cut"),
        ("end_at", "provider_cut"),
        ("garbage_at", "provider_bad_answer"),
    ],
)
async def test_the_stand_ins_faults_are_failures_after_what_came_before(
    served: OpenAIChatProvider, fault: str, code: str, sent: int
) -> None:
    events, failed = await failure(served, request(f"[[{fault}={sent} {FAST}]]"))
    assert (len(public(events)), failed.code) == (sent, code)


@pytest.mark.parametrize("sent", [0, 3])
async def test_silence_is_a_failure(standin: StandIn, sent: int) -> None:
    provider = OpenAIChatProvider(base_url=f"{standin.base_url}/v1", silence_s=0.3)
    events, failed = await failure(provider, request(f"[[stall_at={sent} {FAST}]]"))
    await provider.aclose()
    assert (len(public(events)), failed.code) == (sent, "provider_silent")


async def test_many_answers_run_at_once_over_one_client(served: OpenAIChatProvider) -> None:
    answers = await asyncio.gather(*(answer(served, request(f"[[tokens=5 {FAST}]]")) for _ in range(50)))
    assert all(len(public(events)) == 5 for events, _ in answers)


async def test_it_has_the_name_that_its_models_are_prefixed_with(peer: WirePeer) -> None:
    provider: Provider = OpenAIChatProvider(base_url=peer.url, silence_s=1, name="vllm")
    peer.says(sse({**delta({"new": 1}, "stop")}, b"[DONE]"))
    events, _ = await answer(provider, request())
    await provider.aclose()
    assert provider.name == events[0][1]["provider"] == "vllm"


# ---- Back again


@pytest.mark.parametrize(
    ("name", "back"),
    [
        (
            "deepseek_reasoning_and_call",
            {
                "content": None,
                "reasoning_content": "I must look.",
                "tool_calls": [
                    {"id": "call_0_x", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
                ],
            },
        ),
        ("openai_refusal", {"content": None, "refusal": "I can't do that."}),
        (
            "openrouter_reasoning_details",
            {
                "content": "Yes.",
                "reasoning_details": [
                    {
                        "type": "reasoning.text",
                        "text": "Let me see",
                        "signature": "c2ln",
                        "format": "anthropic-claude-v1",
                        "index": 0,
                    },
                    {
                        "type": "reasoning.encrypted",
                        "data": "ZW5j",
                        "id": "rs_1",
                        "format": "openai-responses-v1",
                        "index": 1,
                    },
                ],
            },
        ),
        (
            "mistral_parts",
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "hm, so"}]},
                    {"type": "text", "text": "Yes"},
                    {"type": "reference", "reference_ids": [1]},
                    {"type": "text", "text": " sir"},
                ]
            },
        ),
    ],
)
async def test_what_was_said_goes_back_as_it_was_said(
    peer: WirePeer, provider: OpenAIChatProvider, name: str, back: dict[str, Any]
) -> None:
    """Through the log: events, the turn's native form with its references, GET {id}/message, the next request."""
    peer.says((CORPUS / f"{name}.sse").read_bytes())
    events, finish = await answer(provider, request())
    turn = {"provider": "openai-chat", "model": "m", "native": finish.native}
    logged = [(kind, orjson.dumps(data)) for kind, data in [*events, ("internal.turn", turn)]]
    said = message_of(Event(number, kind, data, 0) for number, (kind, data) in enumerate(logged))
    assert messages(said) == [{"role": "assistant", **back}]


# ---- The SDK's types, and the table of docs/PROVIDERS.md


def paths(model: type[BaseModel], known: set[str], place: str = "") -> Iterator[str]:
    """Each field of a model, and of the models in it, down to those that the table names."""
    for name, field in model.model_fields.items():
        path = f"{place}{name}"
        inner = [] if path in known else list(models_in(field.annotation))
        yield from [path] if not inner else (below for one in inner for below in paths(one, known, f"{path}."))


def models_in(hint: Any) -> Iterator[type[BaseModel]]:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        yield hint
    for argument in get_args(hint):
        yield from models_in(argument)


def test_the_docs_say_what_becomes_of_all_that_the_sdk_knows() -> None:
    known = set(documented("openai-chat"))
    calls = models_in(ChatCompletionMessageToolCallUnion)
    said = {
        *paths(ChatCompletionChunk, known),
        *paths(ChatCompletionMessage, known, "choices.delta."),
        *(path for call in calls for path in paths(call, known, "choices.delta.tool_calls.")),
    }
    assert len(said) > 20
    assert said - known == set()


def test_the_docs_name_each_finish_reason() -> None:
    text = DOCS.read_text()
    table = text[text.index("| `finish_reason` | `stop_reason` |") :].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", table)) >= {*STOPS, *FAILED}


async def test_a_key_that_the_server_echoes_is_told_to_nobody(peer: WirePeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_KEY", "a key of any shape")
    provider = OpenAIChatProvider(api_key="a key of any shape", base_url=peer.url, silence_s=5, name="vllm")
    for status in (400, 401):
        peer.refuses(status, {"error": {"message": "Who is <a key of any shape>?"}})
        with pytest.raises(ProviderFailure) as caught:
            async for _ in provider.stream("m", {"messages": [{"role": "user", "content": "x"}]}):
                pass
        assert caught.value.said == "Who is <…>?"
        assert "of any shape" not in caught.value.message
    await provider.aclose()


@pytest.mark.parametrize(
    "options", [{"logit_bias": dict.fromkeys(map(str, range(10_000)), 1)}, {"stop": ["a"] * 10_000}]
)
def test_many_values_of_one_kind_are_looked_at_together(options: dict[str, Any]) -> None:
    request = {"messages": [], "provider_options": {"openai-chat": options}}
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    asked("m", request, "openai-chat", is_openai=True)
    sys.setprofile(count)
    try:
        asked("m", request, "openai-chat", is_openai=True)
    finally:
        sys.setprofile(None)
    assert calls < 1000, "a body of 2 MiB has 400,000, and each would hold the loop for 5 µs"
