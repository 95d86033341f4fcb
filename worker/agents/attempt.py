"""Attempt: what all agents of one stream share while it is tried once: the stage, the journal, the limits, the child.

The top agent may run others, and those others again: own code by `ctx.run`, a model by a tool that is an agent. All are
in one stream, under one pen and in one process, and end with who runs them. What fails a sub-agent is a failed call of
its parent, which may go on; what ends its process, the pen or the limits of the whole run ends everything.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

import orjson

from broker.log.event import TEXT_DELTA
from broker.log.keys import Keys
from broker.log.steps import Claimed
from broker.log.stream_log import StreamLog
from broker.settings import Settings
from broker.store.connect import Client
from worker.agents.app import App
from worker.agents.approvals import Approvals
from worker.agents.calls import NOT_APPROVED, TOO_MANY_CALLS, Asked, Call, Calls, Opened
from worker.agents.caps import Allowance, LimitReached, Limits, Session
from worker.agents.history import Asker
from worker.agents.inbox import Inbox
from worker.agents.inputs import Inputs
from worker.agents.journal import Finished, Journal
from worker.agents.loop import Answer, Loop
from worker.agents.own_code import OwnCode
from worker.agents.process import AnnouncedAgent, Child
from worker.agents.runs import AgentError, AskRefused, Refused
from worker.agents.stage import AgentStage
from worker.providers.chain import Breaker
from worker.providers.failures import ProviderFailure
from worker.stage import said_again
from worker.turns import Models, Turns

MAX_DEPTH = 8
"""An agent that runs itself would go on for ever."""


AGENTS_AT_ONCE = 500
"""Of a stream. Each that runs two would soon leave no room for other streams."""


class Means(NamedTuple):
    """What a worker has for its agents."""

    app: App
    log: StreamLog
    redis: Client
    keys: Keys
    inputs: Inputs
    models: Models
    breaker: Breaker
    settings: Settings


class Attempt:
    """`without_slot`: leaves the worker's slot to others while it is entered."""

    def __init__(
        self,
        means: Means,
        claimed: Claimed,
        stage: AgentStage,
        journal: Journal,
        child: Child,
        *,
        without_slot: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        meta = claimed.meta
        self.stage = stage
        self.show: frozenset[str] = frozenset(meta.show or ())
        self.calls = Calls(journal, stage, show=self.show)
        self.inbox = Inbox(stage, means.inputs, journal)
        self._means = means
        self._claimed = claimed
        self._child = child
        session = Session(means.redis, means.keys, meta.tenant, meta.session, claimed.sid) if meta.session else None
        self._session = session
        self._approvals = Approvals(
            stage, journal, means.inputs, timeout_s=means.settings.approval_timeout_s, without_slot=without_slot
        )
        self._paths: set[str] = set()
        self._at_once = 0

    # -- agents ------------------------------------------------------------------------------------------

    async def answer(self, agent: AnnouncedAgent, request: Mapping[str, Any]) -> tuple[Any, Answer | None]:
        """The top agent: what its code returned, or how its model ended.

        Raises AgentError, ChildLost, LimitReached, ProviderFailure, AskRefused, StreamLimit, or what lost the pen.
        """
        allowance = Allowance(self._limits(agent), self._session)
        if agent.kind == "code":
            code = OwnCode(self, agent, "", allowance, is_public=True)
            return await code.run(self._child, _given(agent, request)), None
        return None, await self._loop(agent, request, "", allowance, is_public=True)

    async def run(self, name: str, input: Any, *, path: str, is_public: bool, allowance: Allowance) -> str:
        """An agent that another one runs: its text, or what it returned.

        Raises AskRefused if it fails, LimitReached, or what ends everything.
        """
        agent = self._means.app.agents.get(name)
        if agent is None:
            raise AskRefused("failed", f"This app has no agent {name!r}.")
        if not path or path in self._paths or path.count("/") >= MAX_DEPTH:
            raise AskRefused("failed", f"Agents run agents {MAX_DEPTH} deep at most, each under a path of its own.")
        if self._at_once >= AGENTS_AT_ONCE:
            raise AskRefused("failed", f"A stream has at most {AGENTS_AT_ONCE} agents at once.")
        self._paths.add(path)
        self._at_once += 1
        async with self._told(path) as failed:
            try:
                return await self._run(agent, input, path, allowance.within(self._limits(agent)), is_public=is_public)
            except AgentError as error:
                self.trace(error, path)
                failed["code"] = error.code
                raise AskRefused("failed", f"The agent {name} failed ({error.type or error.code}).") from None
            except ProviderFailure as failure:
                failed["code"] = failure.code
                raise AskRefused("failed", failure.message) from None
            finally:
                self._at_once -= 1

    async def _run(self, agent: AnnouncedAgent, input: Any, path: str, allowance: Allowance, *, is_public: bool) -> str:
        if agent.kind == "code":
            code = OwnCode(self, agent, path, allowance, is_public=is_public)
            return code.as_text(await code.run(self._child, input))
        return (await self._loop(agent, {"input": input}, path, allowance, is_public=is_public)).text

    def say_again(self, path: str) -> None:
        """All that viewers had got of a sub-agent, which has ended and is not run again."""
        for kind, data, _ in self.calls.journal.said_by(path):
            self.stage.write(kind, said_again(kind, data))

    @asynccontextmanager
    async def _told(self, path: str) -> AsyncIterator[dict[str, str]]:
        """`agent_start` before it and `agent_end` after it, with what it used, and the code of what failed."""
        named = {"agent": path, "parent": path.rpartition("/")[0]}
        failed: dict[str, str] = {}
        began = time.monotonic()
        self.stage.write("agent_start", named)
        try:
            yield failed
        except LimitReached as reached:
            failed["code"] = reached.code
            raise
        finally:
            if not (self.stage.writer.lost or self.stage.writer.closed):
                took = {"duration_ms": round((time.monotonic() - began) * 1000)}
                spent = {"usage": usage} if (usage := self.stage.usage_of(path)) else {}
                self.stage.write("agent_end", {**named, **took, **spent, **failed})

    async def _loop(
        self, agent: AnnouncedAgent, request: Mapping[str, Any], path: str, allowance: Allowance, *, is_public: bool
    ) -> Answer:
        of_tools = OwnCode(self, agent, path, allowance, is_public=is_public)
        tools = self._child.open(self.name_of(path), agent.name, _given(agent, request), self.info(path), of_tools)
        try:
            if "messages" not in request:
                await tools.ask("validate", {})
            asker = Asker(
                agent.name,
                agent.instructions if agent.instructions is not None else (await tools.ask("instructions", {}))["text"],
                agent.tools,
                agent.options,
                self._means.settings.max_tokens,
            )
            loop = Loop(
                path,
                asker,
                agent.model or [self._means.settings.default_model],
                models=self._means.models,
                breaker=self._means.breaker,
                stage=self.stage,
                show=self.show,
                is_public=is_public,
                transform=agent.transform,
                calls=self.calls,
                tools=tools,
                allowance=allowance,
                approvals=self._approvals,
                sub_agents=self,
                inbox=None if path else self.inbox,
            )
            return await loop.run(_messages(request))
        finally:
            tools.cancel()
            await tools.handled()

    def _limits(self, agent: AnnouncedAgent) -> Limits:
        return Limits.announced(agent.limits, self._means.settings)

    def name_of(self, path: str) -> str:
        """Of a run in its child: no other run there has it."""
        return f"{self._claimed.sid}:{self.stage.attempt}:{path}"

    def info(self, path: str) -> Mapping[str, Any]:
        """What `Context` tells of it."""
        meta = self._claimed.meta
        who = {"stream_id": self._claimed.sid, "session_id": meta.session, "user_id": meta.user}
        return {**who, "metadata": meta.metadata or {}, "attempt": self.stage.attempt, "agent": path}

    def trace(self, error: AgentError, path: str) -> None:
        """For operators: what went wrong, in the exception's own words."""
        trace = {"code": error.code, "type": error.type, "message": error.message, "traceback": error.traceback}
        said = {name: text for name, text in trace.items() if text} | ({"agent": path} if path else {})
        self.stage.write("internal.trace", said)

    # -- what own code asks for --------------------------------------------------------------------------

    async def open_call(self, asked: Asked, allowance: Allowance, *, needs_approval: bool) -> Opened:
        """Begin a call, unless the log has its outcome, a limit stands against it or a person refuses it.

        Raises Refused, and what lost the pen, or StreamLimit: then nothing may run.
        """
        try:
            call = self.calls.begin(asked)
        except ValueError as error:
            raise Refused("invalid_args", f"the arguments are no JSON: {error}") from None
        try:
            if asked.is_step or call.is_under_way or call.was_refused:
                return await self.calls.open(call)
            if call.was_allowed:
                allowance.count_call()
            elif refused := await self._refusal(call, allowance, needs_approval=needs_approval):
                return await self.calls.refuse(call, *refused)
            return await self.calls.open(call)
        except BaseException:
            self.calls.drop(call)
            raise

    async def _refusal(self, call: Call, allowance: Allowance, *, needs_approval: bool) -> tuple[str, str] | None:
        """(code, message) of why a call is not run. As in the loop: what a person refuses takes nothing of a limit."""
        if needs_approval and allowance.has_calls and (why := await self._approvals.why_not(call, allowance)):
            return NOT_APPROVED, why
        if why := await allowance.take_call(call.key):
            return TOO_MANY_CALLS, why
        return None

    async def route(self, text: str, choices: Mapping[str, str]) -> str:
        """Which of these a text is for, by one turn of the default model. Raises Refused."""
        asked = Asked("", "route", {"text": text, "choices": dict(choices)}, is_idempotent=True, is_step=True)
        opened = await self.calls.open(self.calls.begin(asked))
        if opened.do == "replay":
            return str(opened.result)
        turns = Turns(
            self.stage, self._means.models, self._means.breaker, lambda *_: (), begin=lambda _: None, keeps=True
        )
        try:
            course = await turns.course(self._means.settings.default_model)
            turn = await turns.ask(lambda _: _routing(text, choices), course)
        except ProviderFailure as failure:
            self.calls.drop(opened.call)
            raise Refused("failed", failure.message) from None
        answer = "".join(data["text"] for kind, data in turn.said if kind == TEXT_DELTA)
        choice = _chosen(answer, choices)
        await self.calls.close(opened.call.tool_call_id, Finished(choice))
        return choice


def _given(agent: AnnouncedAgent, request: Mapping[str, Any]) -> Any:
    """As the agent's input: its own; or a Prompt, or to code that has not asked for one, the text of a single one."""
    if "messages" not in request:
        return request.get("input")
    messages = request["messages"]
    takes_text = agent.kind == "code" and not agent.takes_messages and len(messages) == 1
    if takes_text and isinstance(text := messages[0].get("content"), str):
        return text
    return {"messages": messages}


def _messages(request: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """What a model is asked: messages as they were given, or an input as a text."""
    if "messages" in request:
        messages: Sequence[dict[str, Any]] = request["messages"]
        return messages
    return [{"role": "user", "content": _text_of(request.get("input"))}]


def _text_of(given: Any) -> str:
    if isinstance(given, str):
        return given
    if isinstance(given, dict) and given.keys() == {"prompt"} and isinstance(given["prompt"], str):
        return given["prompt"]
    return orjson.dumps(given).decode()


def _routing(text: str, choices: Mapping[str, str]) -> dict[str, Any]:
    listed = "\n".join(f"- {name}: {purpose}" for name, purpose in choices.items())
    system = f"Choose who should handle the message. Answer with one of these names, and nothing else:\n{listed}"
    return {"system": system, "messages": [{"role": "user", "content": text}], "max_tokens": 64}


def _chosen(answer: str, choices: Mapping[str, str]) -> str:
    """The name that the answer is, or else the one that it mentions first, or else the first of all."""
    if (plain := answer.strip().strip("`'\".")) in choices:
        return plain
    places = {name: at for name in choices if (at := answer.lower().find(name.lower())) >= 0}
    return min(places, key=places.__getitem__) if places else next(iter(choices))
