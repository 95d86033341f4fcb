"""The process itself: its start, its standard streams, who holds it up, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lastevent.worker_end import DESK, PATIENCE_S, WorkerEnd, process_of

pytestmark = pytest.mark.processes

BROKEN = "tests.lastevent.apps.broken"


async def _ended(process: Any) -> int:
    return int(await asyncio.wait_for(process.wait(), PATIENCE_S))


async def _logged(process: Any) -> str:
    return (await asyncio.wait_for(process.stderr.read(), PATIENCE_S)).decode()


@pytest.mark.parametrize(
    ("app", "said", "in_trace"),
    [
        (BROKEN, "ZeroDivisionError: division by zero", "1 / 0"),
        (f"{DESK}:refund", f"{DESK}:refund is function: it should be a list of agents, or a module.", None),
        (f"{DESK}.nowhere", f"There is no module {DESK}.nowhere: neither in {os.getcwd()}, where Lastevent was", None),
    ],
    ids=["exception", "no agents", "typo"],
)
async def test_an_app_that_cannot_be_imported_is_told_by_its_own_lines_and_without_ours(
    app: str, said: str, in_trace: str | None
) -> None:
    async with process_of(app) as (process, worker):
        failed = await worker.message("failed")
        assert failed["message"].startswith(said)
        if in_trace is None:
            assert failed["traceback"] is None
        else:
            assert in_trace in failed["traceback"]
            assert "importlib" not in failed["traceback"]
            assert os.path.join("lastevent", "host") not in failed["traceback"]
        assert await _ended(process) == 1


async def test_who_holds_the_loop_up_is_named_and_interrupted_and_nobody_else() -> None:
    async with process_of(LASTEVENT_AGENT_BLOCKED_S="1.25") as (process, worker):
        await worker.message("hello")
        worker.run("sturdy", 0, run="innocent")
        worker.run("clerk", "A17", run="clerk")
        await worker.end("clerk")
        for how in ("sleep", "spin", "receive", "task"):
            worker.run("blocker", how, run=how)
            held_up = await worker.message("held_up", run=how)
            assert held_up["seconds"] >= 1
            assert "in hold" in held_up["stack"]
            error = (await worker.end(how))["error"]
            assert error["code"] == "agent_blocked"
            assert "in hold" in error["traceback"]
            assert worker.text(how) == "I hold it up."
        await _a_tool_that_holds_it_up(worker)
        worker.send("ping", n=7)
        await worker.message("pong", n=7)
        worker.send("cancel", run="innocent")
        assert (await worker.end("innocent"))["error"]["code"] == "cancelled"
        worker.send("stop")
        assert await _ended(process) == 0


async def _a_tool_that_holds_it_up(worker: WorkerEnd) -> None:
    await worker.open("support", run="model")
    number = worker.begin_ask("call", "model", tool="hogging", args={})
    assert (await worker.message("reply", id=number))["error"]["code"] == "agent_blocked"
    assert (await worker.end("model"))["error"]["code"] == "agent_blocked"


async def test_what_user_code_prints_is_the_worker_s_log_and_what_it_starts_has_no_wire() -> None:
    async with process_of(log=asyncio.subprocess.PIPE) as (process, worker):
        await worker.message("hello")
        assert await worker.result_of("surroundings", "starts") == {"wires": 0, "stdin": ""}
        assert await worker.result_of("surroundings", "forks") == "RuntimeError"
        assert await worker.result_of("surroundings", "goes on in a fork") == 1
        for harmless in (signal.SIGINT, signal.SIGTERM):  # a Ctrl-C is the whole group's; the worker decides
            process.send_signal(harmless)
        worker.send("ping", n=1)
        await worker.message("pong", n=1)
        worker.send("stop")
        assert await _ended(process) == 0
        assert "printed by the app" in await _logged(process)
        assert await process.stdout.read() == b""


async def test_it_stops_after_its_last_run() -> None:
    async with process_of() as (process, worker):
        await worker.message("hello")
        worker.run("sturdy", 0)
        await worker.open("support", run="open")
        await worker.message("event", kind="text_delta")
        worker.send("stop")
        worker.send("close", run="open")
        assert (await worker.ask("validate", "open"))["error"]["code"] == "no_run"
        assert process.returncode is None
        worker.send("cancel", run="r")
        await worker.end()
        assert await _ended(process) == 0


async def test_a_worker_that_goes_ends_it_after_its_finally() -> None:
    async with process_of(log=asyncio.subprocess.PIPE) as (process, worker):
        await worker.message("hello")
        worker.run("sturdy", 0.2)
        await worker.message("event", kind="text_delta")
        await worker.close()
        assert await _ended(process) == 1
        assert "the finally is over" in await _logged(process)


async def test_code_that_will_not_end_is_ended() -> None:
    async with process_of() as (process, worker):
        await worker.message("hello")
        worker.run("sturdy", 3600)
        worker.run("surroundings", "hangs", run="thread")
        await worker.message("event", run="r")
        await worker.message("event", run="thread")
        await worker.close()
        assert await _ended(process) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word for it is Linux's")
async def test_the_death_of_its_worker_ends_it_though_it_is_held_up(tmp_path: Path) -> None:
    """The wire's end is not seen by a loop that stands still; the parent's death is."""
    told = tmp_path / "pid"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PARENT, DESK, str(told), cwd=Path(__file__).parents[2]
    )
    assert await _ended(process) == -signal.SIGKILL
    await asyncio.wait_for(asyncio.to_thread(_until_gone, int(told.read_text())), PATIENCE_S)


def _until_gone(pid: int) -> None:
    while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        os.sched_yield()


_PARENT = """
import json, os, pathlib, signal, socket, subprocess, sys
ours, theirs = socket.socketpair()
child = subprocess.Popen(
    [sys.executable, "-m", "lastevent.host", "--fd", str(theirs.fileno()), sys.argv[1]], pass_fds=[theirs.fileno()],
    env={**os.environ, "LASTEVENT_AGENT_BLOCKED_S": "60"},
)
os.set_inheritable(ours.fileno(), False)
lines = ours.makefile("rwb")
lines.readline()
run = {"op": "run", "run": "r", "agent": "blocker", "input": "sleep", "info": {}, "credit": 9}
lines.write(json.dumps(run).encode() + b"\\n")
lines.flush()
lines.readline()
lines.readline()
pathlib.Path(sys.argv[2]).write_text(str(child.pid))
os.kill(os.getpid(), signal.SIGKILL)
"""
