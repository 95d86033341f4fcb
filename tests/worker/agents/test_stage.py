"""The stage of an agent's stream, where several speak at once and one of them breaks off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import fakeredis
import orjson
import pytest

from broker.log.stream_log import StreamLog
from broker.log.writer import StreamWriter
from tests.rig.streams import committing, running
from worker.agents.stage import AgentStage
from worker.stage import Part


@pytest.fixture
def log() -> StreamLog:
    return StreamLog(fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer()))


@pytest.fixture
async def stage(log: StreamLog) -> AsyncIterator[AgentStage]:
    async with committing(log) as commit:
        claimed = await running(log, agent="support")
        stage = AgentStage(claimed, StreamWriter(commit, claimed), {"agent": "support"})
        stage.begin()
        yield stage


async def since_restart(log: StreamLog, stage: AgentStage) -> list[tuple[str, str]]:
    """(kind, text) of what viewers have at the end."""
    await stage.flush()
    events = await log.read_all(stage.writer.sid)
    at = max(at for at, event in enumerate(events) if event.kind == "restart")
    return [(event.kind, orjson.loads(event.data).get("text", "")) for event in events[at + 1 :]]


def say(stage: AgentStage, text: str, part: Part) -> None:
    stage.write("agent_text_delta", {"agent": "a.1", "text": text}, part)


async def begun(stage: AgentStage) -> asyncio.Task[None]:
    """A restart that is putting the old events together."""
    restarting = asyncio.create_task(stage.restart("provider_cut"))
    while stage._held is None:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return restarting


async def test_what_breaks_off_while_another_restarts_is_left_out_of_the_next_restart(
    log: StreamLog, stage: AgentStage
) -> None:
    one, other = Part(), Part()
    say(stage, "one breaks", one)
    say(stage, "the other br", other)
    stage.void(one)
    restarting = await begun(stage)
    say(stage, "eaks too", other)
    stage.void(other)
    await restarting
    await stage.restart("provider_cut")
    assert await since_restart(log, stage) == [("start", "")]


async def test_a_restart_is_finished_for_the_others_when_who_asked_for_it_is_cancelled(
    log: StreamLog, stage: AgentStage
) -> None:
    broken, other = Part(), Part()
    say(stage, "it breaks", broken)
    say(stage, "I go ", other)
    stage.void(broken)
    restarting = await begun(stage)
    say(stage, "on", other)
    restarting.cancel()
    await asyncio.wait([restarting])
    assert await since_restart(log, stage) == [("start", ""), ("agent_text_delta", "I go "), ("agent_text_delta", "on")]


async def test_agents_that_think_at_once_have_their_thoughts_gathered_each(log: StreamLog, stage: AgentStage) -> None:
    for word in range(100):
        for agent in ("a.1", "a.2"):
            stage.write("internal.thinking_delta", {"agent": agent, "text": f"{word} "})
    stage.write("internal.tool_args_delta", {"agent": "a.1", "tool_call_id": "c", "tool": "t", "partial_json": "{}"})
    await stage.flush()
    internal = [orjson.loads(event.data) for event in await log.read_all(stage.writer.sid) if "internal" in event.kind]
    thoughts = "".join(f"{word} " for word in range(100))
    assert [(one["agent"], one.get("text", one.get("partial_json"))) for one in internal] == [
        ("a.1", thoughts),
        ("a.2", thoughts),
        ("a.1", "{}"),
    ]


async def test_a_thought_that_json_cannot_hold_is_left_out_and_named_and_costs_no_other_one(
    log: StreamLog, stage: AgentStage, caplog: pytest.LogCaptureFixture
) -> None:
    for agent, text in (("a.1", "\ud83d"), ("b.1", "whole")):
        stage.write("internal.thinking_delta", {"agent": agent, "text": text})
    stage.write("text_delta", {"text": "So."})
    await stage.flush()
    events = await log.read_all(stage.writer.sid)
    assert [event.kind for event in events[-2:]] == ["internal.thinking_delta", "text_delta"]
    assert orjson.loads(events[-2].data)["text"] == "whole"
    assert "internal.thinking_delta is left out" in caplog.text
