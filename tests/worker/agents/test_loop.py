"""The built-in loop over real adapters and a real log: what is in the log when, and what never happens twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any

import pytest
from redis.asyncio import Redis

import worker.agents.loop
import worker.providers.chain
from broker.errors import ApprovalNotFound
from broker.log.event import Event, text_since_restart
from broker.log.stream_log import StreamLog
from broker.log.writer import GroupCommit
from tests.rig.models import Models
from tests.rig.wire_peer import WirePeer, wire_peer
from tests.worker.agents.looping import FAST, LIMIT_S, LOOK, Child, Desk, Run, Wires, data, kinds, of_kind, turn
from worker.agents.caps import LimitReached, Limits
from worker.agents.journal import UNKNOWN, Decision
from worker.agents.runs import AskRefused
from worker.providers.anthropic import AnthropicProvider
from worker.providers.gemini import GeminiProvider
from worker.providers.openai import OpenAIProvider
from worker.providers.openai_chat import OpenAIChatProvider
from worker.providers.provider import Provider
from worker.standin.server import StandIn
from worker.standin.words import words

PROVIDERS = (AnthropicProvider, OpenAIProvider, OpenAIChatProvider, GeminiProvider)


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    standin = StandIn()
    yield standin
    standin.close()


@pytest.fixture(scope="module")
async def wires(standin: StandIn) -> AsyncIterator[list[Provider]]:
    """All four, in the order of PROVIDERS."""
    made: list[Provider] = []
    for kind in PROVIDERS:
        path = "/v1" if kind in (OpenAIProvider, OpenAIChatProvider) else ""
        made.append(kind(api_key="sk-secret", base_url=standin.base_url + path, silence_s=LIMIT_S))
    yield made
    for provider in made:
        await provider.aclose()


@pytest.fixture(scope="module")
async def peer() -> AsyncIterator[WirePeer]:
    async with wire_peer() as peer:
        yield peer


@pytest.fixture
async def scripted(peer: WirePeer) -> AsyncIterator[AnthropicProvider]:
    provider = AnthropicProvider(api_key="sk-secret", base_url=peer.url, silence_s=LIMIT_S)
    yield provider
    await provider.aclose()


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.providers.chain, "BACKOFF_S", (0.0, 0.0))
    monkeypatch.setattr(worker.agents.loop, "RETRY_S", (0.0, 0.0))


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis)


async def seen(place: str) -> str:
    return f"{place} is fine"


@pytest.fixture
def desk(commit: GroupCommit, scripted: AnthropicProvider) -> Desk:
    """Its model says what the test has the peer say; its tool sees that a place is fine."""
    return Desk(commit, Models(scripted), Child(look=seen), tools=[LOOK])


def results(peer: WirePeer, request: int) -> list[tuple[str, bool]]:
    """(what a model reads, whether that is an error) of the calls in a request's last message."""
    [*_, last] = peer.asked[request].json["messages"]
    return [(one["content"], one.get("is_error", False)) for one in last["content"] if one["type"] == "tool_result"]


def texts(peer: WirePeer, request: int) -> list[Any]:
    """Of all messages of a request: (role, its texts)."""
    found = []
    for message in peer.asked[request].json["messages"]:
        content = message["content"]
        said = [content] if isinstance(content, str) else [one["text"] for one in content if one["type"] == "text"]
        found.append((message["role"], said))
    return found


async def die(run: Run, task: asyncio.Task[Any]) -> None:
    """The worker is gone, and what it had not written."""
    task.cancel()
    await asyncio.wait([task])


def since_restart(events: list[Event]) -> list[Event]:
    at = max((at for at, event in enumerate(events) if event.kind == "restart"), default=-1)
    return events[at + 1 :]


# -- it goes well ------------------------------------------------------------------------------------------


async def test_a_turn_is_in_the_log_before_its_calls_and_a_call_before_it_runs(desk: Desk, peer: WirePeer) -> None:
    found: list[list[str]] = []

    async def look(place: str) -> str:
        found.append([event.kind for event in await desk.events(run)])
        return place

    desk.child.functions["look"] = look
    peer.says_in_turn(turn("A", text="I look."), turn(text="There."))
    run = await desk.begin("Look!")
    answer = await run.do()
    assert (answer.text, answer.stop_reason, answer.model) == ("There.", "end_turn", "anthropic/claude-x-20260101")
    [then] = found
    assert [kind for kind in then if kind != "internal.tool_args_delta"] == [
        *("queued", "start", "text_delta", "internal.usage", "internal.turn", "tool_start", "internal.tool_args")
    ]
    events = await desk.events(run)
    shown = ["queued", "start", "text_delta", "tool_start", "tool_end", "text_delta", "done"]
    assert kinds(events) == shown
    assert text_since_restart(events) == "I look.There."
    assert desk.child.ran == [("look", f"{run.claimed.sid}/0.toolu_A")]


async def test_a_turn_goes_back_as_it_was_said_and_with_its_results(desk: Desk, peer: WirePeer) -> None:
    peer.says_in_turn(turn("A", "B", text="I look."), turn(text="There."))
    await (await desk.begin("Look!")).do()
    first, second = (asked.json for asked in peer.asked)
    assert second["messages"][:1] == first["messages"] == [{"role": "user", "content": "Look!"}]
    assert second["messages"][1]["content"] == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "toolu_A", "name": "look", "input": {"place": "A"}},
        {"type": "tool_use", "id": "toolu_B", "name": "look", "input": {"place": "B"}},
    ]
    assert results(peer, 1) == [("A is fine", False), ("B is fine", False)]
    assert first["tools"] == second["tools"]
    assert first["system"] == second["system"]


async def test_so_many_calls_at_a_time_and_their_results_in_order(desk: Desk, peer: WirePeer) -> None:
    now, most, gates = 0, 0, {place: asyncio.Event() for place in "ABCD"}

    async def look(place: str) -> str:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        if place in "AC":  # each waits for the one behind it, which there is room for
            await gates[place].wait()
        else:
            gates[{"B": "A", "D": "C"}[place]].set()
        now -= 1
        return place

    desk.child.functions["look"] = look
    peer.says_in_turn(turn(*"ABCD"), turn(text="There."))
    await (await desk.begin("Look!", limits=Limits(parallel=2))).do()
    assert most == 2
    assert [text for text, _ in results(peer, 1)] == list("ABCD")


@pytest.mark.parametrize("first", range(4), ids=[kind.__name__ for kind in PROVIDERS])
@pytest.mark.parametrize("second", range(4), ids=[kind.__name__ for kind in PROVIDERS])
async def test_one_turn_by_one_provider_and_the_next_by_another(
    commit: GroupCommit, wires: list[Provider], first: int, second: int
) -> None:
    async def get_weather(**_: Any) -> Any:
        return {"degrees": 21}

    desk = Desk(commit, Wires(wires[first], wires[second]), Child(get_weather=get_weather), show=("args",))
    prompt = f"[[tokens=5 thinking=2 tools=2 {FAST}]]"
    run = await desk.begin(prompt)
    answer = await run.do()
    events = await desk.events(run)
    said = "".join(islice(words(prompt), 5))
    assert text_since_restart(events) == said + said
    assert answer.text == said
    assert answer.model == f"{wires[second].name}/some-model"
    assert [tool for tool, _ in desk.child.ran] == 2 * ["get_weather"]
    assert len({key for _, key in desk.child.ran}) == 2
    turns = of_kind(events, "internal.turn")
    assert [(one["turn"], one["provider"], len(one["calls"])) for one in turns] == [
        (0, wires[first].name, 2),
        (1, wires[second].name, 0),
    ]
    shown = [one["tool_call_id"] for one in of_kind(events, "tool_args") if one["complete"]]
    assert shown == [one["tool_call_id"] for one in of_kind(events, "tool_start")]


async def test_a_provider_that_pauses_goes_on_in_the_next_turn(commit: GroupCommit, wires: list[Provider]) -> None:
    desk = Desk(commit, Wires(wires[0]), Child(), tools=[])
    prompt = f"[[tokens=3 pause=1 {FAST}]]"
    run = await desk.begin(prompt)
    answer = await run.do()
    assert answer.text == "".join(islice(words(prompt), 6)) == text_since_restart(await desk.events(run))
    turns = of_kind(await desk.events(run), "internal.turn")
    assert [one["stop_reason"] for one in turns] == ["paused", "end_turn"]


# -- what a model reads instead of a result -----------------------------------------------------------------


async def test_what_is_not_run_is_an_error_that_the_model_reads(desk: Desk, peer: WirePeer) -> None:
    desk.child.invalid.add("look")
    peer.says_in_turn(turn("A"), turn(text="Sorry."))
    run = await desk.begin("Look!")
    assert (await run.do()).text == "Sorry."
    assert results(peer, 1) == [("invalid_args: city: not a city.", True)]
    [error] = of_kind(await desk.events(run), "tool_error")
    assert error == {"tool_call_id": "toolu_A", "tool": "look", "code": "invalid_args"}
    assert desk.child.ran == []


async def test_a_tool_that_there_is_not(desk: Desk, peer: WirePeer) -> None:
    peer.says_in_turn(turn("A"), turn(text="Sorry."))
    await (await desk.begin("Look!", tools=[])).do()
    assert results(peer, 1) == [("failed: There is no tool of this name.", True)]


async def test_a_tool_that_failed_is_tried_again_only_if_it_says_so_and_under_its_key(
    desk: Desk, peer: WirePeer
) -> None:
    async def look(place: str) -> str:
        if place == "B" or len(desk.child.ran) < 4:
            trace = {"B": "BusyError: planted"}.get(place, "")
            raise AskRefused("failed", f"{place}: the line is busy", retry=place == "A", traceback=trace)
        return place

    desk.child.functions["look"] = look
    peer.says_in_turn(turn("B", "A"), turn(text="There."))
    run = await desk.begin("Look!", limits=Limits(parallel=1))
    await run.do()
    assert results(peer, 1) == [("failed: B: the line is busy", True), ("A", False)]
    sid = run.claimed.sid
    assert [key for _, key in desk.child.ran] == [f"{sid}/0.toolu_B", *3 * [f"{sid}/0.toolu_A"]]
    [trace] = of_kind(await desk.log.read_all(sid), "internal.call_trace")
    assert trace == {"tool_call_id": "toolu_B", "tool": "look", "traceback": "BusyError: planted"}


async def test_calls_beyond_the_limits_are_refused_and_then_no_tool_may_be_called(desk: Desk, peer: WirePeer) -> None:
    peer.says_in_turn(turn(*"ABC"), turn("D"), turn(text="There."))
    limits = Limits(tool_calls=2, tool_calls_per_turn=2)
    run = await desk.begin("Look!", limits=limits)
    await run.do()
    assert [text.partition(":")[0] for text, _ in results(peer, 1)] == ["A is fine", "B is fine", "too_many_calls"]
    assert results(peer, 2)[0][0].startswith("too_many_calls: This run has made all")
    assert ["tool_choice" in asked.json for asked in peer.asked] == [False, True, True]
    assert peer.asked[1].json["tool_choice"] == {"type": "none"}
    assert len(desk.child.ran) == 2


async def test_a_run_that_does_not_come_to_an_end_is_ended(desk: Desk, peer: WirePeer) -> None:
    peer.says_in_turn(turn("A"), turn("B"), turn("C"))
    run = await desk.begin("Look!", limits=Limits(turns=2))
    with pytest.raises(LimitReached) as reached:
        await run.do()
    assert reached.value.code == "too_many_turns"
    assert len(peer.asked) == 2


async def test_calls_of_a_turn_that_was_cut_short_are_not_run(desk: Desk, peer: WirePeer) -> None:
    peer.says_in_turn(turn("A", text="I lo", reason="max_tokens"))
    answer = await (await desk.begin("Look!")).do()
    assert (answer.text, answer.stop_reason) == ("I lo", "max_tokens")
    assert desk.child.ran == []


async def test_a_turn_that_was_cut_short_goes_back_without_its_calls(desk: Desk, peer: WirePeer) -> None:
    peer.says_in_turn(turn("A", text="I lo", reason="max_tokens"), turn(text="There."))
    run = await desk.begin("Look!")
    tell_before_the_first_turn(desk, peer, run)
    assert (await run.do()).text == "I loThere."
    sent = peer.asked[1].json["messages"]
    assert [one["type"] for message in sent[1:] for one in message["content"]] == ["text", "text"]


# -- tries and takeovers ------------------------------------------------------------------------------------


async def test_a_try_that_breaks_repeats_its_turn_and_never_the_run(desk: Desk, peer: WirePeer) -> None:
    peer.says_in_turn(turn("A", text="I look."), turn("B", text="The", end="cut"), turn(text="There."))
    run = await desk.begin("Look!")
    await run.do()
    events = await desk.events(run)
    assert desk.child.ran == [("look", f"{run.claimed.sid}/0.toolu_A")]
    assert [data(event)["reason"] for event in events if event.kind == "restart"] == ["provider_cut"]
    assert text_since_restart(events) == "I look.There."
    again = since_restart(events)
    assert kinds(again) == ["start", "text_delta", "tool_start", "tool_end", "text_delta", "done"]
    assert of_kind(again, "tool_start")[0]["replayed"] is True


@pytest.mark.parametrize("way", ["unknown", "idempotent", "resolve", "resolve: not done", "resolve: cannot tell"])
async def test_after_a_takeover_the_log_answers(desk: Desk, peer: WirePeer, way: str) -> None:
    """Turn 0 and call A were finished, call B was running."""
    running = asyncio.Event()

    async def look(place: str) -> str:
        if place == "B" and not running.is_set():
            running.set()
            await asyncio.Event().wait()
        return f"{place} is fine"

    async def resolve(place: str) -> dict[str, Any]:
        if way == "resolve: cannot tell":
            raise AskRefused("outcome_unknown", "away", traceback="the bank is away")
        return {"done": way == "resolve", "result": f"{place} was fine"}

    desk.child.functions["look"] = look
    desk.child.resolves["look"] = resolve
    tool = {**LOOK, "idempotent": way == "idempotent", "has_resolve": way.startswith("resolve")}
    desk._options["tools"] = [tool]
    peer.says_in_turn(turn("A", "B", text="I look."), turn(text="There."))
    run = await desk.begin("Look!", limits=Limits(parallel=1))
    task = asyncio.create_task(run.do())
    await running.wait()
    await die(run, task)
    assert [place for _, place in desk.child.ran] == [f"{run.claimed.sid}/0.toolu_{one}" for one in "AB"]

    run = await desk.take_over(run)
    answer = await run.do()
    assert answer.text == "There."
    assert len(peer.asked) == 2, "turn 0 was not asked for again"
    ran_again, told = {
        "unknown": (0, (f"outcome_unknown: {UNKNOWN['message']}", True)),
        "idempotent": (1, ("B is fine", False)),
        "resolve": (0, ("B was fine", False)),
        "resolve: not done": (1, ("B is fine", False)),
        "resolve: cannot tell": (0, (f"outcome_unknown: {UNKNOWN['message']}", True)),
    }[way]
    assert desk.child.ran[2:] == ran_again * [("look", f"{run.claimed.sid}/0.toolu_B")]
    assert results(peer, 1) == [("A is fine", False), told]
    events = await desk.events(run)
    assert text_since_restart(events) == "I look.There."
    assert [event.kind for event in events].count("done") == 1
    again = since_restart(events)
    ending = "tool_error" if way in ("unknown", "resolve: cannot tell") else "tool_end"
    assert any("the bank is away" in str(data(event)) for event in again) == (way == "resolve: cannot tell")
    assert kinds(again) == [
        *("start", "text_delta", "tool_start", "tool_end", "tool_start", ending, "text_delta", "done")
    ]


async def test_a_run_whose_last_turn_was_in_the_log_only_says_it_again(desk: Desk, peer: WirePeer) -> None:
    peer.says_in_turn(turn("A", text="I look."), turn(text="There."))
    run = await desk.begin("Look!")
    await run.loop.run([{"role": "user", "content": run.prompt}])  # and no ending
    await run.stage.flush()
    run = await desk.take_over(run)
    answer = await run.do()
    assert (answer.text, answer.stop_reason, answer.finish) == ("There.", "end_turn", None)
    assert len(peer.asked) == 2
    assert len(desk.child.ran) == 1
    assert text_since_restart(await desk.events(run)) == "I look.There."


# -- approval -----------------------------------------------------------------------------------------------


async def asked_for(desk: Desk, run: Run) -> dict[str, Any]:
    async with asyncio.timeout(LIMIT_S):
        while not (found := of_kind(since_restart(await desk.events(run)), "approval_request")):
            pass
        while not desk.waits:  # noqa: ASYNC110
            await asyncio.sleep(0)
        while len(await desk.log.inputs.read(run.claimed.sid)) == 0:
            pass
    return found[-1]


@pytest.mark.parametrize("approve", [True, False])
async def test_a_call_that_needs_approval_waits_for_it_without_a_slot(
    desk: Desk, peer: WirePeer, approve: bool
) -> None:
    desk.child.need_approval.add("look")
    peer.says_in_turn(turn("A"), turn(text="There."))
    run = await desk.begin("Look!")
    task = asyncio.create_task(run.do())
    request = await asked_for(desk, run)
    assert desk.waits == 1
    assert desk.child.ran == []
    assert request == {**request, "tool_call_id": "toolu_A", "tool": "look", "title": LOOK["title"]}
    await desk.inputs.decide(run.claimed.sid, request["approval_id"], Decision(approve, "As you like.", "key:1"))
    desk.inputs._wake(None)
    await task
    assert desk.waits == 0
    assert len(desk.child.ran) == approve
    told = ("A is fine", False) if approve else ("not_approved: This call was not approved. As you like.", True)
    assert results(peer, 1) == [told]
    events = await desk.events(run)
    assert [one.keys() for one in of_kind(events, "tool_error")] == (not approve) * [{"tool_call_id", "tool", "code"}]
    [noted] = of_kind(events, "internal.approval")
    assert noted == {
        "approval_id": request["approval_id"],
        "approve": approve,
        "reason": "As you like.",
        "by": "key:1",
    }


async def test_nobody_in_time_is_a_refusal(desk: Desk, peer: WirePeer) -> None:
    desk.child.need_approval.add("look")
    peer.says_in_turn(turn("A"), turn(text="There."))
    await (await desk.begin("Look!", approval_timeout_s=0.01)).do()
    assert results(peer, 1) == [("not_approved: This call was not approved. Nobody decided within 0.01 s.", True)]
    assert desk.child.ran == []


@pytest.mark.parametrize("decided", ["before", "after"])
async def test_a_takeover_waits_for_the_same_approval(desk: Desk, peer: WirePeer, decided: str) -> None:
    desk.child.need_approval.add("look")
    peer.says_in_turn(turn("A"), turn(text="There."))
    run = await desk.begin("Look!")
    task = asyncio.create_task(run.do())
    request = await asked_for(desk, run)
    await die(run, task)
    yes = Decision(approve=True, reason="", by="key:1")
    if decided == "before":
        await desk.inputs.decide(run.claimed.sid, request["approval_id"], yes)
    run = await desk.take_over(run)
    task = asyncio.create_task(run.do())
    if decided == "after":
        assert await asked_for(desk, run) == request
        await desk.inputs.decide(run.claimed.sid, request["approval_id"], yes)
        desk.inputs._wake(None)
    await task
    assert len(desk.child.ran) == 1
    assert len(peer.asked) == 2


# -- inputs and interrupts ----------------------------------------------------------------------------------


async def test_what_a_person_says_meanwhile_is_heard_before_the_next_turn(desk: Desk, peer: WirePeer) -> None:
    async def look(place: str) -> str:
        await desk.log.inputs.tell(run.claimed.sid, {"text": "And B!"})
        await desk.log.inputs.tell(run.claimed.sid, {"data": {"n": 1}})
        return place

    desk.child.functions["look"] = look
    peer.says_in_turn(turn("A"), turn(text="There."))
    run = await desk.begin("Look!")
    await run.do()
    assert results(peer, 1) == [("A", False)]
    assert texts(peer, 1)[-1] == ("user", ["And B!", '{"n":1}'])
    events = await desk.events(run)
    assert [one.get("text", one.get("data")) for one in of_kind(events, "input")] == ["And B!", {"n": 1}]
    assert [one["inputs"] for one in of_kind(events, "internal.turn")] == [0, 2]
    assert await desk.inputs.waiting(run.claimed.sid) == []


def tell_before_the_first_turn(desk: Desk, peer: WirePeer, run: Run) -> None:
    """And after its inputs were taken."""
    taken = run.loop._inbox.take  # type: ignore[union-attr]

    async def take() -> Any:
        found = await taken()
        if not peer.asked:
            await desk.log.inputs.tell(run.claimed.sid, {"text": "Really?"})
        return found

    run.loop._inbox.take = take  # type: ignore[method-assign, union-attr]


async def test_who_speaks_in_the_last_turn_is_answered_by_another(desk: Desk, peer: WirePeer) -> None:
    peer.says_in_turn(turn(text="There."), turn(text="Yes."))
    run = await desk.begin("Look!")
    tell_before_the_first_turn(desk, peer, run)
    answer = await run.do()
    assert answer.text == "There.Yes."
    assert texts(peer, 1) == [("user", ["Look!"]), ("assistant", ["There."]), ("user", ["Really?"])]


async def interrupted(desk: Desk, peer: WirePeer, run: Run) -> asyncio.Task[Any]:
    """A run whose first turn a person has interrupted."""
    task = asyncio.create_task(run.do())
    async with asyncio.timeout(LIMIT_S):
        while "text_delta" not in kinds(await desk.events(run)):
            pass
    await desk.log.inputs.tell(run.claimed.sid, {"text": "Never mind.", "interrupt": True})
    desk.inputs._wake(None)
    return task


async def test_an_interrupt_ends_the_turn_and_keeps_what_it_had_said(desk: Desk, peer: WirePeer) -> None:
    peer.says_in_turn(turn("A", text="I will lo", end="hold"), turn(text="As you like."))
    run = await desk.begin("Look!")
    answer = await (await interrupted(desk, peer, run))
    assert answer.text == "I will loAs you like."
    assert texts(peer, 1) == [("user", ["Look!"]), ("assistant", ["I will lo"]), ("user", ["Never mind."])]
    events = await desk.events(run)
    assert kinds(events) == ["queued", "start", "text_delta", "input", "text_delta", "done"]
    first, _ = of_kind(events, "internal.turn")
    assert (first["stop_reason"], first["text"], first["calls"]) == ("interrupted", "I will lo", [])
    assert run.stage.spending.told()["usage_incomplete"] is True
    assert desk.child.ran == []


async def test_after_a_takeover_inputs_come_where_they_came(desk: Desk, peer: WirePeer) -> None:
    running = asyncio.Event()

    async def look(place: str) -> str:
        if not running.is_set():
            running.set()
            await asyncio.Event().wait()
        return place

    desk.child.functions["look"] = look
    desk._options["tools"] = [{**LOOK, "idempotent": True}]
    peer.says_in_turn(turn(text="I will lo", end="hold"), turn("A", text="As you like."), turn(text="There."))
    run = await desk.begin("Look!")
    task = await interrupted(desk, peer, run)
    await running.wait()
    await die(run, task)
    await desk.log.inputs.tell(run.claimed.sid, {"text": "Still there?"})
    run = await desk.take_over(run)
    await run.do()
    assert texts(peer, 2) == [
        ("user", ["Look!"]),
        ("assistant", ["I will lo"]),
        ("user", ["Never mind."]),
        ("assistant", ["As you like."]),
        ("user", ["Still there?"]),
    ]
    events = since_restart(await desk.events(run))
    assert [one["text"] for one in of_kind(events, "input")] == ["Never mind.", "Still there?"]
    assert text_since_restart(events) == "I will loAs you like.There."


async def test_an_input_that_the_log_has_is_not_taken_again_from_the_list(desk: Desk, peer: WirePeer) -> None:
    """A worker died between the two."""
    peer.says_in_turn(turn(text="There."))
    run = await desk.begin("Look!")
    entry = await desk.log.inputs.tell(run.claimed.sid, {"text": "Hello?"})
    run.stage.write("input", {"text": "Hello?", "input_id": entry.id})
    await run.stage.flush()
    run = await desk.take_over(run)
    await run.do()
    assert texts(peer, 0)[-1] == ("user", ["Hello?"])
    assert len(of_kind(since_restart(await desk.events(run)), "input")) == 1
    assert await desk.inputs.waiting(run.claimed.sid) == []


# -- sub-agents ---------------------------------------------------------------------------------------------

RESEARCHER = {**LOOK, "agent": "researcher", "public": True}


async def test_a_sub_agent_answers_with_its_text_and_shares_what_its_parent_may(desk: Desk, peer: WirePeer) -> None:
    desk._options |= {"tools": [RESEARCHER], "show": ("results",)}
    desk.sub_agents.prompt = "Dig."
    peer.says_in_turn(turn("A"), turn(text="Found."), turn(text="There."))
    run = await desk.begin("Look!", limits=Limits(turns=3))
    assert (await run.do()).text == "There."
    assert desk.sub_agents.ran == ["researcher.1"]
    assert results(peer, 2) == [("Found.", False)]
    events = await desk.events(run)
    assert of_kind(events, "agent_text_delta") == [{"agent": "researcher.1", "text": "Found."}]
    assert text_since_restart(events) == "There."
    turns = of_kind(events, "internal.turn")
    assert [(one["agent"], one["turn"]) for one in turns] == [("", 0), ("researcher.1", 0), ("", 1)]


@pytest.mark.parametrize(("is_public", "show"), [(False, ("results",)), (True, ())])
async def test_a_sub_agent_that_is_not_public_or_whose_parents_results_are_not_shown_says_nothing_to_viewers(
    desk: Desk, peer: WirePeer, is_public: bool, show: tuple[str, ...]
) -> None:
    desk._options |= {"tools": [{**RESEARCHER, "public": is_public}], "show": show}
    peer.says_in_turn(turn("A"), turn(text="Found."), turn(text="There."))
    run = await desk.begin("Look!")
    await run.do()
    events = await desk.events(run)
    assert of_kind(events, "internal.agent_text_delta") == [{"agent": "researcher.1", "text": "Found."}]
    assert "agent_text_delta" not in kinds(events)


async def test_a_sub_agents_own_limit_is_a_failed_call_and_its_parents_the_end(desk: Desk, peer: WirePeer) -> None:
    desk._options["tools"] = [RESEARCHER]
    desk.sub_agents.limits = Limits(turns=1)
    peer.says_in_turn(turn("A"), turn("x"), turn(text="There."))
    await (await desk.begin("Look!")).do()
    assert results(peer, 2)[0][0].startswith("failed: The agent has used the 1 turns")

    desk.sub_agents.limits = Limits()
    peer.says_in_turn(turn("A"), turn("x"), turn("y"))
    run = await desk.begin("Look!", limits=Limits(turns=2))
    with pytest.raises(LimitReached) as reached:
        await run.do()
    assert reached.value.code == "too_many_turns"


async def test_a_sub_agent_that_was_finished_is_not_run_again(desk: Desk, peer: WirePeer) -> None:
    desk._options["tools"] = [RESEARCHER]
    peer.says_in_turn(turn("A"), turn(text="Found."), turn(text="The", end="hold"))
    run = await desk.begin("Look!")
    task = asyncio.create_task(run.do())
    async with asyncio.timeout(LIMIT_S):
        while "text_delta" not in kinds(await desk.events(run)):
            pass
    await die(run, task)
    peer.says_in_turn(turn(text="There."))
    run = await desk.take_over(run)
    assert (await run.do()).text == "There."
    assert desk.sub_agents.ran == ["researcher.1"]
    assert desk.sub_agents.again == ["researcher.1"]


# -- models that act in text --------------------------------------------------------------------------------


async def test_calls_may_come_from_text_and_go_back_as_text(desk: Desk, peer: WirePeer) -> None:
    acts = 'Thought: I look.\nAction: look\nAction Input: {"place": "A"}\n'
    peer.says_in_turn(turn(text=acts), turn(text="Thought: I know.\nFinal Answer: A is fine."))
    run = await desk.begin("Look!", transform="react")
    answer = await run.do()
    assert answer.text == "A is fine."
    assert len(desk.child.ran) == 1
    assert "tools" not in peer.asked[0].json
    assert texts(peer, 1)[1:] == [("assistant", [acts]), ("user", ["Observation: A is fine"])]
    events = await desk.events(run)
    assert kinds(events) == ["queued", "start", "tool_start", "tool_end", "text_delta", "done"]


async def test_a_takeover_reads_the_text_again(desk: Desk, peer: WirePeer) -> None:
    acts = 'Thought: I look.\nAction: look\nAction Input: {"place": "A"}\n'
    peer.says_in_turn(turn(text=acts), turn(text="Final Answer: A is fine."))
    run = await desk.begin("Look!", transform="react")
    await run.loop.run([{"role": "user", "content": run.prompt}])
    await run.stage.flush()
    desk._options["transform"] = "react"
    run = await desk.take_over(run)
    assert (await run.do()).text == "A is fine."
    assert len(peer.asked) == 2
    assert len(desk.child.ran) == 1
    assert text_since_restart(await desk.events(run)) == "A is fine."


# -- calls with a key of their own ---------------------------------------------------------------------------

KEYED = {**LOOK, "key": ["place"]}


async def test_a_key_names_an_effect_whichever_turn_asks_for_it(desk: Desk, peer: WirePeer) -> None:
    peer.says_in_turn(turn("A"), turn("A"), turn(text="There."))
    run = await desk.begin("Look!", tools=[KEYED])
    await run.do()
    [(_, key)] = desk.child.ran
    assert key.startswith(f"{run.claimed.sid}/look.")
    assert results(peer, 1) == results(peer, 2) == [("A is fine", False)]


async def test_a_call_that_was_refused_has_no_effect_that_its_key_could_name(desk: Desk, peer: WirePeer) -> None:
    desk.child.need_approval.add("look")
    peer.says_in_turn(turn("A"), turn("A"), turn(text="There."))
    run = await desk.begin("Look!", tools=[KEYED])
    task = asyncio.create_task(run.do())
    first = await asked_for(desk, run)
    await desk.inputs.decide(run.claimed.sid, first["approval_id"], Decision(approve=False, reason="", by="key:1"))
    desk.inputs._wake(None)
    async with asyncio.timeout(LIMIT_S):
        while len(requests := of_kind(await desk.events(run), "approval_request")) < 2:
            pass
        while True:
            try:
                yes = Decision(approve=True, reason="", by="key:1")
                await desk.inputs.decide(run.claimed.sid, requests[1]["approval_id"], yes)
                break
            except ApprovalNotFound:  # not quite yet
                await asyncio.sleep(0)
    desk.inputs._wake(None)
    await task
    assert len(desk.child.ran) == 1
    assert results(peer, 1) == [("not_approved: This call was not approved.", True)]
    assert results(peer, 2) == [("A is fine", False)]


async def test_a_call_that_was_refused_stays_so_after_a_takeover_also_under_a_key(desk: Desk, peer: WirePeer) -> None:
    desk.child.invalid.add("look")
    peer.says_in_turn(turn("A"), turn(text="The", end="hold"))
    run = await desk.begin("Look!", tools=[KEYED])
    task = asyncio.create_task(run.do())
    async with asyncio.timeout(LIMIT_S):
        while "text_delta" not in kinds(await desk.events(run)):
            pass
    await die(run, task)
    desk.child.invalid.clear()
    desk._options["tools"] = [KEYED]
    peer.says_in_turn(turn(text="There."))
    await (await desk.take_over(run)).do()
    assert desk.child.ran == []
    assert results(peer, 0) == [("invalid_args: city: not a city.", True)]


async def test_a_call_that_is_under_way_already_is_neither_counted_nor_asked_about(desk: Desk, peer: WirePeer) -> None:
    """It waits for the other one's outcome, without its place."""
    desk.child.need_approval.add("look")
    peer.says_in_turn(turn("A", "B"), turn(text="There."))
    limits = Limits(parallel=1, tool_calls=1)
    run = await desk.begin("Look!", tools=[{**LOOK, "key": []}], limits=limits)
    task = asyncio.create_task(run.do())
    request = await asked_for(desk, run)
    await desk.inputs.decide(run.claimed.sid, request["approval_id"], Decision(True, "", "key:1"))
    desk.inputs._wake(None)
    async with asyncio.timeout(LIMIT_S):
        await task
    assert len(desk.child.ran) == 1
    assert results(peer, 1) == 2 * [("A is fine", False)]
    assert len(of_kind(await desk.events(run), "approval_request")) == 1


async def test_a_call_in_text_that_cannot_be_read_is_told_to_the_model_alone(desk: Desk, peer: WirePeer) -> None:
    peer.says_in_turn(turn(text="Action: look\nAction Input: {A"), turn(text="Final Answer: Sorry."))
    run = await desk.begin("Look!", transform="react")
    assert (await run.do()).text == "Sorry."
    assert "not one JSON object" in texts(peer, 1)[-1][1][0]
    assert kinds(await desk.events(run)) == ["queued", "start", "text_delta", "done"]
    assert desk.child.ran == []
