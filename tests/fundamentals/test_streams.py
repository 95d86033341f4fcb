"""What Lastevent is, one idea a test: read from top to bottom, and you know how to use it.

There are two servers and a worker. A server keeps nothing: whatever one of them is told, the other knows. The model
behind the worker is a stand-in that says what it is asked for in double brackets.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.fundamentals.conversation import client, text, watch
from tests.rig.deployment import Deployment

PROMPT = "Tell me about salt. [[tokens=40 rate=200 ttft_ms=20]]"
ENDLESS = "Never stop. [[tokens=100000 rate=50 ttft_ms=0]]"
TERMINAL = {"done", "error", "cancelled"}


@pytest.fixture
def server(deployment: Deployment) -> Iterator[httpx.Client]:
    with client(deployment.urls[0]) as server:
        yield server


@pytest.fixture
def other_server(deployment: Deployment) -> Iterator[httpx.Client]:
    with client(deployment.urls[1]) as server:
        yield server


def test_a_generation_is_a_stream_of_numbered_events(server: httpx.Client) -> None:
    stream = server.post("/v1/streams", json={"prompt": PROMPT}).json()["id"]
    events = watch(server, stream)
    assert [event.kind for event in events] == ["queued", "start", *40 * ["text_delta"], "done"]
    assert [event.id for event in events] == list(range(1, 44))


def test_it_outlives_whoever_watches_it(server: httpx.Client) -> None:
    stream = server.post("/v1/streams", json={"prompt": PROMPT}).json()["id"]
    watch(server, stream, until="text_delta")  # and the line drops
    assert watch(server, stream)[-1].kind == "done"


def test_who_comes_back_gets_exactly_what_they_missed_from_any_server(
    server: httpx.Client, other_server: httpx.Client
) -> None:
    stream = server.post("/v1/streams", json={"prompt": PROMPT}).json()["id"]
    before = watch(server, stream, until="text_delta")
    missed = watch(other_server, stream, after=before[-1].id)
    assert before + missed == watch(server, stream)


def test_replay_and_follow_are_one(server: httpx.Client) -> None:
    stream = server.post("/v1/streams", json={"prompt": PROMPT}).json()["id"]
    with ThreadPoolExecutor() as viewers:
        early = viewers.submit(watch, server, stream)
        watch(server, stream, until="text_delta")
        midway = viewers.submit(watch, server, stream)
    late = watch(server, stream)
    assert early.result() == midway.result() == late


def test_there_is_exactly_one_ending(server: httpx.Client, other_server: httpx.Client) -> None:
    stream = server.post("/v1/streams", json={"prompt": PROMPT}).json()["id"]
    watch(server, stream)
    for somebody in (server, other_server):
        assert somebody.post(f"/v1/streams/{stream}/cancel").json()["already"] is True
    assert [event.kind for event in watch(server, stream) if event.kind in TERMINAL] == ["done"]


def test_who_has_the_ending_is_told_not_to_come_back(server: httpx.Client) -> None:
    stream = server.post("/v1/streams", json={"prompt": PROMPT}).json()["id"]
    ending = watch(server, stream)[-1]
    again = server.get(f"/v1/streams/{stream}/events", headers={"Last-Event-ID": str(ending.id)})
    assert again.status_code == 204


def test_any_server_can_cancel_and_every_viewer_sees_it(server: httpx.Client, other_server: httpx.Client) -> None:
    stream = server.post("/v1/streams", json={"prompt": ENDLESS}).json()["id"]
    watch(server, stream, until="text_delta")
    with ThreadPoolExecutor() as viewers:
        watching = viewers.submit(watch, server, stream)
        cancelled = other_server.post(f"/v1/streams/{stream}/cancel", json={"reason": "enough"}).json()
    *_, last_text, ending = watching.result()
    assert (ending.kind, ending.data["reason"], ending.data["by"]) == ("cancelled", "enough", "anyone")
    assert (cancelled["last_event_id"], cancelled["stopped_after"]) == (ending.id, last_text.id)


def test_starting_twice_with_one_key_starts_once(server: httpx.Client, other_server: httpx.Client) -> None:
    key = {"Idempotency-Key": "fundamentals-1"}
    first = server.post("/v1/streams", json={"prompt": PROMPT}, headers=key)
    again = other_server.post("/v1/streams", json={"prompt": PROMPT}, headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert watch(server, first.json()["id"])[-1].kind == "done"


def test_the_text_so_far_is_one_read_and_the_rest_follows(server: httpx.Client) -> None:
    stream = server.post("/v1/streams", json={"prompt": PROMPT}).json()["id"]
    watch(server, stream, until="text_delta")
    so_far = server.get(f"/v1/streams/{stream}/text")
    rest = watch(server, stream, after=int(so_far.headers["Last-Event-ID"]))
    assert so_far.text + text(rest) == text(watch(server, stream))


def test_a_program_of_yours_can_be_the_producer(server: httpx.Client, other_server: httpx.Client) -> None:
    created = server.post("/v1/streams", json={"producer": "external"}).json()
    stream, epoch = created["id"], created["epoch"]
    events = [{"event": "text_delta", "data": {"text": "Salt"}}, {"event": "tide.turned", "data": {"height_m": 2}}]
    for producing in (server, other_server):  # the answer was lost, so it is sent again: `first` makes that harmless
        answer = producing.post(f"/v1/streams/{stream}/events", json={"epoch": epoch, "first": 2, "events": events})
        assert answer.json() == {"last_event_id": 3}
    server.post(f"/v1/streams/{stream}/events", json={"epoch": epoch, "events": [{"event": "done", "data": {}}]})
    assert [(event.id, event.kind) for event in watch(server, stream)] == [
        (1, "queued"),
        (2, "text_delta"),
        (3, "tide.turned"),
        (4, "done"),
    ]


def test_what_failed_can_be_started_again_as_a_new_stream(server: httpx.Client) -> None:
    stream = server.post("/v1/streams", json={"prompt": "Fail. [[tokens=4 rate=0 ttft_ms=0 status=400]]"}).json()["id"]
    *_, ending = watch(server, stream)
    assert (ending.kind, ending.data["code"], ending.data["recoverable"]) == ("error", "provider_refused", False)
    regenerated = server.post(f"/v1/streams/{stream}/regenerate").json()
    assert regenerated["regenerates"] == stream
    assert watch(server, regenerated["id"])[-1].kind == "error"
