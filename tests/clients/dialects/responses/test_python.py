"""openai for Python: it is cut anywhere and goes on at the other server; what it makes of each kind of response."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import islice
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.clients.dialects.responses.recorded import SECRET, Ended, external, read
from tests.js.cutting import Cut, Cutter, How, cutting
from tests.rig.deployment import HTTP, Deployment
from tests.rig.long import LONG
from worker.standin.words import words

pytestmark = pytest.mark.processes

MODEL = "gpt-5-mini"
SHORT = "[[tokens=5 rate=0 ttft_ms=0]]"
LONG_ONE = "[[tokens=2000 rate=20 ttft_ms=0]]"
RESTARTED = "[[tokens=8 rate=0 ttft_ms=0 cut_at=5 cut_times=1]]"
FAILING = "[[tokens=8 rate=0 ttft_ms=0 error_at=3 error=api_error]]"
TOOL: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
HOWS: tuple[How, ...] = ("reset", "close")

Event = dict[str, Any]


def said(tokens: int) -> str:
    """By the stand-in."""
    return "".join(islice(words(""), tokens))


@pytest.fixture
async def client(deployment: Deployment) -> AsyncIterator[AsyncOpenAI]:
    # Without TLS, whose settings take 30 ms of CPU each time.
    http = openai.DefaultAsyncHttpxClient(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    async with AsyncOpenAI(base_url=f"{deployment.url}/v1", api_key="any", max_retries=0, http_client=http) as client:
        yield client


async def follow(client: AsyncOpenAI, response: str) -> tuple[list[Event], int]:
    """As an app does it: it reads until it is cut, and goes on behind the last event that it has."""
    events: list[Event] = []
    requests = 0
    while requests < 9:
        requests += 1
        with suppress(openai.APIConnectionError):
            after: Any = {"starting_after": events[-1]["sequence_number"]} if events else {}
            async for event in await client.responses.retrieve(response, stream=True, **after):
                events.append(event.to_dict(mode="json"))  # noqa: PERF401  # what came before a cut is kept
            return events, requests
    pytest.fail("it was cut again and again")


def of(name: str, cutter: Cutter, client: AsyncOpenAI) -> AsyncOpenAI:
    return client.with_options(base_url=f"{cutter.url}/v1", default_headers={"case": name})


# ---- Cuts


def test_both_servers_say_the_same_and_nothing_of_what_is_internal(
    deployment: Deployment, ended: dict[str, Ended]
) -> None:
    for one in ended.values():
        assert HTTP.get(f"{deployment.urls[1]}/v1/responses/{one.id}?stream=true").content == one.body
        assert SECRET.encode() not in one.body


@pytest.mark.parametrize("name", ["kinds", "error", "cancelled", "restart"])
async def test_wherever_it_is_cut_it_has_each_event_once_from_the_other_server(
    deployment: Deployment, client: AsyncOpenAI, ended: dict[str, Ended], name: str
) -> None:
    one = ended[name]
    numbers = random.Random(name)
    ends = one.ends[:-1]
    if not LONG and name != "kinds":  # JavaScript's client, which costs a third, is cut at each of them
        ends = numbers.sample(ends, 8)
    places = {*ends, *numbers.sample(range(1, len(one.body)), 400 if LONG else 4)}
    async with cutting(*deployment.ports) as cutter:
        whole, _ = await follow(of("whole", cutter, client), one.id)
        assert [event["sequence_number"] for event in whole] == one.numbers
        for place in places:
            cutter.cuts[str(place)] = [Cut(place, numbers.choice(HOWS))]
            events, requests = await follow(of(str(place), cutter, client), one.id)
            assert events == whole, place
            assert requests == 2, place


async def test_one_that_runs_is_cut_again_and_again(deployment: Deployment, client: AsyncOpenAI) -> None:
    sid = deployment.create("[[tokens=60 rate=60 ttft_ms=0 thinking=5]]", show=["thinking"])
    numbers = random.Random(7)
    async with cutting(*deployment.ports) as cutter:
        cutter.cuts["live"] = [Cut(numbers.randrange(1, 6000), numbers.choice(HOWS)) for _ in range(4)]
        events, requests = await follow(of("live", cutter, client), f"resp_{sid}")
    assert requests == 5
    assert events == read(deployment, sid).events


@pytest.mark.parametrize("name", ["kinds", "restart"])
async def test_the_helper_shows_what_is_behind_a_number_and_has_all_of_the_response(
    client: AsyncOpenAI, ended: dict[str, Ended], name: str
) -> None:
    one = ended[name]
    for after in one.numbers if LONG else one.numbers[:: len(one.numbers) // 4]:
        async with client.responses.stream(response_id=one.id, starting_after=after) as stream:
            seen = [event.sequence_number async for event in stream]  # type: ignore[union-attr]
            final = await stream.get_final_response()
        assert seen == [number for number in one.numbers if number > after]
        assert final.output_text == text_of(one.response)


def text_of(response: Event) -> str:
    items = [item for item in response["output"] if item["type"] == "message"]
    return "".join(part["text"] for item in items for part in item["content"])


async def test_beyond_the_end_it_is_told_the_ending_alone(client: AsyncOpenAI, ended: dict[str, Ended]) -> None:
    one = ended["kinds"]
    for after, told in ((one.numbers[-1], []), (one.numbers[-1] + 7, [one.numbers[-1]])):
        seen = [event async for event in await client.responses.retrieve(one.id, stream=True, starting_after=after)]
        assert [event.sequence_number for event in seen] == told  # type: ignore[union-attr]


async def test_a_number_that_the_log_does_not_know_is_an_error_and_the_response_is_still_there(
    deployment: Deployment, client: AsyncOpenAI
) -> None:
    running = external(deployment, ("start", {}), ("text_delta", {"text": "So far."}))
    with pytest.raises(openai.APIError) as raised:
        async for _ in await client.responses.retrieve(f"resp_{running}", stream=True, starting_after=1000):
            pass
    assert raised.value.code == "log_lost_tail"
    response = await client.responses.retrieve(f"resp_{running}")
    assert (response.status, response.output_text) == ("in_progress", "So far.")


# ---- Each kind


async def test_a_response_that_it_waits_for(client: AsyncOpenAI) -> None:
    answer = await client.responses.with_raw_response.create(model=MODEL, input=SHORT, top_p=0.5, metadata={"a": "b"})
    response = answer.parse()
    assert (response.status, response.output_text) == ("completed", said(5))
    assert response.usage
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 5
    assert (response.model, response.metadata) == (MODEL, {"a": "b"})
    assert answer.headers["location"] == f"/v1/responses/{response.id}"
    assert answer.headers["x-lastevent-stream"] == response.id.removeprefix("resp_")
    assert answer.headers["x-lastevent-ignored"] == "top_p"
    assert await client.responses.retrieve(response.id) == response


async def test_a_response_that_it_streams(client: AsyncOpenAI) -> None:
    async with client.responses.stream(model=MODEL, input=SHORT) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds.count("response.output_text.delta") == 5
    assert final.output_text == said(5)


async def test_what_an_attempt_said_is_not_in_the_response(client: AsyncOpenAI) -> None:
    async with client.responses.stream(model=MODEL, input=f"{RESTARTED} Python.") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    done = [event.item.status for event in events if event.type == "response.output_item.done"]  # type: ignore[union-attr]
    assert done == ["incomplete", "completed"]
    assert final.output_text == said(8)
    assert (await client.responses.retrieve(final.id)).output_text == said(8)


async def test_one_in_the_background_is_followed_and_cancelled(client: AsyncOpenAI) -> None:
    begun = await client.responses.create(model=MODEL, input=LONG_ONE, background=True)
    assert begun.status == "queued"
    statuses = []
    async for event in await client.responses.retrieve(begun.id, stream=True):
        if event.type == "response.output_text.delta" and len(statuses) == 3:
            assert (await client.responses.cancel(begun.id)).status == "cancelled"
        statuses += [event.response.status] if hasattr(event, "response") else []
    assert statuses == ["queued", "queued", "in_progress", "cancelled"]
    assert (await client.responses.cancel(begun.id)).status == "cancelled"


async def test_one_that_fails(client: AsyncOpenAI) -> None:
    response = await client.responses.create(model=MODEL, input=FAILING)
    assert response.status == "failed"
    assert response.error
    assert response.error.message == "provider_error: The model provider had an internal error."
    assert response.output_text == said(3)


async def test_thoughts_are_shown_to_who_asks_for_a_summary(client: AsyncOpenAI) -> None:
    thinking = "[[thinking=3 tokens=2 rate=0 ttft_ms=0]]"
    silent = await client.responses.create(model=MODEL, input=thinking)
    shown = await client.responses.create(model=MODEL, input=thinking, reasoning={"summary": "auto"})
    assert [item.type for item in silent.output] == ["message"]
    assert [item.type for item in shown.output] == ["reasoning", "message"]
    assert shown.reasoning
    assert shown.reasoning.summary == "auto"


class Weather(BaseModel):
    city: str
    celsius: int


async def test_structured_output(client: AsyncOpenAI) -> None:
    asked = "[[json=1 rate=0 ttft_ms=0]]"
    response = await client.responses.parse(model=MODEL, input=asked, text_format=Weather)
    assert response.output_parsed == Weather(city="Oslo", celsius=3)
    assert response.text
    assert response.text.format
    assert response.text.format.type == "json_schema"


@pytest.mark.parametrize("by_id", [True, False], ids=["by its id", "by its items"])
async def test_a_tools_result_goes_on_from_a_response(client: AsyncOpenAI, by_id: bool) -> None:
    asked = '[[call=weather:{"city":"Oslo"} rate=0 ttft_ms=0 thinking=2]] Go.'
    called = await client.responses.create(model=MODEL, input=asked, tools=[TOOL], instructions="Be brief.")
    [call] = [item for item in called.output if item.type == "function_call"]
    assert call.arguments == '{"city":"Oslo"}'
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    before: Any = {"previous_response_id": called.id} if by_id else {}
    given: Any = [result] if by_id else [{"role": "user", "content": asked}, *called.output, result]
    answer = await client.responses.create(model=MODEL, input=given, tools=[TOOL], **before)
    assert answer.output_text.startswith("The tools said “sunny”.")
    assert answer.previous_response_id == (called.id if by_id else None)
    items = await client.responses.input_items.list(answer.id, order="asc")
    assert [item.type async for item in items] == ["message", "function_call", "function_call_output"]


async def test_an_erased_one_is_gone(client: AsyncOpenAI) -> None:
    running = await client.responses.create(model=MODEL, input=LONG_ONE, background=True)
    with pytest.raises(openai.ConflictError):
        await client.responses.delete(running.id)
    await client.responses.cancel(running.id)
    await client.responses.delete(running.id)
    with pytest.raises(openai.APIStatusError) as raised:
        await client.responses.retrieve(running.id)
    assert (raised.value.status_code, raised.value.code) == (410, "stream_expired")


async def test_nothing_goes_on_from_one_that_runs(client: AsyncOpenAI) -> None:
    running = await client.responses.create(model=MODEL, input=LONG_ONE, background=True)
    with pytest.raises(openai.ConflictError) as raised:
        await client.responses.create(model=MODEL, input="And?", previous_response_id=running.id)
    assert raised.value.response.headers["x-should-retry"] == "false"
    await client.responses.cancel(running.id)


async def test_the_same_key_again_is_the_same_response(client: AsyncOpenAI) -> None:
    again = {"Idempotency-Key": "one-of-a-kind"}
    first = await client.responses.create(model=MODEL, input=SHORT, extra_headers=again)
    stream = await client.responses.create(model=MODEL, input=SHORT, stream=True, extra_headers=again)
    last = [event async for event in stream][-1]
    assert last.type == "response.completed"
    assert last.response.id == first.id
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(model=MODEL, input="Another.", extra_headers=again)


@pytest.mark.parametrize(
    ("asked", "kind", "code", "param"),
    [
        ({"model": "nobody/model"}, openai.NotFoundError, "model_not_found", "model"),
        ({"max_output_tokens": 10**7}, openai.BadRequestError, "invalid_request", "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, openai.BadRequestError, "invalid_request", "tools[0].type"),
        ({"reasoning": {"effort": "some"}}, openai.BadRequestError, "invalid_request", "reasoning.effort"),
        (
            {"input": [{"type": "item_reference", "id": "msg_0"}]},
            openai.BadRequestError,
            "invalid_request",
            "input[0].id",
        ),
        ({"previous_response_id": "resp_none"}, openai.NotFoundError, "stream_not_found", None),
    ],
)
async def test_refusals(
    client: AsyncOpenAI, asked: dict[str, Any], kind: type[openai.APIStatusError], code: str, param: str | None
) -> None:
    with pytest.raises(kind) as raised:
        await client.responses.create(**{"model": MODEL, "input": "Hi", **asked})
    assert (raised.value.code, raised.value.param) == (code, param)
    assert raised.value.type == "invalid_request_error"


def test_a_stream_that_was_started_natively_is_a_response_too(deployment: Deployment) -> None:
    sid = deployment.create(SHORT)
    deployment.wait_until_ended(sid)
    response = HTTP.get(f"{deployment.url}/v1/responses/{sid}").json()
    assert text_of(response) == said(5)
    assert response == read(deployment, sid).response
