"""The built-in loop of an `Agent(...)`: turn, calls, turn, until the model calls nothing more.

    what waits of inputs → the model says a turn → internal.turn → its calls, some at a time → their results → next turn

Each arrow is a confirmed append (journal.py): a turn is in the log before anything is built on it. Tools start when
their turn is complete: a call of a turn that broke off has not begun, so another try of that turn cannot diverge from
it. A retry or failover repeats the turn (turns.py), never the run.

After a takeover the loop runs again from its beginning, and the log answers: finished turns are said again, each in one
delta, their calls are replayed (calls.py), and the first turn that was not finished is asked for.

A call, in this order: is there such a tool → is there room in its turn → do its arguments fit (`check`, in the child) →
does a person approve → is there room in its run and session → the journal → the tool → its result in the journal. What
is refused on the way is a `tool_error`, which the model reads. A call that an earlier attempt began was allowed then.

An interrupt ends the turn that the top agent is saying. What it had said stays, and goes back to the model as its text;
calls that it had begun to say are dropped. Calls that run go on.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence, Set
from itertools import count
from typing import Any, NamedTuple, Protocol, TypeVar

from broker.log.event import TEXT_DELTA
from worker.agents.approvals import Approvals
from worker.agents.calls import INVALID_ARGS, NOT_APPROVED, TOO_MANY_CALLS, Asked, Call, Calls
from worker.agents.caps import Allowance, LimitReached
from worker.agents.history import (
    INTERRUPTED,
    PAUSED,
    Asker,
    History,
    Json,
    SaidTurn,
    interrupted_turn,
    result_of,
    text_of,
    told,
    whole_turn,
)
from worker.agents.history import Call as Said
from worker.agents.in_text import InText
from worker.agents.inbox import Inbox
from worker.agents.journal import TURN, UNKNOWN, Finished
from worker.agents.runs import AskRefused
from worker.agents.speech import Speech
from worker.agents.stage import AgentStage
from worker.agents.transform import CUT_OFF
from worker.providers.chain import Breaker, Course, Target
from worker.providers.failures import ProviderFailure
from worker.providers.provider import Finish
from worker.spending import cost_of
from worker.turns import Models, Turn, Turns

RETRY_S = (0.5, 1.0)
"""A tool that failed and says that trying again may help is tried twice more, under the same key."""

FAILED = "failed"

CALL_TRACE = "internal.call_trace"
"""As the child says it of own code's calls (lastevent/calls.py)."""

T = TypeVar("T")

Tool = Mapping[str, Any]
"""As the child announced it."""


class Tools(Protocol):
    """The run in its child (process.py), which has the tools."""

    async def ask(self, what: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Raises AskRefused, or what ends the run."""


class SubAgents(Protocol):
    async def run(self, name: str, input: Any, *, path: str, is_public: bool, allowance: Allowance) -> str:
        """Its text, which it also says. It writes agent_start and agent_end. `allowance`: of who calls it.

        Raises AskRefused (its input does not fit, its code failed), ProviderFailure or LimitReached.
        """

    def say_again(self, path: str) -> None:
        """What one said that is not run again."""


class Answer(NamedTuple):
    """`text`: of the last turn, or of several that no call was between. `model`: provider/name of who said the last.

    `finish`: how the provider ended it; None if the log had that turn.
    """

    text: str
    stop_reason: str
    model: str
    finish: Finish | None


class Loop:
    """One run of one agent. `start` is written.

    `path`: '' for the top agent, and `inbox` is its alone. `names`: of the models that it may ask, a chain.
    `transform`: as the agent announced it. `show`: of the stream. `is_public`: a sub-agent's words are for viewers.
    """

    def __init__(
        self,
        path: str,
        asker: Asker,
        names: Sequence[str],
        *,
        models: Models,
        breaker: Breaker,
        stage: AgentStage,
        show: Set[str],
        is_public: bool = True,
        transform: Any = None,
        calls: Calls,
        tools: Tools,
        allowance: Allowance,
        approvals: Approvals,
        sub_agents: SubAgents,
        inbox: Inbox | None = None,
    ) -> None:
        hidden = [tool["name"] for tool in asker.tools if not tool.get("public", True)]
        self._path = path
        self._in_text = None if transform is None else InText(transform, asker.tools)
        self._asker = asker
        if self._in_text:
            models = self._in_text.models(models)
            self._asker = asker._replace(instructions=self._in_text.instructed(asker.instructions), tools=())
        self._names = list(names)
        self._stage = stage
        self._speech = Speech(path, show=show, is_public=is_public, hidden=hidden)
        self._shows_results = "results" in show
        self._turns = Turns(
            stage, models, breaker, self._speech.shown, begin=lambda _: stage.begin(), agent=path, keeps=True
        )
        self._calls = calls
        self._tools = tools
        self._tool_named = {tool["name"]: tool for tool in asker.tools}
        self._allowance = allowance
        self._approvals = approvals
        self._sub_agents = sub_agents
        self._inbox = inbox
        self._spawned: Counter[str] = Counter()
        self._heard = 0  # of the inbox
        self._finish: Finish | None = None  # of the last turn, if it was asked for here
        self._paused_at: Target | None = None

    async def run(self, messages: Sequence[Json]) -> Answer:
        """`messages`: what is asked, in the neutral form.

        Raises LimitReached, ProviderFailure, StreamLimit, what lost the pen, or what ended the run in its child.
        """
        history, text = History(messages), ""
        async with self._allowance.time():
            for number in count():
                turn = await self._turn(number, history)
                if turn.stop_reason in CUT_OFF:  # none of its calls is run, and one without a result is refused
                    turn = turn.text_alone()
                history.add_turn(turn)
                text += self._speech.text
                if turn.calls:
                    history.add_results(self._told(await self._outcomes(turn)))
                    text = ""
                elif not await self._goes_on_after(turn):
                    answered = (self._finish and self._finish.model) or turn.model
                    return Answer(text, turn.stop_reason, f"{turn.provider}/{answered}", self._finish)
        raise AssertionError("a loop ends by an answer or an error")

    async def _goes_on_after(self, turn: SaidTurn) -> bool:
        """A turn without calls is the last one, unless somebody waits to be heard."""
        if turn.stop_reason in (INTERRUPTED, PAUSED) or self._kept(turn.number + 1):
            return True
        if self._inbox is None:
            return False
        return len(self._inbox.taken) > self._heard or await self._inbox.holds_more()

    # -- a turn ------------------------------------------------------------------------------------------

    async def _turn(self, number: int, history: History) -> SaidTurn:
        self._allowance.take_turn()
        if kept := self._kept(number):
            turn = SaidTurn.read(kept)
            if self._inbox:
                self._inbox.take_again(turn.inputs)
                self._hear(history, self._inbox.taken[: turn.inputs])
            self._say_again(turn)
        else:
            if self._inbox:
                await self._inbox.take()
                self._hear(history, self._inbox.taken)
            await self._allowance.spend(self._cost_usd)
            turn = await self._ask(number, history)
            await self._stage.flush()
            await self._allowance.note_cost(self._cost_usd)
        self._turns.end(len(turn.text))
        return turn

    def _kept(self, number: int) -> Mapping[str, Any] | None:
        return self._calls.journal.turn(self._path, number)

    def _hear(self, history: History, taken: Sequence[Mapping[str, Any]]) -> None:
        """All that was not heard of it, also what a sub-agent took."""
        for data in taken[self._heard :]:
            history.add_input(data)
        self._heard = len(taken)

    def _say_again(self, turn: SaidTurn) -> None:
        self._finish = self._paused_at = None
        self._speech.begin(turn.number)
        self._speech.note_ids([call.id for call in turn.calls])
        meant = [(TEXT_DELTA, {"text": turn.text})] if turn.text else []
        if self._in_text:
            meant = self._in_text.say_again(turn.number, turn.text, turn.stop_reason)
        for event in meant:
            for kind, data in self._speech.shown(*event):
                self._stage.write(kind, data)

    async def _ask(self, number: int, history: History) -> SaidTurn:
        may_call = self._allowance.has_calls

        def request_for(target: Target) -> Json:
            self._speech.begin(number)
            request = self._asker.request_for(target, history, may_call=may_call)
            if self._in_text is None:
                return request
            self._in_text.begin(number)
            return self._in_text.stopping(request, target)

        # Who paused knows this turn in its own form, which nobody else takes.
        course = Course([self._paused_at]) if self._paused_at else await self._turns.course(self._names)
        said = await self._unless_interrupted(self._turns.ask(request_for, course))
        self._paused_at = self._finish = None
        if said is None:
            turn = self._interrupted(number, course.target)
            self._write(turn, {})
            return turn
        self._finish = said.finish
        if said.finish.is_paused:
            self._paused_at = said.target
        calls = self._in_text.calls() if self._in_text else self._speech.calls()
        written = self._in_text.transform.said if self._in_text else None
        turn = whole_turn(number, said.target, said.finish, said.said, calls, self._heard, written=written)
        self._write(turn, _spent(said))
        return turn

    def _interrupted(self, number: int, target: Target) -> SaidTurn:
        said = self._turns.interrupt(target)
        if not said:  # or only by a try that broke, which is void
            self._speech.begin(number)
        text = self._in_text.transform.said if self._in_text and said else text_of(said)
        return interrupted_turn(number, target, text, self._heard)

    def _write(self, turn: SaidTurn, spent: Json) -> None:
        self._stage.write(TURN, {"agent": self._path, **turn.written(), "usage": None, "cost_usd": None, **spent})

    @property
    def _cost_usd(self) -> float | None:
        """Of the whole stream, so far."""
        cost: float | None = self._stage.spending.told().get("cost_usd", 0.0)
        return cost

    async def _unless_interrupted(self, asking: Coroutine[Any, Any, Turn]) -> Turn | None:
        """None if a person interrupted it."""
        if self._inbox is None:
            return await asking
        tasks = asyncio.create_task(asking), asyncio.create_task(self._inbox.interrupted())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                tasks[1].result()  # or what it raised
                tasks[0].cancel()
                await asyncio.wait(tasks[:1])
            return None if tasks[0].cancelled() else tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    # -- its calls ---------------------------------------------------------------------------------------

    def _told(self, outcomes: Sequence[tuple[Said, Finished]]) -> list[Json]:
        if self._in_text:
            return self._in_text.observed([(call, told(outcome)) for call, outcome in outcomes])
        return [result_of(call, outcome) for call, outcome in outcomes]

    async def _outcomes(self, turn: SaidTurn) -> list[tuple[Said, Finished]]:
        """Of each call, in their order, whatever became of it."""
        places = asyncio.Semaphore(self._allowance.limits.parallel)
        paths = [self._path_of_sub_agent(call) for call in turn.calls]  # in the order of the calls, whoever is first
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._outcome(turn.number, at, call, path, places))
                    for at, (call, path) in enumerate(zip(turn.calls, paths, strict=True))
                ]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [(call, task.result()) for call, task in zip(turn.calls, tasks, strict=True)]

    def _path_of_sub_agent(self, call: Said) -> str:
        name = self._tool_named.get(call.name, {}).get("agent")
        if name is None:
            return ""
        self._spawned[name] += 1
        return "/".join(filter(None, (self._path, f"{name}.{self._spawned[name]}")))

    async def _outcome(self, number: int, at: int, said: Said, path: str, places: asyncio.Semaphore) -> Finished:
        if said.fault:  # nobody but the model is told: half of a call is no call
            return _failed(said.fault, INVALID_ARGS)
        tool = self._tool_named.get(said.name)
        asked = self._asked(number, said, tool)
        call = self._begun(asked)
        try:
            if call.is_under_way:  # and takes no place, which the other one may wait for
                return await self._made(call, tool, path)
            if call.was_allowed:
                self._allowance.count_call()
            elif not call.was_refused and (refused := await self._refusal(call, at, tool)):
                if asked.key is not None:  # what is not run has no effect that its key could name
                    self._calls.drop(call)
                    call = self._calls.begin(asked._replace(key=None))
                return Finished(error=(await self._calls.refuse(call, *refused)).error)
            async with places:
                return await self._made(call, tool, path)
        except BaseException:
            self._calls.drop(call)  # cut off: no outcome
            raise

    def _begun(self, asked: Asked) -> Call:
        """A call that was refused under no key (see above) stays refused: the model went on from there."""
        if asked.key is not None:
            call = self._calls.begin(asked._replace(key=None))
            if call.is_finished:
                return call
            self._calls.drop(call)
        return self._calls.begin(asked)

    def _asked(self, number: int, said: Said, tool: Tool | None) -> Asked:
        asked = Asked(self._path, said.name, said.args, turn_call=(number, said.id))
        if tool is None:
            return asked
        key = tool.get("key")
        return asked._replace(
            key=tuple(key) if key is not None and isinstance(said.args, dict) else None,
            title=tool.get("title"),
            # An agent's calls have keys of their own: those that are finished are not made again.
            is_idempotent=bool(tool.get("idempotent")) or tool.get("agent") is not None,
            has_resolve=bool(tool.get("has_resolve")),
            is_public=bool(tool.get("public", True)),
        )

    async def _made(self, call: Call, tool: Tool | None, path: str) -> Finished:
        opened = await self._calls.open(call)
        if opened.do in ("replay", "error"):
            if path:
                self._sub_agents.say_again(path)
            return Finished(opened.result, opened.error)
        assert tool
        began = time.monotonic()
        outcome = await self._resolved(call) if opened.do == "resolve" else None
        if opened.do == "resolve" and outcome is None:
            await self._calls.hold()
        outcome = outcome or await self._run(call, tool, path)
        outcome = outcome._replace(duration_ms=round((time.monotonic() - began) * 1000))
        await self._calls.close(call.tool_call_id, outcome)
        return outcome

    async def _refusal(self, call: Call, at: int, tool: Tool | None) -> tuple[str, str] | None:
        """(code, message) of why a call is not run."""
        limits = self._allowance.limits
        if tool is None:
            return FAILED, "There is no tool of this name."
        if at >= limits.tool_calls_per_turn:
            return TOO_MANY_CALLS, f"At most {limits.tool_calls_per_turn} tools are called in one turn. Call it again."
        if not self._allowance.has_calls:  # before a person is asked
            return TOO_MANY_CALLS, await self._allowance.take_call(call.key) or ""
        if tool.get("agent") is None:
            try:
                checked = await self._tools.ask("check", {"tool": call.asked.tool, "args": call.asked.args})
            except AskRefused as refused:
                return refused.code, refused.message
            if checked.get("needs_approval") and (why := await self._approvals.why_not(call, self._allowance)):
                return NOT_APPROVED, why
        if why := await self._allowance.take_call(call.key):
            return TOO_MANY_CALLS, why
        return None

    # -- the tool ----------------------------------------------------------------------------------------

    async def _run(self, call: Call, tool: Tool, path: str) -> Finished:
        try:
            if path:
                return Finished(await self._run_agent(call, tool, path))
            return await self._run_tool(call)
        except AskRefused as refused:
            self._trace(call, refused)
            return _failed(refused.message, refused.code)

    def _trace(self, call: Call, refused: AskRefused) -> None:
        """For operators: what the tool raised, in its own words. The model is told the type."""
        if refused.traceback:
            told = {"tool_call_id": call.tool_call_id, "tool": call.asked.tool, "traceback": refused.traceback}
            self._stage.write(CALL_TRACE, told | ({"agent": self._path} if self._path else {}))

    async def _run_tool(self, call: Call) -> Finished:
        for wait_s in (*RETRY_S, None):
            try:
                return Finished((await self._tools.ask("call", _named(call)))["result"])
            except AskRefused as refused:
                if wait_s is None or not refused.retry:
                    raise
                await asyncio.sleep(wait_s)
                await self._calls.hold()
        raise AssertionError("the last try returns or raises")

    async def _run_agent(self, call: Call, tool: Tool, path: str) -> str:
        """What ends it, and not this run, is a failed call."""
        public, allowance = self._is_shown(call), self._allowance
        try:
            return await self._sub_agents.run(
                tool["agent"], call.asked.args, path=path, is_public=public, allowance=allowance
            )
        except ProviderFailure as failure:
            raise AskRefused(FAILED, failure.message) from failure
        except LimitReached as reached:
            if allowance.includes(reached.of):
                raise
            raise AskRefused(FAILED, reached.message) from reached

    def _is_shown(self, call: Call) -> bool:
        """Of a call that is an agent: what that says is what the call gives."""
        return self._shows_results and call.asked.is_public

    async def _resolved(self, call: Call) -> Finished | None:
        """What became of a call that was cut off. None: it was not made, and may be."""
        try:
            reply = await self._tools.ask("resolve", _named(call))
        except AskRefused as refused:  # it cannot tell either
            self._trace(call, refused)
            return Finished(error=UNKNOWN)
        return Finished(reply.get("result")) if reply["done"] else None


def _named(call: Call) -> Json:
    """Of a call, to the child."""
    return {
        "tool": call.asked.tool,
        "args": call.asked.args,
        "tool_call_id": call.tool_call_id,
        "idempotency_key": call.key,
    }


def _failed(message: str, code: str) -> Finished:
    return Finished(error={"code": code, "message": message})


def _spent(said: Turn) -> Json:
    finish = said.finish
    cost = cost_of(said.target, finish.usage, finish.model)
    return {"usage": finish.usage, "cost_usd": None if cost is None else float(cost)}
