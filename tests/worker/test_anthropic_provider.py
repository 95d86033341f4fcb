"""The real SDK against the stand-in over loopback HTTP: what a generation is handed, and how each failure is named."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import anyio
import httpx2
import orjson
import pytest

from worker.providers.anthropic import AnthropicProvider
from worker.providers.failures import ProviderFailure
from worker.providers.provider import INTERNAL, Counted, Finish, Provider, ProviderEvent
from worker.standin.server import StandIn

FAST = "rate=0 ttft_ms=0"
CODES = {
    "provider_overloaded": True,
    "provider_rate_limited": True,
    "provider_error": True,
    "provider_refused": False,
    "provider_unauthorized": False,
    "provider_cut": True,
    "provider_silent": True,
    "provider_bad_answer": True,
}


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.close()


@pytest.fixture(scope="module")
async def provider(standin: StandIn) -> AsyncIterator[AnthropicProvider]:
    provider = AnthropicProvider(api_key="sk-secret", base_url=standin.base_url, silence_s=10)
    yield provider
    await provider.aclose()


@pytest.fixture(scope="module")
async def impatient(standin: StandIn) -> AsyncIterator[AnthropicProvider]:
    provider = AnthropicProvider(api_key="sk-secret", base_url=standin.base_url, silence_s=0.3)
    yield provider
    await provider.aclose()


@pytest.fixture(scope="module")
async def http(standin: StandIn) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=standin.base_url, trust_env=False) as client:
        yield client


def request(message: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": message}], "max_tokens": 10, **fields}


async def test_a_request_reaches_the_provider_as_it_is() -> None:
    got = asyncio.get_running_loop().create_future()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        got.set_result((head, await reader.readexactly(length)))
        writer.close()

    photo = {"type": "base64", "media_type": "image/jpeg", "data": "/9j/4AAQSkZJRg==" * 100_000}
    asked = request(
        "x", messages=[{"role": "user", "content": [{"type": "image", "source": photo}]}], system="Be brief."
    )
    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        provider = AnthropicProvider(api_key="sk-secret", base_url=url, silence_s=30)
        with pytest.raises(ProviderFailure):
            await anext(provider.stream("some-model", asked))
        await provider.aclose()
    head, body = await got
    assert b"application/json" in head
    assert orjson.loads(body) == {"model": "some-model", "stream": True, **asked}


async def answer(provider: AnthropicProvider, message: str) -> tuple[list[ProviderEvent], Finish]:
    """What people are shown of it."""
    *said, finish = [event async for event in provider.stream("some-model", request(message))]
    assert isinstance(finish, Finish)
    return [event for event in said if not isinstance(event, Counted) and event[0] != INTERNAL], finish


async def failure(provider: AnthropicProvider, message: str) -> tuple[list[Any], ProviderFailure]:
    """What came before the failure, and the failure, which holds to what every failure promises."""
    events, failed = [], None
    try:
        async for event in provider.stream("some-model", request(message)):
            if not isinstance(event, Counted) and event[0] != INTERNAL:
                events.append(event)  # noqa: PERF401  # a comprehension would lose them with the failure
    except ProviderFailure as error:
        failed = error
    assert failed is not None
    assert failed.retryable is CODES[failed.code]
    assert failed.message == str(failed)
    assert failed.message.isprintable()
    assert 10 < len(failed.message) < 500
    assert "sk-secret" not in failed.message
    return events, failed


def kinds(events: list[ProviderEvent]) -> list[str]:
    return [kind for kind, _ in events]


async def until_open(http: httpx2.AsyncClient, requests: int) -> None:
    with anyio.fail_after(5):
        while (await http.get("/open")).json()["open"] != requests:
            pass


async def test_the_first_attempt_finds_the_connection_that_was_made_beforehand() -> None:
    asked: list[list[bytes]] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append([])
        while head := await reader.readline():
            asked[-1].append(head.split()[0])
            headers = await reader.readuntil(b"\r\n\r\n")
            assert b"sk-secret" not in headers or head.startswith(b"POST")
            if length := re.search(rb"content-length: (\d+)", headers, re.IGNORECASE):
                await reader.readexactly(int(length[1]))
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        provider = AnthropicProvider(api_key="sk-secret", base_url=url, silence_s=10)
        await provider.warm_up()
        await failure(provider, "hello")
        await provider.aclose()
    assert asked == [[b"HEAD", b"POST"]]


async def test_warming_up_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.providers.http.WARM_UP_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        ports = [server.getsockname()[1] for server in (silent, closed)]
        closed.close()
        for port in ports:
            provider = AnthropicProvider(api_key="sk-secret", base_url=f"http://127.0.0.1:{port}", silence_s=60)
            async with asyncio.timeout(30):
                await provider.warm_up()
            await provider.aclose()


async def test_text_comes_delta_by_delta_and_then_one_finish(provider: AnthropicProvider) -> None:
    events, finish = await answer(provider, f"[[tokens=20 {FAST}]]")
    assert kinds(events) == ["text_delta"] * 20
    assert "".join(data["text"] for _, data in events).startswith("This is a stand-in")
    assert finish.stop_reason == "end_turn"


async def test_usage_is_what_the_message_start_and_the_end_of_it_count(provider: AnthropicProvider) -> None:
    _, finish = await answer(provider, f"[[tokens=20 {FAST}]]")
    input_tokens = finish.usage.pop("input_tokens")
    assert input_tokens > 0
    del finish.usage["provider"]
    assert finish.usage == {"output_tokens": 20, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}


async def test_thinking_is_shown_and_its_signature_is_not(provider: AnthropicProvider) -> None:
    events, _ = await answer(provider, f"[[tokens=2 thinking=3 {FAST}]]")
    assert kinds(events) == ["thinking_delta"] * 3 + ["text_delta"] * 2
    assert all(set(data) == {"text"} for _, data in events)


async def test_a_tool_call_starts_and_its_arguments_follow_in_pieces(provider: AnthropicProvider) -> None:
    events, finish = await answer(provider, f"[[tokens=0 tools=1 {FAST}]]")
    (_, start), *pieces, (_, args) = events
    assert kinds(events) == ["tool_start", *["tool_args_delta"] * len(pieces), "tool_args"]
    assert start.pop("client") is True
    assert start["tool"] == "get_weather"
    assert all({**start, "partial_json": data["partial_json"]} == data for _, data in pieces)
    assert args == {**start, "args": {"city": "Oslo", "unit": "celsius", "days": 3}, "complete": True}
    assert "".join(data["partial_json"] for _, data in pieces) == '{"city": "Oslo", "unit": "celsius", "days": 3}'
    assert all(data["partial_json"] for _, data in pieces)
    assert finish.stop_reason == "tool_use"


@pytest.mark.parametrize(("outcome", "kind"), [("ok", "tool_end"), ("error", "tool_error")])
async def test_a_tool_of_the_providers_own_ends_with_how_long_it_took(
    provider: AnthropicProvider, outcome: str, kind: str
) -> None:
    events, _ = await answer(provider, f"[[tokens=0 server_tool={outcome} {FAST}]]")
    assert kinds(events)[0] == "tool_start"
    assert kinds(events)[-1] == kind
    end = events[-1][1]
    assert isinstance(end["duration_ms"], int)
    assert events[0][1].items() <= end.items()
    assert end["tool"] == "web_search"
    assert end["output"]


async def test_a_refusal_by_the_model_is_a_finish(provider: AnthropicProvider) -> None:
    _, finish = await answer(provider, f"[[stop=refusal {FAST}]]")
    assert finish.stop_reason == "refusal"


async def test_a_system_prompt_is_accepted(provider: AnthropicProvider) -> None:
    events = [e async for e in provider.stream("m", request(f"[[tokens=1 {FAST}]]", system="Be brief."))]
    assert isinstance(events[-1], Finish)


async def test_half_of_a_surrogate_pair_becomes_a_replacement_character(provider: AnthropicProvider) -> None:
    events, _ = await answer(provider, f"[[tokens=3 surrogate_at=1 {FAST}]]")
    texts = [data["text"] for _, data in events]
    assert [text.endswith("\ufffd") for text in texts] == [False, True, False]
    assert "".join(texts).encode()


@pytest.mark.parametrize("sent", [0, 3])
async def test_an_error_event_is_a_failure_after_what_came_before_it(provider: AnthropicProvider, sent: int) -> None:
    events, failed = await failure(provider, f"[[error_at={sent} {FAST}]]")
    assert len(events) == sent
    assert failed.code == "provider_overloaded"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("overloaded_error", "provider_overloaded"),
        ("rate_limit_error", "provider_rate_limited"),
        ("api_error", "provider_error"),
        ("timeout_error", "provider_error"),
        ("an_error_of_next_year", "provider_error"),
        ("invalid_request_error", "provider_refused"),
        ("authentication_error", "provider_unauthorized"),
    ],
)
async def test_error_events_are_told_apart_by_their_type(provider: AnthropicProvider, error: str, code: str) -> None:
    _, failed = await failure(provider, f"[[error_at=1 error={error} {FAST}]]")
    assert failed.code == code


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "provider_refused"),
        (401, "provider_unauthorized"),
        (403, "provider_unauthorized"),
        (404, "provider_refused"),
        (408, "provider_error"),
        (413, "provider_refused"),
        (429, "provider_rate_limited"),
        (500, "provider_error"),
        (503, "provider_error"),
        (529, "provider_overloaded"),
    ],
)
async def test_statuses_have_codes(provider: AnthropicProvider, status: int, code: str) -> None:
    events, failed = await failure(provider, f"[[status={status}]]")
    assert (events, failed.code, failed.retry_after_s) == ([], code, None)


async def test_an_answer_that_is_no_stream_is_not_asked_for_again(provider: AnthropicProvider) -> None:
    """It has been paid for. A page of some proxy's may be another one's next time."""
    with pytest.raises(ProviderFailure, match="not as a stream") as caught:
        await anext(provider.stream("some-model", request("[[status=200]]")))
    assert (caught.value.code, caught.value.retryable, caught.value.moves_on) == ("provider_bad_answer", False, True)


async def test_why_a_request_was_refused_is_told_to_operators_in_the_providers_words(
    provider: AnthropicProvider,
) -> None:
    with pytest.raises(ProviderFailure) as caught:
        await anext(provider.stream("m", {"messages": [], "max_tokens": 1}))
    assert caught.value.code == "provider_refused"
    assert "at least one" in (caught.value.said or "")
    assert caught.value.message == "The model provider refused the request.", "users read a sentence of ours"


async def test_the_providers_words_are_bounded_on_one_line_and_without_keys(provider: AnthropicProvider) -> None:
    model = "sk-secret-model\x1b[31m\n" * 200  # which the API repeats when it does not know it
    with pytest.raises(ProviderFailure) as caught:
        await anext(provider.stream(model, request("[[status=404]]")))
    said = caught.value.said or ""
    assert "model: sk-…" in said
    assert "secret" not in said
    assert said.isprintable()
    assert len(said) < 500


async def test_an_overloaded_provider_is_not_asked_again_by_the_sdk(provider: AnthropicProvider) -> None:
    message = f"{time.time_ns()} [[overload=1 tokens=1 {FAST}]]"
    _, failed = await failure(provider, message)
    assert failed.code == "provider_overloaded"
    events, _ = await answer(provider, message)
    assert len(events) == 1


async def test_retry_after_is_seconds(provider: AnthropicProvider) -> None:
    _, failed = await failure(provider, "[[status=429 retry_after=4000]]")
    assert failed.retry_after_s == 4000


async def test_retry_after_may_be_a_date(provider: AnthropicProvider) -> None:
    _, failed = await failure(provider, "[[status=529 retry_date=100]]")
    assert failed.retry_after_s is not None
    assert 90 < failed.retry_after_s <= 100


@pytest.mark.parametrize("sent", [0, 3])
async def test_a_dropped_connection_is_a_cut(provider: AnthropicProvider, sent: int) -> None:
    events, failed = await failure(provider, f"[[cut_at={sent} {FAST}]]")
    assert (len(events), failed.code) == (sent, "provider_cut")


@pytest.mark.parametrize("sent", [0, 3])
async def test_a_body_that_ends_without_message_stop_is_a_cut(provider: AnthropicProvider, sent: int) -> None:
    events, failed = await failure(provider, f"[[end_at={sent} {FAST}]]")
    assert (len(events), failed.code) == (sent, "provider_cut")


async def test_a_provider_that_nobody_can_reach_is_a_cut() -> None:
    with socket.socket() as nobody:  # bound, so that nobody else is there, and not listening
        nobody.bind(("127.0.0.1", 0))
        provider = AnthropicProvider(
            api_key="sk-secret", base_url=f"http://127.0.0.1:{nobody.getsockname()[1]}", silence_s=5
        )
        _, failed = await failure(provider, "hello")
        await provider.aclose()
    assert failed.code == "provider_cut"


@pytest.mark.parametrize("sent", [0, 3])
async def test_silence_is_a_failure(impatient: AnthropicProvider, http: httpx2.AsyncClient, sent: int) -> None:
    events, failed = await failure(impatient, f"[[stall_at={sent} {FAST}]]")
    assert (len(events), failed.code) == (sent, "provider_silent")
    await until_open(http, 0)


async def test_signs_of_life_alone_are_no_answer(standin: StandIn, http: httpx2.AsyncClient) -> None:
    provider = AnthropicProvider(api_key="sk-secret", base_url=standin.base_url, silence_s=10, idle_s=0.2)
    events, failed = await failure(provider, "[[pings=1]]")
    await provider.aclose()
    assert (events, failed.code) == ([], "provider_silent")
    await until_open(http, 0)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [("refuse=1", "refusal"), ("max=1", "max_tokens"), ("stop_seq=1", "stop_sequence"), ("pause=1", "other")],
)
async def test_how_an_answer_ended_is_told(provider: AnthropicProvider, asked: str, reason: str) -> None:
    _, finish = await answer(provider, f"{time.time_ns()} [[{asked} {FAST}]]")
    assert finish.stop_reason == reason
    assert finish.is_paused is (asked == "pause=1")


async def test_an_mcp_servers_tool_is_one_of_the_providers_own(provider: AnthropicProvider) -> None:
    events, finish = await answer(provider, f"[[mcp=1 tokens=1 {FAST}]]")
    assert [kind for kind in kinds(events) if kind != "tool_args_delta"] == [
        *("tool_start", "tool_args", "tool_end", "text_delta"),
    ]
    assert "client" not in events[0][1]
    assert [block["type"] for block in finish.native] == ["mcp_tool_use", "mcp_tool_result", "text"]


async def test_garbage_is_a_bad_answer(provider: AnthropicProvider, http: httpx2.AsyncClient) -> None:
    events, failed = await failure(provider, f"[[garbage_at=2 {FAST}]]")
    assert (len(events), failed.code) == (2, "provider_bad_answer")
    await until_open(http, 0)


async def test_no_key_at_all_is_unauthorized(monkeypatch: pytest.MonkeyPatch, standin: StandIn, tmp_path: Any) -> None:
    for name in [name for name in os.environ if name.startswith("ANTHROPIC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # where the SDK looks for a profile
    monkeypatch.setenv("ANTHROPIC_BASE_URL", standin.base_url)
    provider = AnthropicProvider(silence_s=5)
    _, failed = await failure(provider, "hello")
    await provider.aclose()
    assert failed.code == "provider_unauthorized"


async def test_a_key_that_no_header_can_carry_is_unauthorized_and_told_to_nobody(standin: StandIn) -> None:
    provider = AnthropicProvider(api_key="sk-secret\nkey", base_url=standin.base_url, silence_s=5)
    _, failed = await failure(provider, "hello")
    await provider.aclose()
    assert failed.code == "provider_unauthorized"
    assert "sk-secret" not in "".join(traceback.format_exception(failed))


async def test_key_and_address_may_come_from_the_sdks_own_variables(
    monkeypatch: pytest.MonkeyPatch, standin: StandIn
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", standin.base_url)
    provider = AnthropicProvider(api_key=None, base_url=None, silence_s=5)
    events, _ = await answer(provider, f"[[tokens=1 {FAST}]]")
    await provider.aclose()
    assert len(events) == 1


async def test_a_provider_has_the_name_that_models_are_prefixed_with(provider: AnthropicProvider) -> None:
    as_the_worker_sees_it: Provider = provider
    assert as_the_worker_sees_it.name == "anthropic"


async def test_a_proxy_of_the_environment_is_not_asked_for_loopback(
    monkeypatch: pytest.MonkeyPatch, standin: StandIn
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    provider = AnthropicProvider(api_key="sk-secret", base_url=standin.base_url, silence_s=5)
    events, _ = await answer(provider, f"[[tokens=1 {FAST}]]")
    await provider.aclose()
    assert len(events) == 1


async def test_closing_the_generator_closes_the_connection(
    provider: AnthropicProvider, http: httpx2.AsyncClient
) -> None:
    async with aclosing(provider.stream("m", request("[[tokens=100000 rate=100 ttft_ms=0]]"))) as stream:
        await anext(stream)
        await until_open(http, 1)
    await until_open(http, 0)


@pytest.mark.parametrize("asked", ["ttft_ms=900000", "stall_at=1 rate=0 ttft_ms=0"])
async def test_cancelling_the_reader_closes_the_connection_and_passes_through(
    provider: AnthropicProvider, http: httpx2.AsyncClient, asked: str
) -> None:
    reading = asyncio.create_task(answer(provider, f"[[{asked}]]"))
    await until_open(http, 1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until_open(http, 0)


async def test_a_finished_answer_leaves_its_connection_to_the_next(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected = []
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def counted(*args: Any, **kwargs: Any) -> Any:
        connected.append(args)
        return await connect(*args, **kwargs)

    monkeypatch.setattr(loop, "create_connection", counted)
    provider = AnthropicProvider(api_key="sk-secret", base_url=standin.base_url, silence_s=5)
    for _ in range(3):
        async with aclosing(provider.stream("m", request(f"[[tokens=3 {FAST}]]"))) as stream:
            async for event in stream:
                if isinstance(event, Finish):
                    break  # nobody need read on
    await provider.aclose()
    assert len(connected) == 1


async def test_a_body_that_does_not_end_after_message_stop_does_not_hold_up_the_finish(
    provider: AnthropicProvider, http: httpx2.AsyncClient
) -> None:
    with anyio.fail_after(5):  # the provider may be silent for 10 s
        events, _ = await answer(provider, f"[[tokens=3 hold=1 {FAST}]]")
    assert len(events) == 3
    await until_open(http, 0)


async def test_many_answers_run_at_once_over_one_client(provider: AnthropicProvider) -> None:
    answers = await asyncio.gather(*(answer(provider, f"[[tokens=5 {FAST}]]") for _ in range(100)))
    assert all(len(events) == 5 for events, _ in answers)
