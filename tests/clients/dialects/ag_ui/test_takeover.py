"""A worker is killed in the middle of a run: its clients end with the next attempt's answer."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.dialects.ag_ui.recorded import PATH, asked, read
from tests.clients.dialects.node import Clients, clients_of
from tests.js.cutting import cutting
from tests.rig.deployment import HTTP, Deployment, until

pytestmark = pytest.mark.npm

TEXT = "[[tokens=60 rate=20 ttft_ms=0]]"


async def test_a_killed_workers_words_are_taken_back(own_deployment: Callable[..., Deployment], packages: Path) -> None:
    deployment = own_deployment(servers=2, workers=1)
    async with cutting(*deployment.ports) as cutter, clients_of(packages, cutter) as clients:
        with HTTP.stream("POST", f"{deployment.url}{PATH}", json=asked(TEXT, "killed")) as answer:
            lines = answer.iter_lines()
            for _ in range(10):
                next(line for line in lines if "TEXT_MESSAGE_CONTENT" in line)
            deployment.workers[0].send(signal.SIGSTOP)  # until the clients are there too
            had = asked(TEXT, "killed")["messages"]
            http = clients.begin("http", PATH, joins="killed", messages=had)
            join = clients.begin("join", PATH, runId="killed")
            await _until_both_read(clients, http, join)
            deployment.workers[0].kill()
            deployment.workers[0].start()
            by_http, by_join = await asyncio.gather(clients.result(http), clients.result(join))
    one = read(deployment, "killed")
    assert [event["type"] for event in one.events].count("MESSAGES_SNAPSHOT") == 1
    begun = [event["messageId"] for event in one.events if event["type"] == "TEXT_MESSAGE_START"]
    assert len(begun) == 2
    deltas = [e for e in one.events if e["type"] == "TEXT_MESSAGE_CONTENT" and e["messageId"] == begun[1]]
    text = "".join(event["delta"] for event in deltas)
    assert len(deltas) == 60
    assert [(m["id"], m["content"]) for m in by_http["messages"]] == [("asked", TEXT), (begun[1], text)]
    assert [m["parts"][-1]["content"] for m in by_join["messages"] if m["role"] == "assistant"] == [text]


async def _until_both_read(clients: Clients, *cases: str) -> None:
    cutter = clients.cutter
    both = "both clients read"
    await until(lambda: all(cutter.asked[case] for case in cases) and cutter.answering() == len(cases), both)
