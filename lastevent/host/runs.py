"""A run: what its code says and asks, how it is cancelled, and its one end.

CodeRun is code of the user's own, in a task. OpenRun is a run of the built-in loop, which is the worker's: it has no
task, only what the worker asks of it (a tool's call, instructions).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lastevent import calls
from lastevent.agents import Agent, CodeAgent
from lastevent.context import CURRENT, DONE, Call, Context
from lastevent.errors import AgentBlocked, InvalidValue, ToolError, place_of, text_of, trace_of, type_of
from lastevent.events import Event
from lastevent.functions import Tool
from lastevent.host.wire import Credit, TooLong, Wire
from lastevent.schema import jsonable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where runs are: what they share."""

    wire: Wire
    threads: concurrent.futures.Executor
    """Where plain functions run."""
    is_left: Callable[[Any], object]
    """Called with a run when nothing of it is at work any more."""


class Run:
    """What a Context stands on (context.Run)."""

    def __init__(self, place: Place, told: Mapping[str, Any]) -> None:
        self.wire, self.threads, self._is_left = place.wire, place.threads, place.is_left
        self.id = told["run"]
        self.info: Mapping[str, Any] = told.get("info") or {}
        self.input = told.get("input")
        self.credit = Credit(int(told.get("credit", 0)))
        self.context = Context(self)
        self.is_cancelled = self.is_ended = False
        self.blocked: AgentBlocked | None = None
        self._inputs_seen = 0
        self._spawned: Counter[str] = Counter()

    @property
    def is_over(self) -> bool:
        return self.is_cancelled or self.is_ended

    # -- for its Context -------------------------------------------------------------------------------------

    def say(self, kind: str, data: Mapping[str, Any], blocking: bool) -> Awaitable[None]:
        if self.is_over:
            return DONE  # the stream has its ending; a `finally` that says something goes on
        event = {"op": "event", "run": self.id, "kind": kind, "data": data}
        if self.credit.take():
            self._send(event)
            return DONE
        if not blocking:
            return self._say_later(event)
        self.wire.wait(self.credit.wait())
        self._send(event)
        return DONE

    async def _say_later(self, event: dict[str, Any]) -> None:
        credit = self.credit.wait()
        try:
            await asyncio.wrap_future(credit)
        except asyncio.CancelledError:
            if credit.done() and not credit.cancelled():
                self.credit.give(1)
            raise
        self._send(event)

    def _send(self, event: dict[str, Any]) -> None:
        try:
            self.wire.send(event)
        except ValueError as error:
            self.credit.give(1)
            raise type(error)(f"An event of kind {event['kind']} cannot be said. {error}") from None

    def trace(self, error: BaseException) -> None:
        """For operators, as far as there is credit: nobody waits who could."""
        if not self.is_over and self.credit.take():
            data = {"traceback": trace_of(error)}
            self._send({"op": "event", "run": self.id, "kind": "internal.task_trace", "data": data})

    def ask(self, what: str, data: Mapping[str, Any]) -> concurrent.futures.Future[dict[str, Any]]:
        if self.is_cancelled:
            raise asyncio.CancelledError
        if self.is_ended:
            raise RuntimeError(f"This run has ended: {what} comes too late.")
        return self.wire.ask(self.id, what, data)

    def wait(self, future: concurrent.futures.Future[Any], timeout_s: float | None = None) -> Any:
        return self.wire.wait(future, timeout_s)

    def is_on_loop(self) -> bool:
        return self.wire.is_on_loop()

    async def step(self, context: Context, name: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        numbered = {str(number): value for number, value in enumerate(args)}
        return await calls.journalled(calls.Awaiting(context), calls.step(name, fn), numbered)

    def path_of_next(self, agent: str) -> str:
        self._spawned[agent] += 1
        own = self.info.get("agent")
        return f"{own}/{agent}.{self._spawned[agent]}" if own else f"{agent}.{self._spawned[agent]}"

    def inputs_seen(self) -> int:
        return self._inputs_seen

    def note_input(self) -> None:
        self._inputs_seen += 1

    # -- for the host ----------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Its code hears of it at its next await; threads by ctx.cancelled."""
        self.is_cancelled = True
        self.wire.drop_asks(self.id)
        self.credit.refuse()

    def end_blocked(self, blocked: AgentBlocked, task: asyncio.Task[Any] | None) -> None:
        """It held the loop up, and `blocked` was raised in `task`: all of it ends."""
        raise NotImplementedError

    def _log(self, agent: str, error: BaseException) -> None:
        logger.error(
            "stream %s: the agent %s raised %s (its words: internal.trace in the stream)",
            *(self.info.get("stream_id"), agent, place_of(error)),
        )

    def _end(self, told: Mapping[str, Any]) -> None:
        self.is_ended = True
        self.wire.drop_asks(self.id)
        self.credit.refuse()
        try:
            self.wire.send({"op": "end", "run": self.id, **told})
        except ValueError as error:
            self.wire.send({"op": "end", "run": self.id, "error": told_error("agent_failed", error)})


class CodeRun(Run):
    def __init__(self, place: Place, told: Mapping[str, Any], agent: CodeAgent) -> None:
        super().__init__(place, told)
        self._agent = agent
        self.task: asyncio.Task[None] | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
        token = CURRENT.set(self.context)  # the task and all that it starts find it
        try:
            self.task = loop.create_task(self._live(), name=f"lastevent {self._agent.name} {self.id}")
        finally:
            CURRENT.reset(token)
        self.task.add_done_callback(self._done)
        return self.task

    def _done(self, task: asyncio.Task[None]) -> None:
        if not self.is_ended:  # cancelled before its first step
            self._end({"error": _CANCELLED})
        self._is_left(self)

    def cancel(self) -> None:
        super().cancel()
        if self.task is not None:
            self.task.cancel()

    def end_blocked(self, blocked: AgentBlocked, task: asyncio.Task[Any] | None) -> None:
        if self.task is not None and task is not self.task:  # a task of its own making died of it
            self.task.cancel()

    async def _live(self) -> None:
        told: dict[str, Any]
        try:
            told = {"result": await self._result()}
        except InvalidValue as error:
            told = {"error": told_error("invalid_input", error)}
        except asyncio.CancelledError as error:
            told = {"error": told_error("agent_failed", error)}  # its own doing, unless we cancelled
        except BaseException as error:  # also SystemExit, AgentBlocked and those of libraries: it has ended
            told = {"error": told_error("agent_failed", error)}
            if not (self.is_cancelled or isinstance(error, AgentBlocked)):
                self._log(self._agent.name, error)
        if self.blocked is not None:
            told = {"error": told_error("agent_blocked", self.blocked)}
        elif self.is_cancelled:
            told = {"error": _CANCELLED}
        self._end(told)

    async def _result(self) -> Any:
        value = self._agent.input.validate(self.input)
        if not self._agent.is_generator:
            return _json_result(await self._agent.function(self.context, value))
        said = self._agent.function(self.context, value)
        try:
            async for piece in said:
                await self._say_piece(piece)
        except asyncio.CancelledError as error:
            # It came while a piece was on its way, so the code itself has not heard of it.
            await _throw_into(said, error)
            raise
        finally:
            await said.aclose()
        return None

    def _say_piece(self, piece: Any) -> Awaitable[None]:
        if isinstance(piece, str):
            return self.context.text(piece)
        if isinstance(piece, Event):
            return self.say(piece.kind, piece.data, False)
        raise TypeError(f"The agent {self._agent.name} yielded {type(piece).__name__}; it may yield str and Event.")


class OpenRun(Run):
    def __init__(self, place: Place, told: Mapping[str, Any], agent: Agent) -> None:
        super().__init__(place, told)
        self._agent = agent
        self._doing: dict[Any, asyncio.Task[None]] = {}
        self._leaving: asyncio.Task[None] | None = None

    def asked(self, number: Any, what: str, data: Mapping[str, Any], loop: asyncio.AbstractEventLoop) -> None:
        token = CURRENT.set(self.context)
        try:
            task = loop.create_task(self._reply(number, what, data), name=f"lastevent {self._agent.name} {what}")
        finally:
            CURRENT.reset(token)
        self._doing[number] = task
        task.add_done_callback(lambda _: self._done(number, task))

    def _done(self, number: Any, task: asyncio.Task[None]) -> None:
        self._doing.pop(number, None)
        if task.cancelled():  # before its first step
            self.wire.send({"op": "reply", "id": number, "error": _CUT})

    def cancel_ask(self, number: Any) -> None:
        if task := self._doing.get(number):
            task.cancel()

    def tasks(self) -> list[asyncio.Task[None]]:
        return list(self._doing.values())

    def cancel(self) -> None:
        """`end` follows, once its tools' `finally` are over."""
        super().cancel()
        for task in self.tasks():
            task.cancel()
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self.until_left())

    async def until_left(self) -> None:
        """Until its tools' `finally` are over; then it has ended."""
        if tasks := self.tasks():
            await asyncio.wait(tasks)
        if not self.is_ended:
            self._end({"error": _CANCELLED})
        self._is_left(self)

    def close(self) -> None:
        """The worker needs it no more, and no word of its end."""
        self.is_ended = True
        self.cancel()

    def end_blocked(self, blocked: AgentBlocked, task: asyncio.Task[Any] | None) -> None:
        if not self.is_ended:
            self._end({"error": told_error("agent_blocked", blocked)})
        self.cancel()

    async def _reply(self, number: Any, what: str, data: Mapping[str, Any]) -> None:
        reply: dict[str, Any]
        try:
            reply = await self._answer(what, data)
        except InvalidValue as error:
            code = "invalid_args" if what == "check" else "invalid_input"
            reply = {"error": {"code": code, "message": str(error)}}
        except asyncio.CancelledError:
            reply = {"error": told_error("agent_blocked", self.blocked) if self.blocked else _CUT}
        except AgentBlocked as error:
            reply = {"error": told_error("agent_blocked", error)}
        except BaseException as error:  # without a reply the worker would wait
            reply = {"error": {**told_error("failed", error), "message": _for_the_model(error)}}
            self._log(self._agent.name, error)
        try:
            self.wire.send({"op": "reply", "id": number, **reply})
        except ValueError as error:
            told = {"code": "result_too_large" if isinstance(error, TooLong) else "failed", "message": str(error)}
            self.wire.send({"op": "reply", "id": number, "error": told})

    async def _answer(self, what: str, data: Mapping[str, Any]) -> dict[str, Any]:
        if self.is_over:
            raise asyncio.CancelledError
        if what == "validate":
            self._agent.input.validate(self.input)
            return {"ok": {}}
        if what == "instructions":
            return {"ok": {"text": await self._instructions()}}
        tool, args = self._tool_and_args(data)
        if what == "check":
            return {"ok": {"needs_approval": tool is not None and tool.needs_approval(args)}}
        if tool is None or what not in ("call", "resolve"):
            raise LookupError(f"{what} of {data.get('tool')}: there is no such thing here.")
        call = Call(tool.name, data["tool_call_id"], data["idempotency_key"], tool.public)
        context, way = self.context.of_call(call), calls.Awaiting(self.context)
        if what == "call":
            outcome: calls.Outcome | None = await calls.once(way, tool, context, args)
            assert outcome is not None
            await calls.tell(context, call, outcome)
            return _replied(outcome)
        outcome = await calls.resolved(way, tool, context, args)
        if outcome is None:
            return {"ok": {"done": False, "result": None}}
        return {"ok": {"done": True, "result": outcome.result}} if outcome.code is None else _replied(outcome)

    def _tool_and_args(self, data: Mapping[str, Any]) -> tuple[Tool | None, dict[str, Any]]:
        """No Tool for another agent: the worker runs it."""
        name, args = str(data["tool"]), data["args"]
        if (agent := self._agent.agents.get(name)) is not None:
            agent.input.validate(args)
            return None, {}
        tool = self._agent.tools.get(name)
        if tool is None:
            raise InvalidValue(f"There is no tool {name[:64]}.")
        return tool, tool.arguments.validate(args)

    async def _instructions(self) -> str:
        given = self._agent.instructions
        if callable(given):
            given = given(self.context, self._agent.input.validate(self.input))
        text = given if isinstance(given, str) else await given
        if not isinstance(text, str):
            raise TypeError(f"The instructions of {self._agent.name} gave {type(text).__name__}, not str.")
        return text


_CANCELLED = {"code": "cancelled", "type": "CancelledError", "message": "It was cancelled.", "traceback": None}
_CUT = {"code": "cancelled", "message": "It was cut before it ended."}


def told_error(code: str, error: BaseException) -> dict[str, Any]:
    return {"code": code, "type": type_of(error), "message": text_of(error), "traceback": trace_of(error)}


def _replied(outcome: calls.Outcome) -> dict[str, Any]:
    if outcome.code is None:
        return {"ok": {"result": outcome.result}}
    told = {"code": outcome.code, "message": outcome.message, "retry": outcome.retry}
    if outcome.error is not None:
        told["type"] = type_of(outcome.error)
    if trace := outcome.trace():
        told["traceback"] = trace
    return {"error": told}


def _for_the_model(error: BaseException) -> str:
    return text_of(error) if isinstance(error, ToolError) else type_of(error)


def _json_result(value: Any) -> Any:
    try:
        return jsonable(value)
    except ValueError as error:
        raise TypeError(f"An agent returns JSON: {error}") from None


async def _throw_into(generator: Any, error: BaseException) -> None:
    """Its `except` and `finally` run; what it yields then is lost, as the stream has ended."""
    with suppress(asyncio.CancelledError, StopAsyncIteration):
        await generator.athrow(error)
