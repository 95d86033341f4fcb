"""A stream that is told in sentences too: they come with its text, and that is as it would be without them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import islice, pairwise
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

import worker.providers.chain
from broker.log.event import Event, merge_deltas, text_since_restart
from broker.log.meta import new_claim_id
from broker.log.steps import Claimed
from broker.log.stream_log import StreamLog
from broker.log.turn import message
from broker.log.writer import GroupCommit
from tests.rig.models import Models
from tests.rig.streams import queued, taken_over
from worker.agents.stage import AgentStage
from worker.generation import Generation
from worker.providers.anthropic import AnthropicProvider
from worker.providers.chain import Breaker
from worker.speaking import SpeakingWriter
from worker.stage import Part
from worker.standin.server import StandIn
from worker.standin.words import words

LIMIT_S = 60.0
FAST = "rate=0 ttft_ms=0"


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    standin = StandIn()
    yield standin
    standin.close()


@pytest.fixture
async def provider(standin: StandIn) -> AsyncIterator[AnthropicProvider]:
    provider = AnthropicProvider(api_key="sk-secret", base_url=standin.base_url, silence_s=LIMIT_S)
    yield provider
    await provider.aclose()


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis)


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.providers.chain, "BACKOFF_S", (0.01, 0.02))


async def claim(log: StreamLog, prompt: str = "Hello", **fields: Any) -> Claimed:
    request = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 100}
    return await log.claim(await queued(log, request=request, sentences=True, **fields), new_claim_id(), "worker-1")


async def generate(commit: GroupCommit, provider: AnthropicProvider, prompt: str) -> list[Event]:
    claimed = await claim(commit.log, prompt)
    async with asyncio.timeout(LIMIT_S):
        models, breaker = Models(provider), Breaker(commit.log.redis, commit.log.keys)
        await Generation(claimed, SpeakingWriter(commit, claimed), models, breaker).run(asyncio.Semaphore(1))
    return await commit.log.read_all(claimed.sid)


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events if not event.kind.startswith("internal.")]


def told(events: list[Event]) -> list[tuple[int, str]]:
    """Index and text of each sentence."""
    read = [orjson.loads(event.data) for event in events if event.kind == "sentence"]
    return [(sentence["index"], sentence["text"]) for sentence in read]


def since_restart(events: list[Event]) -> list[Event]:
    at = max((at for at, event in enumerate(events) if event.kind == "restart"), default=0)
    return events[at:]


def one_line(text: str) -> str:
    return " ".join(text.split())


async def test_the_sentences_are_the_text_and_that_is_as_it_was(
    commit: GroupCommit, provider: AnthropicProvider
) -> None:
    prompt = f"[[tokens=90 {FAST}]]"
    events = await generate(commit, provider, prompt)
    text = "".join(islice(words(prompt), 90))
    assert text_since_restart(events) == text
    assert " ".join(sentence for _, sentence in told(events)) == one_line(text)
    assert [index for index, _ in told(events)] == list(range(len(told(events))))
    plain = [event for event in events if event.kind != "sentence"]
    assert kinds(plain) == ["queued", "start", *90 * ["text_delta"], "done"]
    assert message(events) == message(plain), "nothing that is put together of a log has them in it"
    merged = merge_deltas(events)
    assert text_since_restart(merged) == text
    assert [event for event in merged if event.kind == "sentence"] == [e for e in events if e.kind == "sentence"]
    for before, event in pairwise(events):
        if event.kind == "sentence":
            assert before.kind in ("text_delta", "sentence"), "it is told with the text that made it certain"
    assert kinds(events)[-2:] == ["sentence", "done"], "the last one has no other moment"


async def test_a_sentence_travels_with_the_text_that_made_it_certain(commit: GroupCommit) -> None:
    writer = SpeakingWriter(commit, await claim(commit.log))
    written = writer.write("text_delta", {"text": "One is told. Another is not"})
    assert [event.kind for event in writer.batch().events] == ["text_delta", "sentence"]
    assert (written, writer.tail) == (writer.pen.base, writer.pen.base + 1), "the id is the delta's"
    assert writer.batch().events[1].data == b'{"text":"One is told.","index":0}'


@pytest.mark.parametrize("kind", ["tool_start", "approval_request", "agent_start", "done", "error", "cancelled"])
async def test_what_has_been_said_is_told_before_what_the_speaker_waits_for(commit: GroupCommit, kind: str) -> None:
    writer = SpeakingWriter(commit, await claim(commit.log))
    writer.write("text_delta", {"text": "I look it up"})
    writer.write(kind, {})
    assert [event.kind for event in writer.batch().events] == ["text_delta", "sentence", kind]


@pytest.mark.parametrize("kind", ["agent_text_delta", "thinking_delta", "internal.text_delta", "status"])
async def test_only_the_answer_is_spoken(commit: GroupCommit, kind: str) -> None:
    writer = SpeakingWriter(commit, await claim(commit.log))
    writer.write(kind, {"text": "One. Two. Three and more"})
    assert [event.kind for event in writer.batch().events] == [kind]


async def test_after_a_restart_they_begin_at_0_with_what_is_said_again(
    commit: GroupCommit, provider: AnthropicProvider
) -> None:
    prompt = f"[[tokens=60 cut_at=40 cut_times=1 {FAST}]]"
    events = await generate(commit, provider, prompt)
    assert kinds(events).count("restart") == 1
    assert told(events)[0][0] == 0, "there were some before"
    again = told(since_restart(events))
    assert [index for index, _ in again] == list(range(len(again)))
    assert " ".join(sentence for _, sentence in again) == one_line("".join(islice(words(prompt), 60)))


async def test_what_an_agent_says_again_is_told_once_since_the_restart(commit: GroupCommit) -> None:
    claimed = await claim(commit.log)
    writer = SpeakingWriter(commit, claimed)
    stage = AgentStage(claimed, writer, {"agent": "one"})
    stage.begin()
    stage.write("text_delta", {"text": "This stands. And it "})
    stage.write("text_delta", {"text": "stays. "})
    broken = Part()
    stage.write("text_delta", {"text": "This one does not. It is void"}, broken)
    stage.void(broken)
    await stage.restart("provider_cut")
    stage.write("text_delta", {"text": "This is new."})
    stage.write("done", {})
    events = [Event(n, event.kind, event.data, 0) for n, event in enumerate(writer.batch().events)]
    assert told(events)[:2] == [(0, "This stands."), (1, "And it stays.")]
    assert told(since_restart(events)) == [(0, "This stands."), (1, "And it stays."), (2, "This is new.")]
    assert text_since_restart(events) == "This stands. And it stays. This is new."


async def test_another_worker_begins_anew(commit: GroupCommit) -> None:
    claimed = await claim(commit.log, language="de")
    first = SpeakingWriter(commit, claimed)
    first.write("text_delta", {"text": "Das ist z. B. so. Und das"})
    await first.flush()
    second = SpeakingWriter(commit, await taken_over(commit.log, claimed.sid))
    second.write("restart", {"attempt": 2, "reason": "worker_lost"})
    second.write("text_delta", {"text": "Das ist z. B. anders. Und das"})
    second.write("done", {})
    await second.flush()
    events = await commit.log.read_all(claimed.sid)
    assert told(events) == [(0, "Das ist z. B. so."), (0, "Das ist z. B. anders."), (1, "Und das")]


async def test_a_full_stream_still_ends(redis: Redis) -> None:
    commit = GroupCommit(StreamLog(redis, max_events=2))
    writer = SpeakingWriter(commit, await claim(commit.log))
    writer.write("text_delta", {"text": "The last that fits"})
    writer.write("done", {})
    assert [event.kind for event in writer._events] == ["text_delta", "done"]
