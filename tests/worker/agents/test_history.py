"""What a model is asked with: each turn in the form that its reader takes, each call with its result, and first what
stays the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import orjson
import pytest

from tests.rig.wire_peer import WirePeer, wire_peer
from tests.worker.agents.looping import FAST, LOOK, WEATHER
from worker.agents.history import EPHEMERAL, Asker, Call, History, SaidTurn, calls_in, interrupted_turn, result_of
from worker.agents.history import whole_turn as whole
from worker.agents.journal import Finished
from worker.providers.anthropic import AnthropicProvider
from worker.providers.chain import Target
from worker.providers.failures import ProviderFailure
from worker.providers.gemini import GeminiProvider
from worker.providers.openai import OpenAIProvider
from worker.providers.openai_chat import OpenAIChatProvider
from worker.providers.provider import Counted, Finish, Provider, ProviderEvent
from worker.standin.server import StandIn

PROVIDERS: dict[str, Any] = {
    "anthropic": AnthropicProvider,
    "openai": OpenAIProvider,
    "openai-chat": OpenAIChatProvider,
    "gemini": GeminiProvider,
}
PROMPT = {"role": "user", "content": f"[[tokens=3 thinking=2 tools=2 {FAST}]]"}


def target(name: str, client: Any = None, **options: Any) -> Target:
    provider, _, model = name.partition("/")
    return Target(name, client, model, answers_as=provider, **{"form": provider, **options})


CLAUDE, OTHER_CLAUDE, GPT = target("anthropic/claude"), target("anthropic/other"), target("openai/gpt")
THINKING = [{"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}]
CALL = Call("toolu_1", "look", {"place": "A"}, "toolu_1")


def said_turn(**fields: Any) -> SaidTurn:
    use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"place": "A"}}
    known: dict[str, Any] = {
        "number": 0,
        "provider": "anthropic",
        "form": "anthropic",
        "model": "claude",
        "stop_reason": "tool_use",
        "text": "I look.",
        "calls": [CALL],
        "native": [*THINKING, {"type": "text", "text": "I look."}, use],
        "inputs": 0,
    }
    return SaidTurn(**{**known, **fields})


def asker(**fields: Any) -> Asker:
    known: dict[str, Any] = {"name": "support", "instructions": "Help.", "tools": [LOOK, WEATHER], "options": {}}
    return Asker(**{**known, "max_tokens": 100, **fields})


# -- turns --------------------------------------------------------------------------------------------------


def test_a_turn_goes_back_to_its_model_as_it_was_said_and_to_others_as_text_and_calls() -> None:
    turn = said_turn()
    own = turn.message_for(CLAUDE)
    assert own["content"] == turn.native
    assert own["native"] == {"provider": "anthropic", "model": "claude"}
    for other in (OTHER_CLAUDE, GPT):
        assert turn.message_for(other) == {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"place": "A"}},
            ],
        }


@pytest.mark.parametrize(
    "native", [[{"type": "function_call", "call_id": "toolu_1"}], {"role": "assistant", "tool_calls": []}]
)
def test_a_form_that_is_none_of_blocks_stands_beside_the_content(native: Any) -> None:
    turn = said_turn(provider="openai", form="openai", model="gpt", native=native)
    message = turn.message_for(GPT)
    assert message["native"] == {"provider": "openai", "model": "gpt", "content": native}
    assert [block["type"] for block in message["content"]] == ["text", "tool_use"]


def test_a_turn_is_read_from_the_log_as_it_was_written() -> None:
    looks_like_ours = {"$lastevent": "text", "characters": 3}
    use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": looks_like_ours}
    turn = said_turn(calls=[CALL._replace(args=looks_like_ours)], native=[*THINKING, use])
    written = orjson.loads(orjson.dumps({"agent": "", "usage": {}, "cost_usd": None, **turn.written()}))
    assert SaidTurn.read(written) == turn
    assert written["calls"] == [{"id": "toolu_1", "name": "look", "args": looks_like_ours, "native_id": "toolu_1"}]


def test_only_complete_calls_that_are_ours_to_run_are_calls() -> None:
    def call(call_id: str, **fields: Any) -> list[ProviderEvent]:
        told = {"tool_call_id": call_id, "tool": "look"}
        return [("tool_start", {**told, **fields}), ("tool_args", {**told, "args": {}, "complete": True})]

    said = [*call("a", client=True), *call("search"), call("cut", client=True)[0]]
    assert [one.id for one in calls_in(said)] == ["a"]


def test_an_interrupted_turn_is_its_text_and_one_without_any_is_no_message() -> None:
    history = History([PROMPT])
    history.add_turn(interrupted_turn(0, CLAUDE, "I will lo", 0))
    history.add_input({"text": "Stop!"})
    history.add_turn(interrupted_turn(1, CLAUDE, "", 1))
    history.add_input({"data": {"n": 1}})
    assert history.messages_for(CLAUDE) == [
        PROMPT,
        {"role": "assistant", "content": [{"type": "text", "text": "I will lo"}]},
        {"role": "user", "content": [{"type": "text", "text": "Stop!"}]},
        {"role": "user", "content": [{"type": "text", "text": '{"n":1}'}]},
    ]


def test_results_come_before_what_a_person_said_meanwhile() -> None:
    history = History([PROMPT])
    history.add_turn(said_turn())
    history.add_results([result_of(CALL, Finished({"sky": "blue"}))])
    history.add_input({"text": "Hurry!"})
    assert history.messages_for(GPT)[-1] == {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": '{"sky":"blue"}'},
            {"type": "text", "text": "Hurry!"},
        ],
    }


@pytest.mark.parametrize(
    ("outcome", "content", "is_error"),
    [
        (Finished("as it is"), "as it is", False),
        (Finished(None), "null", False),
        (Finished(error={"code": "timeout", "message": "It took 60 s."}), "timeout: It took 60 s.", True),
        (Finished(error={"code": "failed", "message": ""}), "failed", True),
    ],
)
def test_a_result_is_a_text(outcome: Finished, content: str, is_error: bool) -> None:
    result = result_of(CALL, outcome)
    assert (result["content"], result.get("is_error", False)) == (content, is_error)


# -- what comes first ---------------------------------------------------------------------------------------


def test_instructions_and_tools_are_the_same_in_each_request_whatever_may_be_called() -> None:
    first = asker().request_for(CLAUDE, History([PROMPT]))
    history = History([PROMPT])
    history.add_turn(said_turn())
    last = asker().request_for(CLAUDE, history, may_call=False)
    same = ("system", "tools", "max_tokens", "provider_options")
    assert [orjson.dumps(first[name]) for name in same] == [orjson.dumps(last[name]) for name in same]
    assert "tool_choice" not in first
    assert last["tool_choice"] == {"type": "none"}


def test_providers_are_asked_to_keep_what_comes_first() -> None:
    history = History([PROMPT])
    claude = asker().request_for(CLAUDE, history)
    assert claude["provider_options"] == {"anthropic": {"cache_control": EPHEMERAL}}
    assert claude["system"][-1]["cache_control"] == EPHEMERAL
    assert ["cache_control" in tool for tool in claude["tools"]] == [False, True]
    for name in ("openai", "openai-chat"):
        gpt = asker().request_for(target(f"{name}/gpt"), history)
        assert gpt["provider_options"] == {name: {"prompt_cache_key": "support"}}
        assert "cache_control" not in orjson.dumps(gpt).decode()
    assert "provider_options" not in asker().request_for(target("gemini/flash"), history)
    own = target("vllm/qwen", form="openai-chat", base_url="http://gpu1:8000/v1")
    assert "provider_options" not in asker().request_for(own, history), "it may not know it"


def test_options_turn_that_off_and_say_what_else_a_provider_is_asked() -> None:
    options = {"anthropic": {"cache_control": None, "top_k": 3}, "openai": {"prompt_cache_key": None}}
    request = asker(options=options).request_for(CLAUDE, History([PROMPT]))
    assert request["provider_options"] == {"anthropic": {"top_k": 3}}
    assert "cache_control" not in orjson.dumps(request).decode()
    assert "provider_options" not in asker(options=options).request_for(GPT, History([PROMPT]))


def test_an_agent_without_instructions_or_tools() -> None:
    request = asker(instructions="", tools=[]).request_for(GPT, History([PROMPT]), may_call=False)
    assert request.keys() == {"max_tokens", "messages", "provider_options"}


# -- on the wires -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    standin = StandIn()
    yield standin
    standin.close()


@pytest.fixture(scope="module")
async def peer() -> AsyncIterator[WirePeer]:
    async with wire_peer() as peer:
        yield peer


def adapter(name: str, url: str) -> Provider:
    path = "/v1" if name.startswith("openai") else ""
    made: Provider = PROVIDERS[name](api_key="sk-secret", base_url=url + path, silence_s=60)
    return made


@pytest.fixture(scope="module")
async def speakers(standin: StandIn) -> AsyncIterator[dict[str, Provider]]:
    made = {name: adapter(name, standin.base_url) for name in PROVIDERS}
    yield made
    for provider in made.values():
        await provider.aclose()


@pytest.fixture(scope="module")
async def listeners(peer: WirePeer) -> AsyncIterator[dict[str, Provider]]:
    made = {name: adapter(name, peer.url) for name in PROVIDERS}
    yield made
    for provider in made.values():
        await provider.aclose()


async def first_turn(name: str, provider: Provider) -> tuple[History, SaidTurn]:
    """Thoughts, a text and two calls, each with its result."""
    history = History([PROMPT])
    speaker = target(f"{name}/model", provider)
    said: list[ProviderEvent] = []
    async for one in provider.stream("model", asker(tools=[WEATHER]).request_for(speaker, history)):
        if isinstance(one, Finish):
            turn = whole(0, speaker, one, said, list(calls_in(said)), 0)
        elif not isinstance(one, Counted):
            said.append(one)
    turn = SaidTurn.read(orjson.loads(orjson.dumps(turn.written())))
    history.add_turn(turn)
    history.add_results([result_of(call, Finished(f"result {at}")) for at, call in enumerate(turn.calls)])
    return history, turn


def all_in(value: Any, name: str) -> list[Any]:
    """Every value of this name, at any depth, in order."""
    if isinstance(value, list):
        return [one for inner in value for one in all_in(inner, name)]
    if isinstance(value, dict):
        return [one for key, inner in value.items() for one in ([inner] if key == name else all_in(inner, name))]
    return []


CALLED = {
    "anthropic": lambda body: [one["id"] for one in body["messages"][1]["content"] if one["type"] == "tool_use"],
    "openai": lambda body: [one["call_id"] for one in body["input"] if one.get("type") == "function_call"],
    "openai-chat": lambda body: [one["id"] for one in all_in(body["messages"], "tool_calls")[0]],
    "gemini": lambda body: [one.get("id") for one in all_in(body["contents"], "functionCall")],
}
ANSWERED = {
    "anthropic": lambda body: all_in(body["messages"], "tool_use_id"),
    "openai": lambda body: [one["call_id"] for one in body["input"] if one.get("type") == "function_call_output"],
    "openai-chat": lambda body: all_in(body["messages"], "tool_call_id"),
    "gemini": lambda body: [one.get("id") for one in all_in(body["contents"], "functionResponse")],
}


@pytest.mark.parametrize("listener", PROVIDERS)
@pytest.mark.parametrize("speaker", PROVIDERS)
async def test_a_turn_of_one_provider_goes_to_another_with_a_result_for_each_call(
    speakers: dict[str, Provider], listeners: dict[str, Provider], peer: WirePeer, speaker: str, listener: str
) -> None:
    history, turn = await first_turn(speaker, speakers[speaker])
    assert len(turn.calls) == 2
    peer.says(b"data: [DONE]\n\n")
    to = target(f"{listener}/model", listeners[listener])
    with suppress(ProviderFailure):
        async for _ in to.client.stream("model", asker(tools=[WEATHER]).request_for(to, history)):
            pass
    [asked] = peer.asked
    assert len(CALLED[listener](asked.json)) == 2
    assert CALLED[listener](asked.json) == ANSWERED[listener](asked.json)
    assert turn.text in asked.body.decode()
    assert "result 1" in asked.body.decode()
    for mark in ("signature", "thoughtSignature", "encrypted_content"):
        foreign = [one for one in all_in(turn.native, mark) if isinstance(one, str) and len(one) > 3]
        if speaker != listener:
            assert not any(one in asked.body.decode() for one in foreign)
