"""The stand-in on each provider's wire: each real SDK reads it unmodified, and knows the type of every event."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from anthropic.types import RawMessageStreamEvent
from google.genai import errors as genai_errors
from google.genai import types as genai_types
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from tests.worker.sdk_clients import SdkClients
from worker.standin.server import StandIn
from worker.standin.words import JSON_TEXT, words

FAST = "rate=0 ttft_ms=0"
WIRES = ["anthropic", "responses", "chat", "gemini"]
ARGS = {"city": "Oslo", "unit": "celsius", "days": 3}


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.close()


@dataclass
class Answer:
    """What a client of any of the SDKs has read."""

    text: str = ""
    thinking: str = ""
    calls: dict[Any, str] = field(default_factory=dict)
    """Each call's arguments, by whatever tells the calls apart."""
    order: list[Any] = field(default_factory=list)
    """Of whose arguments each piece was."""
    refusal: str = ""
    stop: Any = None
    citations: list[Any] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    usage: dict[str, int] = field(default_factory=dict)
    """In Anthropic's words: cached tokens are no input tokens."""

    def args(self, call: Any, piece: str) -> None:
        self.calls[call] = self.calls.get(call, "") + piece
        self.order.append(call)


class Clients(SdkClients):
    """Their answers are read as typed events."""

    async def ask(self, wire: str, message: str) -> Answer:
        answer = Answer()
        await self.read(wire, message, answer)
        return answer

    async def read(self, wire: str, message: str, answer: Answer) -> None:
        async for event in await self.stream(wire, message):
            TAKERS[wire](answer, event)

    async def stream(self, wire: str, message: str) -> AsyncIterator[Any]:
        said: Any = [{"role": "user", "content": message}]
        if wire == "anthropic":
            stream: Any = await self.anthropic.messages.create(model="m", max_tokens=9, messages=said, stream=True)
        elif wire == "responses":
            stream = await self.openai.responses.create(model="m", input=said, stream=True)
        elif wire == "chat":
            usage: Any = {"include_usage": True}
            stream = await self.openai.chat.completions.create(
                model="m", messages=said, stream=True, stream_options=usage
            )
        else:
            stream = await self.gemini.models.generate_content_stream(model="m", contents=message)
        return stream  # type: ignore[no-any-return]


def take_anthropic(answer: Answer, event: Any) -> None:
    answer.kinds.append(event.type)
    if event.type == "content_block_start":
        answer.kinds.append(event.content_block.type)
    elif event.type == "content_block_delta":
        delta = event.delta
        if delta.type == "text_delta":
            answer.text += delta.text
        elif delta.type == "thinking_delta":
            answer.thinking += delta.thinking
        elif delta.type == "input_json_delta":
            answer.args(event.index, delta.partial_json)
        elif delta.type == "citations_delta":
            answer.citations.append(delta.citation.cited_text)
    elif event.type == "message_delta":
        answer.stop = event.delta.stop_reason
        answer.refusal = event.delta.stop_details.explanation if event.delta.stop_details else ""
        used = event.usage
        thinking = used.output_tokens_details.thinking_tokens if used.output_tokens_details else 0
        answer.usage = usage(used.input_tokens, used.cache_read_input_tokens, used.output_tokens, thinking)


def take_responses(answer: Answer, event: Any) -> None:
    kind = event.type.removeprefix("response.")
    answer.kinds.append(kind)
    if kind == "output_text.delta":
        answer.text += event.delta
    elif kind == "refusal.delta":
        answer.refusal += event.delta
    elif kind == "reasoning_summary_text.delta":
        answer.thinking += event.delta
    elif kind == "function_call_arguments.delta":
        answer.args(event.item_id, event.delta)
    elif kind == "output_text.annotation.added":
        cited = event.annotation
        answer.citations.append(answer.text[cited.start_index : cited.end_index])
    elif kind == "output_item.added":
        answer.kinds.append(event.item.type)
    elif kind in ("completed", "incomplete", "failed"):
        response = event.response
        details = response.incomplete_details
        answer.stop = details.reason if details else response.status
        if used := response.usage:
            cached = used.input_tokens_details.cached_tokens
            thinking = used.output_tokens_details.reasoning_tokens
            answer.usage = usage(used.input_tokens - cached, cached, used.output_tokens, thinking)


def take_chat(answer: Answer, chunk: Any) -> None:
    if used := chunk.usage:
        assert chunk.choices == []
        cached = used.prompt_tokens_details.cached_tokens
        thinking = used.completion_tokens_details.reasoning_tokens
        answer.usage = usage(used.prompt_tokens - cached, cached, used.completion_tokens, thinking)
    for choice in chunk.choices:
        delta = choice.delta
        answer.text += delta.content or ""
        answer.refusal += delta.refusal or ""
        answer.thinking += getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None) or ""
        for call in delta.tool_calls or []:
            answer.args(call.index, call.function.arguments)
        for annotation in getattr(delta, "annotations", None) or []:
            cited = annotation["url_citation"]
            answer.citations.append(answer.text[cited["start_index"] : cited["end_index"]])
        answer.stop = choice.finish_reason or answer.stop


def take_gemini(answer: Answer, chunk: Any) -> None:
    used = chunk.usage_metadata
    cached = used.cached_content_token_count or 0
    thinking = used.thoughts_token_count or 0
    output_tokens = (used.candidates_token_count or 0) + thinking
    answer.usage = usage(used.prompt_token_count - cached, cached, output_tokens, thinking)
    if chunk.prompt_feedback:
        assert not chunk.candidates
        answer.refusal = answer.stop = chunk.prompt_feedback.block_reason.value
    for candidate in chunk.candidates or []:
        for part in candidate.content.parts if candidate.content else []:
            if part.thought:
                answer.thinking += part.text
            elif part.function_call:
                answer.args(part.function_call.id, json.dumps(part.function_call.args))
            else:
                answer.text += part.text
        if grounding := candidate.grounding_metadata:
            answer.kinds += grounding.web_search_queries or []
            text = answer.text.encode()
            segments = [support.segment for support in grounding.grounding_supports or []]
            answer.citations += [text[s.start_index or 0 : s.end_index].decode() for s in segments]
        answer.stop = candidate.finish_reason.value if candidate.finish_reason else answer.stop


TAKERS: Mapping[str, Callable[[Answer, Any], None]] = {
    "anthropic": take_anthropic,
    "responses": take_responses,
    "chat": take_chat,
    "gemini": take_gemini,
}


def usage(input_tokens: int, cached: int, output_tokens: int, thinking: int) -> dict[str, int]:
    return {"input": input_tokens, "cached": cached, "output": output_tokens, "thinking": thinking}


@pytest.fixture(scope="module")
async def clients(standin: StandIn) -> AsyncIterator[Clients]:
    made = Clients(standin.base_url)
    yield made
    await made.close()


def said(message: str, tokens: int) -> str:
    return "".join(islice(words(message), tokens))


# -- what is said ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", WIRES)
async def test_each_wire_says_the_same_words(clients: Clients, wire: str) -> None:
    message = f"“Why?” [[tokens=150 thinking=3 {FAST}]]"
    answer = await clients.ask(wire, message)
    assert answer.text == said(message, 150)
    assert answer.thinking == "A stand-in does"
    assert answer.stop == {"anthropic": "end_turn", "responses": "completed", "chat": "stop", "gemini": "STOP"}[wire]


@pytest.mark.parametrize("wire", WIRES)
async def test_usage_counts_what_came_from_the_cache_and_what_was_thought(clients: Clients, wire: str) -> None:
    message = f"[[tokens=5 thinking=3 cached=40 {FAST}]]"
    answer = await clients.ask(wire, message)
    assert answer.usage == usage(1 + len(message) // 4, 40, 8, 3)


@pytest.mark.parametrize("wire", WIRES)
async def test_each_tool_call_has_all_its_arguments(clients: Clients, wire: str) -> None:
    answer = await clients.ask(wire, f"[[tokens=1 tools=2 args_piece=5 {FAST}]]")
    assert [json.loads(args) for args in answer.calls.values()] == [ARGS, ARGS]
    stops = {"anthropic": "tool_use", "responses": "completed", "chat": "tool_calls", "gemini": "STOP"}
    assert answer.stop == stops[wire]


@pytest.mark.parametrize("wire", WIRES)
async def test_argument_pieces_alternate_where_the_wire_can(clients: Clients, wire: str) -> None:
    answer = await clients.ask(wire, f"[[tokens=1 parallel=1 {FAST}]]")
    assert [json.loads(args) for args in answer.calls.values()] == [ARGS, ARGS]
    one, other = answer.calls
    assert (answer.order[:4] == [one, other, one, other]) == (wire in ("responses", "chat"))


@pytest.mark.parametrize("wire", WIRES)
async def test_citations_name_their_place_in_the_text(clients: Clients, wire: str) -> None:
    # The fourteenth word and those behind it follow a quotation mark, which is one character and three bytes.
    answer = await clients.ask(wire, f"What is said [[tokens=30 citations=20 {FAST}]]")
    assert answer.citations == answer.text.split()[:20]
    assert "“What" in answer.citations


@pytest.mark.parametrize(("wire", "kinds"), [("anthropic", "web_search_tool_result"), ("gemini", "resumable streams")])
async def test_a_search_that_the_provider_ran_is_shown(clients: Clients, wire: str, kinds: str) -> None:
    assert kinds in (await clients.ask(wire, f"[[tokens=1 server_tool=ok {FAST}]]")).kinds


async def test_responses_say_how_a_search_went(clients: Clients) -> None:
    ok = (await clients.ask("responses", f"[[tokens=1 server_tool=ok {FAST}]]")).kinds
    failed = (await clients.ask("responses", f"[[tokens=1 server_tool=error {FAST}]]")).kinds
    assert "web_search_call.completed" in ok
    assert "web_search_call.searching" in failed
    assert "web_search_call.completed" not in failed


@pytest.mark.parametrize(("wire", "kind"), [("anthropic", "mcp_tool_result"), ("responses", "mcp_call.completed")])
async def test_a_tool_of_an_mcp_server_is_called_before_the_text(clients: Clients, wire: str, kind: str) -> None:
    answer = await clients.ask(wire, f"[[tokens=1 mcp=1 {FAST}]]")
    text = {"anthropic": "text", "responses": "output_text.delta"}[wire]
    assert answer.kinds.index(kind) < answer.kinds.index(text)


@pytest.mark.parametrize("wire", WIRES)
async def test_a_refusal_is_in_the_wires_own_way(clients: Clients, wire: str) -> None:
    answer = await clients.ask(wire, f"[[tokens=5 refuse=1 {FAST}]]")
    assert answer.refusal
    assert (
        answer.stop
        == {
            "anthropic": "refusal",
            "responses": "completed",
            "chat": "stop",
            "gemini": "PROHIBITED_CONTENT",
        }[wire]
    )


@pytest.mark.parametrize("wire", WIRES)
async def test_max_is_told_in_the_wires_own_word(clients: Clients, wire: str) -> None:
    answer = await clients.ask(wire, f"[[tokens=5 max=1 {FAST}]]")
    assert (
        answer.stop
        == {
            "anthropic": "max_tokens",
            "responses": "max_output_tokens",
            "chat": "length",
            "gemini": "MAX_TOKENS",
        }[wire]
    )


@pytest.mark.parametrize("wire", ["responses", "chat", "gemini"])
async def test_what_a_wire_has_no_form_for_is_ignored(clients: Clients, wire: str) -> None:
    answer = await clients.ask(wire, f"[[tokens=2 pause=1 {FAST}]]")
    assert answer.stop == {"responses": "completed", "chat": "stop", "gemini": "STOP"}[wire]


@pytest.mark.parametrize("wire", WIRES)
async def test_json_is_in_pieces(clients: Clients, wire: str) -> None:
    assert (await clients.ask(wire, f"[[json=1 {FAST}]]")).text == JSON_TEXT


@pytest.mark.parametrize(("wire", "stop", "told"), [("responses", "failed", "failed"), ("gemini", "safety", "SAFETY")])
async def test_stop_takes_the_wires_own_words_too(clients: Clients, wire: str, stop: str, told: str) -> None:
    assert (await clients.ask(wire, f"[[tokens=1 stop={stop} {FAST}]]")).stop == told


async def test_a_stop_sequence_is_named(clients: Clients) -> None:
    messages: Any = [{"role": "user", "content": f"[[tokens=1 stop_seq=1 {FAST}]]"}]
    async with clients.anthropic.messages.stream(
        model="m", max_tokens=9, messages=messages, stop_sequences=["###"]
    ) as stream:
        ended = await stream.get_final_message()
    assert (ended.stop_reason, ended.stop_sequence) == ("stop_sequence", "###")
    chat = await clients.openai.chat.completions.create(model="m", messages=messages, stop="###", stream=True)
    last = [chunk async for chunk in chat][-1].choices[0]
    assert (last.finish_reason, last.stop_reason) == ("stop", "###")  # type: ignore[attr-defined]  # vLLM's own


async def test_a_paused_turn_goes_on_where_it_was(clients: Clients) -> None:
    message = f"[[tokens=4 pause=2 {FAST}]]"
    messages: Any = [{"role": "user", "content": message}]
    stops, text = [], ""
    for _ in range(3):
        async with clients.anthropic.messages.stream(model="m", max_tokens=9, messages=messages) as stream:
            answer = await stream.get_final_message()
        text += await stream.get_final_text()
        stops.append(answer.stop_reason)
        messages.append({"role": "assistant", "content": answer.model_dump()["content"]})
    assert stops == ["pause_turn", "pause_turn", "end_turn"]
    assert text == said(message, 12)


async def test_what_a_tool_said_is_answered_without_another_call(standin: StandIn) -> None:
    asked = f"[[tokens=3 tools=1 {FAST}]]"
    user = {"role": "user", "content": asked}
    result = [{"type": "tool_result", "tool_use_id": "t", "content": "7"}]
    called = {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]}
    function_said = {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {}}}]}
    requests: dict[str, dict[str, Any]] = {
        "/v1/messages": {"max_tokens": 1, "messages": [user, {"role": "user", "content": result}]},
        "/v1/chat/completions": {"messages": [user, {"role": "tool", "tool_call_id": "t", "content": "7"}]},
        "/v1/responses": {"input": [user, {"type": "function_call_output", "call_id": "t", "output": "7"}]},
        "/v1beta/models/m:streamGenerateContent?alt=sse": {
            "contents": [{"role": "user", "parts": [{"text": asked}]}, called, function_said]
        },
    }
    async with httpx2.AsyncClient(base_url=standin.base_url, trust_env=False, timeout=5) as http:
        for path, fields in requests.items():
            wire = (await http.post(path, json={"model": "m", "stream": True, **fields})).text
            assert '" a"' in wire, path
            assert "get_weather" not in wire, path


async def test_calls_may_be_as_ollama_and_older_models_give_them(clients: Clients) -> None:
    chat = await clients.stream("chat", f"[[tokens=1 tools=2 ollama=1 {FAST}]]")
    calls = [c for chunk in [x async for x in chat] for choice in chunk.choices for c in choice.delta.tool_calls or []]
    assert [(call.index, json.loads(call.function.arguments)) for call in calls] == [(0, ARGS), (0, ARGS)]
    assert len({call.id for call in calls}) == 2
    assert (await clients.ask("chat", f"[[tokens=1 thinking=2 ollama=1 {FAST}]]")).thinking == "A stand-in"
    assert list((await clients.ask("gemini", f"[[tokens=1 tools=1 call_ids=0 {FAST}]]")).calls) == [None]


async def test_encrypted_reasoning_comes_if_it_is_asked_for(clients: Clients) -> None:
    encrypted = "reasoning.encrypted_content"
    stream: Any = await clients.openai.responses.create(
        model="m",
        input=f"[[tokens=1 thinking=1 {FAST}]]",
        include=[encrypted],  # type: ignore[list-item]
        stream=True,
    )
    done = [event async for event in stream if event.type == "response.output_item.done"]
    assert done[0].item.encrypted_content


# -- every event is one of the SDK's types ----------------------------------------------------------------------------

EVERYTHING = [
    "thinking=2 tools=1 parallel=1 citations=2 server_tool=ok mcp=1 cached=3",
    "tools=1 citations=1 server_tool=error max=1",
    "refuse=1",
    "stop=failed",
    "error_at=2 flat_error=1",
    "json=1 stop_seq=1",
]


RESPONSES_EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ANTHROPIC_EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def frames(wire: str) -> list[dict[str, Any]]:
    data = [line.removeprefix("data: ") for line in wire.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in data if line != "[DONE]"]


@pytest.mark.parametrize("asked", EVERYTHING)
async def test_every_responses_event_is_one_of_the_sdks_and_numbered(standin: StandIn, asked: str) -> None:
    body = {"model": "m", "input": f"[[tokens=3 {asked} {FAST}]]", "stream": True}
    read = frames(await post(standin, "/v1/responses", body))
    for event in read:
        assert RESPONSES_EVENTS.validate_python(event).type == event["type"]
    assert [event["sequence_number"] for event in read] == list(range(len(read)))


@pytest.mark.parametrize("asked", [asked for asked in EVERYTHING if "stop=" not in asked and "error" not in asked])
async def test_every_chat_chunk_is_the_sdks(standin: StandIn, asked: str) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": f"[[tokens=3 {asked} {FAST}]]"}]}
    body = {"model": "m", "messages": [message], "stream": True, "stream_options": {"include_usage": True}}
    for chunk in frames(wire := await post(standin, "/v1/chat/completions", body)):
        ChatCompletionChunk.model_validate(chunk)
    assert wire.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("asked", [asked for asked in EVERYTHING if "stop=failed" not in asked])
async def test_every_gemini_chunk_has_only_fields_that_the_sdk_knows(standin: StandIn, asked: str) -> None:
    body = {"contents": [{"parts": [{"text": f"[[tokens=3 {asked} {FAST}]]"}]}]}
    for chunk in frames(await post(standin, "/v1beta/models/m:streamGenerateContent?alt=sse", body)):
        read = genai_types.GenerateContentResponse.model_validate(chunk)
        assert read.model_dump(mode="json", by_alias=True, exclude_none=True) == chunk


@pytest.mark.parametrize("asked", [asked for asked in EVERYTHING if "mcp" not in asked and "stop=" not in asked])
async def test_every_anthropic_event_is_one_of_the_sdks(standin: StandIn, asked: str) -> None:
    messages = [{"role": "user", "content": f"[[tokens=3 {asked} {FAST}]]"}]
    body = {"model": "m", "max_tokens": 9, "messages": messages, "stream": True}
    for event in frames(await post(standin, "/v1/messages", body)):
        if event["type"] not in ("ping", "error"):
            ANTHROPIC_EVENTS.validate_python(event)


async def post(standin: StandIn, path: str, body: dict[str, Any]) -> str:
    async with httpx2.AsyncClient(base_url=standin.base_url, trust_env=False, timeout=5) as http:
        answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.text


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "BadRequestError"),
        (401, "AuthenticationError"),
        (403, "PermissionDeniedError"),
        (404, "NotFoundError"),
        (429, "RateLimitError"),
        (500, "InternalServerError"),
        (503, "InternalServerError"),
    ],
)
@pytest.mark.parametrize("wire", ["responses", "chat"])
async def test_a_status_is_the_openai_sdks_exception(clients: Clients, wire: str, status: int, name: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await clients.ask(wire, f"[[status={status} retry_after=7]]")
    error = caught.value
    assert type(error).__name__ == name
    assert str(error.request_id).startswith("req_")
    assert error.response.headers["retry-after"] == "7"
    assert error.type
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}


async def test_the_code_of_a_refusal_can_be_chosen(clients: Clients) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        await clients.ask("responses", "[[status=429 code=insufficient_quota]]")
    assert caught.value.code == "insufficient_quota"


@pytest.mark.parametrize(
    ("status", "kind", "name"),
    [
        (400, genai_errors.ClientError, "INVALID_ARGUMENT"),
        (403, genai_errors.ClientError, "PERMISSION_DENIED"),
        (404, genai_errors.ClientError, "NOT_FOUND"),
        (429, genai_errors.ClientError, "RESOURCE_EXHAUSTED"),
        (500, genai_errors.ServerError, "INTERNAL"),
        (503, genai_errors.ServerError, "UNAVAILABLE"),
    ],
)
async def test_a_status_is_the_gemini_sdks_exception(
    clients: Clients, status: int, kind: type[Exception], name: str
) -> None:
    with pytest.raises(genai_errors.APIError) as caught:
        await clients.ask("gemini", f"[[status={status}]]")
    assert (type(caught.value), caught.value.code, caught.value.status) == (kind, status, name)


@pytest.mark.parametrize("wire", WIRES)
async def test_overload_is_the_apis_own_status_and_passes(clients: Clients, wire: str) -> None:
    message = f"{wire} [[tokens=2 overload=1 {FAST}]]"
    with pytest.raises((anthropic.APIStatusError, openai.APIStatusError, genai_errors.APIError)) as caught:
        await clients.ask(wire, message)
    error: Any = caught.value
    status = error.code if wire == "gemini" else error.status_code
    assert status == (529 if wire == "anthropic" else 503)
    assert (await clients.ask(wire, message)).text == said(message, 2)


@pytest.mark.parametrize(
    ("wire", "raised"),
    [
        ("anthropic", anthropic.APIStatusError),
        ("responses", openai.APIError),
        ("chat", openai.APIError),
        ("gemini", genai_errors.ServerError),
    ],
)
async def test_an_error_in_the_middle_is_raised_by_the_sdk_after_what_was_said(
    clients: Clients, wire: str, raised: type[Exception]
) -> None:
    answer = Answer()
    with pytest.raises(raised, match="verloaded"):
        await clients.read(wire, f"[[tokens=9 error_at=3 {FAST}]]", answer)
    assert answer.text == "This is a"


async def test_the_error_event_that_openais_reference_shows_raises_nothing(clients: Clients) -> None:
    answer = await clients.ask("responses", f"[[error_at=1 flat_error=1 {FAST}]]")
    assert answer.kinds[-1] == "error"


@pytest.mark.parametrize("wire", WIRES)
async def test_an_answer_may_end_properly_but_unfinished(clients: Clients, wire: str) -> None:
    answer = await clients.ask(wire, f"[[tokens=9 end_at=3 {FAST}]]")
    assert (answer.text, answer.stop) == ("This is a", None)


@pytest.mark.parametrize("asked", ["line_end=cr", "line_end=torn", "piece=3", "gzip=1"])
@pytest.mark.parametrize("wire", ["responses", "chat", "gemini"])
async def test_each_sdk_reads_what_is_right_but_seldom_met(clients: Clients, wire: str, asked: str) -> None:
    message = f"[[tokens=5 {asked} {FAST}]]"
    assert (await clients.ask(wire, message)).text == said(message, 5)


@pytest.mark.parametrize("asked", ["cut_at=2", "stall_at=2"])
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions", "/v1beta/models/m:streamGenerateContent"])
async def test_a_cut_and_a_silence_come_after_what_was_said(standin: StandIn, path: str, asked: str) -> None:
    error = httpx2.RemoteProtocolError if "cut" in asked else httpx2.ReadTimeout
    received = await read_until(error, standin, path, f"[[tokens=9 {asked} {FAST}]]")
    assert [" is" in received, " a" in received.replace('"a', "")] == [True, False]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions", "/v1beta/models/m:streamGenerateContent"])
async def test_garbage_is_no_json_and_then_it_goes_on(standin: StandIn, path: str) -> None:
    async with httpx2.AsyncClient(base_url=standin.base_url, trust_env=False, timeout=5) as http:
        wire = (await http.post(path, params={"alt": "sse"}, json=any_body(f"[[tokens=3 garbage_at=1 {FAST}]]"))).text
    data = [line.removeprefix("data: ") for line in wire.splitlines() if line.startswith("data: {")]
    assert len([line for line in data if not line.endswith("}")]) == 1
    assert '" a"' in wire


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/v1/chat/completions"])
async def test_pings_come_until_the_client_goes(standin: StandIn, path: str) -> None:
    received = ""
    async with (
        httpx2.AsyncClient(base_url=standin.base_url, trust_env=False, timeout=5) as http,
        http.stream("POST", path, json=any_body(f"[[pings=1 {FAST}]]")) as answer,
    ):
        async for text in answer.aiter_text():
            received += text
            if len(re.findall("^(?:event: ping|event: keepalive|: keep-alive)$", received, re.MULTILINE)) == 3:
                break
    assert '"This"' not in received


async def test_an_answer_without_its_query_is_a_400_of_gemini(standin: StandIn) -> None:
    async with httpx2.AsyncClient(base_url=standin.base_url, trust_env=False, timeout=5) as http:
        answer = await http.post("/v1beta/models/m:streamGenerateContent", json=any_body("x"))
    assert (answer.status_code, answer.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")


async def test_each_sdk_lists_one_model(clients: Clients) -> None:
    assert [model.id async for model in clients.anthropic.models.list()] == ["claude-stand-in"]
    assert [model.id async for model in clients.openai.models.list()] == ["gpt-stand-in"]
    assert [model.name async for model in await clients.gemini.models.list()] == ["models/gemini-stand-in"]


def any_body(message: str) -> dict[str, Any]:
    """A request that each of the wires takes: the others' fields are unknown to it."""
    said = [{"role": "user", "content": message}]
    contents = [{"role": "user", "parts": [{"text": message}]}]
    return {
        "model": "m",
        "max_tokens": 9,
        "stream": True,
        "messages": said,
        "input": said,
        "contents": contents,
    }


async def read_until(error: type[Exception], standin: StandIn, path: str, message: str) -> str:
    received = ""
    async with httpx2.AsyncClient(base_url=standin.base_url, trust_env=False, timeout=0.5) as http:
        try:
            async with http.stream("POST", path, params={"alt": "sse"}, json=any_body(message)) as answer:
                async for text in answer.aiter_text():
                    received += text
        except error:
            return received
    pytest.fail(f"the body ended properly, without {error.__name__}")
