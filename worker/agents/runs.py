"""A run in a child, as the worker sees it: what it says is handled in the order in which it came, until it has ended.

Nothing of a run is handled after `cancel`: no event of it is written, and no ask of it begins anything.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

from worker.agents.lines import LineTooLong

CREDIT = 256
"""Events that a run may have on their way: a process of users' code must not fill the worker's memory."""

CREDIT_BACK = 64
"""Given back together: a line for each event would cost as much as the event."""

ASKS_AT_ONCE = 1000
"""That wait for an answer, of one run. Each waits for the log, and is looked at whenever that has grown."""

FAILED, CANCELLED, TOO_LARGE = "agent_failed", "cancelled", "result_too_large"


class ChildLost(Exception):
    """The process ended, or was ended, while it had this run. The message says how, in our words."""


class AgentError(Exception):
    """A run ended with an error. `type`, `message`, `traceback`: of the exception in the user's code."""

    def __init__(self, code: str, type: str = "", message: str = "", traceback: str = "") -> None:
        super().__init__(code)
        self.code, self.type, self.message, self.traceback = code, type, message, traceback


class AskRefused(Exception):
    """What was asked of the child could not be had. `type`, `traceback`: of the exception in the user's code."""

    def __init__(self, code: str, message: str, *, retry: bool = False, type: str = "", traceback: str = "") -> None:
        super().__init__(code)
        self.code, self.message, self.retry, self.type, self.traceback = code, message, retry, type, traceback


class Refused(Exception):
    """A handler's answer to an ask that cannot be met. The user's code meets it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code)
        self.code, self.message = code, message


class Handler(Protocol):
    """Whom a run's events and asks are for. Any other exception than Refused ends the run: its `ended` raises it."""

    async def event(self, kind: str, data: dict[str, Any]) -> None: ...

    async def asked(self, what: str, data: dict[str, Any]) -> dict[str, Any]:
        """Raises Refused."""
        ...


class Wire(Protocol):
    """What a run needs of its child."""

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises LineTooLong."""

    async def ask(self, run: str, what: str, data: Mapping[str, Any]) -> dict[str, Any]: ...
    def forget(self, run: str) -> None: ...


class ChildRun:
    """`ended`: the result; or AgentError, ChildLost, or what its handler raised."""

    def __init__(self, wire: Wire, run: str, agent: str, stream_id: str, handler: Handler) -> None:
        self.run, self.agent, self.stream_id = run, agent, stream_id
        self.ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody need await it
        self.is_cancelled = False
        self.is_over = False
        self._wire = wire
        self._handler = handler
        self._received: deque[dict[str, Any]] = deque()
        self._woken = asyncio.Event()
        self._unhandled = self._owed = 0
        self._answering: dict[Any, asyncio.Task[None]] = {}  # by the ask's id
        self._handling = asyncio.create_task(self._handle_all(), name=f"agent run {run}")

    async def ask(self, what: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Raises AskRefused or ChildLost. If the task that asks is cancelled, the child's part of it is, too."""
        if self.is_over or self.is_cancelled:
            raise AskRefused(CANCELLED, "This run has ended.")
        return await self._wire.ask(self.run, what, data)

    def cancel(self) -> None:
        """Cancel all of it, in the child and here. Its `end` follows."""
        if self.is_over or self.is_cancelled:
            return
        self.is_cancelled = True
        self._wire.send({"op": "cancel", "run": self.run})
        self._stop_handling()
        received = list(self._received)
        self._received.clear()
        for message in received:
            self._drop(message)

    def close(self) -> None:
        """An opened run needs the child no more."""
        if not (self.is_over or self.is_cancelled):
            self._wire.send({"op": "close", "run": self.run})
            self._end(None)

    async def handled(self) -> None:
        """Until nothing of it is under way here, once it is over or cancelled: then nothing more of it is written."""
        await asyncio.wait((self._handling, *self._answering.values()))

    def fail(self, error: Exception) -> None:
        """It cannot go on, whatever the child says."""
        self._settle(error)
        self.cancel()

    def receive(self, message: dict[str, Any]) -> None:
        """From the child, or from whoever saw its end."""
        if self.is_cancelled:
            self._drop(message)
            return
        if message["op"] == "event":
            self._unhandled += 1
            if self._unhandled > CREDIT:
                self.fail(AgentError(FAILED, "", "it says more than it has credit for"))
                return
        self._received.append(message)
        self._woken.set()

    # -- handling ----------------------------------------------------------------------------------------

    async def _handle_all(self) -> None:
        try:
            while not self.is_over:
                while self._received:
                    await self._handle(self._received.popleft())
                self._woken.clear()
                if not self.is_over:
                    await self._woken.wait()
        except Exception as error:  # the handler's: the stream is full, or its pen is lost
            self.fail(error)

    async def _handle(self, message: dict[str, Any]) -> None:
        match message["op"]:
            case "event":
                await self._handler.event(message["kind"], message["data"])
                self._unhandled -= 1
                self._owed += 1
                if self._owed == CREDIT_BACK:
                    self._wire.send({"op": "credit", "run": self.run, "n": self._owed})
                    self._owed = 0
            case "ask" if len(self._answering) >= ASKS_AT_ONCE:
                most = f"A run has at most {ASKS_AT_ONCE:,} calls and agents under way at once."
                self._refuse(message, "failed", most)
            case "ask":
                answering = asyncio.create_task(self._answer(message), name=f"agent run {self.run}: an ask")
                self._answering[message["id"]] = answering
                answering.add_done_callback(lambda _: self._answering.pop(message["id"], None))
                await asyncio.sleep(0)  # it begins before what came after it is handled
            case "cancel_ask":
                if asked := self._answering.get(message["id"]):
                    asked.cancel()
            case _:
                self._end(message)

    def _drop(self, message: dict[str, Any]) -> None:
        """Of a cancelled run. Code that cleans up may still say something, and must not wait for ever."""
        match message["op"]:
            case "event":
                self._wire.send({"op": "credit", "run": self.run, "n": 1})
            case "ask":
                self._refuse(message, CANCELLED, "This run was cancelled.")
            case "cancel_ask":
                pass
            case _:
                self._end(message)

    async def _answer(self, asked: dict[str, Any]) -> None:
        try:
            ok = await self._handler.asked(asked["what"], asked["data"])
            self._wire.send({"op": "reply", "run": self.run, "id": asked["id"], "ok": ok})
        except Refused as refused:
            self._refuse(asked, refused.code, refused.message)
        except LineTooLong:
            self._refuse(asked, TOO_LARGE, "What was asked for is larger than 4 MiB.")
        except asyncio.CancelledError:
            self._refuse(asked, CANCELLED, "This run was cancelled.")
            raise
        except Exception as error:
            self.fail(error)

    def _refuse(self, asked: Mapping[str, Any], code: str, message: str) -> None:
        error = {"code": code, "message": message}
        self._wire.send({"op": "reply", "run": self.run, "id": asked["id"], "error": error})

    # -- the end -------------------------------------------------------------------------------------------

    def _end(self, message: Mapping[str, Any] | None) -> None:
        """`message`: the child's `end`, or `lost`; None: it was closed."""
        self.is_over = True
        self._settle(_error_of(message or {}), (message or {}).get("result"))
        self._wire.forget(self.run)
        self._stop_handling()

    def _settle(self, error: Exception | None, result: Any = None) -> None:
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(result)
        else:
            self.ended.set_exception(error)

    def _stop_handling(self) -> None:
        current = asyncio.current_task()
        for task in (self._handling, *self._answering.values()):
            if task is not current:
                task.cancel()


def _error_of(message: Mapping[str, Any]) -> Exception | None:
    if message.get("op") == "lost":
        return ChildLost(message["how"])
    error = message.get("error")
    if error is None:
        return None
    texts = (str(error.get(name) or "") for name in ("code", "type", "message", "traceback"))
    return AgentError(*texts)
