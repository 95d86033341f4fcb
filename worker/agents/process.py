"""One process of the app: started, listened to, held to its limits, ended.

Users' code never runs in the worker's own loop, where one `time.sleep` would silence every stream of the worker. It
runs in a child (`python -m lastevent.host`), which speaks lines of JSON over a socket pair. Here is the worker's end:

    start → hello, or failed → runs (runs.py): events, asks and their replies, the end → stop → it exits

- Held up. A watchdog in the child interrupts code that blocks (AGENT_BLOCKED_S). Code that cannot be interrupted keeps
  the child from answering pings: after twice that time it is killed. Missed answers are counted in beats of this loop,
  not in time: a worker that was itself stopped must not kill a healthy child. The beats begin after `hello`, since an
  import takes as long as it takes.
- Cancelled. A run that has not ended 2 s after its cancel is overdue.
- Worn. A child whose code was interrupted, or that has an overdue run, takes no new ones and is ended after its last:
  nobody knows with which locks that code was left.

What a child says (an exception's text, a traceback) is in no log line but that of an import that failed: it may hold
anything of its users. The log has the stream, the agent and where the code stood.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from worker.agents.lines import BadLine, Lines, LineTooLong, TooLong, encode
from worker.agents.runs import (
    CANCELLED,
    CREDIT,
    FAILED,
    TOO_LARGE,
    AgentError,
    AskRefused,
    ChildLost,
    ChildRun,
    Handler,
)

logger = logging.getLogger(__name__)

PROTOCOL = 1
BLOCKED = "agent_blocked"

BEAT_S = 0.5
OVERDUE_S = 2.0
"""How long cancelled code may take for its `finally`."""

LEAVE_S = 3.0
"""How long a child may take to exit once its wire is closed: as long as `finally` may, and a second more."""

SLOW_IMPORT_S = 30.0

FD = "{fd}"
"""In a command, the place of the descriptor of the child's end of the wire."""

NO_AGENTS = "It was imported, but there is no agent in it: decorate a function with @agent, or make an Agent(…)."
TOO_LONG = "it sent more than 4 MiB at once"


class ImportFailed(Exception):
    """The app cannot be imported. `said`: the child's own words, with the traceback."""

    def __init__(self, said: str) -> None:
        super().__init__("the app cannot be imported")
        self.said = said


class Command(NamedTuple):
    argv: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class AnnouncedAgent:
    """An agent, as its process describes it."""

    name: str
    kind: str
    """code: it runs in the child; model: its loop runs in the worker, its tools in the child."""
    input_schema: Any = None
    takes_messages: bool = False
    show: Sequence[str] = ()
    limits: Mapping[str, Any] = field(default_factory=dict)
    model: Sequence[str] | None = None
    instructions: str | None = None
    """None: to be asked for."""
    tools: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    transform: Any = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> AnnouncedAgent:
        return cls(**{name: told[name] for name in cls.__dataclass_fields__ if name in told})


class Child(asyncio.Protocol):
    """`changed()` is called when it can take runs, when it can no longer, and when it is gone."""

    def __init__(self, command: Command, *, blocked_s: float, changed: Callable[[], object]) -> None:
        self.agents: dict[str, AnnouncedAgent] = {}
        self.runs: dict[str, ChildRun] = {}
        self.begun = asyncio.Event()
        """It has had a run."""
        self.gone = asyncio.Event()
        self.pid = 0
        self._command = command
        self._blocked_s = blocked_s
        self._changed = changed
        self._lines = Lines()
        self._transport: asyncio.WriteTransport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._hello: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hello.add_done_callback(lambda said: said.cancelled() or said.exception())
        self._wire_closed = asyncio.Event()
        self._is_leaving = False
        self._killed: str | None = None
        self._asks: dict[int, tuple[str, asyncio.Future[dict[str, Any]]]] = {}
        self._asked = 0
        self._pinged = self._ponged = self._missed = 0
        self._cancelled_beats: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    # -- its life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Until it has imported the app. Raises ImportFailed or ChildLost; then it is gone, or about to be."""
        ours, theirs = socket.socketpair()
        with theirs:
            loop = asyncio.get_running_loop()
            self._transport, _ = await loop.create_unix_connection(lambda: self, sock=ours)
            argv = [part.replace(FD, str(theirs.fileno())) for part in self._command.argv]
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,  # the worker's own is its parent's pipe
                    stdout=2,
                    env=dict(self._command.environment),
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # a Ctrl-C is for the worker, which ends its children in order
                )
            except BaseException as error:
                self._transport.close()
                self.gone.set()
                if isinstance(error, OSError):
                    raise ImportFailed(f"{argv[0]} cannot be started: {error.strerror}") from None
                raise
        self.pid = self._process.pid
        self._tasks.append(asyncio.create_task(self._until_it_exits(), name=f"app's process {self.pid}"))
        await self._import()
        self._tasks.append(asyncio.create_task(self._beats(), name=f"app's process {self.pid}: beats"))
        self._changed()

    async def _import(self) -> None:
        while True:
            try:
                async with asyncio.timeout(SLOW_IMPORT_S):
                    return await asyncio.shield(self._hello)
            except TimeoutError:
                logger.warning("the app's process %d has imported the app for %.0f s now", self.pid, SLOW_IMPORT_S)

    @property
    def takes_runs(self) -> bool:
        return bool(self.agents) and not self._is_leaving and not self._wire_closed.is_set()

    def leave(self) -> None:
        """Take no new run, and exit after the last one."""
        if not self._is_leaving:
            self._is_leaving = True
            self.send({"op": "stop"})
            self._changed()

    async def end(self) -> None:
        """Now: runs that are left are cancelled. Kills it if it does not exit."""
        self.leave()
        if self._transport:
            self._transport.close()
        if not self._hello.done():
            self._kill("it was importing the app when it was ended")  # an import does not look at its wire
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self.gone.wait()
        if not self.gone.is_set():
            logger.warning("the app's process %d did not exit within %.0f s: it is killed", self.pid, LEAVE_S)
            self._kill("it did not exit when it was told to")
            await self.gone.wait()

    def _kill(self, why: str) -> None:
        if self._process and self._killed is None and not self.gone.is_set():
            self._killed = why
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # and what it has started: its session is its own

    async def _until_it_exits(self) -> None:
        assert self._process
        code = await self._process.wait()
        with suppress(TimeoutError):  # what it said at last is still on the way; unless a child of its own has the wire
            async with asyncio.timeout(1.0):
                await self._wire_closed.wait()
        if self._transport:
            self._transport.close()
        how = self._killed or (f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
        if not self._hello.done():
            self._hello.set_exception(ChildLost(how))
        elif self.agents and (self.runs or not self._is_leaving):
            logger.error(
                "the app's process %d ended (%s). It ran: %s",
                *(self.pid, how, self._named(self.runs.values())),
            )
        for run in list(self.runs.values()):
            run.receive({"op": "lost", "how": how})
        for _, asking in self._asks.values():
            if not asking.done():
                asking.set_exception(ChildLost(how))
        self._is_leaving = True
        self.gone.set()
        self._changed()
        for task in self._tasks[1:]:
            task.cancel()

    # -- runs ------------------------------------------------------------------------------------------------

    def run(self, run: str, agent: str, input: Any, info: Mapping[str, Any], handler: Handler) -> ChildRun:
        """Start own code. `run`: a name that no other run of this child has; `info`: what `Context` tells of it."""
        return self._begin("run", run, agent, input, info, handler)

    def open(self, run: str, agent: str, input: Any, info: Mapping[str, Any], handler: Handler) -> ChildRun:
        """Make the tools of a built-in agent ready to be called, by `ask`, until `close`."""
        return self._begin("open", run, agent, input, info, handler)

    def _begin(self, op: str, run: str, agent: str, input: Any, info: Mapping[str, Any], handler: Handler) -> ChildRun:
        if run in self.runs:
            raise ValueError(f"the run {run} is in this child already")
        self.begun.set()
        begun = self.runs[run] = ChildRun(self, run, agent, str(info.get("stream_id", "")), handler)
        try:
            self.send({"op": op, "run": run, "agent": agent, "input": input, "info": info, "credit": CREDIT})
        except LineTooLong:
            begun.receive(
                {"op": "end", "error": {"code": "invalid_input", "message": "The input is larger than 4 MiB."}}
            )
        if self._wire_closed.is_set():
            begun.receive({"op": "lost", "how": "it had ended before the run began"})
        return begun

    def forget(self, run: str) -> None:
        self.runs.pop(run, None)
        self._cancelled_beats.pop(run, None)
        for owner, asking in self._asks.values():
            if owner == run and not asking.done():
                asking.set_exception(AskRefused(CANCELLED, "This run has ended."))
        if not self.runs:
            self._changed()

    async def ask(self, run: str, what: str, data: Mapping[str, Any]) -> dict[str, Any]:
        if self._wire_closed.is_set():
            raise ChildLost("it had ended before it was asked")
        self._asked += 1
        number, asking = self._asked, asyncio.get_running_loop().create_future()
        self._asks[number] = run, asking
        try:
            self.send({"op": "ask", "run": run, "id": number, "what": what, "data": data})
            return await asking  # type: ignore[no-any-return]
        except LineTooLong:
            raise AskRefused(TOO_LARGE, "The arguments are larger than 4 MiB.") from None
        except asyncio.CancelledError:
            self.send({"op": "cancel_ask", "id": number})
            raise
        finally:
            del self._asks[number]
            if asking.done() and not asking.cancelled():
                asking.exception()

    # -- the wire ----------------------------------------------------------------------------------------------

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises LineTooLong. To a child that is gone nothing is sent."""
        if self._transport and not self._transport.is_closing():
            self._transport.write(encode(message))

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._lines.feed(data):
                if isinstance(message, TooLong):
                    self._was_too_long(message)
                else:
                    self._receive(message)
        except (AttributeError, BadLine, KeyError, TypeError, ValueError):
            logger.exception("the app's process %d does not speak the protocol: it is killed", self.pid)
            self._kill("it did not speak the protocol")

    def connection_lost(self, _: Exception | None) -> None:
        self._wire_closed.set()
        self._changed()
        if not self.gone.is_set() and not self._is_leaving:
            asyncio.get_running_loop().call_later(LEAVE_S, self._kill, "it closed its wire")

    def _receive(self, message: dict[str, Any]) -> None:
        match message["op"]:
            case "event" | "ask" | "cancel_ask" | "end":
                if run := self.runs.get(message["run"]):
                    if message["op"] == "end":
                        self._note_end(run, message)
                    run.receive(message)
            case "reply":
                self._replied(message["id"], message)
            case "pong":
                self._ponged = max(self._ponged, int(message["n"]))
            case "held_up":
                self._was_held_up(message)
            case "hello":
                if message["protocol"] != PROTOCOL:
                    raise ValueError(f"protocol {message['protocol']!r}")
                self.agents = {told["name"]: AnnouncedAgent.of(told) for told in message["agents"]}
                if not self._hello.done():
                    if self.agents:
                        self._hello.set_result(None)
                    else:
                        self._hello.set_exception(ImportFailed(NO_AGENTS))
            case "failed":
                if not self._hello.done():
                    short, trace = str(message["message"]), str(message.get("traceback") or "").rstrip()
                    self._hello.set_exception(ImportFailed(trace if short in trace else f"{short}\n{trace}".rstrip()))

    def _replied(self, number: int, message: Mapping[str, Any]) -> None:
        _, asking = self._asks.get(number, ("", None))
        if asking is None or asking.done():
            return  # it was cancelled meanwhile
        if (error := message.get("error")) is None:
            asking.set_result(message["ok"])
        else:
            words = {name: str(error.get(name) or "") for name in ("type", "traceback")}
            refused = AskRefused(
                str(error["code"]), str(error.get("message") or ""), retry=bool(error.get("retry")), **words
            )
            asking.set_exception(refused)

    def _was_too_long(self, skipped: TooLong) -> None:
        """The run fails, not the process, if it can be told whose it was."""
        if skipped.reply_to is not None:
            error = {"code": TOO_LARGE, "message": "The result is larger than 4 MiB."}
            self._replied(skipped.reply_to, {"error": error})
        elif run := self.runs.get(skipped.run or ""):
            logger.error("stream %s: agent %s: %s; the run has failed", run.stream_id, run.agent, TOO_LONG)
            run.fail(AgentError(FAILED, "LineTooLong", TOO_LONG))
        else:
            logger.error("the app's process %d: %s; it is killed", self.pid, TOO_LONG)
            self._kill(TOO_LONG)

    # -- its limits --------------------------------------------------------------------------------------------

    async def _beats(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._beat()

    def _beat(self) -> None:
        """What was received until now has been read: a loop that stood still has had all of it before this."""
        if self._ponged == self._pinged:
            self._missed = 0
            self._pinged += 1
            self.send({"op": "ping", "n": self._pinged})
        else:
            self._missed += 1
            if self._missed * BEAT_S >= 2 * self._blocked_s and self._killed is None:
                logger.error(
                    "the app's process %d was held up for %.0f s, and cannot be interrupted: it is killed. It ran: %s",
                    *(self.pid, 2 * self._blocked_s, self._named(self.runs.values())),
                )
                self._kill(f"it was held up for {2 * self._blocked_s:.0f} s")
        self._look_for_overdue()

    def _look_for_overdue(self) -> None:
        for name, run in self.runs.items():
            if run.is_cancelled:
                beats = self._cancelled_beats[name] = self._cancelled_beats.get(name, 0) + 1
                if beats == round(OVERDUE_S / BEAT_S) + 1:
                    logger.error(
                        "stream %s: agent %s has not ended %.0f s after it was cancelled. It goes on until the other "
                        "runs of its process (%d) have ended; then that is killed. Code in threads learns of a cancel "
                        "by ctx.cancelled.",
                        *(run.stream_id, run.agent, OVERDUE_S, self.pid),
                    )
                    self.leave()
        if self._is_worn_out():
            self._kill("its last runs did not end when they were cancelled")

    def _is_worn_out(self) -> bool:
        """Only overdue runs are left of one that takes no more."""
        overdue = round(OVERDUE_S / BEAT_S)
        return (
            self._is_leaving
            and bool(self.runs)
            and all(self._cancelled_beats.get(name, 0) > overdue for name in self.runs)
        )

    def _note_end(self, run: ChildRun, message: Mapping[str, Any]) -> None:
        error = message.get("error")
        if error and error.get("code") == BLOCKED:
            logger.error(
                "stream %s: agent %s held up its process (%d) and was interrupted; that is replaced when its other "
                "runs have ended",
                *(run.stream_id, run.agent, self.pid),
            )
            self.leave()

    def _was_held_up(self, message: Mapping[str, Any]) -> None:
        run = self.runs.get(message["run"] or "")
        whose = f"stream {run.stream_id}: agent {run.agent}" if run else f"one of {self._named(self.runs.values())}"
        logger.warning(
            "%s holds up the app's process (%d), and all runs in it, for %.1f s now:\n%s",
            *(whose, self.pid, float(message["seconds"]), message["stack"]),
        )

    @staticmethod
    def _named(runs: Any) -> str:
        named = [f"{run.agent} of stream {run.stream_id}" for run in runs]
        return ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "") if named else "nothing"
