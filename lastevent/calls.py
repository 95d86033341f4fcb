"""A tool's call: opened in the journal, run, closed in the journal; only then is its result used.

    open_call → run | replay | error | resolve        what the journal knows of this call
      run: the tool runs; ToolError(retry=True): twice more, same key
    close_call → confirmed                            it is in the log; a takeover will not run it again

A call that was cut (a cancel, a worker lost) is never closed: nobody knows what it did, and the journal says so.

The steps are written once, for code that awaits (Awaiting) and for a `def` that is called from a thread or from the
loop itself (Blocking), where each await is over before it begins.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lastevent.context import CURRENT, Call, Context
from lastevent.errors import AgentBlocked, CallFailed, ToolError, place_of, text_of, trace_of, type_of
from lastevent.functions import NOT_DONE, Tool
from lastevent.schema import jsonable, size_of

logger = logging.getLogger(__name__)

MAX_RESULT = 256 * 1024
"""Bytes of a result as JSON. It is in the log, and in every later request to the model."""

RETRY_S = (0.5, 1.0)
"""Before each further try of a tool that raised ToolError(retry=True)."""

UNKNOWN = (
    "It is not known whether this call of {} took effect: it was cut off before it answered, and its destination could "
    "not be asked. Find out first whether it took effect, before you repeat it."
)

CUT_S = 2.0
"""How long a tool that took too long has for its `finally`, before its caller goes on without it."""


@dataclass(frozen=True)
class Raised:
    """What a tool raised. Not raised again at once: SystemExit would leave through the event loop."""

    error: BaseException


class TookTooLong(Exception):
    pass


@dataclass(frozen=True)
class Outcome:
    """How a call ended: a result in JSON, or an error by code."""

    result: Any = None
    code: str | None = None
    message: str = ""
    retry: bool = False
    error: BaseException | None = None

    def told(self) -> dict[str, Any]:
        if self.code is None:
            return {"result": self.result}
        return {"error": {"code": self.code, "message": self.message}}

    def trace(self) -> str | None:
        """None for what a tool says on purpose."""
        if self.error is None or isinstance(self.error, (ToolError, TookTooLong)):
            return None
        return trace_of(self.error)


@dataclass(frozen=True)
class Work:
    """A function, called within the Context of its call."""

    context: Context
    function: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.function)

    def do(self) -> Any:
        token = CURRENT.set(self.context)
        try:
            return self.function(*self.args, **self.kwargs)
        except BaseException as error:
            return _raised(error)
        finally:
            CURRENT.reset(token)

    async def do_async(self) -> Any:
        token = CURRENT.set(self.context)
        try:
            return await self.function(*self.args, **self.kwargs)
        except BaseException as error:
            return _raised(error)
        finally:
            CURRENT.reset(token)


class Way(Protocol):
    """How a call waits."""

    context: Context
    blocking: bool

    async def ask(self, what: str, data: Mapping[str, Any]) -> dict[str, Any]: ...
    async def execute(self, work: Work, limit_s: float | None) -> Any: ...
    async def pause(self, seconds: float) -> None: ...
    def give_up(self, call: Call) -> None: ...


async def journalled(way: Way, tool: Tool, args: dict[str, Any]) -> Any:
    """What the call gives its caller. CallFailed, now as after a takeover, if it gave none."""
    opened = await way.ask("open_call", tool.opening(args))
    if opened["do"] == "replay":
        return tool.restore(opened["result"])
    if opened["do"] == "error":
        raise CallFailed(opened["error"]["code"], opened["error"]["message"])
    call = Call(tool.name, opened["tool_call_id"], opened["idempotency_key"], tool.public, way.blocking)
    context = way.context.of_call(call)
    began = time.monotonic()
    try:
        outcome = await resolved(way, tool, context, args) if opened["do"] == "resolve" else None
        if outcome is None:
            outcome = await tried(way, tool, context, args)
    except asyncio.CancelledError:
        way.give_up(call)
        raise
    await tell(context, call, outcome)
    took = int((time.monotonic() - began) * 1000)
    await way.ask("close_call", {"tool_call_id": call.tool_call_id, "duration_ms": took, **outcome.told()})
    if outcome.code is not None:
        raise CallFailed(outcome.code, outcome.message) from outcome.error
    return tool.restore(outcome.result)


async def tell(context: Context, call: Call, outcome: Outcome) -> None:
    """An exception that nobody meant: where it was raised, in the log of the process; its words, in the stream's."""
    if (trace := outcome.trace()) is None:
        return
    assert outcome.error is not None
    logger.error(
        "stream %s: the tool %s raised %s (its words: internal.call_trace in the stream)",
        *(context.stream_id, call.tool, place_of(outcome.error)),
    )
    await context.emit("call_trace", {"tool_call_id": call.tool_call_id, "tool": call.tool, "traceback": trace})


async def tried(way: Way, tool: Tool, context: Context, args: dict[str, Any]) -> Outcome:
    for wait_s in RETRY_S:
        outcome = await once(way, tool, context, args)
        if not outcome.retry:
            return outcome
        await way.pause(wait_s)
    return await once(way, tool, context, args)


async def once(way: Way, tool: Tool, context: Context, args: dict[str, Any]) -> Outcome:
    positional, named = tool.given(context, args)
    return outcome_of(tool, await way.execute(Work(context, tool.function, positional, named), tool.timeout_s))


async def resolved(way: Way, tool: Tool, context: Context, args: dict[str, Any]) -> Outcome | None:
    """What the destination knows of a call that was cut; None if it did not happen.

    If it cannot be asked, nobody knows: `failed` would say that the call had no effect.
    """
    assert tool.resolve is not None
    found = await way.execute(Work(context, tool.resolve, [context], args), tool.timeout_s)
    if found is NOT_DONE:
        return None
    if isinstance(found, Raised):
        return Outcome(code="outcome_unknown", message=UNKNOWN.format(tool.name), error=found.error)
    return outcome_of(tool, found)


def _raised(error: BaseException) -> Raised:
    """Within an `except`. A cancel, and an interruption, are nothing that the tool says: they go on."""
    if isinstance(error, (asyncio.CancelledError, AgentBlocked)):
        raise error
    return Raised(error)


def outcome_of(tool: Tool, given: Any) -> Outcome:
    if isinstance(given, Raised):
        return _failed(tool, given.error)
    try:
        result = jsonable(given)
        size = size_of(result)
    except ValueError as error:
        told = f"{tool.name} gave {type(given).__name__}, which is not JSON."
        return Outcome(code="failed", message=told, error=error)
    if size > MAX_RESULT:
        told = f"{tool.name} gave {size:,} bytes; a result has at most {MAX_RESULT:,}."
        return Outcome(code="result_too_large", message=told)
    return Outcome(result)


def _failed(tool: Tool, error: BaseException) -> Outcome:
    if isinstance(error, TookTooLong):
        return Outcome(code="timeout", message=f"{tool.name} took longer than {tool.timeout_s:g} s.", error=error)
    if isinstance(error, ToolError):
        return Outcome(code="failed", message=text_of(error), retry=error.retry, error=error)
    # Its text may hold what no model and no user should read.
    return Outcome(code="failed", message=type_of(error), error=error)


def step(name: str, function: Callable[..., Any]) -> Tool:
    return Tool(function, name=name, timeout_s=None, public=False, is_step=True)


# -- the two ways ------------------------------------------------------------------------------------------


class InARun:
    def __init__(self, context: Context) -> None:
        self.context, self._run = context, context.in_a_run("A call")

    def give_up(self, call: Call) -> None:
        """It was cut alone, by a time limit of its caller's say: the same call again would wait for its end."""
        if not self._run.is_over:
            self._run.ask("give_up_call", {"tool_call_id": call.tool_call_id})


class Awaiting(InARun):
    blocking = False

    async def ask(self, what: str, data: Mapping[str, Any]) -> dict[str, Any]:
        return await asyncio.wrap_future(self._run.ask(what, data))

    async def execute(self, work: Work, limit_s: float | None) -> Any:
        doing = self._begun(work)
        try:
            done, _ = await asyncio.wait({doing}, timeout=limit_s)
        except asyncio.CancelledError:
            work.context.cut()
            doing.cancel()
            await asyncio.wait({doing})  # its `finally`; a thread goes on to its own end
            raise
        if not done:
            work.context.cut()
            doing.cancel()
            await asyncio.wait({doing}, timeout=CUT_S)
            return Raised(TookTooLong())
        given = doing.result()
        # A `def` may give a coroutine (a lambda around one, a partial): its result is meant.
        return await Work(work.context, _itself, [given], {}).do_async() if inspect.isawaitable(given) else given

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _begun(self, work: Work) -> asyncio.Future[Any]:
        if work.is_async:
            return asyncio.ensure_future(work.do_async())
        return asyncio.wrap_future(self._run.threads.submit(contextvars.copy_context().run, work.do))


class Blocking(InARun):
    blocking = True

    async def ask(self, what: str, data: Mapping[str, Any]) -> dict[str, Any]:
        answered: dict[str, Any] = self._run.wait(self._run.ask(what, data))
        return answered

    async def execute(self, work: Work, limit_s: float | None) -> Any:
        if work.is_async:
            doing = self._run.threads.submit(asyncio.run, work.do_async())
        elif self._run.is_on_loop():
            return work.do()  # it holds the loop up; the watchdog sees to it
        else:
            doing = self._run.threads.submit(contextvars.copy_context().run, work.do)
        try:
            return self._run.wait(doing, limit_s)
        except concurrent.futures.TimeoutError:
            work.context.cut()
            return Raised(TookTooLong())

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 (its thread waits)
        if self.context.cancelled:
            raise asyncio.CancelledError


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return ended.value
    coroutine.close()
    raise RuntimeError("A blocking call waited.")


async def _itself(given: Any) -> Any:
    return await given
