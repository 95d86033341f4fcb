"""A run of the built-in loop for tests: real log, journal and adapters; the child's tools are the test's functions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

import orjson

import tests.worker.anthropic_events as wire
from broker.log.event import Event
from broker.log.meta import new_claim_id
from broker.log.steps import Claimed
from broker.log.stream_log import StreamLog
from broker.log.writer import GroupCommit, StreamWriter
from broker.store.connect import Client
from tests.rig.streams import queued, taken_over
from tests.rig.wire_peer import Answer, sse
from worker.agents.approvals import Approvals
from worker.agents.calls import Calls
from worker.agents.caps import Allowance, Limits, Session
from worker.agents.history import Asker
from worker.agents.inbox import Inbox
from worker.agents.inputs import Inputs
from worker.agents.journal import Journal, read_journal
from worker.agents.loop import Answer as Answered
from worker.agents.loop import Loop
from worker.agents.runs import AskRefused
from worker.agents.stage import AgentStage
from worker.providers.chain import Breaker, Target
from worker.providers.provider import Provider
from worker.turns import Models

LIMIT_S = 60.0
FAST = "rate=0 ttft_ms=0"

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "title": "Looking out of the window",
    "description": "What the weather is.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
"""The tool that the stand-in calls."""


LOOK = {**WEATHER, "name": "look"}
"""The tool that scripted turns call."""


def turn(*calls: str, text: str = "", reason: str = "", end: str = "proper") -> Answer:
    """A turn of Anthropic's wire: a text, then a call of `look` for each of these places."""
    said = wire.text(0, text) if text else []
    for at, place in enumerate(calls, len(said) and 1):
        said += wire.call(at, f"toolu_{place}", orjson.dumps({"place": place}).decode())
    reason = reason or ("tool_use" if calls else "end_turn")
    ending = wire.end(reason) if end == "proper" else []
    return Answer((sse(wire.begin(), *said, *ending),), end=end)


class Wires:
    """One target for each turn, in turn; the last one stays. (provider's name, its adapter), named as its form."""

    def __init__(self, *providers: Provider) -> None:
        self._providers = list(providers)

    async def chain(self, _model: str | list[str]) -> list[Target]:
        client = self._providers.pop(0) if len(self._providers) > 1 else self._providers[0]
        return [Target(f"{client.name}/some-model", client, "some-model", answers_as=client.name, form=client.name)]


class Child:
    """The tools' end: an AskRefused that a function raises is what its caller is told. `ran`: each call and its key."""

    def __init__(self, **functions: Callable[..., Awaitable[Any]]) -> None:
        self.functions = functions
        self.resolves: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {}
        self.need_approval: set[str] = set()
        self.invalid: set[str] = set()
        self.ran: list[tuple[str, str]] = []

    async def ask(self, what: str, data: Mapping[str, Any]) -> dict[str, Any]:
        tool = data["tool"]
        if what == "check":
            if tool in self.invalid:
                raise AskRefused("invalid_args", "city: not a city.")
            return {"needs_approval": tool in self.need_approval}
        if what == "resolve":
            return await self.resolves[tool](**data["args"])
        self.ran.append((tool, data["idempotency_key"]))
        return {"result": await self.functions[tool](**data["args"])}


class Researchers:
    """Sub-agents, each a loop of its own. `prompt`: what one is asked."""

    def __init__(self, prompt: str = "", limits: Limits | None = None) -> None:
        self.prompt = prompt
        self.limits = limits or Limits()
        self.ran: list[str] = []
        self.again: list[str] = []
        self.made: Callable[..., Loop] | None = None

    async def run(self, name: str, input: Any, *, path: str, is_public: bool, allowance: Allowance) -> str:
        assert self.made
        self.ran.append(path)
        loop = self.made(path, allowance.within(self.limits), is_public)
        return (await loop.run([{"role": "user", "content": self.prompt}])).text

    def say_again(self, path: str) -> None:
        self.again.append(path)


class Run(NamedTuple):
    """A claimed stream with its agent. `do` runs it to its end."""

    claimed: Claimed
    stage: AgentStage
    loop: Loop
    prompt: str

    async def do(self) -> Answered:
        async with asyncio.timeout(LIMIT_S):
            answer = await self.loop.run([{"role": "user", "content": self.prompt}])
            self.stage.write("done", {"stop_reason": answer.stop_reason})
            await self.stage.flush()
            return answer


class Desk:
    """Makes runs of one agent, and takes them over."""

    def __init__(self, commit: GroupCommit, models: Models, child: Child, **options: Any) -> None:
        self.log: StreamLog = commit.log
        self.child = child
        self._redis = cast(Client, self.log.redis)
        self.inputs = Inputs(self._redis, self.log.keys)
        self.sub_agents = Researchers()
        self.waits = 0
        self._commit = commit
        self._models = models
        self._options = options

    async def begin(self, prompt: str, **options: Any) -> Run:
        sid = await queued(self.log)
        await self.log.redis.hset(self.log.keys.stream(sid).meta, "agent", "support")  # type: ignore[misc]
        claimed = await self.log.claim(sid, new_claim_id(), "worker-1")
        return self.of(claimed, Journal(sid), prompt, **options)

    async def take_over(self, run: Run) -> Run:
        claimed = await taken_over(self.log, run.claimed.sid)
        return self.of(claimed, await read_journal(self.log, claimed.sid), run.prompt)

    def of(self, claimed: Claimed, journal: Journal, prompt: str, **options: Any) -> Run:
        options = self._options | options
        show = frozenset(options.get("show", ()))
        stage = AgentStage(claimed, StreamWriter(self._commit, claimed), {"agent": "support"})
        stage.announce()
        stage.begin()
        calls = Calls(journal, stage, show=show)
        timeout_s = options.get("approval_timeout_s", LIMIT_S)
        approvals = Approvals(stage, journal, self.inputs, timeout_s=timeout_s, without_slot=self._without_slot)
        session = Session(self._redis, self.log.keys, "t", "s", claimed.sid)
        tools: Sequence[Mapping[str, Any]] = options.get("tools", [WEATHER])
        names = options.get("names", ["anthropic/some-model"])

        def made(path: str, allowance: Allowance, is_public: bool = True) -> Loop:
            asker = Asker("support", options.get("instructions", "Help."), [] if path else tools, {}, 100)
            if path:
                asker = asker._replace(tools=[WEATHER])
            return Loop(
                path,
                asker,
                names,
                models=self._models,
                breaker=Breaker(self._redis, self.log.keys),
                stage=stage,
                show=show,
                is_public=is_public,
                transform=options.get("transform"),
                calls=calls,
                tools=self.child,
                allowance=allowance,
                approvals=approvals,
                sub_agents=self.sub_agents,
                inbox=None if path else Inbox(stage, self.inputs, journal),
            )

        self.sub_agents.made = made
        return Run(claimed, stage, made("", Allowance(options.get("limits", Limits()), session)), prompt)

    async def events(self, run: Run) -> list[Event]:
        return await self.log.read_all(run.claimed.sid)

    @asynccontextmanager
    async def _without_slot(self) -> AsyncIterator[None]:
        self.waits += 1
        try:
            yield
        finally:
            self.waits -= 1


def data(event: Event) -> dict[str, Any]:
    read: dict[str, Any] = orjson.loads(event.data)
    return read


def of_kind(events: Sequence[Event], kind: str) -> list[dict[str, Any]]:
    return [data(event) for event in events if event.kind == kind]


def kinds(events: Sequence[Event]) -> list[str]:
    """Of what viewers see, with runs of deltas as one."""
    shown = [event.kind for event in events if not event.kind.startswith("internal.")]
    return [kind for at, kind in enumerate(shown) if not (kind.endswith("_delta") and at and shown[at - 1] == kind)]
