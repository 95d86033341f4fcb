"""The app of a worker: its processes are started, replaced, ended. They are stubs, in the place of lastevent.host."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import worker.agents.app
import worker.agents.process
import worker.agents.reload
from broker.process.app_options import AppOptions
from tests.worker.agents.test_process import INFO, LIMIT_S, STUB, Said, outcome, until
from worker.agents.app import ALONE_AT_ONCE, App
from worker.agents.process import Child
from worker.agents.runs import ChildLost

pytestmark = pytest.mark.processes


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`async with start(app)`: an app that is kept, in a folder with nothing but the stub."""
    (tmp_path / "lastevent").mkdir()
    (tmp_path / "lastevent" / "__init__.py").touch()
    shutil.copy(STUB, tmp_path / "lastevent" / "host.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker.agents.process, "BEAT_S", 0.02)
    monkeypatch.setattr(worker.agents.process, "OVERDUE_S", 0.2)
    monkeypatch.setattr(worker.agents.app, "RESTART_S", (0.01,))
    monkeypatch.setattr(worker.agents.reload, "LOOK_S", 0.02)

    @asynccontextmanager
    async def started(app: str = "app", **options: Any) -> AsyncIterator[App]:
        given = {"name": "shop", "processes": 1, "python": None, "reloads": False, **options}
        kept = App(AppOptions(app, **given), blocked_s=5)
        running = asyncio.create_task(kept.run())
        try:
            async with asyncio.timeout(LIMIT_S):
                yield kept
        finally:
            running.cancel()
            await asyncio.wait([running])
            await kept.aclose()
        assert not kept.is_ready

    return started


def write(behaviour: str) -> None:
    Path("behaviour.py").write_text(behaviour)


async def test_as_many_processes_as_asked_for_share_the_runs(start: Callable[..., Any]) -> None:
    async with start(processes=2) as app:
        await until(lambda: len(app._shared) == 2)
        children = []
        for n in range(4):
            child = await app.place()
            child.run(f"r{n}", "deaf", None, INFO, Said())
            children.append(child)
        assert sorted(children.count(child) for child in set(children)) == [2, 2]


async def test_what_a_worker_can_announce_is_there_while_it_could_be_run(start: Callable[..., Any]) -> None:
    async with start() as app:
        assert (app.announced(), app.runs("flood")) == ({}, False)
        await app.place()
        assert app.tried.is_set()
        assert app.runs("flood")
        assert not app.runs("another")
        assert app.announced() == {"flood": ("shop", {"type": "integer"}, ["args"], [], 0)}


async def test_a_process_that_died_is_replaced_and_who_waits_gets_the_next(start: Callable[..., Any]) -> None:
    async with start() as app:
        first = await app.place()
        assert isinstance(await outcome(first.run("r", "exit", None, INFO, Said())), ChildLost)
        second = await app.place()
        assert second.pid != first.pid
        assert await outcome(second.run("r", "flood", 2, INFO, Said())) == 2


async def test_a_process_that_takes_no_more_runs_is_replaced_while_it_ends_those_that_it_has(
    start: Callable[..., Any],
) -> None:
    async with start() as app:
        worn, said = await app.place(), Said()
        said.hold.clear()
        going_on = worn.run("other", "mixed", None, INFO, said)
        worn.run("r", "blocked", None, INFO, Said())
        await until(lambda: not worn.takes_runs)
        assert (await app.place()).pid != worn.pid
        said.hold.set()
        assert await outcome(going_on) == {"do": "run"}
        await worn.gone.wait()


async def test_an_app_that_cannot_be_imported_is_said_once_and_tried_until_it_can(
    start: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    write("broken")
    async with start("written") as app:
        await app.tried.wait()
        await until(lambda: caplog.text.count("cannot be imported") > 2)
        assert caplog.text.count("No module named 'nowhere'") == 1
        assert "Traceback: line 1" in caplog.text
        assert not app.is_ready
        write("dies")
        await until(lambda: "exit code 7" in caplog.text)
        write("app")
        assert await outcome((await app.place()).run("r", "flood", 1, INFO, Said())) == 1


async def test_a_run_alone_has_a_process_that_nobody_shares_and_that_ends_after_it(start: Callable[..., Any]) -> None:
    async with start() as app:
        shared, alone = await app.place(), await app.place(alone=True)
        run = alone.run("r", "flood", 3, INFO, Said())
        assert alone.pid != shared.pid
        assert await app.place() is shared
        assert await outcome(run) == 3
        await alone.gone.wait()
        assert shared.takes_runs


async def test_few_processes_for_one_run_are_there_at_a_time(start: Callable[..., Any]) -> None:
    async with start() as app:
        runs = [(await app.place(alone=True)).run("r", "finally", None, INFO, Said()) for _ in range(ALONE_AT_ONCE)]
        waiting: asyncio.Task[Child] = asyncio.create_task(app.place(alone=True))
        await app.place()
        assert not waiting.done()
        runs[0].cancel()
        child = await waiting
        assert await outcome(child.run("r", "flood", 1, INFO, Said())) == 1


async def test_a_change_of_code_is_taken_up_by_new_runs_while_old_ones_end_in_peace(
    start: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    write("app")
    async with start("written", reloads=True) as app:
        old, said = await app.place(), Said()
        said.hold.clear()
        run = old.run("r", "flood", 500, INFO, said)
        write("broken")
        await until(lambda: "cannot be imported" in caplog.text)
        write("app ")  # mended: tried at once, however long the next try was away
        new = await app.place()
        assert new.pid != old.pid
        said.hold.set()
        assert await outcome(run) == 500


@pytest.mark.parametrize("python", [None, sys.executable])
async def test_the_child_has_no_setting_of_ours_and_everything_else_as_it_is(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, python: str | None
) -> None:
    for name in ("REDIS_URL", "API_KEYS", "TOKEN_SECRET", "SEAL_KEY", "ARCHIVE_URL", "MODELS_FILE"):
        monkeypatch.setenv(f"LASTEVENT_{name}", "a secret")
    monkeypatch.setenv("OPENAI_API_KEY", "the app's own")
    monkeypatch.setenv("PYTHONPATH", "/of/the/app")
    monkeypatch.syspath_prepend(os.getcwd())
    async with start(python=python) as app:
        seen = await outcome((await app.place()).run("r", "environment", None, INFO, Said()))
        assert {name: value for name, value in seen.items() if name.startswith("LASTEVENT_")} == {
            "LASTEVENT_AGENT_BLOCKED_S": "5"
        }
        assert "a secret" not in seen.values()
        assert seen["OPENAI_API_KEY"] == "the app's own"
        first, _, others = seen["PYTHONPATH"].rpartition(":")
        assert others == "/of/the/app"
        if python:
            assert os.listdir(first) == ["lastevent"]
        else:
            assert first == ""
    assert os.path.basename(first) not in os.listdir(tempfile.gettempdir())


async def test_an_end_of_the_worker_ends_each_process_also_one_that_is_importing(
    start: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with start("imports", processes=2) as app:
        await until(lambda: len([child for child in app._children if child.pid]) == 2)
        pids = [child.pid for child in app._children]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
