"""A worker is killed, a server drained, Redis away: what the AI SDK's clients make of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.dialects.ai_sdk.clients import clients_of
from tests.clients.dialects.ai_sdk.recorded import read
from tests.clients.dialects.ai_sdk.test_chat import HELD, SAID, newest, newest_text, stop, told, viewers
from tests.js.cutting import cutting
from tests.rig.deployment import HTTP, Deployment, until

pytestmark = pytest.mark.npm

EXIT_LIMIT_S = 20
HEARTBEAT_S = "0.02"
"""Clients must bear a sign of life between any two frames."""
RUN, CHAT = "run", "chat"


async def test_an_answer_outlives_its_worker_and_its_server(
    own_deployment: Callable[..., Deployment], packages: Path
) -> None:
    deployment = own_deployment(servers=2, workers=1, LASTEVENT_HEARTBEAT_S=HEARTBEAT_S)
    async with cutting(*deployment.ports) as cutter, clients_of(packages, cutter) as clients:
        run = clients.begin("workflow", "/v1/ai-sdk/workflow", chatId=RUN, text=HELD, body={"id": RUN})
        chat = clients.begin("chat-7", "/v1/ai-sdk/chat", chatId=CHAT, text=HELD, resumes=1)
        await until(lambda: all(newest_text(deployment, one) == SAID for one in (RUN, CHAT)), "both have said it")
        sids = [newest(deployment, one)["id"] for one in (RUN, CHAT)]

        deployment.workers[0].kill()
        deployment.workers[0].start()
        await until(lambda: all(_attempt(deployment, sid) == 2 for sid in sids), "another worker goes on")
        await until(lambda: all(newest_text(deployment, one) == SAID for one in (RUN, CHAT)), "both say it again")

        deployment.servers[0].send(signal.SIGTERM)
        await until(lambda: all(len(clients.requests(one)) == 2 for one in (run, chat)), "both are back")
        assert deployment.servers[0].wait(EXIT_LIMIT_S) == 0
        deployment.ports.reverse()  # what asks from here on, asks the other one
        await until(lambda: all(viewers(deployment, sid) == 1 for sid in sids), "both follow there")
        deployment.servers[0].start()
        deployment.wait_until_ready()
        for one in (RUN, CHAT):
            await stop(deployment, one)

        of_run, of_chat = [await clients.result(one) for one in (run, chat)]
    assert of_run["chunks"] == read(deployment, sids[0]).chunks
    assert [chunk["type"] for chunk in of_run["chunks"]].count("reset-step") == 1
    assert told(of_run["message"]) == told(of_chat["messages"][-1]) == SAID
    assert of_chat["statuses"] == ["error", "ready"], "a drain is a cut, and no end"

    deployment.valkey.kill()
    began = time.monotonic()
    answer = HTTP.get(f"{deployment.url}/v1/ai-sdk/workflow/{sids[0]}/stream?startIndex=3")
    assert (answer.status_code, answer.content) == (200, b"")
    assert time.monotonic() - began >= 1, "or the client would come back at once"
    answer = HTTP.get(f"{deployment.url}/v1/ai-sdk/chat/{CHAT}/stream")
    assert (answer.status_code, answer.text.partition(":")[0]) == (503, "redis_unavailable")
    assert int(answer.headers["retry-after"]) >= 1


def _attempt(deployment: Deployment, sid: str) -> int:
    attempt: int = HTTP.get(f"{deployment.url}/v1/streams/{sid}").json()["attempt"]
    return attempt
