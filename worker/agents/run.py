"""AgentRun: a stream that an agent answers, from its claim to its ending.

    claim → restart, if it is a takeover → the journal → start → the agent, and those that it runs → done or error

The agent is own code, which runs in a process of the app (own_code.py), or a model with tools, whose loop runs here
(loop.py) while its tools run in such a process.

- The process dies: nobody knows whose fault it was. The run begins again, in a process of its own (`restart`), with
  what the journal has. When the attempts without progress are used up it ends as `agent_crashed`.
- A cancel, or any loss of the pen, cancels this task, and with it the code in the child: `finally` runs there, and no
  tool begins, since a call that cannot be written does not begin.
- The agent's exception: its type reaches the viewers, its words and its traceback the operators (`internal.trace`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from broker.log.event import DONE
from broker.log.steps import Claimed
from broker.log.writer import StreamWriter
from worker.agents.attempt import Attempt, Means
from worker.agents.caps import LimitReached
from worker.agents.journal import Journal, read_journal
from worker.agents.loop import Answer
from worker.agents.process import AnnouncedAgent
from worker.agents.runs import AgentError, AskRefused, ChildLost
from worker.agents.stage import AgentStage
from worker.execution import Ending, Execution

CRASHED = "agent_crashed"


class AgentRun(Execution):
    def __init__(self, claimed: Claimed, writer: StreamWriter, means: Means) -> None:
        self._name = claimed.meta.agent or ""
        self._agent_stage = AgentStage(claimed, writer, {"agent": self._name})
        super().__init__(claimed, writer, self._agent_stage)
        self._means = means
        self._slots: asyncio.Semaphore | None = None
        self._waiting = 0
        self._attempt: Attempt | None = None

    @property
    def is_waiting(self) -> bool:
        return self._waiting > 0

    async def run(self, slots: asyncio.Semaphore) -> None:
        self._slots = slots
        await super().run(slots)

    async def _answer(self) -> Ending:
        agent = self._means.app.agents.get(self._name)
        if agent is None:
            return self._error("no_worker", f"No worker runs the agent {self._name} any more.", recoverable=True)
        journal = await self._journal() if self._claimed.attempt > 1 else Journal(self._claimed.sid)
        for path, usage in journal.usages:
            self._agent_stage.count_usage(path, usage)
        self._agent_stage.begin()
        try:
            result, answer = await self._attempts(agent, journal)
        except AgentError as error:
            return self._failed(error)
        except AskRefused as refused:
            return self._failed(AgentError(refused.code, refused.type, refused.message, refused.traceback))
        except LimitReached as reached:
            return self._error(reached.code, reached.message, recoverable=False)
        return self._done(result, answer)

    async def _attempts(self, agent: AnnouncedAgent, journal: Journal) -> tuple[Any, Answer | None]:
        is_alone = False
        while True:
            child = await self._means.app.place(alone=is_alone)
            stage = self._agent_stage
            self._attempt = Attempt(self._means, self._claimed, stage, journal, child, without_slot=self._without_slot)
            try:
                return await self._attempt.answer(agent, self._request)
            except ChildLost as lost:
                if not stage.may_restart:
                    raise AgentError(CRASHED) from lost
                is_alone = True
                await stage.restart(CRASHED, repeats=False)
                journal = await self._journal()

    async def _journal(self) -> Journal:
        """Of all that earlier attempts have written: the log has it before `restart`."""
        await self._agent_stage.flush()
        return await read_journal(self._means.log, self._claimed.sid, up_to=self._agent_stage.writer.tail)

    @asynccontextmanager
    async def _without_slot(self) -> AsyncIterator[None]:
        """Several calls may wait at once: the run has one slot."""
        assert self._slots
        self._waiting += 1
        if self._waiting == 1:
            self._slots.release()
        taking: asyncio.Future[Any] | None = None
        try:
            yield
        finally:
            self._waiting -= 1
            if self._waiting == 0:
                taking = asyncio.ensure_future(self._slots.acquire())
        # Who is cut off does not wait for a slot: it gives one back when it leaves, and that is the one taken here.
        if taking:
            await asyncio.shield(taking)

    # -- endings -----------------------------------------------------------------------------------------

    def _done(self, result: Any, answer: Answer | None) -> Ending:
        first = self._agent_stage.first_text_at_s
        said = {
            "stop_reason": answer.stop_reason if answer else "end_turn",
            **self._stage.spending.told(),
            **(answer.finish.told() if answer and answer.finish else {}),
            **({"model": answer.model} if answer else {}),
            **({} if result is None else {"result": result}),
            "ttft_ms": None if first is None else round((first - self._began) * 1000),
            "duration_ms": round((time.monotonic() - self._began) * 1000),
        }
        return Ending(DONE, said)

    def _failed(self, error: AgentError) -> Ending:
        assert self._attempt
        self._attempt.trace(error, "")
        match error.code:
            case "invalid_input":
                return self._error(error.code, error.message, recoverable=False)
            case "agent_blocked":
                message = "The agent held up its process for too long, and was stopped."
                return self._error(error.code, message, recoverable=False)
            case "agent_crashed":
                message = "The agent's process ended each time that it ran. Operators find how in the worker's log."
                return self._error(error.code, message, recoverable=False)
        name = f" ({error.type})" if error.type else ""
        message = f"The agent failed{name}. What it had done by then stands, so it is not run again by itself."
        return self._error("agent_failed", message, recoverable=True)
