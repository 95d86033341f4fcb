"""Clients that others wrote, unmodified, read a stream and resume it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse

from tests.rig.deployment import Deployment
from tests.viewers.viewer import LIMIT_S, Viewer

PROMPT = "Grüße 🚲 [[tokens=297 rate=100 ttft_ms=0]]"
EVERYTHING = list(range(1, 301))
MIDWAY = 60


async def test_httpx_sse_resumes_elsewhere_when_its_server_is_killed(own_deployment: Callable[..., Deployment]) -> None:
    deployment = own_deployment(servers=2)
    sid = deployment.create(PROMPT)
    events: list[ServerSentEvent] = []
    async with httpx.AsyncClient(trust_env=False, timeout=LIMIT_S) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await _read(client, deployment.urls[0], sid, events, at_midway=deployment.servers[0].kill)
        resumed_after = events[-1].id
        await _read(client, deployment.urls[1], sid, events)
        nothing_more = await client.get(_events_url(deployment.urls[1], sid), headers={"Last-Event-ID": events[-1].id})

    assert MIDWAY <= int(resumed_after) < EVERYTHING[-1]
    assert [int(event.id) for event in events] == EVERYTHING
    assert events[-1].event == "done"
    assert _text(events) == await _whole_text(deployment.ports[1], sid)
    assert nothing_more.status_code == 204


@pytest.mark.npm
async def test_eventsource_on_node_goes_on_by_itself_when_its_server_is_killed_and_comes_back(
    node_clients: Path, own_deployment: Callable[..., Deployment]
) -> None:
    deployment = own_deployment(servers=1)
    sid = deployment.create(PROMPT)
    lines: list[dict[str, Any]] = []
    async with asyncio.timeout(LIMIT_S), _node(node_clients, _events_url(deployment.url, sid)) as node:
        assert node.stdout
        async for line in node.stdout:
            lines.append(json.loads(line))
            if lines[-1].get("id") == str(MIDWAY):
                deployment.servers[0].kill()
                deployment.servers[0].start()
            if lines[-1].get("kind") == "done":
                break  # it would come back a minute later, for its 204

    events = [line for line in lines if "id" in line]
    errors = [line for line in lines if "error" in line]
    assert [int(event["id"]) for event in events] == EVERYTHING
    text = "".join(event["data"]["text"] for event in events if event["kind"] == "text_delta")
    assert text == await _whole_text(deployment.ports[0], sid)
    assert errors
    assert not any(error["closed"] for error in errors), "only a 204 makes it give up"


def _events_url(url: str, sid: str) -> str:
    return f"{url}/v1/streams/{sid}/events"


async def _read(
    client: httpx.AsyncClient,
    url: str,
    sid: str,
    events: list[ServerSentEvent],
    at_midway: Callable[[], None] = lambda: None,
) -> None:
    headers = {"Last-Event-ID": events[-1].id} if events else {}
    async with aconnect_sse(client, "GET", _events_url(url, sid), headers=headers) as source:
        async for event in source.aiter_sse():
            events.append(event)
            if len(events) == MIDWAY:
                at_midway()


def _text(events: list[ServerSentEvent]) -> str:
    return "".join(event.json()["text"] for event in events if event.event == "text_delta")


async def _whole_text(port: int, sid: str) -> str:
    viewer = Viewer(sid)
    await viewer.view(port)
    return viewer.text()


@asynccontextmanager
async def _node(folder: Path, url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    node = await asyncio.create_subprocess_exec("node", "read.mjs", url, cwd=folder, stdout=asyncio.subprocess.PIPE)
    try:
        yield node
    finally:
        if node.returncode is None:
            node.kill()
            await node.wait()
