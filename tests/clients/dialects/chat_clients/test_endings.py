"""What clients make of an attempt that began anew, a failure, a cancel; and of what is not for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest

from tests.clients.dialects.ai_sdk.recorded import ALL_KINDS, DONE, SECRET, Told
from tests.clients.dialects.chat_clients.asking import CHAT, MESSAGES, WHOLE_CHAT, WHOLE_MESSAGES, Asking
from tests.clients.dialects.chat_clients.in_process import MODEL
from tests.rig.deployment import HTTP, Deployment, until
from tests.rig.long import LONG

pytestmark = pytest.mark.npm

ALL = (*CHAT, *MESSAGES, *WHOLE_CHAT, *WHOLE_MESSAGES)


@pytest.mark.parametrize("client", ["openai-py", "openai-js", "anthropic-py", "anthropic-js"])
async def test_of_an_attempt_that_began_anew_a_client_has_the_last_one_alone(asking: Asking, client: str) -> None:
    prompt = "Hello [[tokens=7 rate=0 ttft_ms=0 cut_at=4 cut_times=1]]"
    said = await asking.run(client, prompt=prompt, key=f"anew-{client}", asks=3)
    assert said["text"] == "This is a stand-in and no model:"
    # None, if it came after the restart.
    assert all("began anew" in error["message"] for error in said["errors"])


@pytest.mark.parametrize("client", ALL)
async def test_what_a_provider_refuses_is_an_error_once(asking: Asking, client: str) -> None:
    said = await asking.run(client, prompt="Hello [[status=400 ttft_ms=0]]", key=f"refused-{client}")
    [error] = said["errors"]
    assert "provider_refused" in f"{error.get('code')} {error['message']}"
    assert said["requests"] == 1  # the SDKs do not repeat it by themselves
    assert error.get("status") in ((502,) if client.endswith("whole") else (None, 200))


@pytest.mark.parametrize("client", ALL)
async def test_what_is_cancelled_is_an_error_and_stays_one(asking: Asking, pair: Deployment, client: str) -> None:
    asked = {"prompt": f"Hello, {client}! [[tokens=999 rate=20 ttft_ms=0]]", "key": f"cancelled-{client}"}
    asking_it = asyncio.create_task(asking.run(client, **asked))
    sids: list[str] = []

    def runs() -> bool:
        running = HTTP.get(f"{pair.url}/v1/streams?state=running&include=request").json()["streams"]
        sids[:] = [stream["id"] for stream in running if asked["prompt"] in str(stream.get("request"))]
        return bool(sids)

    await until(runs, "it runs")
    HTTP.post(f"{pair.url}/v1/streams/{sids[0]}/cancel", json={"reason": "enough"}).raise_for_status()
    for said in (await asking_it, await asking.run(client, **asked)):
        [error] = said["errors"]
        assert "cancelled" in error["message"]
        assert error.get("status") in ((410,) if client.endswith("whole") else (None, 200))


@pytest.fixture(scope="module")
def told(pair: Deployment) -> Told:
    stream = Told(pair)
    stream.tell(*ALL_KINDS, DONE)
    return stream


@pytest.mark.parametrize("path", ["chat/completions/chatcmpl-", "messages/msg_"])
def test_any_stream_is_read_by_its_id_and_nothing_internal_is_in_it(pair: Deployment, told: Told, path: str) -> None:
    for query in ("", "?stream=true"):
        body = HTTP.get(f"{pair.url}/v1/{path}{told.sid}{query}").raise_for_status().text
        assert SECRET not in body
        assert "internal" not in body
        assert "where?" in body


@pytest.mark.parametrize("path", ["chat/completions/chatcmpl-", "messages/msg_"])
def test_a_stream_that_runs_is_followed_and_not_read_whole(pair: Deployment, path: str) -> None:
    running = Told(pair)
    try:
        answer = HTTP.get(f"{pair.url}/v1/{path}{running.sid}")
        assert (answer.status_code, answer.headers["x-should-retry"]) == (409, "false")
    finally:
        running.cancel()


if LONG:  # 20 s of waiting

    @pytest.mark.parametrize("path", ["chat/completions", "messages"])
    async def test_who_waits_for_a_whole_answer_keeps_it_going_and_who_leaves_does_not(
        own_deployment: Callable[..., Deployment], path: str
    ) -> None:
        deployment = own_deployment(servers=1, workers=1, LASTEVENT_DIALECT_ABANDON_S="1")
        prompt = "Hello [[tokens=60 rate=4 ttft_ms=0]]"
        asked = {"model": MODEL, "max_tokens": 500, "messages": [{"role": "user", "content": prompt}]}
        async with httpx.AsyncClient(base_url=f"{deployment.url}/v1", trust_env=False, timeout=60) as http:
            waiting = asyncio.create_task(http.post(path, json=asked))
            async with http.stream("POST", path, json={**asked, "stream": True}) as left:
                sid = left.headers["x-lastevent-stream"]
            record = await asyncio.to_thread(deployment.wait_until_ended, sid)
            assert record["state"] == "cancelled"
            assert (await waiting).status_code == 200
