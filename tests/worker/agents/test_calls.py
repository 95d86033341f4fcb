"""Calls: in the log before they run, and before their result is used; and what of them anybody may see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import fakeredis
import orjson
import pytest

import broker.log.stream_log
import broker.log.writer
from broker.errors import WriterSuperseded
from broker.log.pulse import now_s
from broker.log.stream_log import StreamLog
from broker.log.writer import GroupCommit, StreamWriter
from tests.rig.streams import committing, meta, remember, running, taken_over
from worker.agents.calls import Asked, Calls, Opened
from worker.agents.journal import UNKNOWN, Finished, Journal, read_journal
from worker.agents.stage import AgentStage

REFUND = Asked("", "refund", {"order_id": "A", "cents": 5}, title="Refunding")
FAILED = {"code": "failed", "message": "the bank said no"}


@pytest.fixture
def log() -> StreamLog:
    return StreamLog(fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer()))


class Attempt:
    """A worker with the pen of a stream. `stops`: its commits reach nobody any more."""

    def __init__(self, log: StreamLog, commit: GroupCommit, claimed: Any, journal: Journal, show: set[str]) -> None:
        self.sid = claimed.sid
        self.writer = StreamWriter(commit, claimed)
        self.stage = AgentStage(claimed, self.writer, {"agent": "support"})
        self.stage.announce()
        self.stage.begin()
        self.calls = Calls(journal, self.stage, show=show)

    async def open(self, asked: Asked) -> Opened:
        return await self.calls.open(self.calls.begin(asked))


class Stream:
    def __init__(self, log: StreamLog, commit: GroupCommit) -> None:
        self.log = log
        self.commit = commit
        self.sid = ""

    async def attempt(self, *, show: set[str] = frozenset()) -> Attempt:  # type: ignore[assignment]
        if not self.sid:
            claimed = await running(self.log, agent="support")
            self.sid = claimed.sid
            return Attempt(self.log, self.commit, claimed, Journal(self.sid), show)
        claimed = await taken_over(self.log, self.sid)
        return Attempt(self.log, self.commit, claimed, await read_journal(self.log, self.sid), show)

    async def said(self) -> list[tuple[str, dict[str, Any]]]:
        return [(event.kind, orjson.loads(event.data)) for event in await self.log.read_all(self.sid)]

    async def kinds(self) -> list[str]:
        """Since the last start."""
        kinds = [kind for kind, _ in await self.said()]
        return kinds[len(kinds) - kinds[::-1].index("start") :]


@pytest.fixture
async def stream(log: StreamLog) -> AsyncIterator[Stream]:
    async with committing(log) as commit:
        yield Stream(log, commit)


# -- one attempt ---------------------------------------------------------------------------------------------


async def test_a_call_is_in_the_log_before_it_runs_and_before_its_result_is_used(stream: Stream) -> None:
    one = await stream.attempt()
    opened = await one.open(REFUND)
    named = {"tool_call_id": opened.call.tool_call_id, "tool": "refund"}
    assert opened.do == "run"
    assert (await stream.said())[2:] == [
        ("tool_start", {**named, "title": "Refunding"}),
        ("internal.tool_args", {**named, "args": REFUND.args, "key": opened.call.key}),
    ]
    await one.calls.close(opened.call.tool_call_id, Finished({"ok": True}, None, 12))
    assert (await stream.said())[4:] == [
        ("internal.tool_result", {"key": opened.call.key, **named, "output": {"ok": True}, "duration_ms": 12}),
        ("tool_end", {**named, "duration_ms": 12}),
    ]
    assert (await meta(stream.log, stream.sid))["kept"] == "1" == str(one.stage.kept)


@pytest.mark.parametrize(
    ("asked", "show", "kinds"),
    [
        (REFUND, {"results", "args"},
         ["tool_start", "internal.tool_args", "tool_args", "internal.tool_result", "tool_end"]),
        (REFUND._replace(is_public=False), {"results", "args"},
         ["internal.tool_start", "internal.tool_args", "internal.tool_result", "internal.tool_end"]),
        (REFUND._replace(is_step=True), {"results"},
         ["internal.tool_start", "internal.tool_args", "internal.tool_result", "internal.tool_end"]),
        (REFUND._replace(turn_call=(0, "c")), {"args"},
         ["tool_start", "internal.tool_args", "internal.tool_result", "tool_end"]),
    ],
)  # fmt: skip
async def test_what_is_shown_of_a_call(stream: Stream, asked: Asked, show: set[str], kinds: list[str]) -> None:
    one = await stream.attempt(show=show)
    opened = await one.open(asked)
    await one.calls.close(opened.call.tool_call_id, Finished("paid"))
    assert await stream.kinds() == kinds
    shown = [data.get("output") for kind, data in await stream.said() if kind == "tool_end"]
    assert shown == ["paid" if "results" in show else None] * len(shown)


@pytest.mark.parametrize("show", [set(), {"results"}])
async def test_a_tools_own_words_are_shown_only_where_results_are(stream: Stream, show: set[str]) -> None:
    one = await stream.attempt(show=show)
    for error in (FAILED, {"code": "timeout", "message": "It took longer than 60 s."}):
        opened = await one.open(REFUND)
        await one.calls.close(opened.call.tool_call_id, Finished(error=error))
    errors = [data for kind, data in await stream.said() if kind == "tool_error"]
    assert [error["code"] for error in errors] == ["failed", "timeout"]
    assert ["message" in error for error in errors] == [bool(show), True]


async def test_a_sub_agents_call_names_its_agent_and_its_turn(stream: Stream) -> None:
    one = await stream.attempt()
    opened = await one.open(REFUND._replace(path="researcher.1", turn_call=(2, "c9")))
    await one.calls.close("c9", Finished(1))
    events = (await stream.said())[2:]
    assert all(data["agent"] == "researcher.1" for _, data in events)
    assert [data.get("turn") for _, data in events] == [2, 2, None, None]
    assert opened.call.key == f"{stream.sid}/researcher.1/2.c9"


async def test_a_call_that_was_refused_stays_refused(stream: Stream) -> None:
    one = await stream.attempt()
    refused = await one.calls.refuse(one.calls.begin(REFUND), "not_approved", "Anna said no.")
    again = await (await stream.attempt()).open(REFUND)
    assert (refused.do, again.do) == ("error", "error")
    assert refused.error == again.error == {"code": "not_approved", "message": "Anna said no."}


async def test_what_was_refused_under_a_key_may_still_come(stream: Stream) -> None:
    one, asked = await stream.attempt(), REFUND._replace(key=("order_id",))
    await one.calls.refuse(one.calls.begin(asked), "invalid_args", "cents: too many")
    assert (await one.open(asked)).do == "run"


async def test_one_effect_has_one_call_also_at_the_same_time(stream: Stream) -> None:
    one, asked = await stream.attempt(), REFUND._replace(key=("order_id",))
    first = await one.open(asked)
    others = [asyncio.create_task(one.open(asked._replace(args={"order_id": "A", "cents": n}))) for n in range(3)]
    cut = others.pop()
    await asyncio.sleep(0)
    cut.cancel()
    with suppress(asyncio.CancelledError):
        await cut
    await one.calls.close(first.call.tool_call_id, Finished("paid"))
    assert {(opened.do, opened.result) for opened in await asyncio.gather(*others)} == {("replay", "paid")}
    assert (await stream.kinds()).count("tool_start") == 1


async def test_who_waits_for_the_same_call_does_not_run_in_its_place(stream: Stream) -> None:
    """What was asked before the first one, a person perhaps, was not asked for the second."""
    one, asked = await stream.attempt(), REFUND._replace(key=("order_id",))
    first, second = one.calls.begin(asked), one.calls.begin(asked)
    waits = asyncio.create_task(one.calls.open(second))
    await asyncio.sleep(0)
    one.calls.drop(second)  # as a caller does whose waiting is cut: it is not its call
    await one.calls.refuse(first, "not_approved", "no")
    assert (await waits).do == "error"
    await one.stage.flush()
    assert "internal.tool_args" not in await stream.kinds()


# -- takeovers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [Finished([1, "é"], None, 7), Finished(error=FAILED)])
async def test_a_finished_call_is_answered_from_the_log(stream: Stream, outcome: Finished) -> None:
    one = await stream.attempt()
    opened = await one.open(REFUND)
    await one.calls.close(opened.call.tool_call_id, outcome)
    for attempt in (2, 3):
        two = await stream.attempt()
        again = await two.open(REFUND)
        assert (again.result, again.error) == outcome[:2]
        assert again.call.tool_call_id == opened.call.tool_call_id
        await two.stage.flush()
        said = (await stream.said())[-2:]
        assert [kind for kind, _ in said] == ["tool_start", "tool_error" if outcome.error else "tool_end"]
        assert all(data["replayed"] for _, data in said)
        assert (await meta(stream.log, stream.sid))["kept"] == "1", f"attempt {attempt} made no progress"


@pytest.mark.parametrize(
    ("asked", "do"),
    [
        (REFUND, "error"),
        (REFUND._replace(is_idempotent=True), "run"),
        (REFUND._replace(has_resolve=True), "resolve"),
        (REFUND._replace(is_step=True), "error"),
    ],
)
async def test_a_call_that_was_begun_is_its_tools_to_say(stream: Stream, asked: Asked, do: str) -> None:
    opened = await (await stream.attempt()).open(asked)
    two = await stream.attempt()
    again = await two.open(asked)
    assert (again.do, again.call.key) == (do, opened.call.key)
    if do == "error":
        await two.stage.flush()
        assert again.error == UNKNOWN
        assert "kept" not in await meta(stream.log, stream.sid), "not to know is no progress"
        third = await (await stream.attempt()).open(asked._replace(is_idempotent=True))
        assert third.error == UNKNOWN, "the model was told so, and went on"
    else:
        await two.calls.close(again.call.tool_call_id, Finished("paid"))
        assert (await (await stream.attempt()).open(asked)).result == "paid"


async def test_a_writer_that_was_fenced_begins_nothing_and_uses_nothing(stream: Stream) -> None:
    one = await stream.attempt()
    opened = await one.open(REFUND)
    two = await stream.attempt()
    with pytest.raises(WriterSuperseded):
        await one.calls.close(opened.call.tool_call_id, Finished("paid"))
    with pytest.raises(WriterSuperseded):
        await one.open(REFUND)
    assert (await two.open(REFUND)).error == UNKNOWN
    assert "internal.tool_result" not in await stream.kinds()


async def test_a_call_outlives_a_redis_that_loses_its_last_second(stream: Stream) -> None:
    """Its worker lives, and puts it back."""
    one = await stream.attempt()
    opened = await one.open(REFUND)
    forget = await remember(stream.log, stream.sid)
    await one.calls.close(opened.call.tool_call_id, Finished("paid"))
    await forget()
    assert "internal.tool_result" not in await stream.kinds()
    one.stage.write("text_delta", {"text": "so"})
    await one.stage.flush()
    assert (await meta(stream.log, stream.sid))["kept"] == "1"
    assert (await (await stream.attempt()).open(REFUND)).result == "paid"


@pytest.mark.parametrize("is_taken_over", [True, False])
async def test_no_call_runs_in_a_process_that_stood_still_for_a_lease_and_was_taken_over(
    stream: Stream, is_taken_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis has answered that the call is in the log; the process reads it a lease later."""
    one = await stream.attempt()
    await one.stage.flush()
    append_many = stream.log.append_many

    async def append_and_stand_still(appends: Any) -> Any:
        answered = await append_many(appends)
        monkeypatch.setattr(stream.log, "append_many", append_many)
        if is_taken_over:
            await taken_over(stream.log, stream.sid)
        before = now_s()
        for module in (broker.log.writer, broker.log.stream_log):
            monkeypatch.setattr(module, "now_s", lambda: now_s() + stream.log.lease_s)
        assert broker.log.writer.now_s() - before >= stream.log.lease_s
        return answered

    monkeypatch.setattr(stream.log, "append_many", append_and_stand_still)
    if is_taken_over:
        with pytest.raises(WriterSuperseded):
            await one.open(REFUND)
    else:
        assert (await one.open(REFUND)).do == "run"


@pytest.mark.parametrize("is_taken_over", [True, False])
async def test_a_call_that_waited_runs_only_while_the_pen_is_held(stream: Stream, is_taken_over: bool) -> None:
    one = await stream.attempt()
    await one.open(REFUND)
    if is_taken_over:
        await taken_over(stream.log, stream.sid)
        with pytest.raises(WriterSuperseded):
            await one.calls.hold()
    else:
        await one.calls.hold()
