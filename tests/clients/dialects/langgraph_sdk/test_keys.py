"""Signs of life as often as a server may be told to send them: no SDK takes one for a part, nor for a silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from langgraph_sdk import get_client

from tests.clients.dialects.langgraph_sdk.test_javascript import LIBRARIES, said
from tests.rig.deployment import HTTP, Deployment

pytestmark = pytest.mark.npm


async def test_a_heartbeat_between_any_two_frames_changes_nothing(
    js: Path, own_deployment: Callable[..., Deployment]
) -> None:
    deployment = own_deployment(servers=1, LASTEVENT_HEARTBEAT_S="0.01")
    base = f"{deployment.url}/langgraph"
    asked = {"messages": [{"role": "user", "content": "[[ttft_ms=100 tokens=8 rate=20]]"}]}
    async with get_client(url=base, api_key=None) as client:
        stream = client.runs.stream("beats", "agent", input=asked, stream_mode="messages-tuple")
        parts = [part async for part in stream]
    whole = "".join(part.data[0]["content"] for part in parts if part.event == "messages")
    assert whole == HTTP.get(f"{deployment.url}/v1/streams/{parts[0].data['run_id'].replace('-', '')}/text").text
    with HTTP.stream("POST", f"{base}/runs/stream", json={"assistant_id": "agent", "input": asked}) as raw:
        assert raw.read().count(b": ping\n") > 10
    for library in LIBRARIES:
        assert (await said(js, "story.mjs", library, base))["chunks"] == ["This", " is", " a", ""]
