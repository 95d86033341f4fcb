"""OpenAI's Responses API over real HTTP with the real SDK: requests as they are sent, answers as they are told."""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator
from typing import Any

import anyio
import orjson
import pytest
from openai.types.responses import ResponseStreamEvent

from broker.log.event import Event
from broker.log.turn import message
from tests.rig.wire_peer import WirePeer, sse, wire_peer
from tests.worker.providers_table import documented, kinds
from worker.providers.bounds import Bounds
from worker.providers.failures import ProviderFailure
from worker.providers.openai import OpenAIProvider, is_strict
from worker.providers.openai_answer import REPEATED, TAKERS
from worker.providers.openai_items import CALLS, PARTS, RESULTS
from worker.providers.provider import Counted, Finish
from worker.standin.server import StandIn

ASK = {"messages": [{"role": "user", "content": "hello"}]}
RESPONSE = {"id": "resp_1", "object": "response", "model": "gpt-5.2-2026-01-01", "store": False, "error": None}
USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 120,
}
Json = dict[str, Any]


@pytest.fixture(scope="module")
async def peer() -> AsyncIterator[WirePeer]:
    async with wire_peer() as peer:
        yield peer


@pytest.fixture(scope="module")
async def provider(peer: WirePeer) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider(api_key="sk-secret", base_url=f"{peer.url}/v1", silence_s=10)
    yield provider
    await provider.aclose()


# -- what the wire says --------------------------------------------------------------------------------------


def created() -> Json:
    return {"type": "response.created", "response": {**RESPONSE, "status": "in_progress", "output": []}}


def ended(*output: Json, how: str = "completed", **fields: Any) -> Json:
    response = {**RESPONSE, "status": how, "output": list(output), "usage": USAGE, **fields}
    return {"type": f"response.{how}", "response": response}


def delta(text: str, kind: str = "output_text", item_id: str = "msg_1", **fields: Any) -> Json:
    place = {"item_id": item_id, "output_index": 0, "content_index": 0}
    return {"type": f"response.{kind}.delta", **place, "delta": text, "logprobs": [], "obfuscation": "xyz", **fields}


def added(item: Json, index: int = 0) -> Json:
    return {"type": "response.output_item.added", "output_index": index, "item": {**item, "status": "in_progress"}}


def done(item: Json, index: int = 0) -> Json:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def said(text: str, *annotations: Json, item_id: str = "msg_1", **fields: Any) -> Json:
    part = {"type": "output_text", "text": text, "annotations": list(annotations)}
    return {"type": "message", "id": item_id, "role": "assistant", "status": "completed", "content": [part], **fields}


def call(n: int, arguments: str, **fields: Any) -> Json:
    item = {"type": "function_call", "id": f"fc_{n}", "call_id": f"call_{n}_x", "name": f"tool{n}"}
    return {**item, "arguments": arguments, "status": "completed", **fields}


def args_delta(n: int, piece: str, index: int) -> Json:
    kind = "response.function_call_arguments.delta"
    return {"type": kind, "item_id": f"fc_{n}", "output_index": index, "delta": piece}


# -- what the provider makes of it -----------------------------------------------------------------------------


class Said(typing.NamedTuple):
    events: list[tuple[str, Json]]
    """Without internal ones."""
    internal: list[Json]
    counted: list[Counted]
    finish: Finish

    @property
    def text(self) -> str:
        return "".join(data["text"] for kind, data in self.events if kind == "text_delta")

    def of(self, kind: str) -> list[Json]:
        return [data for its, data in self.events if its == kind]


async def ask(provider: OpenAIProvider, request: Json = ASK, model: str = "gpt-5.2") -> Said:
    with anyio.fail_after(10):
        *told, finish = [one async for one in provider.stream(model, request)]
    assert isinstance(finish, Finish)
    counted = [one for one in told if isinstance(one, Counted)]
    events = [one for one in told if not isinstance(one, Counted)]
    internal = [data["event"] for kind, data in events if kind == "internal.provider"]
    return Said([one for one in events if one[0] != "internal.provider"], internal, counted, finish)


async def heard(peer: WirePeer, provider: OpenAIProvider, *payloads: Any, **options: Any) -> Said:
    peer.says(*(one if isinstance(one, bytes) else sse(one, **options) for one in payloads))
    return await ask(provider)


async def fails(provider: OpenAIProvider, request: Json = ASK) -> tuple[list[Any], ProviderFailure]:
    told: list[Any] = []

    async def listen() -> None:
        async for one in provider.stream("gpt-5.2", request):
            told.append(one)  # noqa: PERF401  # a comprehension would lose them with the failure

    with pytest.raises(ProviderFailure) as caught, anyio.fail_after(10):
        await listen()
    assert not any(isinstance(one, Finish) for one in told)
    assert "sk-secret" not in caught.value.message
    return told, caught.value


def sent_back(said: Said) -> list[Json]:
    """The answer's items, as `GET {id}/message` gives them for the next turn."""
    turn = {"turn": 0, "provider": "openai", "form": "openai", "model": "gpt-5.2", "native": said.finish.native}
    events = [*said.events, ("internal.turn", turn)]
    log = [Event(n, kind, orjson.dumps(data), 0) for n, (kind, data) in enumerate(events)]
    items: list[Json] = message(log)["native"]["content"]
    return items


# -- asking ----------------------------------------------------------------------------------------------------


async def body_of(peer: WirePeer, provider: OpenAIProvider, model: str = "gpt-5.2", **request: Any) -> Any:
    peer.says(sse(ended()))
    await ask(provider, {**ASK, **request}, model)
    return peer.asked[-1].json


async def test_a_request_is_made_by_the_sdk(peer: WirePeer, provider: OpenAIProvider) -> None:
    body = await body_of(peer, provider)
    asked = peer.asked[-1]
    assert asked.line == "POST /v1/responses HTTP/1.1"
    assert asked.header("authorization") == "Bearer sk-secret"
    assert asked.header("content-type") == "application/json"
    assert body == {
        "model": "gpt-5.2",
        "stream": True,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
    }


async def test_a_model_that_does_not_reason_is_not_asked_for_its_reasoning(
    peer: WirePeer, provider: OpenAIProvider
) -> None:
    assert "include" not in await body_of(peer, provider, "gpt-4.1-mini")


CLOSED = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
OPEN = {"type": "object", "properties": {"a": {"type": "string"}}}
FIELDS: list[tuple[Json, Json]] = [
    ({"system": "Be brief."}, {"instructions": "Be brief."}),
    (
        {
            "system": [
                {"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "B"},
            ]
        },
        {"instructions": "A\n\nB"},
    ),
    ({"max_tokens": 99, "temperature": 0.5}, {"max_output_tokens": 99, "temperature": 0.5}),
    (
        {"tools": [{"name": "f", "description": "d", "input_schema": CLOSED, "cache_control": {"type": "ephemeral"}}]},
        {"tools": [{"type": "function", "name": "f", "description": "d", "parameters": CLOSED, "strict": True}]},
    ),
    (
        {"tools": [{"name": "f", "input_schema": OPEN}, {"type": "web_search", "search_context_size": "low"}]},
        {
            "tools": [
                {"type": "function", "name": "f", "parameters": OPEN, "strict": False},
                {"type": "web_search", "search_context_size": "low"},
            ]
        },
    ),
    ({"tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
    (
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        {"tool_choice": "auto", "parallel_tool_calls": False},
    ),
    ({"tool_choice": {"type": "tool", "name": "f"}}, {"tool_choice": {"type": "function", "name": "f"}}),
    ({"effort": "high"}, {"reasoning": {"effort": "high"}}),
    ({"thinking": {"type": "adaptive"}, "effort": "max"}, {"reasoning": {"summary": "auto", "effort": "max"}}),
    ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, {"reasoning": {"summary": "auto", "effort": "low"}}),
    ({"thinking": {"type": "disabled"}}, {"reasoning": {"effort": "none"}}),
    (
        {"output_schema": CLOSED},
        {"text": {"format": {"type": "json_schema", "name": "answer", "schema": CLOSED, "strict": True}}},
    ),
    (
        {"output_schema": OPEN, "provider_options": {"openai": {"text": {"verbosity": "low"}, "store": True}}},
        {
            "text": {
                "format": {"type": "json_schema", "name": "answer", "schema": OPEN, "strict": False},
                "verbosity": "low",
            },
            "store": True,
        },
    ),
    (
        {"provider_options": {"openai": {"include": ["message.output_text.logprobs"], "extra_body": {"seed": 7}}}},
        {"include": ["reasoning.encrypted_content", "message.output_text.logprobs"], "seed": 7},
    ),
    ({"provider_options": {"anthropic": {"top_k": 3}}}, {}),
]


@pytest.mark.parametrize(("fields", "sent"), FIELDS, ids=[" ".join(fields) for fields, _ in FIELDS])
async def test_each_field_of_a_request_has_its_form(
    peer: WirePeer, provider: OpenAIProvider, fields: Json, sent: Json
) -> None:
    plain = await body_of(peer, provider)
    assert await body_of(peer, provider, **fields) == {**plain, **sent}


async def test_messages_become_items(peer: WirePeer, provider: OpenAIProvider) -> None:
    photo = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    paper = {"type": "base64", "media_type": "application/pdf", "data": "BBBB"}
    messages = [
        {"role": "system", "content": "Now be formal."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look:"},
                {"type": "image", "source": photo},
                {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
                {"type": "document", "source": paper, "title": "Paper.pdf"},
                {"type": "document", "source": paper},
                {"type": "document", "source": {"type": "text", "data": "words"}, "title": "Note"},
            ],
        },
        {
            "role": "assistant",
            "native": {"provider": "anthropic", "model": "some-model"},
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "I look. "},
                {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
                {"type": "text", "text": "Now:"},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": "ő"}},
                {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "42"},
                {
                    "type": "tool_result",
                    "tool_use_id": "c2",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no"}],
                },
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    assert (await body_of(peer, provider, messages=messages))["input"] == [
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Now be formal."}]},
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Look:"},
                {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,AAAA"},
                {"type": "input_image", "detail": "auto", "image_url": "https://example.org/a.png"},
                {"type": "input_file", "filename": "Paper.pdf", "file_data": "data:application/pdf;base64,BBBB"},
                {"type": "input_file", "filename": "document.pdf", "file_data": "data:application/pdf;base64,BBBB"},
                {"type": "input_text", "text": "Note\n\nwords"},
            ],
        },
        {"type": "message", "role": "assistant", "content": "I look. Now:"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": "ő"}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
        {"type": "function_call_output", "call_id": "c2", "output": "Error: no"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And?"}]},
    ]


ANSWERED: list[tuple[Json, Any, bool, Json]] = [
    ({"type": "custom_tool_call", "call_id": "c"}, "yes", False, {"type": "custom_tool_call_output", "output": "yes"}),
    (
        {"type": "computer_call", "call_id": "c"},
        [{"type": "image", "source": {"type": "url", "url": "https://example.org/s.png"}}],
        False,
        {
            "type": "computer_call_output",
            "output": {"type": "computer_screenshot", "image_url": "https://example.org/s.png"},
        },
    ),
    (
        {"type": "shell_call", "call_id": "c"},
        "no such file",
        True,
        {
            "type": "shell_call_output",
            "output": [{"stdout": "", "stderr": "no such file", "outcome": {"type": "exit", "exit_code": 1}}],
        },
    ),
    (
        {"type": "apply_patch_call", "call_id": "c"},
        "done",
        False,
        {"type": "apply_patch_call_output", "status": "completed", "output": "done"},
    ),
    (
        {"type": "mcp_approval_request", "id": "c"},
        "approve",
        False,
        {"type": "mcp_approval_response", "approval_request_id": "c", "approve": True},
    ),
    (
        {"type": "mcp_approval_request", "id": "c"},
        "It is approved by nobody.",
        False,
        {
            "type": "mcp_approval_response",
            "approval_request_id": "c",
            "approve": False,
            "reason": "It is approved by nobody.",
        },
    ),
]


@pytest.mark.parametrize(("item", "content", "is_error", "sent"), ANSWERED)
async def test_each_kind_of_call_is_answered_in_its_own_form(
    peer: WirePeer, provider: OpenAIProvider, item: Json, content: Any, is_error: bool, sent: Json
) -> None:
    messages = [
        {
            "role": "assistant",
            "content": [],
            "native": {"provider": "openai", "model": "gpt-5.2", "content": [item]},
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "c", "content": content, "is_error": is_error}],
        },
    ]
    body = await body_of(peer, provider, messages=messages)
    assert body["input"] == [item, {**({"call_id": "c"} if "call_id" in item else {}), **sent}]


async def test_native_content_goes_back_only_to_the_model_that_said_it(
    peer: WirePeer, provider: OpenAIProvider
) -> None:
    items = [{"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "e"}, said("hi")]
    native = {"provider": "openai", "model": "gpt-5.2", "content": items}
    turn = {"role": "assistant", "content": [{"type": "text", "text": "hi"}], "native": native}
    assert (await body_of(peer, provider, messages=[turn]))["input"] == items
    other = await body_of(peer, provider, "gpt-5.3", messages=[turn])
    assert other["input"] == [{"type": "message", "role": "assistant", "content": "hi"}]


REFUSED: list[tuple[Json, str]] = [
    ({"stop_sequences": ["x"]}, "stop_sequences"),
    ({"messages": [{"role": "user", "content": [{"type": "video", "x": "my-words"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "assistant", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "native": "my-words"}]}, "messages[0].native"),
    ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
    ({"tool_choice": {"type": "my-words"}}, "tool_choice.type"),
    ({"provider_options": {"openai": {"top_k": 3}}}, "provider_options.openai.top_k"),
    ({"provider_options": {"openai": {"store": "my-words"}}}, "provider_options.openai.store"),
    (
        {"provider_options": {"openai": {"reasoning": {"effort": "my-words"}}}},
        "provider_options.openai.reasoning.effort",
    ),
    ({"provider_options": {"openai": {"tools": [{"type": "my-words"}]}}}, "provider_options.openai.tools[0].type"),
    ({"provider_options": {"openai": {"input": "my-words"}}}, "provider_options.openai.input"),
    ({"provider_options": {"openai": {"extra_body": {"stream": False}}}}, "provider_options.openai.stream"),
]


@pytest.mark.parametrize(("fields", "place"), REFUSED, ids=[place for _, place in REFUSED])
async def test_what_it_cannot_take_is_refused_by_its_place_and_nothing_is_sent(
    peer: WirePeer, provider: OpenAIProvider, fields: Json, place: str
) -> None:
    peer.says(sse(ended()))
    _, failure = await fails(provider, {**ASK, **fields})
    assert (failure.code, failure.retryable) == ("invalid_input", False)
    assert place in failure.message
    assert "my-words" not in failure.message
    assert peer.asked == []


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (CLOSED, True),
        ({**CLOSED, "required": []}, False),
        ({**CLOSED, "additionalProperties": True}, False),
        ({**CLOSED, "allOf": []}, False),
        ({**CLOSED, "properties": {"a": {"type": "string", "minLength": 3}}}, False),
        ({**CLOSED, "properties": {"a": {"type": "array", "items": CLOSED}}}, True),
        ({**CLOSED, "properties": {"a": {"type": "array", "items": OPEN}}}, False),
        ({**CLOSED, "properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": OPEN}}, False),
        ({**CLOSED, "properties": {"a": {"anyOf": [{"type": "null"}, CLOSED]}}}, True),
        ({"type": "array", "items": CLOSED}, False),
        ({"type": "object", "properties": 3, "additionalProperties": False}, False),
    ],
)
def test_a_schema_is_strict_if_it_keeps_openais_rules(schema: Json, strict: bool) -> None:
    assert is_strict(schema) is strict


# -- answers -----------------------------------------------------------------------------------------------------


async def test_arguments_that_are_written_anew_when_they_are_whole_are_not_told_twice(
    peer: WirePeer, provider: OpenAIProvider
) -> None:
    call = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": ""}
    whole = {**call, "arguments": '{"a": 1}'}
    piece = {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "delta": '{"a":1}'}
    told = await heard(peer, provider, created(), added(call), piece, done(whole), ended(whole))
    pieces = [data["partial_json"] for kind, data in told.events if kind == "tool_args_delta"]
    assert pieces == ['{"a":1}']
    assert [data["args"] for kind, data in told.events if kind == "tool_args"] == [{"a": 1}]


async def test_a_text_is_told_as_it_comes_and_once(peer: WirePeer, provider: OpenAIProvider) -> None:
    whole = said("Hello there")
    told = await heard(
        peer,
        provider,
        created(),
        added(said("")),
        delta("Hello"),
        delta(" there"),
        {"type": "response.output_text.done", "item_id": "msg_1", "content_index": 0, "text": "Hello there"},
        {"type": "response.content_part.done", "item_id": "msg_1", "content_index": 0, "part": whole["content"][0]},
        done(whole),
        ended(whole),
    )
    assert told.events == [("text_delta", {"text": "Hello"}), ("text_delta", {"text": " there"})]
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 60,
        "cache_creation_input_tokens": 30,
        "output_tokens": 20,
        "thinking_tokens": 5,
        "provider": USAGE,
    }
    assert told.finish == Finish("end_turn", usage, "completed", model="gpt-5.2-2026-01-01", response_id="resp_1")
    assert told.counted == [Counted(usage)]


async def test_the_ids_of_an_answer_are_kept(peer: WirePeer, provider: OpenAIProvider) -> None:
    told = await heard(peer, provider, created(), delta("x"), done(said("x")), ended(said("x"), service_tier="flex"))
    first, last = told.internal
    assert first["response"] == {
        "id": "resp_1",
        "object": "response",
        "model": "gpt-5.2-2026-01-01",
        "store": False,
        "status": "in_progress",
    }
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    assert last["response"] == {"status": "completed", "service_tier": "flex", "items": [item]}


WHOLE = said("Hello there")
SAID_LATE: dict[str, list[Json]] = {
    "partly at the end": [
        *(delta("Hello", item_id="msg_2"), done(said("Hello", item_id="msg_2"))),
        ended(said(" there", item_id="msg_3"), said("Hello", item_id="msg_2")),
    ],
    "by output_text.done": [
        {"type": "response.output_text.done", "item_id": "msg_1", "content_index": 0, "text": "Hello there"},
        ended(WHOLE),
    ],
    "by content_part.done": [
        {"type": "response.content_part.done", "item_id": "msg_1", "content_index": 0, "part": WHOLE["content"][0]},
        ended(WHOLE),
    ],
    "by its item": [done(WHOLE), ended(WHOLE)],
    "at the end": [ended(WHOLE)],
    "the rest by its item": [delta("Hello"), done(WHOLE), ended()],
    "with an id that changes": [
        added(WHOLE),
        delta("Hello", item_id="other"),
        delta(" there", item_id="another"),
        done({**WHOLE, "id": "yet another"}),
        ended({**WHOLE, "id": "the fifth"}),
    ],
}


@pytest.mark.parametrize("how", SAID_LATE)
async def test_a_text_that_is_said_late_is_told_once(peer: WirePeer, provider: OpenAIProvider, how: str) -> None:
    told = await heard(peer, provider, *SAID_LATE[how])
    assert told.text == "Hello there"
    assert (told.finish.native is None) is (how != "partly at the end")


async def test_texts_that_were_told_in_another_order_go_back_in_their_own(
    peer: WirePeer, provider: OpenAIProvider
) -> None:
    first, second = said("Hello", item_id="msg_1"), said(" there", item_id="msg_2")
    told = await heard(peer, provider, delta(" there", item_id="msg_2"), done(second), ended(first, second))
    assert told.text == " thereHello"
    assert sent_back(told) == [first, second]


async def test_thinking_is_told_in_paragraphs_and_goes_back_with_what_seals_it(
    peer: WirePeer, provider: OpenAIProvider
) -> None:
    summary = [{"type": "summary_text", "text": "First."}, {"type": "summary_text", "text": "Second."}]
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": "sealed"}
    answer = said("Yes.")
    kind = "reasoning_summary_text"
    told = await heard(
        peer,
        provider,
        added({**reasoning, "summary": []}),
        delta("Fir", kind, "rs_1", summary_index=0),
        delta("st.", kind, "rs_1", summary_index=0),
        delta("Second.", kind, "rs_1", summary_index=1),
        done(reasoning),
        added(said(""), 1),
        delta("Yes.", output_index=1),
        done(answer, 1),
        ended(reasoning, answer),
    )
    assert told.events == [
        ("thinking_delta", {"text": "Fir"}),
        ("thinking_delta", {"text": "st."}),
        ("thinking_delta", {"text": "\n\nSecond."}),
        ("text_delta", {"text": "Yes."}),
    ]
    assert {"type": "reasoning", "id": "rs_1", "encrypted_content": "sealed"} in [
        event.get("item") for event in told.internal
    ]
    assert sent_back(told) == [reasoning, answer]
    assert told.finish.native[1]["content"][0]["text"] == {"$lastevent": "text", "characters": 4}


async def test_one_paragraph_of_thinking_is_referred_to(peer: WirePeer, provider: OpenAIProvider) -> None:
    content = [{"type": "reasoning_text", "text": "Hm."}]
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "content": content}
    told = await heard(
        peer, provider, delta("Hm.", "reasoning_text", "rs_1"), done(reasoning), done(WHOLE, 1), ended(reasoning, WHOLE)
    )
    assert told.events[0] == ("thinking_delta", {"text": "Hm."})
    assert sent_back(told) == [reasoning, WHOLE]
    assert told.finish.native[0]["content"][0]["text"] == {"$lastevent": "thinking", "characters": 3}


ARGUMENTS = '{"a":"ő\\n","b":[1,2.5]}'


@pytest.mark.parametrize("at", range(len(ARGUMENTS) + 1))
async def test_two_calls_at_once_stay_apart(peer: WirePeer, provider: OpenAIProvider, at: int) -> None:
    """With their arguments interleaved, and cut at each place."""
    one, two = call(1, ARGUMENTS), call(2, ARGUMENTS)
    told = await heard(
        peer,
        provider,
        added(call(1, "")),
        added(call(2, ""), 1),
        args_delta(1, ARGUMENTS[:at], 0),
        args_delta(2, ARGUMENTS[:at], 1),
        args_delta(1, ARGUMENTS[at:], 0),
        args_delta(2, ARGUMENTS[at:], 1),
        done(one),
        done(two, 1),
        ended(one, two),
    )
    assert told.of("tool_start") == [
        {"tool_call_id": f"call_{n}_x", "tool": f"tool{n}", "client": True} for n in (1, 2)
    ]
    for n in (1, 2):
        pieces = [data["partial_json"] for data in told.of("tool_args_delta") if data["tool"] == f"tool{n}"]
        assert pieces == [piece for piece in (ARGUMENTS[:at], ARGUMENTS[at:]) if piece]
    assert told.of("tool_args") == [
        {"tool_call_id": f"call_{n}_x", "tool": f"tool{n}", "args": orjson.loads(ARGUMENTS), "complete": True}
        for n in (1, 2)
    ]
    assert told.finish.stop_reason == "tool_use"
    assert sent_back(told) == [one, two]
    assert told.finish.native[0]["arguments"] == {"$lastevent": "args", "tool_call_id": "call_1_x"}


ODD_CALLS: dict[str, list[Json]] = {
    "arguments by their done alone": [
        added(call(1, "")),
        {"type": "response.function_call_arguments.done", "item_id": "fc_1", "output_index": 0, "arguments": "{}"},
        done(call(1, "{}")),
        ended(),
    ],
    "the item alone": [done(call(1, "{}")), ended()],
    "the end alone": [ended(call(1, "{}"))],
    "no item is done": [added(call(1, "")), args_delta(1, "{}", 0), ended()],
    "arguments before their item": [args_delta(1, "{}", 0), done(call(1, "{}")), ended()],
    "every index is 0": [
        *(added(call(1, "")), added(call(2, ""))),
        *(args_delta(1, "{}", 0), args_delta(2, "{}", 0)),
        *(done(call(1, "{}")), done(call(2, "{}"))),
        ended(),
    ],
    "arguments are empty": [added(call(1, "")), done(call(1, "")), ended()],
}


@pytest.mark.parametrize("how", ODD_CALLS)
async def test_a_call_that_is_said_oddly_is_told_whole(peer: WirePeer, provider: OpenAIProvider, how: str) -> None:
    told = await heard(peer, provider, *ODD_CALLS[how])
    starts = [data["tool_call_id"] for data in told.of("tool_start")]
    assert starts == (["call_1_x", "call_2_x"] if how == "every index is 0" else ["call_1_x"])
    assert [(data["tool_call_id"], data["args"]) for data in told.of("tool_args")] == [(one, {}) for one in starts]
    pieces = [data["partial_json"] for data in told.of("tool_args_delta")]
    assert pieces == ([] if how == "arguments are empty" else ["{}"] * len(starts))
    assert told.finish.stop_reason == "tool_use"
    assert [item["call_id"] for item in sent_back(told)] == starts


async def test_calls_without_ids_or_with_one_twice_are_told_apart(peer: WirePeer, provider: OpenAIProvider) -> None:
    calls = [call(1, "{}", id=None, call_id=""), call(2, "{}", call_id="same"), call(3, "{}", call_id="same")]
    told = await heard(peer, provider, *(done(item, index) for index, item in enumerate(calls)), ended())
    ids = [data["tool_call_id"] for data in told.of("tool_start")]
    assert ids == ["call_1", "same", "call_3"]
    assert [item["call_id"] for item in sent_back(told)] == ids


async def test_a_custom_tools_text_is_told_as_json(peer: WirePeer, provider: OpenAIProvider) -> None:
    item = {"type": "custom_tool_call", "id": "ct_1", "call_id": "c1", "name": "sql", "input": 'select "ő"\n;'}
    kind = "custom_tool_call_input"
    told = await heard(
        peer,
        provider,
        added({**item, "input": ""}),
        delta('select "', kind, "ct_1"),
        delta('ő"\n;', kind, "ct_1"),
        done(item),
        ended(item),
    )
    assert orjson.loads("".join(data["partial_json"] for data in told.of("tool_args_delta"))) == item["input"]
    assert told.of("tool_args")[0]["args"] == item["input"]
    assert sent_back(told) == [item]


OWN_TOOLS: dict[str, tuple[Json, Any, bool]] = {
    "web_search": (
        {"type": "web_search_call", "action": {"type": "search", "query": "q"}},
        {"type": "search", "query": "q"},
        True,
    ),
    "file_search": (
        {"type": "file_search_call", "queries": ["q"], "results": [{"text": "t"}]},
        {"queries": ["q"]},
        True,
    ),
    "code_interpreter": (
        {
            "type": "code_interpreter_call",
            "code": "1/0",
            "outputs": [{"type": "logs", "logs": "x"}],
            "status": "failed",
        },
        {"code": "1/0"},
        False,
    ),
    "image_generation": ({"type": "image_generation_call", "result": "AAAA"}, {}, True),
    "lookup": (
        {"type": "mcp_call", "name": "lookup", "server_label": "s", "arguments": '{"k":1}', "output": "found"},
        {"k": 1},
        True,
    ),
    "broken": (
        {
            "type": "mcp_call",
            "name": "broken",
            "server_label": "s",
            "arguments": "{}",
            "error": {"type": "http_error", "code": 500, "message": "It is down."},
        },
        {},
        False,
    ),
}


@pytest.mark.parametrize("tool", OWN_TOOLS)
async def test_a_tool_of_the_providers_own_is_told_with_what_it_gave(
    peer: WirePeer, provider: OpenAIProvider, tool: str
) -> None:
    fields, args, is_well = OWN_TOOLS[tool]
    item = {"id": "own_1", "status": "completed", **fields}
    told = await heard(peer, provider, added(item), done(item), done(WHOLE, 1), ended(item, WHOLE))
    named = {"tool_call_id": "own_1", "tool": tool}
    assert told.of("tool_start") == [named]
    assert told.of("tool_args") == [{**named, "args": args, "complete": True}]
    end = told.of("tool_end" if is_well else "tool_error")[0]
    assert end["output"] == item
    assert {**named, "duration_ms": end["duration_ms"]}.items() <= end.items()
    assert is_well or end["code"] == "failed"
    assert told.finish.stop_reason == "end_turn"
    assert sent_back(told) == [item, WHOLE]


async def test_code_is_told_as_it_is_written(peer: WirePeer, provider: OpenAIProvider) -> None:
    item = {"type": "code_interpreter_call", "id": "ci_1", "code": 'print("x")', "status": "completed"}
    kind = "code_interpreter_call_code"
    told = await heard(
        peer, provider, added(item), delta("print(", kind, "ci_1"), delta('"x")', kind, "ci_1"), done(item), ended()
    )
    assert orjson.loads("".join(data["partial_json"] for data in told.of("tool_args_delta"))) == {"code": item["code"]}


@pytest.mark.parametrize(("exit_code", "kind"), [(0, "tool_end"), (2, "tool_error")])
async def test_a_command_in_the_providers_container_ends_as_it_ended(
    peer: WirePeer, provider: OpenAIProvider, exit_code: int, kind: str
) -> None:
    where = {"type": "container_reference", "container_id": "c"}
    shell = {"type": "shell_call", "id": "sh_1", "call_id": "c1", "action": {"commands": ["ls"]}, "environment": where}
    outcome = {"type": "exit", "exit_code": exit_code}
    output = [{"stdout": "a", "stderr": "", "outcome": outcome}]
    result = {"type": "shell_call_output", "id": "so_1", "call_id": "c1", "output": output, "status": "completed"}
    told = await heard(peer, provider, done(shell), done(result, 1), done(WHOLE, 2), ended(shell, result, WHOLE))
    assert [its for its, _ in told.events] == ["tool_start", "tool_args", kind, "text_delta"]
    assert "client" not in told.of("tool_start")[0]
    assert told.of(kind)[0]["output"] == result
    assert told.finish.stop_reason == "end_turn"


@pytest.mark.parametrize(
    "item",
    [
        {"type": "computer_call", "id": "x", "call_id": "c", "action": {"type": "click", "x": 1, "y": 2}},
        {"type": "shell_call", "id": "x", "call_id": "c", "action": {"commands": ["ls"]}},
        {"type": "apply_patch_call", "id": "x", "call_id": "c", "operation": {"type": "delete_file", "path": "a"}},
        {"type": "mcp_approval_request", "id": "c", "name": "f", "server_label": "s", "arguments": "{}"},
    ],
    ids=lambda item: item["type"],
)
async def test_what_the_caller_has_to_do_is_a_call_of_its(peer: WirePeer, provider: OpenAIProvider, item: Json) -> None:
    told = await heard(peer, provider, done(item), ended(item))
    assert told.of("tool_start")[0]["client"] is True
    assert told.of("tool_start")[0]["tool_call_id"] == "c"
    assert told.finish.stop_reason == "tool_use"
    assert sent_back(told) == [item]


async def test_citations_are_told_by_their_place_in_the_answer(peer: WirePeer, provider: OpenAIProvider) -> None:
    url = {"type": "url_citation", "url": "https://example.org", "title": "T", "start_index": 0, "end_index": 3}
    file = {"type": "file_citation", "file_id": "f_1", "filename": "a.pdf", "index": 2}
    path = {"type": "file_path", "file_id": "f_2", "index": 0}
    second = said("one", url, file, path, item_id="msg_2")
    place = {"item_id": "msg_2", "output_index": 1, "content_index": 0}
    told = await heard(
        peer,
        provider,
        delta("Well, "),
        done(said("Well, ")),
        delta("one", item_id="msg_2", output_index=1),
        {"type": "response.output_text.annotation.added", **place, "annotation_index": 0, "annotation": url},
        done(second, 1),
        ended(),
    )
    assert told.of("citation") == [
        {"url": "https://example.org", "title": "T", "cited_text": None, "start": 6, "end": 9},
        {"url": None, "title": "a.pdf", "cited_text": None, "start": 8, "end": 8},
    ]
    assert [event["annotation"] for event in told.internal if "annotation" in event] == [file, path]
    assert sent_back(told) == [said("Well, "), second]


async def test_a_refusal_is_shown_and_is_the_stop_reason(peer: WirePeer, provider: OpenAIProvider) -> None:
    part = {"type": "refusal", "refusal": "I will not."}
    item = {"type": "message", "id": "msg_1", "role": "assistant", "content": [part]}
    told = await heard(peer, provider, delta("I will ", "refusal"), delta("not.", "refusal"), done(item), ended(item))
    assert told.text == "I will not."
    assert (told.finish.stop_reason, told.finish.provider_stop_reason) == ("refusal", "completed")
    assert sent_back(told) == [item]


@pytest.mark.parametrize(
    ("reason", "stop_reason"),
    [("max_output_tokens", "max_tokens"), ("content_filter", "refusal"), ("steered", "other")],
)
@pytest.mark.parametrize("word", ["incomplete", "completed"])
async def test_an_incomplete_answer_says_why(
    peer: WirePeer, provider: OpenAIProvider, reason: str, stop_reason: str, word: str
) -> None:
    broken = call(1, '{"a":')
    end = ended(WHOLE, broken, how="incomplete", incomplete_details={"reason": reason})
    end["type"] = f"response.{word}"
    told = await heard(
        peer, provider, done(WHOLE), added(call(1, ""), 1), args_delta(1, '{"a":', 1), done(broken, 1), end
    )
    assert told.finish.stop_reason == stop_reason
    assert told.finish.provider_stop_reason == reason
    assert told.finish.response_id == RESPONSE["id"]
    assert told.finish.stop_details == {"reason": reason}
    assert told.of("tool_args") == []
    assert told.finish.native is None  # a call that was cut off cannot go back


async def test_thoughts_that_nothing_came_of_do_not_go_back(peer: WirePeer, provider: OpenAIProvider) -> None:
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "sealed"}
    end = ended(WHOLE, reasoning, how="incomplete", incomplete_details={"reason": "max_output_tokens"})
    assert (await heard(peer, provider, done(WHOLE), done(reasoning, 1), end)).finish.native is None


async def test_logprobs_and_unknown_kinds_are_kept(peer: WirePeer, provider: OpenAIProvider) -> None:
    spoken = delta("x", logprobs=[{"token": "x", "logprob": -0.1}])
    new = {"type": "response.hologram.delta", "beam": {"$lastevent": "text", "characters": 9}}
    item = {"type": "hologram", "id": "h_1", "beam": {"$lastevent": "text", "characters": 9}}
    told = await heard(peer, provider, spoken, new, done(said("x")), done(item, 1), ended(said("x"), item))
    assert [event for event in told.internal if "response" not in event] == [spoken, new, done(item, 1)]
    assert sent_back(told) == [said("x"), item]


# -- failing -----------------------------------------------------------------------------------------------------

IN_THE_STREAM: list[tuple[str, str, bool]] = [
    ("rate_limit_exceeded", "provider_rate_limited", False),
    ("server_error", "provider_error", False),
    ("insufficient_quota", "provider_refused", True),
    ("invalid_prompt", "provider_refused", False),
    ("context_length_exceeded", "provider_refused", False),
    ("image_too_small", "provider_refused", False),
    ("slow_down", "provider_overloaded", False),
    ("a_new_one", "provider_error", False),
]


@pytest.mark.parametrize(("name", "code", "moves_on"), IN_THE_STREAM)
@pytest.mark.parametrize("before", [(), (delta("Hel"),)], ids=["before the first text", "after it"])
async def test_an_error_in_the_stream_is_a_failure_by_its_code(
    peer: WirePeer, provider: OpenAIProvider, name: str, code: str, moves_on: bool, before: tuple[Json, ...]
) -> None:
    error = {"code": name, "message": "No."}
    flat = {"type": "error", "sequence_number": 1, "param": None, **error}
    nested = {"type": "error", "error": {"type": "x", **error}}
    for event in (flat, nested, {"error": error}, ended(how="failed", error=error)):
        peer.says(*map(sse, (*before, event)), headers=(("x-request-id", "req_1"),))
        told, failure = await fails(provider)
        assert [one for one in told if one[0] == "text_delta"] == [("text_delta", {"text": "Hel"})] * len(before)
        assert (failure.code, failure.moves_on, failure.said) == (code, moves_on, "No.")
        assert failure.request_id == "req_1"
        assert any(isinstance(one, Counted) for one in told) is ("response" in event)


REFUSALS: list[tuple[int, str | None, str, bool]] = [
    (400, "invalid_prompt", "provider_refused", False),
    (401, "invalid_api_key", "provider_unauthorized", True),
    (403, None, "provider_unauthorized", True),
    (404, "model_not_found", "provider_refused", True),
    (429, "rate_limit_exceeded", "provider_rate_limited", False),
    (429, "insufficient_quota", "provider_refused", True),
    (500, "server_error", "provider_error", False),
    (503, None, "provider_overloaded", False),
]


@pytest.mark.parametrize(("status", "name", "code", "moves_on"), REFUSALS)
async def test_a_refusal_is_a_failure_by_its_status_and_code(
    peer: WirePeer, provider: OpenAIProvider, status: int, name: str | None, code: str, moves_on: bool
) -> None:
    error = {"message": "No, sk-secret", "type": "x", "code": name, "param": None}
    peer.refuses(status, {"error": error}, retry_after="7", x_request_id="req_1")
    _, failure = await fails(provider)
    assert (failure.code, failure.moves_on, failure.status, failure.request_id) == (code, moves_on, status, "req_1")
    assert failure.retry_after_s == 7
    assert failure.said == "No, sk-…"
    assert len(peer.asked) == 1


BAD_ENDS: dict[str, tuple[tuple[bytes, ...], str, str]] = {
    "cut": ((sse(delta("x")),), "cut", "provider_cut"),
    "no terminal mark": ((sse(delta("x")),), "proper", "provider_cut"),
    "Chat's terminal mark": ((sse(delta("x")), sse(b"[DONE]")), "proper", "provider_cut"),
    "silence": ((sse(delta("x")),), "hold", "provider_silent"),
    "no JSON": ((sse(delta("x")), sse(b"{")), "proper", "provider_bad_answer"),
    "no object": ((sse(delta("x")), sse([1])), "proper", "provider_bad_answer"),
    "a delta without text": ((sse(delta("x")), sse(delta(3))), "proper", "provider_bad_answer"),  # type: ignore[arg-type]
    "no response at its end": ((sse(delta("x"), {"type": "response.completed"}),), "proper", "provider_bad_answer"),
    "arguments that are no JSON": ((sse(done(call(1, "{a")), ended()),), "proper", "provider_bad_answer"),
}


@pytest.mark.parametrize("how", BAD_ENDS)
async def test_what_ends_badly_is_no_end(peer: WirePeer, how: str) -> None:
    pieces, end, code = BAD_ENDS[how]
    peer.says(*pieces, end=end)
    impatient = OpenAIProvider(api_key="sk-secret", base_url=f"{peer.url}/v1", silence_s=0.3)
    _, failure = await fails(impatient)
    await impatient.aclose()
    assert (failure.code, failure.retryable) == (code, True)


async def test_signs_of_life_alone_end_some_time(peer: WirePeer) -> None:
    patient = OpenAIProvider(api_key="sk-secret", base_url=f"{peer.url}/v1", silence_s=10, idle_s=0.000001)
    peer.says(*[sse({"type": "keepalive", "sequence_number": n}) for n in range(3)], end="hold")
    _, failure = await fails(patient)
    await patient.aclose()
    assert failure.code == "provider_silent"


async def test_a_failure_after_an_mcp_tool_says_that_it_ran(peer: WirePeer, provider: OpenAIProvider) -> None:
    item = {"type": "mcp_call", "id": "mcp_1", "name": "pay", "server_label": "s", "arguments": "{}"}
    for before, after_effects in (([added(item)], False), ([added(item), done(item)], True)):
        peer.says(*map(sse, before))
        assert (await fails(provider))[1].after_effects is after_effects


async def test_without_a_key_nothing_is_sent(peer: WirePeer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    peer.says(sse(ended()))
    monkeypatch.setenv("OPENAI_BASE_URL", f"{peer.url}/v1")
    for key, word in ((None, "OPENAI_API_KEY"), ("sk-secret-ő", "characters")):
        provider = OpenAIProvider(api_key=key, silence_s=10)
        _, failure = await fails(provider)
        assert failure.code == "provider_unauthorized"
        assert word in failure.message
        with pytest.raises(ProviderFailure, match=word):
            await provider.check()
        await provider.aclose()
    assert peer.asked == []


async def test_openais_credentials_go_to_no_other_server(peer: WirePeer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "sk-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway: sk-secret")
    peer.says(sse(ended()))
    own = OpenAIProvider(base_url=f"{peer.url}/v1", silence_s=10)
    await ask(own)
    await own.aclose()
    assert b"sk-secret" not in peer.asked[-1].head


async def test_openais_own_are_told_whose_they_are(peer: WirePeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{peer.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    peer.says(sse(ended()))
    own = OpenAIProvider(silence_s=10)
    await ask(own)
    await own.aclose()
    assert peer.asked[-1].header("authorization") == "Bearer sk-mine"
    assert peer.asked[-1].header("openai-organization") == "org-mine"


async def test_a_check_asks_what_costs_nothing(peer: WirePeer, provider: OpenAIProvider) -> None:
    peer.says(b'{"object":"list","data":[]}', content_type="application/json")
    await provider.check()
    assert peer.asked[-1].line == "GET /v1/models HTTP/1.1"
    peer.refuses(401, {"error": {"message": "No.", "code": "invalid_api_key"}})
    with pytest.raises(ProviderFailure) as caught:
        await provider.check()
    assert caught.value.code == "provider_unauthorized"


# -- odd wires -----------------------------------------------------------------------------------------------------

SPOKEN = [created(), delta("Hello"), delta(""), delta(" there ő"), done(said("Hello there ő")), ended()]
PLAIN = sse(*SPOKEN)
ODD: dict[str, tuple[bytes, ...]] = {
    "no event names": (sse(*SPOKEN, named=False),),
    "CRLF": (PLAIN.replace(b"\n", b"\r\n"),),
    "a BOM": (b"\xef\xbb\xbf" + PLAIN,),
    "comments": (PLAIN.replace(b"\n\n", b"\n\n: alive\n\n"),),
    "every byte in its own packet": tuple(PLAIN[at : at + 1] for at in range(len(PLAIN))),
    "an end mark of another API": (PLAIN + sse(b"[DONE]"),),
    "empty data": (sse(b"") + PLAIN,),
}


@pytest.mark.parametrize("how", ODD)
async def test_an_odd_wire_says_the_same(peer: WirePeer, provider: OpenAIProvider, how: str) -> None:
    told = await heard(peer, provider, *ODD[how])
    assert told.events == [("text_delta", {"text": "Hello"}), ("text_delta", {"text": " there ő"})]
    assert told.finish.usage["output_tokens"] == 20


async def test_a_megabyte_in_one_line_comes_through(peer: WirePeer, provider: OpenAIProvider) -> None:
    long = "x" * 2**20
    assert (await heard(peer, provider, done(said(long)), ended())).text == long


async def test_an_answer_beyond_its_bounds_is_a_failure(peer: WirePeer) -> None:
    bounded = OpenAIProvider(
        api_key="sk-secret", base_url=f"{peer.url}/v1", silence_s=10, bounds=Bounds(event_bytes=1000)
    )
    peer.says(sse(delta("x" * 2000)))
    assert (await fails(bounded))[1].code == "provider_bad_answer"
    await bounded.aclose()


# -- the stand-in's wire ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def played() -> AsyncIterator[OpenAIProvider]:
    standin = StandIn()
    provider = OpenAIProvider(api_key="sk-secret", base_url=f"{standin.base_url}/v1", silence_s=10)
    yield provider
    await provider.aclose()
    standin.close()


PLAYED = {
    "tokens=5 thinking=3": ("end_turn", ["thinking_delta", "text_delta"]),
    "tokens=2 parallel=1 args_piece=1": ("tool_use", ["text_delta", "tool_start", "tool_args_delta", "tool_args"]),
    "tokens=5 citations=2": ("end_turn", ["text_delta", "citation"]),
    "tokens=5 refuse=1": ("refusal", ["text_delta"]),
    "tokens=5 max=1": ("max_tokens", ["text_delta"]),
    "tokens=2 mcp=1": ("end_turn", ["tool_start", "tool_args_delta", "tool_args", "tool_end", "text_delta"]),
    "tokens=2 server_tool=ok": ("end_turn", ["text_delta", "tool_start", "tool_args", "tool_end"]),
    "tokens=5 cached=9 piece=7 line_end=crlf": ("end_turn", ["text_delta"]),
}


@pytest.mark.parametrize("directives", PLAYED)
async def test_the_stand_ins_answers_are_told(played: OpenAIProvider, directives: str) -> None:
    stop_reason, kinds = PLAYED[directives]
    tools = [{"name": "f", "input_schema": OPEN}]
    content = f"hello [[rate=0 ttft_ms=0 {directives}]]"
    told = await ask(played, {"messages": [{"role": "user", "content": content}], "tools": tools})
    assert told.finish.stop_reason == stop_reason
    assert list(dict.fromkeys(kind for kind, _ in told.events)) == kinds


PLAYED_BADLY = {
    "status=500": "provider_error",
    "status=400": "provider_refused",
    "status=429 code=insufficient_quota": "provider_refused",
    "status=429": "provider_rate_limited",
    "overload=1": "provider_overloaded",
    "error_at=0": "provider_overloaded",
    "error_at=3": "provider_overloaded",
    "error_at=3 flat_error=1": "provider_overloaded",
    "error_at=3 error=api_error": "provider_error",
    "cut_at=3": "provider_cut",
    "end_at=3": "provider_cut",
    "garbage_at=3": "provider_bad_answer",
    "gzip=1": "provider_bad_answer",
}


@pytest.mark.parametrize("directives", PLAYED_BADLY)
async def test_the_stand_ins_faults_are_failures(played: OpenAIProvider, directives: str) -> None:
    content = f"{directives} [[rate=0 ttft_ms=0 tokens=5 {directives}]]"
    _, failure = await fails(played, {"messages": [{"role": "user", "content": content}]})
    assert failure.code == PLAYED_BADLY[directives]


async def test_half_of_a_torn_character_is_replaced(played: OpenAIProvider) -> None:
    content = "hello [[rate=0 ttft_ms=0 tokens=5 surrogate_at=2]]"
    told = await ask(played, {"messages": [{"role": "user", "content": content}]})
    assert told.text.count("\ufffd") == 1
    assert len(told.of("text_delta")) == 5


# -- nothing is dropped ------------------------------------------------------------------------------------------------


def sdk_kinds() -> set[str]:
    return kinds(ResponseStreamEvent, whole=frozenset({"response", "tools"}))  # the latter repeat the request


def test_each_type_of_the_sdk_is_in_the_documented_tables() -> None:
    assert sdk_kinds() - documented("openai").keys() == set()


def test_the_documented_tables_have_no_type_that_the_sdk_does_not_know() -> None:
    assert documented("openai").keys() - sdk_kinds() == set()


def test_what_is_documented_as_kept_whole_has_no_other_place() -> None:
    """And what has one is not documented as kept whole."""
    kept = {kind for kind, becomes in documented("openai").items() if becomes == "`internal.provider`"}
    assert not kept & (TAKERS.keys() | REPEATED | CALLS | RESULTS | PARTS.keys())
    told = {kind for kind in sdk_kinds() - kept if kind.startswith("response.")}
    assert told <= TAKERS.keys() | REPEATED
