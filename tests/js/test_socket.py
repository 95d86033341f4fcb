"""`lastevent/socket`: the same streams over one WebSocket, and without one where none comes through."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.js.following import run
from tests.rig.deployment import HTTP, Deployment

pytestmark = pytest.mark.npm

ANSWER = "[[tokens=60 rate=300 ttft_ms=0]]"


async def over_socket(
    js: Path, deployment: Deployment, folder: Path, *, through: str | None = None, **asked: Any
) -> dict[str, Any]:
    """What npm/socket.mjs says. `through`: the address of a proxy for the socket."""
    base = through or deployment.url
    file = folder / "asked.json"
    file.write_text(json.dumps({"api": deployment.url, "socket": f"{base}/v1/socket", **asked}))
    [said] = await run(js, "socket.mjs", str(file), name="bun")
    return said


def require_exact(deployment: Deployment, outcomes: Sequence[dict[str, Any]]) -> None:
    for outcome in outcomes:
        events = HTTP.get(
            f"{outcome['url']}?follow=0".replace("/v1", "/v1", 1), headers={"Accept": "application/x-ndjson"}
        )
        ids = [json.loads(line)["id"] for line in events.text.splitlines() if line]
        text = HTTP.get(outcome["url"].removesuffix("/events") + "/text").text
        assert (outcome["state"], outcome["text"]) == ("done", text)
        assert set(outcome["ids"]) <= set(ids)
        assert outcome["ids"][-1] == ids[-1]
        assert outcome["ids"] == sorted(set(outcome["ids"]))


async def test_streams_that_are_started_and_followed_share_one_socket(
    js: Path, deployment: Deployment, tmp_path: Path
) -> None:
    urls = [f"{deployment.url}/v1/streams/{deployment.create(ANSWER)}/events" for _ in range(3)]
    said = await over_socket(js, deployment, tmp_path, bodies=[{"prompt": ANSWER}] * 3, urls=urls)
    require_exact(deployment, said["outcomes"])
    assert (said["sockets"], said["fetched"]) == (1, [])
