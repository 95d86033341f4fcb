"""A generation over the real SDK, the stand-in and a real Valkey: however it goes, it ends, and once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from itertools import islice
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis

import worker.providers.chain
from broker.log.event import Event, text_since_restart
from broker.log.meta import NewStream, new_claim_id
from broker.log.steps import Claimed
from broker.log.stream_log import StreamLog
from broker.log.writer import GroupCommit, StreamWriter
from tests.rig.models import Models
from tests.rig.streams import committing, expire_lease, meta, queued, seize, taken_over
from worker.generation import Generation
from worker.heartbeat import Heartbeat
from worker.providers.anthropic import AnthropicProvider
from worker.providers.chain import Breaker
from worker.providers.failures import ProviderFailure
from worker.providers.provider import Finish, Provider, ProviderEvent
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
    provider = AnthropicProvider(api_key="sk-secret", base_url=standin.base_url, silence_s=0.4)
    yield provider
    await provider.aclose()


@pytest.fixture
async def patient(standin: StandIn) -> AsyncIterator[AnthropicProvider]:
    provider = AnthropicProvider(api_key="sk-secret", base_url=standin.base_url, silence_s=LIMIT_S)
    yield provider
    await provider.aclose()


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis)


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.providers.chain, "BACKOFF_S", (0.01, 0.02))


def request(prompt: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": 100}


async def claim(log: StreamLog, prompt: str, **fields: Any) -> Claimed:
    return await log.claim(await queued(log, request=request(prompt), **fields), new_claim_id(), "worker-1")


def generation(claimed: Claimed, writer: StreamWriter, provider: Provider) -> Generation:
    log = writer._commit.log
    return Generation(claimed, writer, Models(provider), Breaker(log.redis, log.keys))


async def run(commit: GroupCommit, claimed: Claimed, provider: Provider) -> list[Event]:
    """Run the generation; the stream's events."""
    async with asyncio.timeout(LIMIT_S):
        await generation(claimed, StreamWriter(commit, claimed), provider).run(asyncio.Semaphore(1))
    return await commit.log.read_all(claimed.sid)


async def generate(commit: GroupCommit, provider: Provider, prompt: str, **fields: Any) -> list[Event]:
    return await run(commit, await claim(commit.log, prompt, **fields), provider)


def kinds(events: list[Event]) -> list[str]:
    """Without what is for operators alone."""
    return [event.kind for event in events if not event.kind.startswith("internal.")]


def data(event: Event) -> dict[str, Any]:
    read: dict[str, Any] = orjson.loads(event.data)
    return read


def endings(events: list[Event]) -> list[str]:
    """The terminal events; none but the last may be one."""
    assert not any(event.is_terminal for event in events[:-1])
    return [event.kind for event in events if event.is_terminal]


async def until_open(standin: StandIn, count: int) -> None:
    async with asyncio.timeout(LIMIT_S), httpx.AsyncClient(trust_env=False) as http:
        while (await http.get(f"{standin.base_url}/open")).json()["open"] != count:
            pass


async def until(log: StreamLog, sid: str, kind: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while kind not in kinds(await log.read_all(sid)):
            pass


# -- it goes well ------------------------------------------------------------------------------------------


async def test_an_answer_is_start_its_text_and_done(commit: GroupCommit, provider: AnthropicProvider) -> None:
    prompt = f"[[tokens=5 {FAST}]]"
    events = await generate(commit, provider, prompt)
    assert kinds(events) == ["queued", "start", *5 * ["text_delta"], "done"]
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert data(events[1]) == {"model": "anthropic/some-model", "provider": "anthropic", "attempt": 1}
    assert text_since_restart(events) == "".join(islice(words(prompt), 5))
    done = data(events[-1])
    assert done["stop_reason"] == "end_turn"
    assert done["usage"]["output_tokens"] == 5
    assert 0 <= done["ttft_ms"] <= done["duration_ms"]


async def test_a_stream_that_shares_a_request_answers_it(commit: GroupCommit, provider: AnthropicProvider) -> None:
    first = await queued(commit.log, request=request(f"[[tokens=5 {FAST}]]"))
    [meta] = await commit.log.read_meta(first)
    assert meta
    new = NewStream.again(first, meta)
    await commit.log.create(new)
    events = await run(commit, await commit.log.claim(new.sid, new_claim_id(), "worker-1"), provider)
    assert kinds(events) == ["queued", "start", *5 * ["text_delta"], "done"]


async def test_a_stream_whose_request_is_gone_ends_with_an_error_that_says_so(
    commit: GroupCommit, provider: AnthropicProvider
) -> None:
    sid = await queued(commit.log)
    await commit.log.redis.delete(commit.log.keys.stream(sid).request)
    events = await run(commit, await commit.log.claim(sid, new_claim_id(), "worker-1"), provider)
    assert kinds(events) == ["queued", "error"]
    assert data(events[-1]) == {
        "code": "internal_error",
        "message": "The request of this stream is gone. Start it again.",
        "recoverable": True,
    }


async def test_thinking_and_tools_come_as_events_of_their_own(commit: GroupCommit, provider: AnthropicProvider) -> None:
    prompt = f"[[tokens=1 thinking=2 tools=1 {FAST}]]"
    events = await generate(commit, provider, prompt)
    assert kinds(events)[:3] == ["queued", "start", "text_delta"], "what it thinks is for operators"
    assert set(kinds(events)[3:-1]) == {"tool_start", "tool_args_delta", "tool_args"}, "the caller's own to run"
    assert data(events[-1])["stop_reason"] == "tool_use"
    thought = "".join(data(event)["text"] for event in events if event.kind == "internal.thinking_delta")
    shown = await generate(commit, provider, prompt, show=["thinking"])
    assert kinds(shown)[:5] == ["queued", "start", "thinking_delta", "thinking_delta", "text_delta"]
    assert "internal.thinking_delta" not in [event.kind for event in shown]
    assert thought == "".join(data(event)["text"] for event in shown if event.kind == "thinking_delta")


async def test_of_a_tool_that_the_provider_runs_users_see_that_it_runs_and_operators_with_what(
    commit: GroupCommit, provider: AnthropicProvider
) -> None:
    prompt = f"[[tokens=1 server_tool=ok {FAST}]]"
    events = await generate(commit, provider, prompt)
    assert [kind for kind in kinds(events) if kind.startswith("tool_")] == ["tool_start", "tool_end"]
    [ended] = [data(event) for event in events if event.kind == "tool_end"]
    [result] = [data(event) for event in events if event.kind == "internal.tool_result"]
    assert ended.keys() == {"tool_call_id", "tool", "duration_ms"}
    assert {"internal.tool_args", "internal.tool_args_delta"} <= {event.kind for event in events}
    shown = await generate(commit, provider, prompt, show=["args", "results"])
    [whole] = [data(event) for event in shown if event.kind == "tool_end"]
    assert whole["output"] == result["output"]
    assert {"tool_args", "tool_args_delta"} <= set(kinds(shown))


async def test_an_answer_without_text_has_no_time_to_the_first(
    commit: GroupCommit, provider: AnthropicProvider
) -> None:
    events = await generate(commit, provider, f"[[tokens=0 stop=refusal {FAST}]]")
    assert kinds(events) == ["queued", "start", "done"]
    assert (data(events[-1])["stop_reason"], data(events[-1])["ttft_ms"]) == ("refusal", None)


async def test_half_a_surrogate_pair_is_no_fault(commit: GroupCommit, provider: AnthropicProvider) -> None:
    events = await generate(commit, provider, f"[[tokens=3 surrogate_at=1 {FAST}]]")
    assert endings(events) == ["done"]
    assert "\ufffd" in text_since_restart(events)


# -- the provider fails ------------------------------------------------------------------------------------

FAULTS = {
    "error_at": "provider_overloaded",
    "cut_at": "provider_cut",
    "end_at": "provider_cut",
    "stall_at": "provider_silent",
    "garbage_at": "provider_bad_answer",
}


@pytest.mark.parametrize(("fault", "code"), FAULTS.items())
async def test_before_the_first_text_a_fault_is_tried_again_in_silence_then_an_error(
    commit: GroupCommit, provider: AnthropicProvider, fault: str, code: str
) -> None:
    events = await generate(commit, provider, f"[[tokens=3 {fault}=0 {FAST}]]")
    assert kinds(events) == ["queued", "start", "status", "status", "error"]
    assert (data(events[-1])["code"], data(events[-1])["recoverable"]) == (code, True)


@pytest.mark.parametrize(("fault", "code"), FAULTS.items())
async def test_after_it_a_fault_takes_the_text_back_while_attempts_last_then_an_error(
    commit: GroupCommit, provider: AnthropicProvider, fault: str, code: str
) -> None:
    events = await generate(commit, provider, f"[[tokens=3 {fault}=2 {FAST}]]")
    attempt = ["start", "text_delta", "text_delta"]
    assert kinds(events) == ["queued", *attempt, "restart", *attempt, "restart", *attempt, "error"]
    assert [data(event)["attempt"] for event in events if event.kind == "start"] == [1, 2, 3]
    assert [data(event) for event in events if event.kind == "restart"] == [
        {"attempt": 2, "reason": code},
        {"attempt": 3, "reason": code},
    ]
    assert (data(events[-1])["code"], data(events[-1])["recoverable"]) == (code, True)
    assert [event.id for event in events] == list(range(1, len(events) + 1))


async def test_the_stream_knows_its_attempts(commit: GroupCommit, provider: AnthropicProvider) -> None:
    claimed = await claim(commit.log, f"[[tokens=3 cut_at=1 {FAST}]]")
    await run(commit, claimed, provider)
    assert (await meta(commit.log, claimed.sid))["attempt"] == "3"


async def test_thinking_that_nobody_was_shown_is_tried_again_in_silence(
    commit: GroupCommit, provider: AnthropicProvider
) -> None:
    events = await generate(commit, provider, f"[[tokens=3 thinking=1 cut_at=0 {FAST}]]")
    assert kinds(events) == ["queued", "start", "status", "status", "error"]
    tries = [event.kind for event in events if event.kind in ("internal.thinking_delta", "internal.trace")]
    assert tries == 3 * ["internal.thinking_delta", "internal.trace"], "the trace takes back what was thought in vain"


async def test_what_thought_has_shown_is_taken_back_too(commit: GroupCommit, provider: AnthropicProvider) -> None:
    events = await generate(commit, provider, f"[[tokens=3 thinking=1 cut_at=0 {FAST}]]", show=["thinking"])
    assert kinds(events).count("restart") == 2
    assert "status" not in kinds(events)
    assert endings(events) == ["error"]


async def test_thoughts_are_for_operators_unless_the_stream_shows_them(
    commit: GroupCommit, provider: AnthropicProvider
) -> None:
    events = await generate(commit, provider, f"[[tokens=2 thinking=3 {FAST}]]")
    assert kinds(events) == ["queued", "start", "text_delta", "text_delta", "done"]
    # Gathered: nobody waits for them.
    assert [event.kind for event in events].count("internal.thinking_delta") == 1


async def test_a_try_that_only_thought_is_repeated_without_a_restart(
    commit: GroupCommit, provider: AnthropicProvider
) -> None:
    events = await generate(commit, provider, f"[[tokens=3 thinking=1 cut_at=0 cut_times=1 {FAST}]]")
    assert kinds(events) == ["queued", "start", "status", *3 * ["text_delta"], "done"]


@pytest.mark.parametrize(("refusals", "statuses", "ending"), [(1, 1, "done"), (2, 2, "done"), (3, 2, "error")])
async def test_an_overloaded_provider_is_tried_three_times(
    commit: GroupCommit, provider: AnthropicProvider, refusals: int, statuses: int, ending: str
) -> None:
    events = await generate(commit, provider, f"{refusals} times [[tokens=2 overload={refusals} {FAST}]]")
    assert kinds(events).count("status") == statuses
    assert endings(events) == [ending]


@pytest.mark.parametrize(
    ("status", "code"), [(400, "provider_refused"), (401, "provider_unauthorized"), (404, "provider_refused")]
)
async def test_what_would_fail_again_is_not_tried_again(
    commit: GroupCommit, provider: AnthropicProvider, status: int, code: str
) -> None:
    events = await generate(commit, provider, f"[[status={status} {FAST}]]")
    assert kinds(events) == ["queued", "start", "error"]
    assert (data(events[-1])["code"], data(events[-1])["recoverable"]) == (code, False)


async def test_a_provider_that_asks_for_patience_gets_it(commit: GroupCommit, provider: AnthropicProvider) -> None:
    events = await generate(commit, provider, f"patience [[tokens=1 overload=1 retry_after=1 {FAST}]]")
    status, first_text = (event.t for event in events if event.kind in ("status", "text_delta"))
    assert first_text - status >= 950


async def test_a_provider_that_asks_for_more_patience_than_people_have_gets_less(
    commit: GroupCommit, provider: AnthropicProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.providers.chain, "MAX_RETRY_AFTER_S", 0.01)
    events = await generate(commit, provider, f"hours [[tokens=1 overload=1 retry_after=7200 {FAST}]]")
    assert endings(events) == ["done"]


# -- what nobody foresaw -----------------------------------------------------------------------------------


class Odd:
    """A provider that says a little, perhaps, and then does something odd."""

    name = "odd"

    def __init__(self, oddity: BaseException | ProviderEvent | Finish | None, says: int) -> None:
        self._oddity = oddity
        self._says = says

    async def stream(self, model: str, request: dict[str, Any]) -> AsyncGenerator[ProviderEvent | Finish, None]:
        for _ in range(self._says):
            yield "text_delta", {"text": "Salt"}
        if isinstance(self._oddity, BaseException):
            raise self._oddity
        if self._oddity is not None:
            yield self._oddity

    async def warm_up(self) -> None: ...

    async def aclose(self) -> None: ...


@pytest.mark.parametrize("says", [0, 2])
@pytest.mark.parametrize(
    "oddity",
    [
        RuntimeError("odd"),
        KeyError("usage"),
        AssertionError(),
        TimeoutError(),
        MemoryError(),
        ExceptionGroup("several", [ValueError("odd")]),
        asyncio.CancelledError(),
        ConnectionResetError(),
        None,
        ("text_delta", {"text": "\ud83e"}),
        ("text_delta", {"text": object()}),
        Finish("end_turn", {"output_tokens": 2**70}),
        Finish("\ud83e", {}),
        ProviderFailure("provider_refused", "half a pair: \ud83e", retryable=False),
    ],
    ids=lambda odd: type(odd).__name__,
)
async def test_an_oddity_ends_the_stream_with_one_error(commit: GroupCommit, oddity: Any, says: int) -> None:
    events = await generate(commit, Odd(oddity, says), "Hello")
    assert kinds(events) == ["queued", "start", *says * ["text_delta"], "error"]
    assert (data(events[-1])["code"], data(events[-1])["recoverable"]) == ("internal_error", True)
    assert "odd" not in data(events[-1])["message"]


# -- a full stream -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_events", range(2, 12))
async def test_wherever_a_stream_is_full_it_ends_with_one_error(
    redis: Redis, provider: AnthropicProvider, standin: StandIn, max_events: int
) -> None:
    async with committing(StreamLog(redis, max_events=max_events)) as commit:
        events = await generate(commit, provider, f"[[tokens=3 cut_at=2 {FAST}]]")
    assert len(events) == max_events + 1
    assert endings(events) == ["error"]
    assert data(events[-1])["code"] == "stream_limit"
    await until_open(standin, 0)


# -- the pen is taken --------------------------------------------------------------------------------------


async def test_a_cancel_of_a_talking_provider_hangs_up_on_it(
    log: StreamLog, commit: GroupCommit, patient: AnthropicProvider, standin: StandIn
) -> None:
    claimed = await claim(log, "[[tokens=1000000 rate=200 ttft_ms=0]]")
    running = asyncio.create_task(run(commit, claimed, patient))
    await until(log, claimed.sid, "text_delta")
    await seize(log, claimed.sid, "cancelled", b"{}")
    events = await running
    assert endings(events) == ["cancelled"]
    await until_open(standin, 0)


async def test_a_cancel_of_a_silent_provider_is_learnt_by_the_heartbeat(
    log: StreamLog, commit: GroupCommit, patient: AnthropicProvider, standin: StandIn
) -> None:
    claimed = await claim(log, f"[[tokens=3 stall_at=2 {FAST}]]")
    writer = StreamWriter(commit, claimed)
    running = asyncio.create_task(generation(claimed, writer, patient).run(asyncio.Semaphore(1)))
    await until(log, claimed.sid, "text_delta")
    await until_open(standin, 1)
    await seize(log, claimed.sid, "cancelled", b"{}")
    heartbeat = Heartbeat(log)
    heartbeat.keep(writer)
    await heartbeat.renew()
    async with asyncio.timeout(LIMIT_S):
        await running
    assert kinds(await log.read_all(claimed.sid))[-1] == "cancelled"
    await until_open(standin, 0)


async def test_a_cancel_before_the_start_runs_nothing(
    log: StreamLog, commit: GroupCommit, provider: AnthropicProvider, standin: StandIn
) -> None:
    claimed = await claim(log, f"[[tokens=3 {FAST}]]")
    await seize(log, claimed.sid, "cancelled", b"{}")
    assert kinds(await run(commit, claimed, provider)) == ["queued", "cancelled"]
    await until_open(standin, 0)


async def test_a_zombie_adds_nothing(log: StreamLog, commit: GroupCommit, patient: AnthropicProvider) -> None:
    claimed = await claim(log, "[[tokens=1000000 rate=200 ttft_ms=0]]")
    zombie = asyncio.create_task(run(commit, claimed, patient))
    await until(log, claimed.sid, "text_delta")
    second = await taken_over(log, claimed.sid)
    before = (await log.read_all(claimed.sid))[: second.tail]
    assert await zombie == before
    assert before[-1].id == second.tail


# -- a takeover --------------------------------------------------------------------------------------------


async def test_a_takeover_takes_back_what_the_dead_worker_said(
    log: StreamLog, commit: GroupCommit, provider: AnthropicProvider
) -> None:
    claimed = await claim(log, f"[[tokens=2 {FAST}]]")
    second = await taken_over(log, claimed.sid)
    events = await run(commit, second, provider)
    assert kinds(events) == ["queued", "restart", "start", "text_delta", "text_delta", "done"]
    assert [event.id for event in events] == [1, *range(1_000_001, 1_000_000 + len(events))]
    assert data(events[1]) == {"attempt": 2, "reason": "worker_lost"}
    assert data(events[2])["attempt"] == 2
    assert (await meta(log, claimed.sid))["attempt"] == "2"


async def test_a_takeover_is_announced_before_there_is_room_for_it(
    log: StreamLog, commit: GroupCommit, provider: AnthropicProvider
) -> None:
    second = await taken_over(log, (await claim(log, f"[[tokens=2 {FAST}]]")).sid)
    slots = asyncio.Semaphore(0)
    waiting = asyncio.create_task(generation(second, StreamWriter(commit, second), provider).run(slots))
    await until(log, second.sid, "restart")
    assert "start" not in kinds(await log.read_all(second.sid))
    slots.release()
    async with asyncio.timeout(LIMIT_S):
        await waiting
    assert endings(await log.read_all(second.sid)) == ["done"]


async def test_takeovers_count_among_the_attempts(
    log: StreamLog, commit: GroupCommit, provider: AnthropicProvider
) -> None:
    second = await taken_over(log, (await claim(log, f"[[tokens=3 cut_at=1 {FAST}]]")).sid)
    events = await run(commit, second, provider)
    assert [data(event)["attempt"] for event in events if event.kind == "start"] == [2, 3]
    assert endings(events) == ["error"]


# -- the process goes away ---------------------------------------------------------------------------------


async def test_a_worker_that_is_stopped_writes_no_ending_and_leaves_the_stream_to_the_next(
    log: StreamLog, commit: GroupCommit, patient: AnthropicProvider, standin: StandIn
) -> None:
    claimed = await claim(log, f"[[tokens=3 stall_at=2 {FAST}]]")
    running = asyncio.create_task(run(commit, claimed, patient))
    await until(log, claimed.sid, "text_delta")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until_open(standin, 0)
    assert endings(await log.read_all(claimed.sid)) == []
    await expire_lease(log, claimed.sid)
    assert (await log.claim(claimed.sid, "claim-2", "worker-2")).attempt == 2
