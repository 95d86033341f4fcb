"""A server with keys, which sends signs of life as often as it may be told to: the SDKs send their key as `x-api-key`,
and take no heartbeat for a part, nor for a silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph_sdk import get_client
from langgraph_sdk.errors import AuthenticationError

from broker.dialects.langgraph import sid_of
from broker.tenants.keyring import new_key
from tests.clients.dialects.langgraph_sdk.test_javascript import LIBRARIES, said
from tests.conftest import deployment_in
from tests.rig.deployment import HTTP, Deployment, wait_until
from tests.web.credentials import store_keys

pytestmark = pytest.mark.npm

KEY = "correct-horse-battery-staple-and-more"
BEARER = {"Authorization": f"Bearer {KEY}"}
SLOWLY = {"messages": [{"role": "user", "content": "[[ttft_ms=100 tokens=8 rate=20 thinking=1]]"}]}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    settings = {"LASTEVENT_API_KEYS": KEY, "LASTEVENT_HEARTBEAT_S": "0.01"}
    with deployment_in(tmp_path_factory.mktemp("locked"), servers=1, **settings) as deployment:
        yield deployment


def base(deployment: Deployment) -> str:
    return f"{deployment.url}/langgraph"


async def test_a_heartbeat_between_any_two_frames_changes_nothing(locked: Deployment) -> None:
    async with get_client(url=base(locked), api_key=KEY) as client:
        stream = client.runs.stream("beats", "agent", input=SLOWLY, stream_mode="messages-tuple")
        parts = [part async for part in stream]
    whole = "".join(part.data[0]["content"] for part in parts if part.event == "messages")
    sid = sid_of(parts[0].data["run_id"])
    assert whole == HTTP.get(f"{locked.url}/v1/streams/{sid}/text", headers=BEARER).text
    asked = {"assistant_id": "agent", "input": SLOWLY}
    raw = HTTP.post(f"{base(locked)}/runs/stream", json=asked, headers={"x-api-key": KEY})
    assert raw.content.count(b": ping\n") > 10


async def test_the_sdk_of_javascript_sends_its_key_too(js: Path, locked: Deployment) -> None:
    assert (await said(js, "story.mjs", LIBRARIES[0], base(locked), KEY))["chunks"] == ["This", " is", " a", ""]


async def test_another_key_is_refused_and_so_are_two(locked: Deployment) -> None:
    async with get_client(url=base(locked), api_key="another-key") as client:
        with pytest.raises(AuthenticationError) as refused:
            await client.threads.create()
        assert refused.value.code == "unauthorized"
    both = {**BEARER, "x-api-key": "another-key"}
    assert HTTP.get(f"{base(locked)}/info", headers=both).status_code == 401


async def test_a_token_s_reader_sees_the_answer_and_nothing_of_what_was_asked_nor_what_is_internal(
    locked: Deployment,
) -> None:
    async with get_client(url=base(locked), api_key=KEY) as client:
        context = {"system": "A secret prompt."}
        run = await client.runs.create("told", "agent", input=SLOWLY, context=context, metadata={"of": "a secret"})
        await client.runs.join("told", run["run_id"])
        assert (await client.runs.get("told", run["run_id"]))["metadata"] == {"of": "a secret"}
    url = HTTP.get(f"{locked.url}/v1/streams/{sid_of(run['run_id'])}", headers=BEARER).json()["events_url"]
    token = url.partition("access_token=")[2] or url.partition("token=")[2]
    modes = ["values", "updates", "messages", "messages-tuple", "custom"]
    of_run = f"{base(locked)}/threads/told/runs/{run['run_id']}"
    seen = HTTP.get(f"{of_run}/stream", params={"stream_mode": modes, "access_token": token})
    whole = HTTP.get(f"{of_run}/stream", params={"stream_mode": modes}, headers=BEARER)
    values = [_messages(frame) for frame in seen.text.split("\n\n") if frame.startswith("event: values")]
    assert [[message["type"] for message in messages] for messages in values] == [[], ["ai"]]
    assert "[[ttft_ms" in whole.text
    assert "[[ttft_ms" not in seen.text
    for answer in (seen, whole):
        assert answer.status_code == 200
        assert "secret" not in answer.text
        assert "reasoning_content" not in answer.text, "what the model thinks is internal, unless it was asked for"
    alone = HTTP.get(of_run, headers={"Authorization": f"Bearer {token}"}).json()
    assert (alone["status"], alone["metadata"]) == ("success", {})
    for path in ("", "/state", "/runs"):
        refused = HTTP.get(f"{base(locked)}/threads/told{path}", headers={"Authorization": f"Bearer {token}"})
        assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_scope")


def test_who_may_not_inspect_goes_on_with_no_thread_since_what_it_holds_would_be_asked_again(
    locked: Deployment,
) -> None:
    key, secret = new_key("default", frozenset({"streams:write", "streams:read"}))
    store_keys(locked, [key])
    asked = {"assistant_id": "agent", "input": {"messages": [{"role": "user", "content": "[[tokens=1 rate=0]]"}]}}
    runs = f"{base(locked)}/threads/held/runs/wait"
    headers = {"x-api-key": secret}
    wait_until(lambda: HTTP.get(f"{base(locked)}/info", headers=headers).status_code == 200, "the key is known")
    assert HTTP.post(runs, json=asked, headers=headers).status_code == 200, "it holds nothing yet"
    refused = HTTP.post(runs, json=asked, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_scope")
    assert HTTP.post(runs, json=asked, headers=BEARER).status_code == 200


def _messages(frame: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = json.loads(frame.split("\n")[1].removeprefix("data: "))["messages"]
    return messages
