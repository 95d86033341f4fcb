"""A run of a team's own code: what its process says and asks, on the stream's stage.

The code runs in a child (process.py). Here its events are written, its calls are journalled, and what it asks for is
had: a sub-agent, an input, a choice of a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

import orjson

from broker.log.event import (
    INTERNAL,
    NOTICES,
    OF_CLIENTS,
    RESERVED,
    START,
    TERMINAL,
    TEXT_DELTA,
)
from worker.agents.calls import Asked, Calls, Opened
from worker.agents.caps import Allowance, LimitReached
from worker.agents.inbox import Inbox
from worker.agents.joining import JOINED
from worker.agents.journal import Finished
from worker.agents.process import AnnouncedAgent, Child
from worker.agents.runs import AgentError, AskRefused, Refused
from worker.agents.speech import attributed
from worker.agents.stage import AgentStage
from worker.visibility import visible

_OF_CALLS = frozenset({"tool_start", "tool_args", "tool_end", "tool_error", "approval_request"})
_OF_OPERATORS = frozenset({"turn", "usage", "failover", "trace", "approval", "tool_result"})

OURS = (
    RESERVED
    | NOTICES
    | OF_CLIENTS
    | TERMINAL
    | _OF_CALLS
    | {START, "input", "agent_start", "agent_end"}
    | {f"{INTERNAL}{name}" for name in _OF_CALLS | _OF_OPERATORS}
)
"""Kinds that only the worker writes: a reader of the log, and the journal, trust them."""

_KIND = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,79}")
"""What code may call its events: a line of a text, whatever way the code has found to the wire."""


class Attempt(Protocol):
    """What the code's stream shares (attempt.py)."""

    stage: AgentStage
    show: frozenset[str]
    calls: Calls
    inbox: Inbox

    def name_of(self, path: str) -> str: ...
    def info(self, path: str) -> Mapping[str, Any]: ...
    async def open_call(self, asked: Asked, allowance: Allowance, *, needs_approval: bool) -> Opened: ...
    async def run(self, name: str, input: Any, *, path: str, is_public: bool, allowance: Allowance) -> str: ...
    async def route(self, text: str, choices: Mapping[str, str]) -> str: ...


class OwnCode:
    """`path`: '' for the top agent. `is_public`: whether a sub-agent's text is for viewers."""

    def __init__(
        self, attempt: Attempt, agent: AnnouncedAgent, path: str, allowance: Allowance, *, is_public: bool
    ) -> None:
        self._attempt = attempt
        self._agent = agent
        self._path = path
        self._is_public = is_public
        self._allowance = allowance
        self._texts: list[str] = []

    async def run(self, child: Child, given: Any) -> Any:
        """What the code returns, JSON. Raises AgentError, ChildLost, LimitReached, or what lost the pen."""
        run = child.run(
            self._attempt.name_of(self._path), self._agent.name, given, self._attempt.info(self._path), self
        )
        try:
            async with self._allowance.time():
                return await run.ended
        finally:
            run.cancel()  # nothing, if it has ended
            await run.handled()

    def as_text(self, result: Any) -> str:
        """For whoever asked it: what it said, or else what it returned."""
        if self._texts or result is None:
            return "".join(self._texts)
        return result if isinstance(result, str) else orjson.dumps(result).decode()

    # -- what the code says ------------------------------------------------------------------------------

    async def event(self, kind: str, data: dict[str, Any]) -> None:
        stage = self._attempt.stage
        if not (isinstance(kind, str) and _KIND.fullmatch(kind) and isinstance(data, dict)):
            raise AgentError("agent_failed", "ValueError", "an event has a name as its kind, and an object as its data")
        if kind in OURS:
            raise AgentError("agent_failed", "ValueError", f"events of kind {kind} are written by the worker alone")
        text = JOINED.get(kind.removeprefix(INTERNAL))
        if text and not isinstance(data.get(text), str):  # readers join it
            raise AgentError("agent_failed", "TypeError", f"{text} of an event of kind {kind} is a text")
        if kind == TEXT_DELTA:
            self._texts.append(data["text"])
        for event in visible(kind, data, self._attempt.show, ()):
            stage.write(*attributed(*event, self._path, is_public=self._is_public))
        await stage.drain()

    # -- what it asks for --------------------------------------------------------------------------------

    async def asked(self, what: str, data: dict[str, Any]) -> dict[str, Any]:
        match what:
            case "open_call":
                return await self._open(data)
            case "close_call":
                return await self._close(data)
            case "give_up_call":
                self._attempt.calls.give_up(data["tool_call_id"])
                return {}
            case "run_agent":
                return {"result": await self._run_agent(data)}
            case "next_input":
                told = await self._attempt.inbox.at(data["after"])
                return {"input": {name: told[name] for name in ("text", "data") if name in told}}
            case "route":
                return {"choice": await self._attempt.route(data["text"], data["choices"])}
            case _:
                raise Refused("failed", f"this worker does not know what {what} is; is its Lastevent older?")

    async def _run_agent(self, data: dict[str, Any]) -> str:
        try:
            return await self._attempt.run(
                data["agent"],
                data["input"],
                path=data["path"],
                is_public=bool(data.get("public")),
                allowance=self._allowance,
            )
        except AskRefused as refused:
            raise Refused(refused.code, refused.message) from None
        except LimitReached as reached:
            if self._allowance.includes(reached.of):
                raise
            raise Refused("failed", reached.message) from None

    async def _open(self, data: dict[str, Any]) -> dict[str, Any]:
        asked = Asked(
            self._path,
            data["tool"],
            data["args"],
            key=tuple(data["key"]) if data.get("key") is not None else None,
            title=data.get("title"),
            is_idempotent=bool(data.get("idempotent")),
            has_resolve=bool(data.get("has_resolve")),
            is_public=bool(data.get("public", True)),
            is_step=bool(data.get("is_step")),
        )
        opened = await self._attempt.open_call(asked, self._allowance, needs_approval=bool(data.get("approval")))
        if opened.do == "error":
            return {"do": "error", "error": opened.error}
        if opened.do == "replay":
            return {"do": "replay", "result": opened.result}
        return {"do": opened.do, "tool_call_id": opened.call.tool_call_id, "idempotency_key": opened.call.key}

    async def _close(self, data: dict[str, Any]) -> dict[str, Any]:
        outcome = Finished(data.get("result"), data.get("error"), data.get("duration_ms"))
        try:
            await self._attempt.calls.close(data["tool_call_id"], outcome)
        except KeyError:
            raise Refused("failed", "this call is not open") from None
        return {}
