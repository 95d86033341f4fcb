"""Chains of models: which one answers, what viewers see of the others, and what all of it has cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

import worker.generation
import worker.providers.chain
from broker.log.event import Event, text_since_restart
from broker.log.keys import Keys
from broker.log.meta import new_claim_id
from broker.log.stream_log import StreamLog
from broker.log.turn import message
from broker.log.writer import GroupCommit, StreamWriter
from tests.rig.models import Models
from tests.rig.streams import queued
from tests.rig.wire_peer import WirePeer, sse, wire_peer
from tests.worker.anthropic_events import SEARCH, begin, block, delta, end, stop, text
from worker.generation import Generation
from worker.providers.anthropic import AnthropicProvider
from worker.providers.chain import BROKEN_AFTER, Breaker, Course, Target
from worker.providers.failures import failed
from worker.spending import Spending
from worker.standin.server import StandIn
from worker.standin.words import words

FAST = "rate=0 ttft_ms=0"
LIMIT_S = 60.0
CHAIN = ["one/model", "two/model"]
SEARCH_AT_1 = [{**event, "index": event["index"] + 1} for event in SEARCH]


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    standin = StandIn()
    yield standin
    standin.close()


class Steered(AnthropicProvider):
    """The real adapter, whose requests ask the stand-in for more: `directives` stands before the message."""

    def __init__(self, base_url: str, name: str) -> None:
        super().__init__(api_key="sk-secret", base_url=base_url, silence_s=0.5, name=name)
        self.directives = ""
        self.asked = 0

    def stream(self, model: str, request: dict[str, Any]) -> Any:
        self.asked += 1
        [first, *others] = request["messages"]
        message = {**first, "content": f"{first['content']} [[{self.directives}]]"}
        return super().stream(model, {**request, "messages": [message, *others]})


@pytest.fixture
async def one(standin: StandIn) -> AsyncIterator[Steered]:
    provider = Steered(standin.base_url, "one")
    yield provider
    await provider.aclose()


@pytest.fixture
async def two(standin: StandIn) -> AsyncIterator[Steered]:
    provider = Steered(standin.base_url, "two")
    yield provider
    await provider.aclose()


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.providers.chain, "BACKOFF_S", (0.01, 0.02))


@pytest.fixture
def ask(commit: GroupCommit, redis: Redis) -> Callable[..., Any]:
    """The events of one generation, which takes the providers in turn."""
    log = commit.log

    async def ask(prompt: str, *providers: Steered, model: Any = CHAIN, **fields: Any) -> list[Event]:
        request = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 100, "model": model, **fields}
        claimed = await log.claim(await queued(log, request=request), new_claim_id(), "worker-1")
        generation = Generation(claimed, StreamWriter(commit, claimed), Models(*providers), Breaker(redis, log.keys))
        async with asyncio.timeout(LIMIT_S):
            await generation.run(asyncio.Semaphore(1))
        return await log.read_all(claimed.sid)

    return ask


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis)


def shown(events: list[Event]) -> list[str]:
    """The kinds that are for viewers, a run of deltas as one."""
    kinds = [event.kind for event in events if not event.kind.startswith("internal.")]
    return [kind for at, kind in enumerate(kinds) if at == 0 or kind != kinds[at - 1]]


def data(events: list[Event], kind: str) -> list[dict[str, Any]]:
    return [orjson.loads(event.data) for event in events if event.kind == kind]


# -- which model answers -----------------------------------------------------------------------------------


async def test_the_first_model_that_answers_is_the_one_that_starts(ask: Any, one: Steered, two: Steered) -> None:
    one.directives = "status=529"
    events = await ask(f"[[tokens=3 {FAST}]]", one, two)
    assert shown(events) == ["queued", "start", "text_delta", "done"]
    assert data(events, "start") == [{"model": "two/model", "provider": "two", "attempt": 1}]
    assert data(events, "internal.failover") == [
        {"from": "one/model", "to": "two/model", "code": "provider_overloaded"}
    ]
    [trace] = data(events, "internal.trace")
    assert (trace["code"], trace["status"], trace["model"]) == ("provider_overloaded", 529, "one/model")
    assert trace["request_id"].startswith("req_standin_")


async def test_what_was_shown_is_taken_back_before_another_model_answers(ask: Any, one: Steered, two: Steered) -> None:
    one.directives = "cut_at=20"
    events = await ask(f"[[tokens=30 {FAST}]]", one, two)
    assert shown(events) == ["queued", "start", "text_delta", "restart", "start", "text_delta", "done"]
    assert [start["provider"] for start in data(events, "start")] == ["one", "two"]
    assert len(data(events, "text_delta")) == 20 + 30
    assert data(events, "restart") == [{"attempt": 2, "reason": "provider_cut"}]
    assert "You wrote" in text_since_restart(events) or text_since_restart(events)


async def test_if_all_refuse_there_is_one_error_and_the_last_one_was_tried_again(
    ask: Any, one: Steered, two: Steered
) -> None:
    one.directives = two.directives = "status=529"
    events = await ask(f"[[{FAST}]]", one, two)
    assert shown(events) == ["queued", "status", "error"]
    assert data(events, "error")[0]["code"] == "provider_overloaded"
    assert (one.asked, two.asked) == (1, 2)


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_an_operators_fault_is_not_the_users(ask: Any, one: Steered, two: Steered, status: int) -> None:
    one.directives = f"status={status}"
    events = await ask(f"[[tokens=1 {FAST}]]", one, two)
    assert shown(events) == ["queued", "start", "text_delta", "done"]
    assert one.asked == 1


async def test_a_refused_request_goes_nowhere_else(ask: Any, one: Steered, two: Steered) -> None:
    one.directives = "status=400"
    events = await ask(f"[[{FAST}]]", one, two)
    assert shown(events) == ["queued", "error"]
    assert two.asked == 0


async def test_a_wait_that_is_asked_for_counts_only_where_no_model_is_left(
    ask: Any, one: Steered, two: Steered
) -> None:
    one.directives = "status=429 retry_after=3600"
    events = await ask(f"[[tokens=1 {FAST}]]", one, two)
    assert shown(events) == ["queued", "start", "text_delta", "done"]


def test_a_model_that_no_key_opens_does_not_end_what_another_may_still_do() -> None:
    targets = [Target(f"{name}/m", None, "m", name, name) for name in "ab"]  # type: ignore[arg-type]
    course = Course(targets)
    assert course.goes_on_after(failed("provider_overloaded"))
    assert course.goes_on_after(failed("provider_unauthorized"))
    assert course.target.name == "a/m"
    assert not course.goes_on_after(failed("provider_unauthorized"))


# -- the breaker -------------------------------------------------------------------------------------------


async def test_a_model_that_failed_three_times_is_left_out_by_all_workers_for_a_while(
    ask: Any, redis: Redis, one: Steered, two: Steered
) -> None:
    one.directives = "status=529"
    for _ in range(BROKEN_AFTER + 5):
        await ask(f"[[tokens=1 {FAST}]]", one, two)
    assert one.asked == BROKEN_AFTER
    key = Keys().breaker("one/model")
    assert 0 < await redis.ttl(key) <= worker.providers.chain.BROKEN_S
    await redis.delete(key)
    one.directives = ""
    assert data(await ask(f"[[tokens=1 {FAST}]]", one, two), "start")[0]["provider"] == "one"


async def test_a_success_in_between_begins_the_count_anew(ask: Any, one: Steered, two: Steered) -> None:
    for directives in ("status=529", "status=529", "", "status=529", "status=529", ""):
        one.directives = directives
        events = await ask(f"[[tokens=1 {FAST}]]", one, two)
    assert data(events, "start")[0]["provider"] == "one"


async def test_if_every_model_is_left_out_all_are_tried(ask: Any, redis: Redis, one: Steered, two: Steered) -> None:
    breaker = Breaker(redis, Keys())
    for name in CHAIN * BROKEN_AFTER:
        await breaker.failed(name)
    assert data(await ask(f"[[tokens=1 {FAST}]]", one, two), "start")[0]["provider"] == "one"


# -- turns of a provider that pauses ----------------------------------------------------------------------


class Scripted(AnthropicProvider):
    """The real adapter, which is told one of `turns` after the other."""

    def __init__(self, peer: WirePeer, name: str, *turns: bytes) -> None:
        super().__init__(api_key="sk-secret", base_url=peer.url, silence_s=5, name=name)
        self.peer, self.turns = peer, list(turns)

    def stream(self, model: str, request: dict[str, Any]) -> Any:
        self.peer.says(self.turns.pop(0))
        return super().stream(model, request)


@pytest.fixture
async def peer() -> AsyncIterator[WirePeer]:
    async with wire_peer() as peer:
        yield peer


async def test_a_turn_that_breaks_is_said_again_behind_those_that_were_finished(ask: Any, standin: StandIn) -> None:
    class Breaking(Steered):
        def stream(self, model: str, request: dict[str, Any]) -> Any:
            self.directives = "cut_at=2" if self.asked == 2 else ""
            return super().stream(model, request)

    breaking, other = Breaking(standin.base_url, "anthropic"), Steered(standin.base_url, "anthropic")
    events, whole = [
        await ask(f"[[tokens=4 pause=2 {FAST}]]", one, model="anthropic/model") for one in (breaking, other)
    ]
    await breaking.aclose()
    await other.aclose()
    assert data(events, "restart") == [{"attempt": 2, "reason": "provider_cut"}]
    assert [used["turn"] for used in data(events, "internal.usage")] == [0, 1, 2, 2]
    assert text_since_restart(events) == text_since_restart(whole)
    assert [kind_of(block) for block in message(events)["content"]] == [
        kind_of(block) for block in message(whole)["content"]
    ]


def kind_of(block: dict[str, Any]) -> Any:
    return block["type"], block.get("text")


async def test_citations_are_of_the_whole_answers_text(ask: Any, peer: WirePeer) -> None:
    cited = delta(0, "citations_delta", citation={"url": "https://a/"})
    said = [block(0, "text", text=""), delta(0, "text_delta", text="12345"), cited, stop(0)]
    turns = sse(begin(), *said, *SEARCH_AT_1, *end("pause_turn")), sse(begin(), *said, *end())
    anthropic = Scripted(peer, "anthropic", *turns)
    events = await ask("hello", anthropic, model="anthropic/model")
    await anthropic.aclose()
    assert [(one["start"], one["end"]) for one in data(events, "citation")] == [(0, 5), (5, 10)]


async def test_a_turn_without_anything_to_show_is_in_the_message_once(ask: Any, peer: WirePeer) -> None:
    hidden = [block(0, "redacted_thinking", data="cmVk"), stop(0)]
    turns = sse(begin(), *hidden, *end("pause_turn")), sse(begin(), *text(0, "x"), *end())
    anthropic, other = Scripted(peer, "anthropic", *turns), Scripted(peer, "other")
    events = await ask("hello", anthropic, other, model=["anthropic/model", "other/model"])
    await anthropic.aclose()
    await other.aclose()
    assert shown(events) == ["queued", "start", "text_delta", "done"]
    assert message(events)["content"] == [{"type": "redacted_thinking", "data": "cmVk"}, {"type": "text", "text": "x"}]


# -- what it cost ------------------------------------------------------------------------------------------


async def test_every_attempt_counts_and_each_says_what_it_counted(ask: Any, one: Steered, two: Steered) -> None:
    one.directives = "cut_at=2"
    events = await ask(f"[[tokens=3 {FAST}]]", one, two)
    lost, whole = data(events, "internal.usage")
    assert lost["usage_incomplete"] is True
    assert (lost["model"], whole["model"]) == ("one/model", "two/model")
    [done] = data(events, "done")
    assert done["usage"]["input_tokens"] == lost["usage"]["input_tokens"] + whole["usage"]["input_tokens"]
    assert done["usage_incomplete"] is True
    assert done["cost_usd"] is None, "nobody knows what these models cost"


async def test_one_whole_answer_says_its_usage_once(ask: Any, one: Steered) -> None:
    events = await ask(f"[[tokens=3 {FAST}]]", one, model="one/model")
    assert data(events, "internal.usage") == []
    assert data(events, "done")[0]["usage"]["output_tokens"] == 3


async def test_an_error_says_what_was_counted(ask: Any, one: Steered) -> None:
    one.directives = "cut_at=2"
    [error] = data(await ask(f"[[tokens=3 {FAST}]]", one, model="one/model"), "error")
    assert error["usage"]["input_tokens"] > 0
    assert error["usage_incomplete"] is True


def test_text_of_which_nobody_has_counted_anything_yet_was_not_for_nothing() -> None:
    spending = Spending()
    assert spending.told() == {}
    spending.begin()
    assert spending.told() == {"usage_incomplete": True}


# -- an answer that its provider pauses --------------------------------------------------------------------


async def test_a_paused_answer_goes_on_in_the_same_stream(ask: Any, one: Steered) -> None:
    one.directives = "pause=2"
    events = await ask(f"[[tokens=3 {FAST}]]", one, model="one/model")
    assert shown(events).count("start") == 1
    assert one.asked == 3
    assert [turn["turn"] for turn in data(events, "internal.turn")] == [0, 1], "the last one is text alone"
    spent = data(events, "internal.usage")
    [done] = data(events, "done")
    assert done["usage"]["input_tokens"] == sum(usage["usage"]["input_tokens"] for usage in spent)
    assert (done["stop_reason"], done["provider_stop_reason"]) == ("end_turn", "end_turn")


async def test_when_a_later_turn_breaks_what_was_finished_is_said_again_and_not_asked_for_again(
    ask: Any, one: Steered, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def stream(model: str, request: dict[str, Any]) -> Any:
        asked.append(len(request["messages"]))
        one.directives = "pause=1" + (" cut_at=1" if len(asked) == 2 else "")
        return Steered.stream(one, model, request)

    monkeypatch.setattr(one, "stream", stream)
    events = await ask(f"[[tokens=3 {FAST}]]", one, model="one/model")
    assert asked == [1, 2, 2], "the first turn is asked for once"
    at = [event.kind for event in events].index("restart")
    again = events[at:]
    assert [start["replayed"] for start in data(again, "tool_start")] == [True]
    assert text_since_restart(events) == "".join(islice(words(f"[[tokens=3 {FAST}]] [[{one.directives}]]"), 6))
    assert [turn["turn"] for turn in data(again, "internal.turn")] == [0]


async def test_a_provider_that_always_pauses_comes_to_an_end(
    ask: Any, one: Steered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.generation, "MAX_PAUSES", 3)
    one.directives = "pause=99"
    events = await ask(f"[[tokens=1 {FAST}]]", one, model="one/model")
    [done] = data(events, "done")
    assert (one.asked, done["stop_reason"], done["provider_stop_reason"]) == (3, "other", "pause_turn")


# -- structured output -------------------------------------------------------------------------------------


async def test_an_answer_that_is_not_as_the_schema_asks_is_named_and_stays(ask: Any, one: Steered) -> None:
    schema = {"type": "object", "required": ["city"]}
    events = await ask(f"[[tokens=3 {FAST}]]", one, model="one/model", output_schema=schema)
    assert data(events, "done")[0]["schema_violation"] == {"place": "", "message": "The answer is not JSON."}
    assert text_since_restart(events)
