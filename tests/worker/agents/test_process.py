"""A process of the app, as its worker sees it: also one that does what the real one refuses to do (stub.py)."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import worker.agents.process
from worker.agents.process import FD, Child, Command, ImportFailed
from worker.agents.runs import ASKS_AT_ONCE, CREDIT, AgentError, AskRefused, ChildLost, ChildRun, Refused

pytestmark = pytest.mark.processes

LIMIT_S = 60.0
STUB = Path(__file__).with_name("stub.py")
INFO = {"stream_id": "the-stream"}


class Said:
    """A handler that notes what it is given. `hold`: events wait for it."""

    def __init__(self, answer: dict[str, Any] | Exception | None = None) -> None:
        self.all: list[Any] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self._answer = answer if answer is not None else {"do": "run"}

    async def event(self, kind: str, data: dict[str, Any]) -> None:
        self.all.append(data.get("text", data))
        await self.hold.wait()

    async def asked(self, what: str, data: dict[str, Any]) -> dict[str, Any]:
        self.all.append(f"{what} {data['tool']}")
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


async def until(met: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not met():  # noqa: ASYNC110  # it depends on another process
            await asyncio.sleep(0.005)


async def outcome(run: ChildRun) -> Any:
    async with asyncio.timeout(LIMIT_S):
        try:
            return await run.ended
        except (AgentError, ChildLost) as error:
            return error


@pytest.fixture
async def start(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Any]]:
    """`await start(app)`: a stub that has said hello. Its worker's loop beats fast."""
    monkeypatch.setattr(worker.agents.process, "BEAT_S", 0.02)
    monkeypatch.setattr(worker.agents.process, "OVERDUE_S", 0.2)
    children = []

    async def start(app: str = "app", blocked_s: float = 5.0) -> Child:
        command = Command([sys.executable, str(STUB), "--fd", FD, app], os.environ)
        child = Child(command, blocked_s=blocked_s, changed=lambda: None)
        children.append(child)
        await child.start()
        return child

    yield start
    for child in children:
        await child.end()
    assert all(child.gone.is_set() for child in children)


async def test_a_child_says_what_agents_it_has_and_runs_them(start: Callable[..., Any]) -> None:
    child = await start()
    assert {name: (agent.kind, agent.show) for name, agent in child.agents.items()} == {"flood": ("code", ["args"])}
    said = Said()
    assert await outcome(child.run("r", "flood", 1000, INFO, said)) == 1000
    assert said.all == [str(n + 1) for n in range(1000)]
    assert child.runs == {}


async def test_a_run_sends_no_more_than_its_credit_until_its_events_have_been_handled(
    start: Callable[..., Any],
) -> None:
    child, said, other = await start(), Said(), Said()
    said.hold.clear()
    run = child.run("r", "flood", 10 * CREDIT, INFO, said)
    await outcome(child.run("other", "flood", 1, INFO, other))  # so all that the first one could send has been received
    assert len(run._received) == CREDIT - 1
    said.hold.set()
    assert await outcome(run) == 10 * CREDIT
    assert len(said.all) == 10 * CREDIT


async def test_a_run_that_says_more_than_its_credit_has_failed_and_the_process_goes_on(
    start: Callable[..., Any],
) -> None:
    child, said = await start(), Said()
    said.hold.clear()
    error = await outcome(child.run("r", "greedy", CREDIT + 1, INFO, said))
    assert (type(error), error.code) == (AgentError, "agent_failed")
    assert await outcome(child.run("other", "flood", 1, INFO, Said())) == 1


async def test_so_many_asks_of_a_run_are_under_way_and_the_next_one_is_refused(start: Callable[..., Any]) -> None:
    class Silent(Said):
        async def asked(self, what: str, data: dict[str, Any]) -> dict[str, Any]:
            self.all.append(data["tool"])
            await asyncio.Event().wait()
            raise AssertionError

    child, silent = await start(), Silent()
    assert await outcome(child.run("r", "curious", ASKS_AT_ONCE + 1, INFO, silent)) == [ASKS_AT_ONCE, "failed"]
    assert len(silent.all) == ASKS_AT_ONCE


async def test_events_and_asks_are_handled_in_their_order_and_answered(start: Callable[..., Any]) -> None:
    child, said = await start(), Said({"do": "run", "tool_call_id": "c"})
    assert await outcome(child.run("r", "mixed", None, INFO, said)) == {"do": "run", "tool_call_id": "c"}
    assert said.all == ["before", "open_call a", "between", "open_call b"]


async def test_a_refused_ask_reaches_the_code_and_the_run_goes_on(start: Callable[..., Any]) -> None:
    child = await start()
    run = child.run("r", "mixed", None, INFO, Said(Refused("too_many_calls", "No more.")))
    assert await outcome(run) == {"code": "too_many_calls", "message": "No more."}


async def test_what_a_handler_raises_ends_the_run_and_cancels_it_in_the_child(start: Callable[..., Any]) -> None:
    child, full = await start(), LookupError("the stream is full")
    run = child.run("r", "mixed", None, INFO, Said(full))
    with pytest.raises(LookupError):
        await run.ended
    await until(lambda: not child.runs)


async def test_a_child_is_asked_and_answers_or_refuses(start: Callable[..., Any]) -> None:
    child = await start()
    run = child.open("r", "tools", None, INFO, Said())
    assert await run.ask("check", {"tool": "a"}) == {"needs_approval": False, "asked": {"tool": "a"}}
    with pytest.raises(AskRefused) as refused:
        await run.ask("call", {})
    error = refused.value
    assert (error.code, error.message, error.retry, error.type) == ("failed", "no", True, "ToolError")
    run.close()
    assert await outcome(run) is None
    with pytest.raises(AskRefused):
        await run.ask("check", {})


async def test_an_ask_that_is_given_up_is_cancelled_in_the_child(start: Callable[..., Any]) -> None:
    child, said = await start(), Said()
    run = child.open("r", "tools", None, INFO, said)
    asking = asyncio.create_task(run.ask("never answered", {}))
    await asyncio.sleep(0)
    asking.cancel()
    await until(lambda: said.all == [{"cancelled": 1}])


async def test_after_a_cancel_nothing_is_handled_and_no_call_begins(start: Callable[..., Any]) -> None:
    child, said = await start(), Said()
    run = child.run("r", "finally", None, INFO, said)
    run.cancel()
    assert await outcome(run) == "cancelled"  # what its late ask was answered
    assert said.all == []


async def test_a_run_that_does_not_end_when_it_is_cancelled_is_named_and_its_child_ends_after_the_others(
    start: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    child, other = await start(), Said()
    deaf, going_on = child.run("deaf", "deaf", None, INFO, Said()), child.run("other", "mixed", None, INFO, other)
    other.hold.clear()
    deaf.cancel()
    await until(lambda: not child.takes_runs)
    assert "stream the-stream: agent deaf has not ended" in caplog.text
    assert not child.gone.is_set()
    other.hold.set()
    assert await outcome(going_on) == {"do": "run"}
    assert isinstance(await outcome(deaf), ChildLost)


async def test_a_child_whose_code_was_interrupted_takes_no_more_runs(start: Callable[..., Any]) -> None:
    child = await start()
    error = await outcome(child.run("r", "blocked", None, INFO, Said()))
    assert isinstance(error, AgentError)
    assert error.code == "agent_blocked"
    assert not child.takes_runs
    async with asyncio.timeout(LIMIT_S):
        await child.gone.wait()


async def test_a_child_that_cannot_be_interrupted_is_killed_with_the_streams_named(
    start: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    child = await start(blocked_s=0.2)
    said = Said()
    innocent, guilty = child.run("i", "deaf", None, INFO, said), child.run("g", "stuck", None, INFO, said)
    assert [type(await outcome(run)) for run in (innocent, guilty)] == [ChildLost, ChildLost]
    assert "stuck of stream the-stream" in caplog.text


async def test_a_worker_that_stood_still_itself_kills_nobody(start: Callable[..., Any]) -> None:
    child = await start(blocked_s=0.2)
    import time

    for _ in range(3):
        time.sleep(0.6)  # noqa: ASYNC251  # the loop stands still for longer than a child may
        await asyncio.sleep(0)
    assert await outcome(child.run("r", "flood", 3, INFO, Said())) == 3


@pytest.mark.parametrize(
    ("agent", "how"),
    [
        ("exit", "exit code 3"),
        ("segfault", "signal SIGSEGV"),
        ("garbage", "it did not speak the protocol"),
        ("long_for_nobody", "it sent more than 4 MiB at once"),
    ],
)
async def test_the_end_of_a_process_is_told_to_each_of_its_runs(
    start: Callable[..., Any], agent: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    child, said = await start(), Said()
    other, guilty = child.run("other", "deaf", None, INFO, Said()), child.run("r", agent, None, INFO, said)
    assert [str(await outcome(run)) for run in (other, guilty)] == [how, how]
    assert said.all == (["last words"] if agent == "exit" else [])
    assert not child.takes_runs
    late = child.run("late", "flood", 1, INFO, Said())
    assert isinstance(await outcome(late), ChildLost)
    with pytest.raises((ChildLost, AskRefused)):
        await late.ask("check", {})
    assert "Loading weights" not in caplog.text


async def test_too_long_a_line_fails_its_run_or_its_ask_and_not_the_process(start: Callable[..., Any]) -> None:
    child = await start()
    error = await outcome(child.run("r", "long", None, INFO, Said()))
    assert isinstance(error, AgentError)
    assert error.code == "agent_failed"
    run = child.open("tools", "tools", None, INFO, Said())
    for what, data in (("instructions", {}), ("check", {"text": "x" * 5_000_000})):
        with pytest.raises(AskRefused) as refused:
            await run.ask(what, data)
        assert refused.value.code == "result_too_large"
    too_large = await outcome(child.run("input", "flood", "x" * 5_000_000, INFO, Said()))
    assert isinstance(too_large, AgentError)
    assert too_large.code == "invalid_input"
    assert await outcome(child.run("last", "flood", 1, INFO, Said())) == 1


async def test_what_json_cannot_hold_but_python_writes_is_read_as_near_as_can_be(start: Callable[..., Any]) -> None:
    child, said = await start(), Said()
    assert await outcome(child.run("r", "odd", None, INFO, said)) is None
    assert said.all == ["?", {"n": [7, 2**63 - 1, 2.0**70, None]}, {"n": None}]


async def test_code_that_holds_up_its_process_is_named_and_no_exceptions_words_are_in_the_log(
    start: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    error = await outcome((await start()).run("r", "held_up", None, INFO, Said()))
    assert (error.code, error.type, error.message, error.traceback) == ("agent_failed", "KeyError", "'pin'", "T")
    assert "stream the-stream: agent held_up holds up" in caplog.text
    assert 'File "app.py", line 5, in think' in caplog.text
    assert "pin" not in caplog.text


async def test_an_app_that_cannot_be_imported_is_told_in_its_own_words(start: Callable[..., Any]) -> None:
    with pytest.raises(ImportFailed) as failed:
        await start("broken")
    assert failed.value.said == "ModuleNotFoundError: No module named 'nowhere'\nTraceback: line 1"
    with pytest.raises(ImportFailed) as empty:
        await start("empty")
    assert "no agent in it" in empty.value.said
    with pytest.raises(ChildLost) as died:
        await start("dies")
    assert str(died.value) == "exit code 7"


async def test_an_interpreter_that_is_not_there_is_named() -> None:
    child = Child(Command(["/nowhere/python"], {}), blocked_s=5, changed=lambda: None)
    with pytest.raises(ImportFailed) as failed:
        await child.start()
    assert failed.value.said == "/nowhere/python cannot be started: No such file or directory"
