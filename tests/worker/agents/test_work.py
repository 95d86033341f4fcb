"""A worker with an app: what it announces, which streams it takes, and to whom it leaves them when it stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from redis.asyncio import Redis

import worker.agents.attempt
import worker.agents.run
import worker.sweeper
from broker.errors import RedisUnavailable
from broker.log.agents import Agents
from broker.log.event import text_since_restart
from broker.log.keys import Keys
from broker.log.queue import enqueue
from broker.log.stream_log import StreamLog
from broker.log.writer import StreamWriter
from broker.process.app_options import AppOptions
from broker.settings import Settings
from tests.rig.streams import committing, kinds, meta, queued, running
from tests.worker.agents.test_process import LIMIT_S
from worker.agents.app import App
from worker.agents.attempt import Means
from worker.agents.run import AgentRun
from worker.providers.choose import Providers
from worker.standin.server import StandIn
from worker.worker import Worker

pytestmark = pytest.mark.processes

AGENTS = """
import asyncio, os
from lastevent import CallFailed, agent, tool

@agent("greeter")
async def greeter(ctx, name: str):
    yield f"Hello, {name}!"

@agent("patient")
async def patient(ctx, name: str):
    yield "One moment."
    await asyncio.sleep(1000)

@agent("nested")
async def nested(ctx, name: str):
    try:
        yield await ctx.run("nested", name)
    except CallFailed as failed:
        yield str(failed)

@agent("mortal")
async def mortal(ctx, name: str):
    if ctx.attempt == 1:
        os._exit(3)
    yield f"Hello again, {name}!"

FORGED = {
    "torn": ("a\\nb", {}),
    "nameless": ("", {}),
    "no object": ("said", ["x"]),
    "no text": ("text_delta", {"text": 7}),
    "no thought": ("thinking_delta", {}),
    "a result": ("internal.tool_result", {"key": "k", "tool_call_id": "c", "output": 1}),
    "an input": ("input", {"text": "x"}),
}

@agent("forger")
async def forger(ctx, what: str):
    kind, data = FORGED[what]
    ctx._run.wire.send({"op": "event", "run": ctx._run.id, "kind": kind, "data": data})
    await asyncio.sleep(1000)

@tool(approval=True)
async def pay() -> str:
    return "paid"

@agent("payer")
async def payer(ctx, name: str):
    yield await pay()
"""


ALL = ("forger", "greeter", "mortal", "nested", "patient", "payer")


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis)


@pytest.fixture
def start_worker(valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """`async with start_worker()`: a whole worker in this process, with an app; it leaves at once when it stops."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker.sweeper, "SWEEP_S", 0.02)
    (tmp_path / "shop.py").write_text(AGENTS)

    @asynccontextmanager
    async def started(**options: Any) -> AsyncIterator[Worker]:
        settings, standin = Settings(redis_url=valkey_url, worker_drain_s=0, **options), StandIn()
        app = App(AppOptions("shop", "books", 1, None, reloads=False), blocked_s=5)
        working = Worker(settings, Providers(settings, standin), app)
        task = asyncio.create_task(working.run())
        try:
            async with asyncio.timeout(LIMIT_S):
                await working.wait_until_taking()
                yield working
        finally:
            working.stop()
            await task
            standin.close()

    return started


async def ask(log: StreamLog, agent: str, given: str = "Ada") -> str:
    """Queued for the app, as a server does it."""
    sid = await queued(log, agent=agent, model="", request={"agent": agent, "input": given})
    await enqueue(log.redis, log.keys, sid, "books")
    return sid


async def states(log: StreamLog, *sids: str) -> list[str]:
    return [(await meta(log, sid))["state"] for sid in sids]


async def test_a_worker_with_an_app_runs_its_agents_streams_and_leaves_them_to_its_app_when_it_stops(
    log: StreamLog, start_worker: Callable[[], Any]
) -> None:
    async with start_worker():
        known = await Agents(log.redis, Keys()).known()
        assert {name: agent.app for name, agent in known.items()} == dict.fromkeys(ALL, "books")
        unknown, greeted, unfinished = [await ask(log, agent) for agent in ("of a newer release", "greeter", "patient")]
        while await states(log, greeted, unfinished) != ["done", "running"]:
            pass
        while "text_delta" not in await kinds(log, unfinished):
            pass
        assert await kinds(log, greeted) == ["queued", "start", "text_delta", "done"]
        assert await states(log, unknown) == ["queued"]
    assert await states(log, unfinished) == ["running"]
    assert (await meta(log, unfinished))["lease_until"] == "0"
    assert await log.redis.zrange("le:jobs:books", 0, -1) == [unfinished.encode()]
    assert await log.redis.zcard("le:jobs") == 0


async def test_a_run_that_waits_for_a_person_leaves_its_room_to_others(
    log: StreamLog, start_worker: Callable[[], Any]
) -> None:
    async with start_worker(concurrency=1):
        waits = await ask(log, "payer")
        while "approval_request" not in await kinds(log, waits):
            pass
        greeted = await ask(log, "greeter")
        while await states(log, greeted) != ["done"]:
            pass
        [asked] = await log.inputs.read(waits)
        await log.inputs.decide(waits, asked.about, {"approve": True, "reason": "", "by": "key:1"})
        while await states(log, waits) != ["done"]:
            pass
        assert "text_delta" in await kinds(log, waits)


async def test_a_run_that_is_cut_off_while_a_person_is_asked_waits_for_no_slot(log: StreamLog) -> None:
    async with committing(log) as commit:
        claimed = await running(log, agent="payer")
        run = AgentRun(claimed, StreamWriter(commit, claimed), cast(Means, None))
    run._slots = slots = asyncio.Semaphore(0)

    async def wait() -> None:
        async with run._without_slot():
            await slots.acquire()  # another run has it now
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    assert run.is_waiting
    waiting.cancel()
    async with asyncio.timeout(LIMIT_S):
        await asyncio.wait([waiting])
    slots.release()  # as it leaves
    await asyncio.sleep(0)
    assert slots.locked(), "what it gave back when it began to wait is not given back twice"


async def test_an_app_that_cannot_be_imported_keeps_no_plain_stream_waiting_and_takes_none_of_its_own(
    log: StreamLog, start_worker: Callable[[], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "shop.py").write_text("import nowhere")
    async with start_worker():
        assert "No module named 'nowhere'" in caplog.text
        assert await Agents(log.redis, Keys()).known() == {}
        waiting, plain = await ask(log, "greeter"), await queued(log)
        await enqueue(log.redis, log.keys, plain)
        while await states(log, plain) != ["done"]:
            pass
        assert await states(log, waiting) == ["queued"]
    assert await log.redis.zrange("le:jobs:books", 0, -1) == [waiting.encode()]


async def test_what_an_agent_may_not_say_ends_it_and_nothing_of_it_is_in_the_log(
    log: StreamLog, start_worker: Callable[[], Any]
) -> None:
    forged = ("torn", "nameless", "no object", "no text", "no thought", "a result", "an input")
    async with start_worker():
        sids = [await ask(log, "forger", what) for what in forged]
        while await states(log, *sids) != ["error"] * len(sids):
            pass
    for sid, what in zip(sids, forged, strict=True):
        *_, start, trace, error = await log.read_all(sid)
        assert (start.kind, trace.kind, error.kind) == ("start", "internal.trace", "error")
        assert (what, orjson.loads(error.data)["code"]) == (what, "agent_failed")


async def test_an_agent_that_runs_itself_comes_to_an_end(
    log: StreamLog, start_worker: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.agents.attempt, "AGENTS_AT_ONCE", 2)
    async with start_worker():
        sid = await ask(log, "nested")
        while await states(log, sid) != ["done"]:
            pass
    assert text_since_restart(await log.read_all(sid)) == "A stream has at most 2 agents at once."
    assert (await kinds(log, sid)).count("agent_start") == 2


async def test_an_agent_goes_on_when_redis_can_give_its_journal_again(
    log: StreamLog, start_worker: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, away = worker.agents.run.read_journal, iter([RedisUnavailable()])

    async def read_journal(*args: Any) -> Any:
        for error in away:
            raise error
        return await reading(*args)

    monkeypatch.setattr(worker.agents.run, "read_journal", read_journal)
    async with start_worker():
        sid = await ask(log, "mortal")
        while await states(log, sid) != ["done"]:
            pass
    assert text_since_restart(await log.read_all(sid)) == "Hello again, Ada!"
    assert next(away, None) is None
