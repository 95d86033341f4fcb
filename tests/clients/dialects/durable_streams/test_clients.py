"""Its clients in JavaScript and Python, unmodified: cut anywhere they get all of it once, on two servers in turn."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import durable_streams
import httpx
import pytest

from tests.clients.dialects.node import Clients
from tests.compose.balancer import AUTHORIZED, Balanced
from tests.compose.compose_file import KEY
from tests.js.cutting import Cut
from tests.rig.deployment import wait_until
from tests.rig.long import LONG

RANDOM = random.Random(30)
MESSAGES: list[Any] = [{"n": n, "text": '\u2028 line\nbreaks, "quotes" and 1.0'} for n in range(6)]
RANDOM_CUTS = 200 if LONG else 10


@pytest.fixture
def http(balanced: Balanced) -> Iterator[httpx.Client]:
    url = f"http://127.0.0.1:{balanced.ports[0]}"
    with httpx.Client(base_url=url, headers=AUTHORIZED, trust_env=False) as client:
        yield client


def written(http: httpx.Client, messages: list[Any]) -> str:
    """The path of a closed stream, an append a message."""
    path = f"/v1/ds/{secrets.token_hex(4)}/stream"
    as_json = {"Content-Type": "application/json"}
    assert http.put(path, headers=as_json).status_code == 201
    for message in messages:
        assert http.post(path, headers=as_json, content=json.dumps([message])).status_code == 204
    assert http.post(path, headers={"Stream-Closed": "true"}).status_code == 204
    return path


def produced(http: httpx.Client) -> str:
    """The id of an external stream: an answer, and what nobody may see."""
    record = http.post("/v1/streams", json={"producer": "external"}).json()
    said = [("start", {}), ("text_delta", {"text": "Hel"}), ("internal.note", {"secret": "planted"})]
    said += [("text_delta", {"text": "lo"}), ("done", {"stop_reason": "end_turn"})]
    for event, data in said:
        batch = {"epoch": record["epoch"], "events": [{"event": event, "data": data}]}
        assert http.post(f"/v1/streams/{record['id']}/events", json=batch).status_code == 200
    sid: str = record["id"]
    return sid


def restarted(http: httpx.Client) -> str:
    """The id of a stream whose provider broke off once: its first attempt is void."""
    sid: str = http.post(
        "/v1/streams", json={"prompt": "Hi [[tokens=6 rate=0 ttft_ms=0 cut_at=3 cut_times=1]]"}
    ).json()["id"]
    wait_until(lambda: http.get(f"/v1/streams/{sid}").json()["state"] == "done", "it is done")
    assert http.get(f"/v1/streams/{sid}").json()["attempt"] == 2
    return sid


async def got(http: httpx.Client, path: str, **query: str) -> httpx.Response:
    return await asyncio.to_thread(http.get, path, params=query)


def cuts_of(body: bytes) -> list[int]:
    """Behind each frame, and anywhere."""
    ends = [at + 2 for at in range(len(body)) if body.startswith(b"\n\n", at)]
    return sorted({*ends, *(RANDOM.randrange(1, len(body)) for _ in range(RANDOM_CUTS))})


async def test_a_stream_cut_behind_each_frame_and_anywhere_is_read_once(clients: Clients, http: httpx.Client) -> None:
    path = written(http, MESSAGES)
    body = (await got(http, path, offset="-1", live="sse")).content
    whole = await clients.run("read", path, key=KEY, live="sse")
    assert whole["items"] == MESSAGES
    cases = [clients.begin("read", path, [Cut(at)], key=KEY, live="sse") for at in cuts_of(body)]
    assert [(await clients.result(name))["items"] for name in cases] == [MESSAGES] * len(cases)
    assert all(len(clients.requests(name)) > 1 for name in cases[:3])


@pytest.mark.parametrize("make", [produced, restarted])
@pytest.mark.parametrize("view", ["events", "ai-sdk", "ag-ui"])
async def test_so_is_a_view_of_any_stream(
    view: str, make: Callable[[httpx.Client], str], clients: Clients, http: httpx.Client
) -> None:
    path = f"/v1/ds/{view}/{await asyncio.to_thread(make, http)}"
    whole = (await got(http, path)).json()
    body = (await got(http, path, offset="-1", live="sse")).content
    assert b"planted" not in body
    assert "planted" not in json.dumps(whole)
    cases = [clients.begin("read", path, [Cut(at)], key=KEY, live="sse") for at in cuts_of(body)]
    cases.append(clients.begin("read", path, key=KEY, live="long-poll"))
    assert [(await clients.result(name))["items"] for name in cases] == [whole] * len(cases)


async def test_requests_whose_answers_are_lost_are_in_the_stream_once(clients: Clients, http: httpx.Client) -> None:
    path = f"/v1/ds/{secrets.token_hex(4)}/written"
    nothing = Cut(0, of="answer")
    lost = [Cut(10**6), nothing, nothing, Cut(10**6), nothing]  # the creation's answer comes
    told = await clients.run("write", path, lost, key=KEY, messages=MESSAGES)
    answer = await got(http, path)
    assert answer.json() == MESSAGES
    assert (answer.headers["stream-closed"], answer.headers["stream-next-offset"]) == ("true", told["offset"])


async def test_a_chat_of_the_ai_sdk_is_read_through_its_transport(clients: Clients, balanced: Balanced) -> None:
    api = f"{clients.cutter.url}/v1/ds/ai-sdk"
    told = await clients.run("chat", "", key=KEY, api=api, text="Hello [[tokens=3 rate=0 ttft_ms=0]]")
    kinds = [chunk["type"] for chunk in told["chunks"]]
    assert (kinds[0], kinds[-1]) == ("start", "finish")
    assert "text-delta" in kinds
    assert not told["active"]


async def test_the_python_client_writes_and_reads_it(balanced: Balanced, http: httpx.Client) -> None:
    url = f"http://127.0.0.1:{balanced.ports[1]}/v1/ds/{secrets.token_hex(4)}/python"

    def write_and_read() -> list[Any]:
        with durable_streams.DurableStream.create(url, content_type="application/json", headers=AUTHORIZED) as handle:
            for message in MESSAGES:
                handle.append(message)
        http.post(httpx.URL(url).path, headers={"Stream-Closed": "true"}).raise_for_status()
        with durable_streams.stream(url, offset="-1", live=False, headers=AUTHORIZED) as response:
            return list(response.iter_json())

    assert await asyncio.to_thread(write_and_read) == MESSAGES
