"""What the agents of one stream share: calls and their limits, sub-agents, and what is left when their process dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import fakeredis
import orjson
import pytest

from broker.log.keys import Keys
from broker.log.stream_log import StreamLog
from broker.log.writer import GroupCommit, StreamWriter
from broker.settings import Settings
from tests.rig.models import Models
from tests.rig.streams import LIMIT_S, committing, running, taken_over
from worker.agents.attempt import Attempt, Means
from worker.agents.calls import Asked, Opened
from worker.agents.caps import Allowance, Limits
from worker.agents.inputs import Inputs
from worker.agents.journal import Decision, Finished, Journal, read_journal
from worker.agents.loop import Answer
from worker.agents.process import AnnouncedAgent
from worker.agents.run import AgentRun
from worker.agents.runs import AskRefused, ChildRun, Handler
from worker.agents.stage import AgentStage
from worker.providers.chain import Breaker
from worker.providers.provider import Finish

AGENTS = {name: AnnouncedAgent(name, "code") for name in ("boss", "helper")}
PAY = Asked("", "pay", {"cents": 5})
ONE_CALL = Limits(tool_calls=1)

Code = Callable[["Process", ChildRun, Any], Awaitable[None]]


class Process:
    """The end of the wire at which the code of the agents is: `code` by their names. It says what it is told to."""

    def __init__(self, **code: Code) -> None:
        self.code = code
        self.runs: list[ChildRun] = []
        self.replies: dict[int, asyncio.Future[Any]] = {}
        self._codes: list[asyncio.Task[None]] = []

    def run(self, run: str, agent: str, given: Any, info: Mapping[str, Any], handler: Handler) -> ChildRun:
        begun = ChildRun(self, run, agent, str(info["stream_id"]), handler)
        self.runs.append(begun)
        self._codes.append(asyncio.ensure_future(self.code[agent](self, begun, given)))
        return begun

    def ends(self, run: ChildRun, result: Any = None) -> None:
        run.receive({"op": "end", "result": result})

    def asks(self, run: ChildRun, what: str, **data: Any) -> asyncio.Future[Any]:
        number = len(self.replies)
        self.replies[number] = asyncio.get_running_loop().create_future()
        run.receive({"op": "ask", "id": number, "what": what, "data": data})
        return self.replies[number]

    def dies(self) -> None:
        for run in self.runs:
            run.receive({"op": "lost", "how": "signal SIGKILL"})

    def send(self, message: Mapping[str, Any]) -> None:
        if message["op"] == "reply":
            self.replies[message["id"]].set_result(message)

    async def ask(self, run: str, what: str, data: Mapping[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def forget(self, run: str) -> None: ...


class Stream:
    """`attempt()` claims it, or takes it over."""

    def __init__(self, log: StreamLog, commit: GroupCommit) -> None:
        self.log = log
        self.sid = ""
        redis: Any = log.redis
        self.inputs = Inputs(redis, log.keys)
        self._commit = commit
        self._means = Means(
            cast(Any, SimpleNamespace(agents=AGENTS)),
            *(log, redis, log.keys, self.inputs, Models(), Breaker(redis, Keys()), Settings()),
        )

    async def attempt(self, process: Process | None = None) -> Attempt:
        if self.sid:
            claimed = await taken_over(self.log, self.sid)
            journal = await read_journal(self.log, self.sid)
        else:
            claimed = await running(self.log, agent="boss")
            self.sid, journal = claimed.sid, Journal(claimed.sid)
        stage = AgentStage(claimed, StreamWriter(self._commit, claimed), {"agent": "boss"})
        stage.announce()
        stage.begin()
        return Attempt(self._means, claimed, stage, journal, cast(Any, process), without_slot=_without_slot)

    async def run(self, *processes: Process) -> None:
        """The whole of it, one process after the other."""
        waiting = list(processes)

        async def place(*, alone: bool) -> Process:
            assert alone is (len(waiting) < len(processes))
            return waiting.pop(0)

        claimed = await running(self.log, agent="boss", request={"input": None})
        self.sid = claimed.sid
        app = cast(Any, SimpleNamespace(agents=AGENTS, place=place))
        run = AgentRun(claimed, StreamWriter(self._commit, claimed), self._means._replace(app=app))
        async with asyncio.timeout(LIMIT_S):
            await run.run(asyncio.Semaphore(1))

    async def said(self) -> list[tuple[str, dict[str, Any]]]:
        return [(event.kind, orjson.loads(event.data)) for event in await self.log.read_all(self.sid)]

    async def decide(self, *, approve: bool) -> None:
        """As soon as it is asked for."""
        async with asyncio.timeout(LIMIT_S):
            while not (asked := [one for one in await self.log.inputs.read(self.sid) if one.what == "ask"]):
                pass
        await self.inputs.decide(self.sid, asked[-1].about, Decision(approve, "", "key:1"))
        self.inputs._wake(None)


@asynccontextmanager
async def _without_slot() -> AsyncIterator[None]:
    yield


@pytest.fixture
async def stream() -> AsyncIterator[Stream]:
    log = StreamLog(fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer()))
    async with committing(log) as commit:
        yield Stream(log, commit)


async def since_restart(stream: Stream) -> list[tuple[str, dict[str, Any]]]:
    said = await stream.said()
    return said[max(at for at, (kind, _) in enumerate(said) if kind == "restart") + 1 :]


# -- calls of own code -----------------------------------------------------------------------------------------


async def made(attempt: Attempt, allowance: Allowance, asked: Asked = PAY) -> Opened:
    opened = await attempt.open_call(asked, allowance, needs_approval=False)
    if opened.do == "run":
        await attempt.calls.close(opened.call.tool_call_id, Finished("paid"))
    return opened


async def test_a_call_of_an_earlier_attempt_is_counted_as_it_was_then(stream: Stream) -> None:
    await made(await stream.attempt(), Allowance(ONE_CALL))
    attempt, allowance = await stream.attempt(), Allowance(ONE_CALL)
    assert (await made(attempt, allowance)).do == "replay"
    refused = await made(attempt, allowance)
    assert (refused.error or {})["code"] == "too_many_calls"


async def test_a_call_that_a_person_refused_takes_nothing_of_a_limit(stream: Stream) -> None:
    attempt, allowance = await stream.attempt(), Allowance(ONE_CALL)
    opening = asyncio.create_task(attempt.open_call(PAY, allowance, needs_approval=True))
    await stream.decide(approve=False)
    assert ((await opening).error or {})["code"] == "not_approved"
    assert (await made(attempt, allowance)).do == "run"


async def test_nobody_is_asked_about_a_call_for_which_there_is_no_room(stream: Stream) -> None:
    attempt, allowance = await stream.attempt(), Allowance(ONE_CALL)
    await made(attempt, allowance)
    refused = await attempt.open_call(PAY, allowance, needs_approval=True)
    assert (refused.error or {})["code"] == "too_many_calls"


async def test_a_person_is_asked_once_about_calls_of_one_effect_at_the_same_time(stream: Stream) -> None:
    attempt, allowance = await stream.attempt(), Allowance(ONE_CALL)
    keyed = PAY._replace(key=())
    one, other = [asyncio.create_task(attempt.open_call(keyed, allowance, needs_approval=True)) for _ in range(2)]
    await stream.decide(approve=True)
    await attempt.calls.close((await one).call.tool_call_id, Finished("paid"))
    assert (await other).result == "paid"
    assert [kind for kind, _ in await stream.said()].count("approval_request") == 1


async def test_a_call_that_was_given_up_is_unknown_and_not_under_way(stream: Stream) -> None:
    keyed: dict[str, Any] = {"tool": "pay", "args": {"cents": 5}, "key": []}

    async def gives_up(process: Process, run: ChildRun, _: Any) -> None:
        opened = (await process.asks(run, "open_call", **keyed))["ok"]
        await process.asks(run, "give_up_call", tool_call_id=opened["tool_call_id"])
        process.ends(run, (await process.asks(run, "open_call", **keyed))["ok"])

    await stream.run(Process(boss=gives_up))
    [*_, (_, done)] = await stream.said()
    assert done["result"]["error"]["code"] == "outcome_unknown"


# -- sub-agents ------------------------------------------------------------------------------------------------


async def test_nothing_of_a_process_that_died_is_said_behind_the_restart(stream: Stream) -> None:
    async def asks_helper(process: Process, run: ChildRun, _: Any) -> None:
        process.asks(run, "run_agent", agent="helper", input=None, path="helper.1")

    async def dies(process: Process, run: ChildRun, _: Any) -> None:
        process.dies()

    async def ends(process: Process, run: ChildRun, _: Any) -> None:
        process.ends(run)

    await stream.run(Process(boss=asks_helper, helper=dies), Process(boss=ends))
    assert "agent_start" in [kind for kind, _ in await stream.said()]
    assert [kind for kind, _ in await since_restart(stream)] == ["start", "done"]


async def test_after_a_takeover_viewers_get_all_of_a_sub_agent_that_is_not_run_again(stream: Stream) -> None:
    attempt = await stream.attempt()
    said = [
        ("agent_start", {"agent": "helper.1", "parent": ""}),
        ("agent_text_delta", {"agent": "helper.1", "text": "I "}),
        ("agent_text_delta", {"agent": "helper.1", "text": "look."}),
        ("tool_start", {"agent": "helper.1", "tool": "t", "tool_call_id": "c"}),
        ("internal.tool_args", {"agent": "helper.1", "tool": "t", "tool_call_id": "c", "args": {}}),
        ("agent_text_delta", {"agent": "helper.2", "text": "I am not over."}),
        ("agent_text_delta", {"agent": "helper.1/reader.1", "text": "It says so."}),
        ("agent_end", {"agent": "helper.1", "parent": "", "duration_ms": 5}),
    ]
    for event in said:
        attempt.stage.write(*event)
    await attempt.stage.flush()
    for _ in range(2):  # also of what was itself said again
        attempt = await stream.attempt()
        attempt.say_again("helper.1")
        await attempt.stage.flush()
        assert (await since_restart(stream))[1:] == [
            said[0],
            ("agent_text_delta", {"agent": "helper.1", "text": "I look."}),
            ("tool_start", {**said[3][1], "replayed": True}),
            *said[-2:],
        ]


async def test_a_sub_agent_that_its_asker_gives_up_ends_and_the_asker_goes_on(stream: Stream) -> None:
    helped: asyncio.Future[ChildRun] = asyncio.get_running_loop().create_future()

    async def gives_up(process: Process, run: ChildRun, _: Any) -> None:
        replied = process.asks(run, "run_agent", agent="helper", input=None, path="helper.1")
        helper = await helped
        run.receive({"op": "cancel_ask", "id": 0})
        assert (await replied)["error"]["code"] == "cancelled"
        assert helper.is_cancelled
        process.ends(run)

    async def never_ends(process: Process, run: ChildRun, _: Any) -> None:
        helped.set_result(run)

    await stream.run(Process(boss=gives_up, helper=never_ends))
    assert [kind for kind, _ in await stream.said()] == ["queued", "start", "agent_start", "agent_end", "done"]


async def test_a_sub_agents_end_tells_what_it_and_those_below_it_used_in_all_attempts(stream: Stream) -> None:
    def used(agent: str, tokens: int) -> tuple[str, dict[str, Any]]:
        return "internal.usage", {"agent": agent, "usage": {"output_tokens": tokens, "provider": {}}}

    async def spends_and_runs(process: Process, run: ChildRun, _: Any) -> None:
        attempt: Any = run._handler._attempt  # type: ignore[attr-defined]
        attempt.stage.write(*used("helper.1", 2))
        attempt.stage.write(*used("helper.1/reader.1", 5))
        attempt.stage.write(*used("helper.10", 70))
        attempt.stage.write(*used("", 700))
        process.asks(run, "run_agent", agent="helper", input=None, path="helper.1")

    async def dies(process: Process, run: ChildRun, _: Any) -> None:
        process.dies()

    async def asks_and_ends(process: Process, run: ChildRun, _: Any) -> None:
        await process.asks(run, "run_agent", agent="helper", input=None, path="helper.1")
        process.ends(run)

    async def ends(process: Process, run: ChildRun, _: Any) -> None:
        process.ends(run)

    await stream.run(Process(boss=spends_and_runs, helper=dies), Process(boss=asks_and_ends, helper=ends))
    [told] = [data for kind, data in await since_restart(stream) if kind == "agent_end"]
    assert told["usage"] == {"output_tokens": 7}
    assert (await read_journal(stream.log, stream.sid)).usages[0] == ("helper.1", {"output_tokens": 2, "provider": {}})


async def test_done_tells_what_the_provider_said_of_its_end(stream: Stream) -> None:
    claimed = await running(stream.log, agent="boss")
    run = AgentRun(claimed, StreamWriter(stream._commit, claimed), stream._means)
    finish = Finish("refusal", {}, provider_stop_reason="content_filter", stop_details={"why": "x"}, response_id="r")
    done = run._done(None, Answer("", "refusal", "openai/some-model", finish)).data
    assert done == {
        **done,
        "stop_reason": "refusal",
        "provider_stop_reason": "content_filter",
        "stop_details": {"why": "x"},
        "response_id": "r",
        "model": "openai/some-model",
    }
    assert "stop_sequence" not in done


# -- what else reaches the worker ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text_delta", "thinking_delta"])
async def test_text_that_is_none_fails_the_run_and_is_not_written(stream: Stream, kind: str) -> None:
    async def says(process: Process, run: ChildRun, _: Any) -> None:
        run.receive({"op": "event", "kind": kind, "data": {"text": 5}})

    await stream.run(Process(boss=says))
    [*_, (trace, told), (ending, error)] = await stream.said()
    assert (trace, told["type"], ending, error["code"]) == ("internal.trace", "TypeError", "error", "agent_failed")


async def test_an_input_that_two_take_at_once_is_taken_once(stream: Stream) -> None:
    attempt = await stream.attempt()
    await attempt.stage.flush()
    await stream.log.inputs.tell(stream.sid, {"text": "Hello?"})
    await asyncio.gather(attempt.inbox.take(), attempt.inbox.at(0), attempt.inbox.at(0))
    assert [kind for kind, _ in await stream.said()].count("input") == 1


@pytest.mark.parametrize("path", ["", "/".join(["helper.1"] * 9)])
async def test_a_sub_agent_has_a_path_and_is_not_too_deep(stream: Stream, path: str) -> None:
    attempt = await stream.attempt()
    with pytest.raises(AskRefused):
        await attempt.run("helper", None, path=path, is_public=False, allowance=Allowance(Limits()))
