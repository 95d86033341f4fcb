"""Host: does what the worker wants done, until the worker lets it go or is gone."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import weakref
from typing import Any

from lastevent.agents import Agent, AnyAgent, CodeAgent
from lastevent.context import CURRENT
from lastevent.errors import places_of
from lastevent.host.runs import CodeRun, OpenRun, Place, Run
from lastevent.host.wire import Wire

THREADS = 128
"""For plain functions. One that never returns keeps its thread for good, and must not take those of others."""

FINALLY_S = 2.0
"""What the runs have for their `finally` once the worker is gone: nothing runs on without its pen."""


class Host:
    def __init__(self, wire: Wire, agents: dict[str, AnyAgent]) -> None:
        self._wire, self._agents = wire, agents
        self._runs: dict[Any, Run] = {}
        threads = concurrent.futures.ThreadPoolExecutor(THREADS, "lastevent")
        self._place = Place(wire, threads, self._leave_out)
        self._is_stopping = self._is_left = False
        self._idle: asyncio.Event
        self._owners: weakref.WeakKeyDictionary[asyncio.Task[Any], Run] = weakref.WeakKeyDictionary()

    async def serve(self, hello: dict[str, Any]) -> bool:
        """Until it may leave; whether the worker is still there."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_task_factory(self._make_task)
        self._loop.set_exception_handler(self._note_lost)
        self._idle = asyncio.Event()
        self._wire.serve(self._heed, self.leave)
        self._wire.send(hello)
        await self._idle.wait()
        if self._is_left:
            await self._cut_all()
        return not self._is_left

    def run_of(self, task: asyncio.Task[Any] | None) -> Run | None:
        return self._owners.get(task) if task is not None else None

    # -- what the worker says --------------------------------------------------------------------------------

    def _heed(self, message: dict[str, Any]) -> None:
        op, run = message["op"], self._runs.get(message.get("run"))
        if op == "credit" and run:
            run.credit.give(message["n"])
        elif op == "ask":
            self._asked(run, message)
        elif op == "run" or op == "open":
            self._begin(message)
        elif op == "cancel" and run:
            run.cancel()
        elif op == "cancel_ask":
            for one in self._runs.values():
                if isinstance(one, OpenRun):
                    one.cancel_ask(message["id"])
        elif op == "close" and isinstance(run, OpenRun):
            run.close()
        elif op == "ping":
            self._wire.send({"op": "pong", "n": message["n"]})
        elif op == "stop":
            self._is_stopping = True
            self._leave_if_idle()

    def _begin(self, message: dict[str, Any]) -> None:
        agent = self._agents.get(message["agent"])
        if message["op"] == "run" and isinstance(agent, CodeAgent):
            run = CodeRun(self._place, message, agent)
            self._runs[run.id] = run
            run.begin(self._loop)
        elif message["op"] == "open" and isinstance(agent, Agent):
            self._runs[message["run"]] = OpenRun(self._place, message, agent)
        else:
            told = f"There is no agent {message['agent']} here that could be {message['op']}: the app has changed."
            error = {"code": "agent_failed", "type": "LookupError", "message": told, "traceback": None}
            self._wire.send({"op": "end", "run": message["run"], "error": error})

    def _asked(self, run: Run | None, message: dict[str, Any]) -> None:
        if isinstance(run, OpenRun) and not run.is_over:
            run.asked(message["id"], message["what"], message.get("data") or {}, self._loop)
        else:
            error = {"code": "no_run", "message": "The run is not open here; it may have ended."}
            self._wire.send({"op": "reply", "id": message["id"], "error": error})

    # -- its end ---------------------------------------------------------------------------------------------

    def _leave_out(self, run: Run) -> None:
        self._runs.pop(run.id, None)
        self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        if self._is_stopping and not self._runs:
            self._idle.set()

    def leave(self) -> None:
        """The worker is gone: cancel what runs, and go."""
        self._is_left = True
        self._idle.set()

    async def _cut_all(self) -> None:
        runs = list(self._runs.values())
        for run in runs:
            run.cancel()
        tasks = [run.task for run in runs if isinstance(run, CodeRun) and run.task]
        tasks += [task for run in runs if isinstance(run, OpenRun) for task in run.tasks()]
        if tasks:
            await asyncio.wait(tasks, timeout=FINALLY_S)

    def _note_lost(self, loop: asyncio.AbstractEventLoop, what: dict[str, Any]) -> None:
        """Of a task of user code, say, that nobody awaited. What an exception says may hold anything of its users, so
        the worker's log, which stderr is, has its type and its places alone, and the stream's trace its words."""
        error, task = what.get("exception"), what.get("future") or what.get("task")
        if not isinstance(error, BaseException):
            loop.default_exception_handler(what)
            return
        print(f"{what.get('message') or 'An exception that nobody awaited'}: {places_of(error)}", file=sys.stderr)
        run = self.run_of(task) if isinstance(task, asyncio.Task) else None
        if run is not None:
            run.trace(error)

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        """Whose task is it? Before Python 3.12 a task does not tell its context."""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
        context = CURRENT.get(None)
        if context is not None and isinstance(context._run, Run):
            self._owners[task] = context._run
        return task
