"""What is odd in the same way on every provider's wire, by the real SDKs over loopback HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import orjson
import pytest

from broker.log.event import Event
from broker.log.turn import message as message_of
from tests.rig.wire_peer import WirePeer, sse, wire_peer
from worker.providers.anthropic import AnthropicProvider
from worker.providers.failures import ProviderFailure
from worker.providers.gemini import GeminiProvider
from worker.providers.openai import OpenAIProvider
from worker.providers.openai_chat import OpenAIChatProvider
from worker.providers.provider import Counted, Finish, Provider, ProviderEvent
from worker.providers.reading import LAST_WORDS_S, MAX_DEPTH

MODEL = "m-1"
KEY = "sk-of-the-operator"


class Wire(NamedTuple):
    provider: Callable[..., Any]
    path: str
    """Of the base URL."""
    says: Callable[[str, str, Any], bytes]
    """An answer with a call of this id, with these arguments, and this usage."""


def _anthropic(call_id: str, args: str, usage: Any) -> bytes:
    block = {"type": "tool_use", "id": call_id, "name": "f", "input": {}}
    return sse(
        {"type": "message_start", "message": {"id": "r1", "model": MODEL, "content": []}},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": args}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": usage},
        {"type": "message_stop"},
    )


def _openai(call_id: str, args: str, usage: Any) -> bytes:
    item = {"type": "function_call", "id": "fc_1", "call_id": call_id, "name": "f", "arguments": args}
    response = {"id": "r1", "model": MODEL, "status": "completed", "output": [item], "usage": usage}
    return sse(
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": response},
    )


def _chat(call_id: str, args: str, usage: Any) -> bytes:
    call = {"index": 0, "id": call_id, "type": "function", "function": {"name": "f", "arguments": args}}
    choice = {"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}
    return sse({"id": "r1", "model": MODEL, "choices": [choice]}, {"choices": [], "usage": usage}, b"[DONE]")


def _gemini(call_id: str, args: str, usage: Any) -> bytes:
    part = {"functionCall": {"id": call_id, "name": "f", "args": "@@"}}
    candidate = {"content": {"parts": [part]}, "finishReason": "STOP"}
    chunk = {"candidates": [candidate], "usageMetadata": usage, "responseId": "r1"}
    return sse(orjson.dumps(chunk).replace(b'"@@"', args.encode()))


WIRES = {
    "anthropic": Wire(AnthropicProvider, "", _anthropic),
    "openai": Wire(OpenAIProvider, "/v1", _openai),
    "openai-chat": Wire(OpenAIChatProvider, "/v1", _chat),
    "gemini": Wire(GeminiProvider, "", _gemini),
}


@pytest.fixture(scope="module")
async def peer() -> AsyncIterator[WirePeer]:
    async with wire_peer() as peer:
        yield peer


@pytest.fixture(scope="module", params=WIRES)
async def served(request: pytest.FixtureRequest, peer: WirePeer) -> AsyncIterator[tuple[Wire, Provider]]:
    wire = WIRES[request.param]
    provider = wire.provider(api_key=KEY, base_url=f"{peer.url}{wire.path}", silence_s=10)
    yield wire, provider
    await provider.aclose()


def asked(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(messages) or [{"role": "user", "content": "hello"}], "max_tokens": 10}


async def outcome(provider: Provider, request: dict[str, Any]) -> tuple[list[ProviderEvent], Finish | ProviderFailure]:
    events: list[ProviderEvent] = []
    try:
        async for said in provider.stream(MODEL, request):
            if isinstance(said, Finish):
                return events, said
            if not isinstance(said, Counted):
                events.append(said)
    except ProviderFailure as failure:
        return events, failure
    raise AssertionError("neither a Finish nor a failure")


async def finished(provider: Provider, request: dict[str, Any] | None = None) -> tuple[list[ProviderEvent], Finish]:
    events, end = await outcome(provider, request or asked())
    assert isinstance(end, Finish), end
    return events, end


# ---- What it says


@pytest.mark.parametrize("depth", [100, 250, 300, 1000, 100_000])
async def test_what_is_nested_deeper_than_the_log_can_hold_is_a_bad_answer(
    peer: WirePeer, served: tuple[Wire, Provider], depth: int
) -> None:
    wire, provider = served
    nested = b"[" * depth + b"]" * depth
    peer.says(wire.says("c1", f'{{"a":{nested.decode()}}}', {}))
    events, end = await outcome(provider, asked())
    assert getattr(end, "code", None) == (None if depth < MAX_DEPTH else "provider_bad_answer")
    orjson.dumps([data for _, data in events])
    peer.says(sse(orjson.dumps({"type": "new", "x": "@"}).replace(b'"@"', nested)))
    events, end = await outcome(provider, asked())
    assert isinstance(end, ProviderFailure)
    assert end.code == ("provider_cut" if depth < MAX_DEPTH else "provider_bad_answer")
    orjson.dumps([data for _, data in events])


@pytest.mark.parametrize("usage", ["many", [7], -1, 2.5, 2**64 - 1, {"nested": "many"}, None])
async def test_a_usage_that_is_none_does_not_void_the_answer(
    peer: WirePeer, served: tuple[Wire, Provider], usage: Any
) -> None:
    wire, provider = served
    names = [
        *("input_tokens", "output_tokens", "prompt_tokens", "completion_tokens", "cached_tokens"),
        *("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "cachedContentTokenCount"),
    ]
    of_counts = dict.fromkeys(names, usage)
    details = dict.fromkeys(("input_tokens_details", "output_tokens_details", "prompt_tokens_details"), usage)
    for said in (usage, {**of_counts, **details}):
        peer.says(wire.says("c1", "{}", said))
        events, end = await finished(provider)
        counts = [count for name, count in end.usage.items() if name != "provider"]
        assert set(counts) == {0}
        orjson.dumps(end.usage)
        if not isinstance(said, dict | None):  # it is no usage, and kept all the same
            kept = orjson.dumps([end.usage.get("provider"), *events])
            assert orjson.dumps(said) in kept


async def test_the_providers_name_for_the_answer_is_in_its_ending(
    peer: WirePeer, served: tuple[Wire, Provider]
) -> None:
    wire, provider = served
    peer.says(wire.says("c1", "{}", {}))
    assert (await finished(provider))[1].response_id == "r1"


@pytest.mark.parametrize("name", ["openai-chat", "gemini"])
async def test_signs_of_life_do_not_hold_back_an_answer_that_has_said_its_end(name: str) -> None:
    wire = WIRES[name]
    body = wire.says("c1", "{}", {}).replace(b"data: [DONE]\n\n", b"")
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 x\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + body)
        try:
            while True:
                writer.write(b": ping\n\n")
                await writer.drain()
                await asyncio.sleep(0.05)
        except ConnectionError:
            closed.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        provider = wire.provider(api_key=KEY, base_url=f"http://127.0.0.1:{port}{wire.path}", silence_s=60)
        async with asyncio.timeout(LAST_WORDS_S + 20):
            assert (await finished(provider))[1].stop_reason == "tool_use"
            await closed.wait()
        await provider.aclose()


@pytest.mark.parametrize("name", ["anthropic", "openai", "openai-chat"])
async def test_an_error_event_need_not_be_json(peer: WirePeer, name: str) -> None:
    wire = WIRES[name]
    provider = wire.provider(api_key=KEY, base_url=f"{peer.url}{wire.path}", silence_s=10)
    peer.says(b"event: error\ndata: upstream is gone\n\n")
    _, end = await outcome(provider, asked())
    await provider.aclose()
    assert isinstance(end, ProviderFailure)
    assert (end.code, end.said) == ("provider_error", "upstream is gone")


# ---- Where it sends us


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_another_server_is_not_followed(served: tuple[Wire, Provider], status: int) -> None:
    wire, _ = served
    async with wire_peer() as here, wire_peer() as elsewhere:
        elsewhere.says(wire.says("c1", "{}", {}))
        here.says(status=status, headers=(("Location", f"{elsewhere.url}/v1/messages"),))
        provider = wire.provider(api_key=KEY, base_url=f"{here.url}{wire.path}", silence_s=10)
        _, end = await outcome(provider, asked())
        assert isinstance(end, ProviderFailure)
        assert (end.code, end.status) == ("provider_bad_answer", status)
        with pytest.raises(ProviderFailure):
            await provider.check()
        await provider.warm_up()
        assert not elsewhere.asked  # nor what people wrote
        assert here.asked
        await provider.aclose()


# ---- What a conversation of several models sends


def turn_of(wire: str, events: list[ProviderEvent], finish: Finish) -> dict[str, Any]:
    """The assistant's message as GET {id}/message gives it."""
    said = [*events]
    if finish.native is not None:
        turn = {"turn": 0, "provider": wire, "form": wire, "model": MODEL, "native": finish.native}
        said.append(("internal.turn", turn))
    return message_of(Event(n, kind, orjson.dumps(data), 0) for n, (kind, data) in enumerate(said, 1))


def results_in(wire: str, body: dict[str, Any]) -> list[str]:
    """The texts of the results of calls, in their order."""
    if wire == "anthropic":
        blocks = [
            block
            for message in body["messages"]
            if isinstance(message["content"], list)
            for block in message["content"]
        ]
        return [block["content"] for block in blocks if block["type"] == "tool_result"]
    if wire == "openai":
        return [item["output"] for item in body["input"] if item["type"] == "function_call_output"]
    if wire == "openai-chat":
        return [message["content"] for message in body["messages"] if message["role"] == "tool"]
    parts = [part for content in body["contents"] for part in content["parts"]]
    return ["".join(part["functionResponse"]["response"].values()) for part in parts if "functionResponse" in part]


USES = [{"type": "tool_use", "id": f"functions.f:{n}", "name": "f", "input": {}} for n in range(2)]
RESULT = {"type": "tool_result", "tool_use_id": "functions.f:1", "content": "sunny"}


@pytest.mark.parametrize(
    "after",
    [
        [{"role": "user", "content": "go on"}],
        [{"role": "user", "content": [RESULT, {"type": "text", "text": "go on"}]}],
        [{"role": "user", "content": [RESULT]}, {"role": "user", "content": "go on"}],
        [{"role": "assistant", "content": "never mind"}, {"role": "user", "content": "go on"}],
    ],
)
async def test_every_call_in_a_history_has_a_result(
    peer: WirePeer, served: tuple[Wire, Provider], after: list[dict[str, Any]]
) -> None:
    wire, provider = served
    peer.says(wire.says("c1", "{}", {}))
    calls = {"role": "assistant", "content": USES}
    await finished(provider, asked({"role": "user", "content": "?"}, calls, *after))
    name = next(name for name, one in WIRES.items() if one is wire)
    results = results_in(name, peer.asked[0].json)
    assert len(results) == 2
    assert sum("no result" in result for result in results) == (1 if RESULT in [*after[0]["content"]] else 2)
    if name == "gemini":  # which wants all of them in one content
        assert sum("functionResponse" in str(one) for one in peer.asked[0].json["contents"]) == 1


@pytest.mark.parametrize("teller", WIRES)
async def test_what_one_provider_said_can_be_sent_to_any_other(
    peer: WirePeer, served: tuple[Wire, Provider], teller: str
) -> None:
    wire, provider = served
    name = next(name for name, one in WIRES.items() if one is wire)
    async with wire_peer() as elsewhere:
        elsewhere.says(WIRES[teller].says("functions.f:0", '{"a":1}', {}))
        other = WIRES[teller].provider(api_key=KEY, base_url=f"{elsewhere.url}{WIRES[teller].path}", silence_s=10)
        said = turn_of(teller, *await finished(other))
        await other.aclose()
    result = {"type": "tool_result", "tool_use_id": "functions.f:0", "content": "sunny"}
    peer.says(wire.says("c1", "{}", {}))
    await finished(provider, asked({"role": "user", "content": "?"}, said, {"role": "user", "content": [result]}))
    body = peer.asked[0].json
    assert results_in(name, body) == ["sunny"]
    assert "native" not in str(body)
    if name == "anthropic":  # ids are of letters, digits, - and _ there
        called, answered = body["messages"][1]["content"][0]["id"], body["messages"][2]["content"][0]["tool_use_id"]
        assert called == answered == "functions_f_0"


@pytest.mark.parametrize("given", ["a text", ["a list"], 7])
async def test_arguments_that_are_no_object_go_to_any_provider_as_one(
    peer: WirePeer, served: tuple[Wire, Provider], given: Any
) -> None:
    wire, provider = served
    calls = {"role": "assistant", "content": [{"type": "tool_use", "id": "c0", "name": "f", "input": given}]}
    result = {"type": "tool_result", "tool_use_id": "c0", "content": "sunny"}
    peer.says(wire.says("c1", "{}", {}))
    await finished(provider, asked({"role": "user", "content": "?"}, calls, {"role": "user", "content": [result]}))
    sent = peer.asked[0].body.replace(b"\\", b"").replace(b" ", b"")
    assert orjson.dumps({"input": given}).replace(b" ", b"") in sent


# ---- Requests that no provider takes


WRONG: list[dict[str, Any]] = [
    *({"provider_options": wrong} for wrong in (5, "x", [1], True)),
    *({"provider_options": {"@": wrong}} for wrong in (5, "x", [1], [["a", "b"]], {"headers": {"a": "b"}})),
    *({"provider_options": {"@": {name: {}}}} for name in ("model", "stream", "extra_headers", "timeout", "")),
    {"provider_options": {"@": {"tools": [5]}}},
    {"provider_options": {"@": {"extra_body": {"stream": False}}}},
    {"provider_options": {"@": {"temperature": "hot"}}},
    {"messages": [5]},
    {"messages": [{"role": "assistant", "native": 5, "content": "x"}, {"role": "user", "content": "y"}]},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
async def test_what_is_wrong_in_a_request_is_named_and_not_sent(
    peer: WirePeer, served: tuple[Wire, Provider], wrong: dict[str, Any]
) -> None:
    wire, provider = served
    name = next(name for name, one in WIRES.items() if one is wire)
    peer.says(wire.says("c1", "{}", {}))
    wrong = orjson.loads(orjson.dumps(wrong).replace(b'"@"', orjson.dumps(name)))
    _, end = await outcome(provider, {**asked(), **wrong})
    assert isinstance(end, ProviderFailure)
    assert (end.code, end.retryable) == ("invalid_input", False)
    assert next(iter(wrong)) in end.message
    assert not peer.asked


# ---- Servers that say with each chunk that it is the last


@pytest.mark.parametrize("name", ["openai-chat", "gemini"])
@pytest.mark.parametrize(("end", "code"), [("proper", None), ("cut", "provider_cut"), ("hold", "provider_silent")])
async def test_an_answer_whose_every_chunk_says_its_end_is_whole_only_with_its_body(
    peer: WirePeer, name: str, end: str, code: str | None
) -> None:
    if name == "gemini":
        chunk: Any = {"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}]}
    else:
        chunk = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}
    wire = WIRES[name]
    provider = wire.provider(api_key=KEY, base_url=f"{peer.url}{wire.path}", silence_s=LAST_WORDS_S + 0.5)
    peer.says(sse(chunk), sse(chunk), end=end)
    events, said = await outcome(provider, asked())
    await provider.aclose()
    assert [kind for kind, _ in events] == ["text_delta"] * 2
    assert getattr(said, "code", None) == code
