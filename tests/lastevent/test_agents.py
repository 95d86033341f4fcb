"""Agents as they are announced, and what is wrong with them said clearly."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from lastevent import Agent, Citation, Context, Event, Limits, Prompt, Status, Thinking, agent, tags
from lastevent.agents import as_agent
from lastevent.errors import AppError, InvalidValue
from lastevent.host.app import announced, load
from tests.lastevent.apps import desk
from tests.lastevent.worker_end import DESK


def told(*given: Any) -> dict[str, Any]:
    agents = {one.name: one for value in given if (one := as_agent(value)) is not None}
    return announced(agents)[0]


def test_an_app_is_all_the_agents_of_its_module() -> None:
    names = {"digest", "clerk", "sturdy", "blocker", "counter", "leaver", "support"}
    assert set(load(DESK)) >= names
    assert set(load(f"{DESK}:support")) == {"support", "digest"}  # and those that are its tools


def test_code_is_announced_with_its_input_s_schema() -> None:
    found = told(desk.digest)
    assert found["kind"] == "code"
    assert found["model"] is None
    assert found["input_schema"]["required"] == ["question"]
    assert found["takes_messages"] is False


def test_a_built_in_agent_is_announced_with_its_chain_and_tools() -> None:
    found = told(desk.support)
    assert found["model"] == ["anthropic/claude-sonnet-5-5", "openai/gpt-5.2"]
    assert found["instructions"] is None
    assert (found["input_schema"], found["takes_messages"]) == (None, True)
    assert [one["name"] for one in found["tools"]][-1] == "digest"
    inner = found["tools"][-1]
    assert (inner["agent"], inner["description"]) == ("digest", "Says its question back.")
    assert inner["input_schema"]["properties"].keys() == {"question", "times"}
    assert found["limits"]["tool_calls_per_turn"] == 8


def test_a_prompt_is_a_text_or_messages() -> None:
    prompts = desk.support.input
    assert prompts.validate({"prompt": "Hi"}).text == "Hi"
    blocks = {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "image"}]}
    assert prompts.validate({"messages": [blocks]}).text == "Hello"
    for wrong in ({}, {"prompt": "a", "messages": []}):
        with pytest.raises(InvalidValue, match="give either prompt or messages"):
            prompts.validate(wrong)
    with pytest.raises(InvalidValue):
        prompts.validate({"prompt": "a", "more": 1})
    assert told(Agent("a", model="m", tools=[Agent("b", model="m")]))["tools"][0]["input_schema"]["required"] == [
        "prompt"
    ]


def test_transforms_are_announced() -> None:
    assert told(Agent("a", model="m", transform="react"))["transform"] == "react"
    assert told(Agent("a", model="m", transform=tags("think", "tool")))["transform"] == {"tags": ["think", "tool"]}
    assert Prompt(prompt="a").text == "a"


async def _two(ctx: Context, given: int) -> None: ...
async def _one(ctx: Context) -> None: ...
def _plain(ctx: Context, given: int) -> None: ...


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: agent("a b")(_two), "named 'a b'"),
        (lambda: agent("a")(_one), "two parameters"),
        (lambda: agent("a")(_plain), "async def"),
        (lambda: agent("a", show=["everything"])(_two), "thinking, args, results"),
        (lambda: agent("a", show="args")(_two), "thinking, args, results"),
        (lambda: Limits(turns=0), "turns=0"),
        (lambda: Limits(tool_calls=2.5), "whole number"),  # type: ignore[arg-type]
        (lambda: Limits(session_cost_usd=float("nan")), "session_cost_usd"),
        (lambda: Agent("a", model="m", tools=[_plain]), "_plain is neither"),
        (lambda: Agent("a", model="m", tools=[desk.refund, desk.refund]), "two tools named refund"),
        (lambda: Agent("a", model=""), "names of models"),
        (lambda: Agent("a", model="m", transform="xml"), "transform"),  # type: ignore[arg-type]
        (lambda: told(Agent("a", model="m", tools=[desk.clerk])), "input is no object"),
        (tags, "needs names"),
    ],
)
def test_what_cannot_be_an_agent_is_said_when_the_app_is_imported(make: Any, said: str) -> None:
    with pytest.raises(AppError, match=said):
        make()


def test_two_agents_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("two_of_one_name")
    module.a, module.b = Agent("same", model="m"), Agent("same", model="m")  # type: ignore[attr-defined]
    module.nothing, module.wrong = [], [1]  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    with pytest.raises(AppError, match="Two agents are named same"):
        load("two_of_one_name")
    with pytest.raises(AppError, match="has no agents"):
        load("two_of_one_name:nothing")
    with pytest.raises(AppError, match="int in it, which is no agent"):
        load("two_of_one_name:wrong")
    with pytest.raises(AppError, match="two_of_one_name has no other"):
        load("two_of_one_name:other")


def test_events_of_one_s_own_are_internal_unless_said() -> None:
    assert Event("scored", {"by": 1}).kind == "internal.scored"
    assert Event("internal.scored").kind == "internal.scored"
    assert Event("scored", public=True).kind == "scored"
    assert (Status("Hi").kind, Thinking("x").kind, Citation(url="u").kind) == ("status", "thinking_delta", "citation")


@pytest.mark.parametrize(
    "kind", ["done", "restart", "tool_start", "internal.turn", "agent_end", "ping", "a b", "", "x" * 80]
)
@pytest.mark.parametrize("public", [True, False])
def test_nobody_writes_what_clients_and_takeovers_stand_on(kind: str, public: bool) -> None:
    with pytest.raises(ValueError):
        Event(kind, public=public)
