"""Signs of life that come as often as they may; and a worker that is killed, whose answer begins anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.clients.dialects.chat_clients.asking import CHAT, MESSAGES, Asking
from tests.clients.dialects.chat_clients.in_process import MODEL
from tests.conftest import deployment_in
from tests.rig.deployment import HTTP, Deployment

pytestmark = pytest.mark.npm

HELLO = [{"role": "user", "content": "Hello [[tokens=400 rate=100 ttft_ms=0]]"}]
HEARTBEAT_S = "0.02"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment_in(tmp_path_factory.mktemp("chat"), LASTEVENT_HEARTBEAT_S=HEARTBEAT_S) as deployment:
        yield deployment


@pytest.mark.parametrize("client", [*CHAT, *MESSAGES])
async def test_clients_bear_signs_of_life_between_any_two_frames(asking: Asking, client: str) -> None:
    said = await asking.run(client, prompt="Hello [[tokens=4 rate=20 ttft_ms=100 tools=1]]", key=client)
    assert (said["text"], said["errors"]) == ("This is a stand-in", [])
    assert [call["name"] for call in said["calls"]] == ["get_weather"]


@pytest.mark.parametrize(
    ("path", "begins"), [("chat/completions", b": ping\n\n"), ("messages", b'event: ping\ndata: {"type":"ping"}\n\n')]
)
def test_silence_is_heard_and_thoughts_that_nobody_asked_for_are_not(
    pair: Deployment, path: str, begins: bytes
) -> None:
    body = {
        "model": MODEL,
        "max_tokens": 100,
        "stream": True,
        "messages": [{"role": "user", "content": "Hello [[thinking=3 tokens=4 rate=20 ttft_ms=0]]"}],
    }
    got = HTTP.post(f"{pair.url}/v1/{path}", json=body).raise_for_status().content
    assert got.count(begins) > 2
    assert b"This" in got
    assert b"thinking_delta" not in got
    assert b"reasoning_content" not in got


async def test_a_killed_workers_answer_is_an_error_and_asked_again_the_next_workers(pair: Deployment) -> None:
    async with AsyncExitStack() as stack:
        chat = await stack.enter_async_context(AsyncOpenAI(base_url=f"{pair.url}/v1", api_key="none"))
        messages = await stack.enter_async_context(AsyncAnthropic(base_url=pair.url, api_key="none"))
        key: dict[str, Any] = {"extra_headers": {"Idempotency-Key": "chat"}}
        other: dict[str, Any] = {"extra_headers": {"Idempotency-Key": "messages"}}
        asked_chat: dict[str, Any] = {"model": MODEL, "messages": HELLO}
        asked_messages: dict[str, Any] = {**asked_chat, "max_tokens": 500}

        chunks = await chat.chat.completions.create(**asked_chat, stream=True, **key)
        events = await messages.messages.create(**asked_messages, stream=True, **other)
        text = _until_said(chunks, lambda chunk: chunk.choices[0].delta.content)
        block = _until_said(events, lambda event: getattr(getattr(event, "delta", None), "text", None))
        await asyncio.gather(text, block)
        pair.workers[0].kill()
        pair.workers[0].start()
        with pytest.raises(openai.APIError) as began_anew:
            await _read_on(chunks)
        assert began_anew.value.code == "generation_restarted"
        with pytest.raises(anthropic.APIError, match="generation_restarted: "):
            await _read_on(events)

        uncut = pair.create(HELLO[0]["content"], max_tokens=500)
        again = chat.with_options(base_url=f"{pair.urls[1]}/v1").chat.completions.create(**asked_chat, **key)
        whole = messages.with_options(base_url=pair.urls[1]).messages.create(**asked_messages, **other)
        completion, message = await asyncio.gather(again, whole)
        pair.wait_until_ended(uncut)
        answer = HTTP.get(f"{pair.url}/v1/streams/{uncut}/text").text
        assert completion.choices[0].message.content == answer
        assert [block.type == "text" and block.text for block in message.content] == [answer]


async def _until_said(stream: Any, said: Callable[[Any], Any]) -> None:
    async for one in stream:
        if said(one):
            return


async def _read_on(stream: Any) -> None:
    async for _ in stream:
        pass
