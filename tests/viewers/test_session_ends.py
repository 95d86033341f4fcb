"""A connection with several streams ends as one with one stream does: drained, too slow, revoked."""

import asyncio
import re
import signal
from collections.abc import Callable

import pytest

from tests.rig.deployment import HTTP, Deployment, until
from tests.viewers.session_viewer import SessionViewer
from tests.viewers.viewer import connect, post, viewers_connected
from tests.web.credentials import KEY

STALL_S = 2
EVENTS, EVENT_BYTES = 20, 90_000


async def _start(port: int, session: str, headers: dict[str, str] | None = None) -> str:
    answer = await post(port, "/v1/streams", {"producer": "external", "session_id": session}, headers)
    sid: str = answer.json["id"]
    return sid


async def _append(port: int, sid: str, kind: str, text: str = "") -> None:
    data = {"text": text} if text else {}
    body = {"epoch": 1, "events": [{"event": kind, "data": data}]}
    assert (await post(port, f"/v1/streams/{sid}/events", body)).status in (200, 201)


@pytest.mark.processes
async def test_a_drain_cuts_between_two_frames_and_nothing_is_lost_elsewhere(
    own_deployment: Callable[..., Deployment],
) -> None:
    deployment = own_deployment(servers=2, workers=0)
    here, there = deployment.ports
    sids = [await _start(there, "s") for _ in range(3)]
    viewer = SessionViewer("s")
    async with asyncio.TaskGroup() as group:
        first = group.create_task(viewer.view(here))
        await until(lambda: viewers_connected(deployment.url) == 3, "each open stream is a viewer")
        for sid in sids:
            await _append(there, sid, "start")
        deployment.servers[0].send(signal.SIGTERM)
        answer = await first
    assert answer.is_cut
    assert re.search(rb"retry: [0-9]{4}\n: draining\n$", bytes(answer.body))
    for sid in sids:
        await _append(there, sid, "done")
    endings = dict.fromkeys(sids, 3)
    await viewer.view(there, lambda body: len(body) if viewer.has_all(endings, bytes(body)) else None)
    assert {sid: [one.id for one in viewer.seen[sid]] for sid in sids} == {sid: [1, 2, 3] for sid in sids}


@pytest.mark.processes
async def test_one_that_does_not_read_is_cut_and_gives_its_places_back(
    own_deployment: Callable[..., Deployment],
) -> None:
    settings = {"LASTEVENT_VIEWER_STALL_S": str(STALL_S)}
    deployment = own_deployment(servers=1, workers=0, **settings)
    [port] = deployment.ports
    sids = [await _start(port, "s") for _ in range(3)]
    async with connect(port, receive_buffer=4096) as connection:
        connection.send("GET", "/v1/sessions/s/events", {})
        await connection.read_head()
        connection.stop_reading()
        for _ in range(EVENTS):
            for sid in sids:
                await _append(port, sid, "text_delta", "x" * EVENT_BYTES)
        await until(lambda: viewers_connected(deployment.url) == 0, "it is cut")
    for sid in sids:
        await until(lambda sid=sid: _how(deployment, sid) == ["too_slow"], "its record says so")


def _how(deployment: Deployment, sid: str) -> list[str]:
    views = HTTP.get(f"{deployment.url}/v1/streams/{sid}/views").json()["views"]
    return [one["how"] for one in views if one["format"] == "sse"]


@pytest.mark.processes
async def test_a_revoked_token_ends_it(own_deployment: Callable[..., Deployment]) -> None:
    deployment = own_deployment(servers=1, workers=0, LASTEVENT_API_KEYS=KEY)
    [port] = deployment.ports
    key = {"Authorization": f"Bearer {KEY}"}
    await _start(port, "s", key)
    body = {"sub": "ann", "sessions": ["s"], "scope": "streams:read"}
    token = (await post(port, "/v1/tokens", body, key)).json["token"]
    async with connect(port) as connection:
        connection.send("GET", "/v1/sessions/s/events", {"Authorization": f"Bearer {token}"})
        answer = await connection.read_head()
        reading = asyncio.create_task(connection.read_body(answer))
        await until(lambda: b"event: queued" in answer.body, "it follows")
        assert (await post(port, "/v1/tokens/revoke", {"sub": "ann"}, key)).status < 300
        await reading
    assert answer.is_cut
    assert bytes(answer.body).endswith(b": token_revoked\n")
