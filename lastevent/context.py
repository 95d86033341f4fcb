"""Context: what a run is told, and what it can say, ask and start.

`current()` gives it anywhere below an agent, whatever framework lies between, since it travels by contextvars: into
tasks, and into threads that are started with a copied context (asyncio.to_thread, and what frameworks do).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from lastevent.events import Event
from lastevent.schema import jsonable

CURRENT: ContextVar[Context] = ContextVar("lastevent.context")

AGENT_ATTRIBUTE = "__lastevent_agent__"
"""On a function under @agent: what it is."""


class Run(Protocol):
    """What a Context stands on: the host's side of a run."""

    info: Mapping[str, Any]
    threads: concurrent.futures.Executor
    """Where plain functions run."""

    @property
    def is_over(self) -> bool:
        """Cancelled or ended: nothing more begins, and nothing more is said."""

    def say(self, kind: str, data: Mapping[str, Any], blocking: bool) -> Awaitable[None]: ...
    def ask(self, what: str, data: Mapping[str, Any]) -> concurrent.futures.Future[dict[str, Any]]: ...
    def wait(self, future: concurrent.futures.Future[Any], timeout_s: float | None = None) -> Any: ...
    def is_on_loop(self) -> bool: ...
    async def step(self, context: Context, name: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any: ...
    def path_of_next(self, agent: str) -> str: ...
    def inputs_seen(self) -> int: ...
    def note_input(self) -> None: ...


@dataclass(frozen=True)
class Call:
    """The call of a tool or step that a Context belongs to."""

    tool: str
    tool_call_id: str
    idempotency_key: str
    public: bool = True
    blocking: bool = False
    """The tool is a `def`: what its Context does is done when the call returns, as there is nothing to await with."""


@dataclass(frozen=True)
class Input:
    """What somebody sent while the agent was at work."""

    text: str | None = None
    data: Any = None


class Done:
    """Awaitable at once, or not at all."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()


DONE = Done()


class Context:
    """A run as its code sees it. Without a run (a unit test, a script) it is alone: it says nothing to nobody."""

    def __init__(self, run: Run | None = None, call: Call | None = None) -> None:
        self._run, self._call = run, call
        self._was_cut = False
        self._alone_key = uuid.uuid4().hex if call is None and run is None else None

    # -- what it is told -------------------------------------------------------------------------------------

    @property
    def stream_id(self) -> str:
        return str(self._told("stream_id", ""))

    @property
    def session_id(self) -> str | None:
        return self._told_text("session_id")

    @property
    def user_id(self) -> str | None:
        return self._told_text("user_id")

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(self._told("metadata") or {})

    @property
    def attempt(self) -> int:
        """1, and one more whenever the stream was taken over from a worker that was lost."""
        return int(self._told("attempt", 1))

    @property
    def agent(self) -> str:
        """Which agent of the stream this is: "" for the one that was asked, else a path such as `researcher.2`."""
        return str(self._told("agent", ""))

    @property
    def idempotency_key(self) -> str | None:
        """Of this call: the same whenever it is tried again, by whatever worker. None outside of tools and steps."""
        return self._call.idempotency_key if self._call else self._alone_key

    @property
    def tool_call_id(self) -> str | None:
        return self._call.tool_call_id if self._call else None

    @property
    def cancelled(self) -> bool:
        """For code in threads, which nothing can interrupt: leave when it is true."""
        return self._was_cut or (self._run is not None and self._run.is_over)

    # -- what it says ----------------------------------------------------------------------------------------

    def text(self, text: str) -> Awaitable[None]:
        """Text of the answer."""
        if not isinstance(text, str):
            raise TypeError(f"Text is str, not {type(text).__name__}.")
        return self._say("text_delta", {"text": text}) if text else DONE

    def status(self, message: str) -> Awaitable[None]:
        return self._say("status", {"message": message})

    def progress(self, message: str | None = None, **data: Any) -> Awaitable[None]:
        """How far a tool has come, and partial results. asyncio.CancelledError once the run is cancelled.

        Outside of tools it is a status; `data` is for tools only.
        """
        if self.cancelled:
            raise asyncio.CancelledError
        if self._call is None:
            return self.status(message or "")
        told = {**data, "tool_call_id": self._call.tool_call_id, "tool": self._call.tool}
        if message is not None:
            told["message"] = message
        return self._say("tool_progress" if self._call.public else "internal.tool_progress", told)

    def emit(self, kind: str, data: Mapping[str, Any] | None = None, public: bool = False) -> Awaitable[None]:
        """An event of your own: `internal.<kind>`, which operators see, or with `public=True` end users too."""
        event = Event(kind, data, public=public)
        return self._say(event.kind, event.data)

    # -- what it asks and starts -----------------------------------------------------------------------------

    async def step(self, name: str, fn: Callable[..., Any], *args: Any) -> Any:
        """What `fn(*args)` gives, journalled like a tool's call and shown to nobody.

        After a takeover a finished step is not run again, and gives what it gave, as JSON; one that was cut raises
        CallFailed with the code outcome_unknown. A plain `fn` runs in a thread.
        """
        self._needs_await("step")
        if self._run is None:
            given = fn(*args)
            return await given if asyncio.iscoroutine(given) else given
        return await self._run.step(self, name, fn, args)

    def run(self, agent: Any, input: Any = None, public: bool = False) -> Awaitable[Any]:
        """Another agent's result, in this same run: cancelled with it, and within its limits.

        `agent`: its name, or itself. Its text goes to end users only with `public=True`. Several at once:
        asyncio.gather. CallFailed if it failed.
        """
        self._needs_await("run")
        run = self.in_a_run("run")
        name = agent if isinstance(agent, str) else str(getattr(agent, AGENT_ATTRIBUTE, agent).name)
        # Numbered now and not when it is awaited: the path must be the same in each attempt.
        return self._run_agent(name, input, run.path_of_next(name), public)

    async def _run_agent(self, name: str, input: Any, path: str, public: bool) -> Any:
        asked = {"agent": name, "input": jsonable(input), "path": path, "public": public}
        return (await self._ask("run_agent", asked)).get("result")

    async def inputs(self) -> AsyncIterator[Input]:
        """What is sent to the stream while this runs, as it comes; after a takeover from the first one again."""
        self._needs_await("inputs")
        run = self.in_a_run("inputs")
        while True:
            given = (await self._ask("next_input", {"after": run.inputs_seen()})).get("input")
            if given is None:
                return
            run.note_input()
            yield Input(given.get("text"), given.get("data"))

    async def route(self, text: str, choices: Mapping[str, str]) -> str:
        """Which of the choices (name → what it is for) a small model finds right for the text."""
        self._needs_await("route")
        self.in_a_run("route")
        return str((await self._ask("route", {"text": text, "choices": dict(choices)}))["choice"])

    # -- inside ----------------------------------------------------------------------------------------------

    def of_call(self, call: Call) -> Context:
        return Context(self._run, call)

    def cut(self) -> None:
        """Its call took too long: it has been answered already."""
        self._was_cut = True

    def _told(self, name: str, otherwise: Any = None) -> Any:
        return self._run.info.get(name, otherwise) if self._run else otherwise

    def _told_text(self, name: str) -> str | None:
        value = self._told(name)
        return None if value is None else str(value)

    def _say(self, kind: str, data: Mapping[str, Any]) -> Awaitable[None]:
        if self._run is None:
            return DONE
        return self._run.say(kind, data, self._is_blocking())

    async def _ask(self, what: str, data: Mapping[str, Any]) -> dict[str, Any]:
        return await asyncio.wrap_future(self.in_a_run(what).ask(what, data))

    def in_a_run(self, what: str) -> Run:
        if self._run is None:
            raise RuntimeError(f"ctx.{what} needs a run: it is asked of Lastevent's worker.")
        return self._run

    def _needs_await(self, what: str) -> None:
        if self._is_blocking():
            raise RuntimeError(f"ctx.{what} is for `async def`; this is a `def`, in a thread, with nothing to await.")

    def _is_blocking(self) -> bool:
        return (self._call is not None and self._call.blocking) or not is_in_a_loop()


def current() -> Context:
    """The Context of the agent or tool that is running. RuntimeError outside of one."""
    try:
        return CURRENT.get()
    except LookupError:
        raise RuntimeError("No agent is running here, so there is no Context.") from None


def is_in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
