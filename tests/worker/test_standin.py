"""The stand-in, over a real socket: what is on the wire, and that the SDK reads it unmodified."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.abc
import httpx2
import pytest
from anthropic import AsyncAnthropic

from worker.standin.directives import Directives, read_directives
from worker.standin.server import StandIn

FAST = "rate=0 ttft_ms=0"


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.close()


@pytest.fixture(scope="module")
async def http(standin: StandIn) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=standin.base_url, trust_env=False, timeout=5) as client:
        yield client


def body(message: Any, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": message}]
    return {"model": "some-model", "max_tokens": 10, "messages": messages, "stream": True, **fields}


async def ask(http: httpx2.AsyncClient, message: Any) -> list[tuple[str, dict[str, Any]]]:
    answer = await http.post("/v1/messages", json=body(message))
    assert answer.status_code == 200, answer.text
    return events(answer.text)


def events(wire: str) -> list[tuple[str, dict[str, Any]]]:
    frames = [frame.split("\n") for frame in wire.removesuffix("\n\n").split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]


def deltas(answer: list[tuple[str, dict[str, Any]]], kind: str = "text_delta", field: str = "text") -> list[str]:
    read = [data["delta"] for name, data in answer if name == "content_block_delta"]
    return [delta[field] for delta in read if delta["type"] == kind]


async def read_until(error: type[Exception], answer: httpx2.Response) -> list[tuple[str, dict[str, Any]]]:
    received = ""
    try:
        async for text in answer.aiter_text():
            received += text
    except error:
        return events(received)
    pytest.fail(f"the body ended properly, without {error.__name__}")


async def until_open(http: httpx2.AsyncClient, requests: int) -> None:
    with anyio.fail_after(5):
        while (await http.get("/open")).json()["open"] != requests:
            pass


async def test_an_answer_is_the_events_of_the_messages_wire_in_their_order(http: httpx2.AsyncClient) -> None:
    answer = await ask(http, f"[[tokens=2 {FAST}]]")
    names = [name for name, _ in answer]
    assert names == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert all(name == data["type"] for name, data in answer)
    assert answer[0][1]["message"]["model"] == "some-model"
    assert answer[-2][1]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert answer[-2][1]["usage"]["output_tokens"] == 2


async def test_headers_are_those_of_the_api(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/messages", json=body(f"[[tokens=1 {FAST}]]"))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["request-id"].startswith("req_")


async def test_the_sdk_reads_it_unmodified(standin: StandIn) -> None:
    async with AsyncAnthropic(api_key="any", base_url=standin.base_url) as client:
        messages = [{"role": "user", "content": f"[[tokens=30 thinking=4 tools=1 server_tool=ok {FAST}]]"}]
        async with client.messages.stream(model="m", max_tokens=9, messages=messages) as stream:  # type: ignore[arg-type]
            message = await stream.get_final_message()
    assert [block.type for block in message.content] == [
        "thinking",
        "text",
        "tool_use",
        "server_tool_use",
        "web_search_tool_result",
    ]
    assert message.content[2].input == {"city": "Oslo", "unit": "celsius", "days": 3}  # type: ignore[union-attr]
    assert message.stop_reason == "tool_use"


async def test_the_text_begins_with_what_it_is_and_quotes_what_was_asked(http: httpx2.AsyncClient) -> None:
    text = "".join(deltas(await ask(http, f"Why is the sky blue? [[{FAST}]]")))
    assert text.startswith("This is a stand-in and no model")
    assert "“Why is the sky blue?”" in text


async def test_the_text_is_a_function_of_the_last_user_message(http: httpx2.AsyncClient) -> None:
    one = deltas(await ask(http, f"one [[tokens=80 {FAST}]]"))
    again = deltas(await ask(http, [{"type": "text", "text": f"one [[tokens=80 {FAST}]]"}]))
    other = deltas(await ask(http, f"two [[tokens=80 {FAST}]]"))
    assert one == again
    assert one != other


@pytest.mark.parametrize("tokens", [0, 1, 63, 64, 65, 1000])
async def test_tokens_is_the_exact_number_of_text_deltas(http: httpx2.AsyncClient, tokens: int) -> None:
    assert len(deltas(await ask(http, f"[[tokens={tokens} {FAST}]]"))) == tokens


async def test_without_directives_some_sixty_tokens_come_at_thirty_a_second_after_300_ms() -> None:
    asked = read_directives("hello")
    assert (asked.tokens, asked.rate, asked.ttft_ms) == (60, 30, 300)


async def test_thinking_comes_before_the_text_in_a_block_of_its_own(http: httpx2.AsyncClient) -> None:
    answer = await ask(http, f"[[tokens=2 thinking=3 {FAST}]]")
    assert len(deltas(answer, "thinking_delta", "thinking")) == 3
    assert len(deltas(answer)) == 2
    blocks = [data["content_block"]["type"] for name, data in answer if name == "content_block_start"]
    assert blocks == ["thinking", "text"]


async def test_a_tools_arguments_are_streamed_after_the_text(http: httpx2.AsyncClient) -> None:
    answer = await ask(http, f"[[tokens=1 tools=2 {FAST}]]")
    pieces = deltas(answer, "input_json_delta", "partial_json")
    assert json.loads("".join(pieces[: len(pieces) // 2]))["city"] == "Oslo"
    assert answer[-2][1]["delta"]["stop_reason"] == "tool_use"


async def test_stop_is_the_stop_reason(http: httpx2.AsyncClient) -> None:
    assert (await ask(http, f"[[stop=refusal {FAST}]]"))[-2][1]["delta"]["stop_reason"] == "refusal"


async def test_the_first_token_waits_for_ttft_and_the_rest_keep_to_absolute_deadlines(http: httpx2.AsyncClient) -> None:
    sleeping = asyncio.create_task(sleep_for_each(1500))
    began = time.monotonic()
    await ask(http, "[[tokens=1500 rate=5000 ttft_ms=100]]")
    assert time.monotonic() - began >= 0.4
    assert not sleeping.done(), "a pace that slept once for each of them would be that slow"
    sleeping.cancel()


async def sleep_for_each(tokens: int) -> None:
    for _ in range(tokens):
        await asyncio.sleep(1 / 5000)  # timers tick in milliseconds


@pytest.mark.parametrize(
    "message",
    [
        "[[tokens=x rate=-1 rate=1e9 ttft_ms=1.5 thinking= =3 tokens]]",
        "[[unknown=1]] [[]] [[[[ ]] tokens=5",
        "[[tokens=99999999999999999999]]",
        "[[tokens=١٢]]",
        "[[status=302 server_tool=maybe stop=<b> line_end=nel piece=-1]]",
    ],
)
def test_directives_that_are_unknown_or_malformed_are_ignored(message: str) -> None:
    assert read_directives(message) == Directives()


def test_directives_are_read_wherever_they_stand_and_the_last_one_counts() -> None:
    asked = read_directives("a [[tokens=3, rate=0.5]] b [[tokens=4]]")
    assert (asked.tokens, asked.rate) == (4, 0.5)


@pytest.mark.parametrize("sent", [0, 3])
async def test_error_at_ends_the_answer_with_an_error_event(http: httpx2.AsyncClient, sent: int) -> None:
    answer = await ask(http, f"[[error_at={sent} {FAST}]]")
    assert len(deltas(answer)) == sent
    assert answer[-1][0] == "error"
    assert answer[-1][1]["error"] == {"type": "overloaded_error", "message": "Overloaded"}


@pytest.mark.parametrize("sent", [0, 3])
async def test_end_at_ends_the_body_properly_but_without_message_stop(http: httpx2.AsyncClient, sent: int) -> None:
    answer = await ask(http, f"[[end_at={sent} {FAST}]]")
    assert len(deltas(answer)) == sent
    assert "message_stop" not in [name for name, _ in answer]


@pytest.mark.parametrize("sent", [0, 3, 500])
async def test_cut_at_drops_the_connection_after_all_that_was_sent_and_nobody_calls_it_an_error(
    http: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture, sent: int
) -> None:
    with caplog.at_level(logging.WARNING):
        async with http.stream("POST", "/v1/messages", json=body(f"[[tokens=500 cut_at={sent} {FAST}]]")) as answer:
            received = await read_until(httpx2.RemoteProtocolError, answer)
        await until_open(http, 0)
    assert len(deltas(received)) == sent
    assert [record.message for record in caplog.records if record.name.startswith("uvicorn")] == []


async def test_garbage_at_is_a_line_that_is_no_json_and_then_it_goes_on(http: httpx2.AsyncClient) -> None:
    wire = (await http.post("/v1/messages", json=body(f"[[tokens=5 garbage_at=2 {FAST}]]"))).text
    data = [line.removeprefix("data: ") for line in wire.splitlines() if line.startswith("data: ")]
    broken = [line for line in data if not _is_json(line)]
    assert len(broken) == 1
    assert wire.count("text_delta") == 5
    assert "message_stop" in wire


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


async def test_surrogate_at_tears_a_surrogate_pair(http: httpx2.AsyncClient) -> None:
    texts = deltas(await ask(http, f"[[tokens=3 surrogate_at=1 {FAST}]]"))
    assert [text.endswith("\ud83d") for text in texts] == [False, True, False]


async def raw(http: httpx2.AsyncClient, message: str) -> tuple[httpx2.Response, list[bytes]]:
    """The answer, and the chunks that its body came in."""
    async with http.stream("POST", "/v1/messages", json=body(message)) as answer:
        return answer, [chunk async for chunk in answer.aiter_raw()]


@pytest.mark.parametrize(("asked", "end"), [("cr", b"\r"), ("crlf", b"\r\n"), ("torn", b"\r\n")])
async def test_line_end_is_what_every_line_ends_in(http: httpx2.AsyncClient, asked: str, end: bytes) -> None:
    _, chunks = await raw(http, f"[[tokens=70 line_end={asked} {FAST}]]")
    wire = b"".join(chunks)
    lines = wire.split(end)
    assert not any(b"\r" in line or b"\n" in line for line in lines)
    assert len(deltas(events(b"\n".join(lines).decode()))) == 70
    assert any(b"\r\n" in chunk for chunk in chunks) == (asked == "crlf")


async def test_piece_is_how_many_bytes_are_written_at_a_time(http: httpx2.AsyncClient) -> None:
    _, chunks = await raw(http, f"[[tokens=3 piece=1 {FAST}]]")
    assert {len(chunk) for chunk in chunks} == {1}
    assert events(b"".join(chunks).decode())[-1][0] == "message_stop"


async def test_gzip_compresses_an_answer_that_nobody_wants_compressed(http: httpx2.AsyncClient) -> None:
    answer, chunks = await raw(http, f"[[tokens=3 gzip=1 {FAST}]]")
    assert answer.headers["content-encoding"] == "gzip"
    assert events(gzip.decompress(b"".join(chunks)).decode())[-1][0] == "message_stop"


async def test_a_fault_beyond_the_last_token_never_happens(http: httpx2.AsyncClient) -> None:
    assert (await ask(http, f"[[tokens=5 error_at=6 {FAST}]]"))[-1][0] == "message_stop"


async def test_overload_turns_the_first_requests_with_that_message_away(http: httpx2.AsyncClient) -> None:
    message = f"{time.time_ns()} [[overload=2 retry_after=7 {FAST}]]"
    first, second, third = [await http.post("/v1/messages", json=body(message)) for _ in range(3)]
    assert [first.status_code, second.status_code, third.status_code] == [529, 529, 200]
    assert first.json()["error"] == {"type": "overloaded_error", "message": "Overloaded"}
    assert first.headers["retry-after"] == "7"
    assert (await http.post("/v1/messages", json=body(f"{message} other"))).status_code == 529


async def test_cut_times_cuts_the_first_attempts_and_begins_anew_after_a_whole_one(http: httpx2.AsyncClient) -> None:
    message = f"{time.time_ns()} [[tokens=3 cut_at=2 cut_times=2 {FAST}]]"

    async def is_whole() -> bool:
        try:
            return (await ask(http, message))[-1][0] == "message_stop"
        except httpx2.RemoteProtocolError:
            return False

    assert [await is_whole() for _ in range(6)] == [False, False, True, False, False, True]


async def test_error_times_fails_the_first_attempts_only(http: httpx2.AsyncClient) -> None:
    message = f"{time.time_ns()} [[tokens=3 error_at=2 error_times=1 {FAST}]]"
    assert [(await ask(http, message))[-1][0] for _ in range(4)] == ["error", "message_stop"] * 2


async def test_stall_ms_is_how_long_a_stall_lasts(http: httpx2.AsyncClient) -> None:
    began = time.monotonic()
    assert len(deltas(await ask(http, f"[[tokens=5 stall_at=2 stall_ms=300 {FAST}]]"))) == 5
    assert time.monotonic() - began >= 0.3


async def test_status_is_the_status_and_its_error_type(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/messages", json=body("[[status=429]]"))
    assert answer.status_code == 429
    assert answer.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"model": NaN}',
        json.dumps(body("x", max_tokens=0)).encode(),
        json.dumps(body("x", model=None)).encode(),
        json.dumps(body("x", messages=[])).encode(),
        json.dumps(body("x", messages=["x"])).encode(),
        json.dumps(body("x", messages=[{"role": "assistant", "content": "x"}])).encode(),
    ],
)
async def test_a_bad_request_is_a_400_in_the_apis_shape(http: httpx2.AsyncClient, content: bytes) -> None:
    answer = await http.post("/v1/messages", content=content)
    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_another_path_is_a_404_in_the_apis_shape(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/v1/messages")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    "asked", ["stall_at=0 rate=0", "ttft_ms=900000", "tokens=100000 rate=20", "tokens=90000000 rate=0"]
)
async def test_a_client_that_leaves_is_noticed(http: httpx2.AsyncClient, asked: str) -> None:
    # The last of these fills every buffer on the way, since nobody reads: it is found waiting for room.
    async with http.stream("POST", "/v1/messages", json=body(f"[[{asked}]]")):
        await until_open(http, 1)
    await until_open(http, 0)


async def test_nothing_comes_after_a_stall(http: httpx2.AsyncClient) -> None:
    request = http.stream("POST", "/v1/messages", json=body(f"[[stall_at=2 {FAST}]]"), timeout=0.5)
    async with request as answer:
        received = await read_until(httpx2.ReadTimeout, answer)
    assert len(deltas(received)) == 2


async def test_a_client_that_does_not_read_holds_the_answer_back(http: httpx2.AsyncClient) -> None:
    # 200,000 deltas are some 25 MB, far more than the sockets hold: it must still be speaking, and others served.
    async with http.stream("POST", "/v1/messages", json=body(f"[[tokens=200000 {FAST}]]")) as answer:
        assert len(deltas(await ask(http, f"[[tokens=500 {FAST}]]"))) == 500
        await until_open(http, 1)
        assert (await answer.aread()).count(b"text_delta") == 200_000


async def test_requests_are_counted(http: httpx2.AsyncClient) -> None:
    before = (await http.get("/open")).json()["requests"]
    await ask(http, f"[[{FAST}]]")
    assert (await http.get("/open")).json()["requests"] == before + 1


def test_closing_cuts_every_answer_quietly_and_frees_the_port(caplog: pytest.LogCaptureFixture) -> None:
    server = StandIn()
    with caplog.at_level(logging.WARNING), httpx2.Client(trust_env=False) as http:
        with http.stream(
            "POST", f"{server.base_url}/v1/messages", json=body("[[stall_at=0 rate=0 ttft_ms=0]]")
        ) as answer:
            server.close()
            with pytest.raises(httpx2.RemoteProtocolError):
                answer.read()
        with pytest.raises(httpx2.ConnectError):
            http.get(server.base_url)
    assert [record.message for record in caplog.records if record.name.startswith("uvicorn")] == []


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_as_a_command_it_says_where_it_listens_and_ends_quietly_on_a_signal(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "worker.standin", "--port", "0"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        httpx2.Client(trust_env=False) as http,
    ):
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        with http.stream("POST", f"{url}/v1/messages", json=body("[[stall_at=0 rate=0 ttft_ms=0]]")) as answer:
            assert answer.status_code == 200
            process.send_signal(number)
            assert process.wait(timeout=5) == 0
        assert process.communicate() == ("", "")


@pytest.mark.processes
@pytest.mark.parametrize("port", ["-1", "65536", "9" * 30, "x", ""])
def test_as_a_command_it_names_a_port_that_is_not_one(port: str) -> None:
    command = [sys.executable, "-m", "worker.standin", "--port", port]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].endswith(f"argument --port: {port!r} is not a port from 0 to 65535")
