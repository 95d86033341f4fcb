"""An attempt fails, a worker is killed, a server drained, Redis away: what the AI SDK's clients make of it."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.dialects.ai_sdk.recorded import read
from tests.clients.dialects.ai_sdk.test_chat import HELD, SAID, VERSIONS, newest, newest_text, stop, told
from tests.clients.dialects.node import Clients, clients_of
from tests.conftest import deployment_in
from tests.js.cutting import cutting
from tests.rig.deployment import HTTP, Deployment, until

pytestmark = pytest.mark.npm

EXIT_LIMIT_S = 20
HEARTBEAT_S = "0.02"
"""Clients must bear a sign of life between any two frames."""
RUN, CHAT = "run", "chat"
BROKEN = "[[tokens=8 rate=0 ttft_ms=0 cut_at=4 cut_times=1 stall_at=6]]"
"""Its first attempt is cut off."""


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The last test here leaves nothing of it."""
    with deployment_in(tmp_path_factory.mktemp("ai-sdk-losses"), LASTEVENT_HEARTBEAT_S=HEARTBEAT_S) as deployment:
        yield deployment


@pytest.fixture(scope="module")
async def clients(apart: Deployment, packages: Path) -> AsyncIterator[Clients]:
    async with cutting(*apart.ports) as cutter, clients_of(packages, cutter) as clients:
        yield clients


async def watching(clients: Clients, deployment: Deployment, client: str, path: str, **given: Any) -> str:
    """One that is there before the answer begins."""
    deployment.workers[0].send(signal.SIGSTOP)
    try:
        case = clients.begin(client, path, **given)
        await until(lambda: clients.follows(case, 1), "it follows")
    finally:
        deployment.workers[0].send(signal.SIGCONT)
    return case


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_an_attempt_said_is_taken_back(clients: Clients, apart: Deployment, version: int) -> None:
    """By versions before 7, which have no word for that, behind a mark. Who comes later is told of it nothing."""
    chat, path = f"restart-{version}", f"/v1/ai-sdk/chat?ui={version}"
    case = await watching(clients, apart, f"chat-{version}", path, chatId=chat, text=BROKEN)
    await until(lambda: newest_text(apart, chat) == SAID, "the second attempt has said that")
    later = clients.begin(f"chat-{version}", path, chatId=chat)
    await until(lambda: clients.follows(later, 1, SAID), "who comes later has it")
    await stop(apart, chat)
    parts = (await clients.result(case))["messages"][-1]["parts"]
    if version == 7:
        assert [part["type"] for part in parts] == ["step-start", "text"]
    else:
        assert [part["type"] for part in parts] == ["step-start", "text", "data-restart", "step-start", "text"]
        assert parts[2]["data"] == {"attempt": 2, "reason": "provider_cut"}
    assert parts[-1]["text"] == SAID
    assert [part["type"] for part in (await clients.result(later))["messages"][-1]["parts"]] == ["step-start", "text"]


async def test_a_version_that_is_not_told_of_sees_an_error_at_a_restart_and_then_the_answer(
    clients: Clients, apart: Deployment
) -> None:
    case = await watching(clients, apart, "chat-6", "/v1/ai-sdk/chat", chatId="untold", text=BROKEN, resumes=1)
    await until(lambda: clients.follows(case, 2, SAID), "it has stopped at what it does not know, and is back")
    await stop(apart, "untold")
    got = await clients.result(case)
    assert got["statuses"] == ["error", "ready"]
    assert told(got["messages"][-1]) == SAID


async def test_an_answer_outlives_its_worker_and_its_server(clients: Clients, apart: Deployment) -> None:
    run = clients.begin("workflow", "/v1/ai-sdk/workflow", chatId=RUN, text=HELD)
    chat = clients.begin("chat-7", "/v1/ai-sdk/chat", chatId=CHAT, text=HELD, resumes=1)
    await until(lambda: all(newest_text(apart, one) == SAID for one in (RUN, CHAT)), "both have said it")
    sids = [newest(apart, one)["id"] for one in (RUN, CHAT)]

    apart.workers[0].kill()
    apart.workers[0].start()
    await until(lambda: all(_attempt(apart, sid) == 2 for sid in sids), "another worker goes on")
    await until(lambda: all(newest_text(apart, one) == SAID for one in (RUN, CHAT)), "both say it again")

    apart.servers[0].send(signal.SIGTERM)
    await until(lambda: all(len(clients.requests(one)) == 2 for one in (run, chat)), "both are back")
    assert apart.servers[0].wait(EXIT_LIMIT_S) == 0
    apart.ports.reverse()  # what asks from here on, asks the other one
    await until(lambda: clients.follows(chat, 2, SAID), "the chat follows there")
    apart.servers[0].start()
    apart.wait_until_ready()
    for one in (RUN, CHAT):
        await stop(apart, one)

    of_run, of_chat = [await clients.result(one) for one in (run, chat)]
    assert of_run["chunks"] == read(apart, sids[0]).chunks
    assert [chunk["type"] for chunk in of_run["chunks"]].count("reset-step") == 1
    assert told(of_run["message"]) == told(of_chat["messages"][-1]) == SAID
    assert of_chat["statuses"] == ["error", "ready"], "a drain is a cut, and no end"

    apart.valkey.kill()
    began = time.monotonic()
    answer = HTTP.get(f"{apart.url}/v1/ai-sdk/workflow/{sids[0]}/stream?startIndex=3")
    assert (answer.status_code, answer.content) == (200, b"")
    assert time.monotonic() - began >= 1, "or the client would come back at once"
    answer = HTTP.get(f"{apart.url}/v1/ai-sdk/chat/{CHAT}/stream")
    assert (answer.status_code, answer.text.partition(":")[0]) == (503, "redis_unavailable")
    assert int(answer.headers["retry-after"]) >= 1


def _attempt(deployment: Deployment, sid: str) -> int:
    attempt: int = HTTP.get(f"{deployment.url}/v1/streams/{sid}").json()["attempt"]
    return attempt
