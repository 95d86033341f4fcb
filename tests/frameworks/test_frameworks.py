"""An agent in a framework: its text comes out exact, its tools are journalled, and survive their worker.

The examples of docs/FRAMEWORKS.md run as they stand, in frameworks as they are, in the app's process of a real worker.
The model is the stand-in, which the frameworks reach by their own clients.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench.ports import free_port
from tests.conftest import deployment_in
from tests.docs.up import ROOT, blocks_of
from tests.frameworks.environments import pythons
from tests.rig.deployment import HTTP, Deployment, Process, wait_until
from worker.standin.words import words

DOCUMENT = (ROOT / "docs" / "FRAMEWORKS.md").read_text()
HERE = Path(__file__).parent

APPS = {"openai": ["openai_desk", "langgraph_desk"], "anthropic": ["pydantic_ai_desk", "anthropic_desk"]}
"""Environment → the agents that run in it, which are named like their modules."""

AGENTS = [agent for agents in APPS.values() for agent in agents]

AROUND = """
import importlib.util
from lastevent import Context, agent

@agent("around_{name}")
async def around(ctx: Context, names: list[str]):
    return [name for name in names if importlib.util.find_spec(name)]
"""
"""An agent that tells which of these can be imported where it runs."""

LIMIT_S = 120.0
"""Four children import a framework each, which takes seconds of CPU."""

FOUND, REFUNDED = "{} was shipped", "500 cents are on their way"
UNKNOWN = "It is not known whether this call took effect"


class Desks(NamedTuple):
    """The deployment with an app for each environment."""

    deployment: Deployment
    folder: Path
    start_workers: Callable[[], None]

    def ask(self, agent: str, given: Any) -> str:
        asked = HTTP.post(f"{self.deployment.url}/v1/streams", json={"agent": agent, "input": given})
        assert asked.status_code == 201, asked.text
        sid: str = asked.json()["id"]
        return sid

    def log(self, sid: str) -> list[dict[str, Any]]:
        lines = HTTP.get(f"{self.deployment.url}/v1/streams/{sid}/export").text.splitlines()
        return [json.loads(line) for line in lines]

    def text(self, sid: str) -> str:
        return HTTP.get(f"{self.deployment.url}/v1/streams/{sid}/text").text

    def end(self, sid: str) -> dict[str, Any]:
        record = self.deployment.wait_until_ended(sid, LIMIT_S)
        assert record["state"] == "done", (record, self.log(sid)[-3:])
        return record

    def ledger(self, order: str) -> list[str]:
        """What the bank was asked about this order."""
        lines = (self.folder / "ledger").read_text().splitlines() if (self.folder / "ledger").exists() else []
        return [what for what, of in (line.split() for line in lines) if of == order]


@pytest.fixture(scope="module")
def desks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desks]:
    folder = tmp_path_factory.mktemp("frameworks")
    environments = pythons()
    write_apps(folder)
    port = free_port()
    standin = Process(
        "standin", [sys.executable, "-m", "worker.standin", "--port", str(port)], dict(os.environ), folder
    )
    standin.start()
    of_frameworks = {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
        "OPENAI_API_KEY": "stand-in",
        "ANTHROPIC_API_KEY": "stand-in",
        "LANGSMITH_TRACING": "false",
        "PYTHONDONTWRITEBYTECODE": "",  # the frameworks are imported twice
    }
    try:
        with deployment_in(folder, servers=1, workers=0, **of_frameworks) as deployment:
            desks = Desks(deployment, folder, lambda: start_workers(deployment, environments))
            desks.start_workers()
            wait_until(lambda: set(AGENTS) <= announced(deployment), "the frameworks are imported", LIMIT_S)
            yield desks
    finally:
        standin.kill()


def write_apps(folder: Path) -> None:
    shutil.copy(HERE / "bank.py", folder)
    for block in blocks_of(DOCUMENT, "python"):
        (folder / block.split()[1]).write_text(block)
    for name, agents in APPS.items():
        imports = "".join(f"from {agent} import {agent}\n" for agent in agents)
        (folder / f"app_{name}.py").write_text(imports + AROUND.format(name=name))


def start_workers(deployment: Deployment, environments: dict[str, Path]) -> None:
    for worker in deployment.workers:
        worker.kill()
    deployment.workers.clear()
    for name, python in environments.items():
        app = ["--app", f"app_{name}", "--app-name", name, "--python", str(python)]
        argv = [sys.executable, "-m", "worker", *app]
        worker = Process(f"worker-{name}", argv, deployment.environment, deployment.folder)
        worker.start()
        deployment.workers.append(worker)


def announced(deployment: Deployment) -> set[str]:
    return {agent["name"] for agent in HTTP.get(f"{deployment.url}/v1/agents").json()["agents"]}


def question(order: str, *, slow: bool = False) -> str:
    """Three words, a call, three words, a call; if it is slow the same again; then sixty words."""
    calls = [f'call=find_order:{{"order_id":"{order}"}}', f'call=refund:{{"order_id":"{order}","cents":500}}']
    if slow:
        calls.append(f'call=refund:{{"order_id":"slow-{order}","cents":500}}')
    return f"[[tokens=60 rate=0 before=3 {' then '.join(calls)}]] Where is it?"


def answer(asked: str, results: list[str]) -> str:
    """What the stand-in says to it, if its tools have these results."""
    told = " and ".join(f"“{result[:120]}”" for result in results)
    before = "".join(islice(words(asked), 3)) * len(results)
    return before + "".join(islice(words(asked, f"The tools said {told}."), 60))


def calls(log: list[dict[str, Any]], kind: str) -> list[tuple[str, bool]]:
    """The tools in such events, and whether they are from an earlier attempt."""
    return [(event["data"]["tool"], bool(event["data"].get("replayed"))) for event in log if event["event"] == kind]


@pytest.fixture(scope="module")
def taken_over(desks: Desks) -> dict[str, str]:
    """A stream of each agent whose worker was killed while the third of its calls was under way."""
    asked = {agent: desks.ask(agent, question(agent, slow=True)) for agent in AGENTS}
    for agent in AGENTS:
        wait_until(lambda agent=agent: desks.ledger(f"slow-{agent}"), f"{agent} is in its third call", LIMIT_S)
    desks.start_workers()
    return asked


@pytest.mark.parametrize("agent", AGENTS)
def test_after_a_kill_no_call_is_made_twice_and_the_model_reads_of_the_one_that_was_cut(
    desks: Desks, taken_over: dict[str, str], agent: str
) -> None:
    sid = taken_over[agent]
    desks.end(sid)
    assert desks.ledger(agent) == ["order", "refund"]
    assert desks.ledger(f"slow-{agent}").count("refund") == 1
    log = desks.log(sid)
    assert calls(log, "tool_end") == [("find_order", False), ("refund", False), ("find_order", True), ("refund", True)]
    assert [event["data"]["code"] for event in log if event["event"] == "tool_error"] == ["outcome_unknown"]
    text = desks.text(sid)
    found = re.search(r" and “([^“”]*)”\. This", text)
    assert found, text
    assert UNKNOWN in found[1]
    assert text == answer(question(agent, slow=True), [FOUND.format(agent), REFUNDED, found[1]])


@pytest.mark.parametrize("agent", AGENTS)
def test_text_comes_out_exact_and_tools_are_journalled(desks: Desks, agent: str) -> None:
    order = f"whole-{agent}"
    sid = desks.ask(agent, question(order))
    desks.end(sid)
    log = desks.log(sid)
    assert desks.text(sid) == answer(question(order), [FOUND.format(order), REFUNDED])
    assert calls(log, "tool_start") == calls(log, "tool_end") == [("find_order", False), ("refund", False)]
    assert desks.ledger(order) == ["order", "refund"]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_cancel_reaches_the_tool_through_the_framework(desks: Desks, agent: str) -> None:
    order = f"cancelled-{agent}"
    sid = desks.ask(agent, question(order, slow=True))
    wait_until(lambda: desks.ledger(f"slow-{order}"), "it is in its third call", LIMIT_S)
    HTTP.post(f"{desks.deployment.url}/v1/streams/{sid}/cancel").raise_for_status()
    wait_until(lambda: desks.ledger(f"slow-{order}") == ["refund", "cut"], "the tool has learned of it")
    assert desks.log(sid)[-1]["event"] == "cancelled"


def test_none_of_lastevent_is_where_they_run_but_what_users_import(desks: Desks) -> None:
    ours = ["broker", "worker", "redis", "arq", "fastapi", "sqlalchemy", "alembic", "aiohttp", "typer"]
    sid = desks.ask("around_anthropic", ["lastevent", "pydantic", *ours])
    desks.end(sid)
    assert desks.log(sid)[-1]["data"]["result"] == ["lastevent", "pydantic"]
