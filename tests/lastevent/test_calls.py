"""A tool's call in a run: what the journal is asked, in which order, and what the caller gets."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from contextlib import suppress
from typing import Any

import pytest

from lastevent import Agent, CallFailed, Context, ToolError, agent, calls, current, tool
from tests.lastevent.apps import desk
from tests.lastevent.apps.desk import BANK_IS_AWAY, Order, broken, find_order, moody, pay, refund, sleepy
from tests.lastevent.worker_end import Refuse, Silence, WorkerEnd, host_of, of_calls

CLOSED = ["open_call", "close_call"]


def calling(function: Any, *args: Any, **kwargs: Any) -> Any:
    """An agent that calls it, and says what it got."""

    @agent("caller")
    async def caller(ctx: Context, input: None) -> Any:
        try:
            given = function(*args, **kwargs)
            return {"got": await given if asyncio.iscoroutine(given) else given}
        except CallFailed as failed:
            return {"code": failed.code, "message": str(failed)}

    return caller


def asks(worker: WorkerEnd) -> list[str]:
    return [one["what"] for one in worker.asked]


async def got(function: Any, *args: Any, answer: Any = None) -> tuple[dict[str, Any], WorkerEnd]:
    async with host_of(calling(function, *args)) as worker:
        if answer is not None:
            worker.answer = answer
        return await worker.result_of("caller", None), worker


async def test_a_call_is_opened_run_and_closed_and_only_then_used() -> None:
    async with host_of(calling(find_order, "A17")) as worker:

        def answer(what: str, data: dict[str, Any]) -> Any:
            if what == "close_call":
                raise Silence  # it is not in the log yet
            return {"do": "run", "tool_call_id": "c", "idempotency_key": "k"}

        worker.answer = answer
        worker.run("caller", None)
        opened, closing = await worker.message("ask", what="open_call"), await worker.message("ask", what="close_call")
        assert opened["data"] == {
            "tool": "find_order",
            "args": {"order_id": "A17"},
            "key": None,
            "idempotent": True,
            "has_resolve": False,
            "title": "Looking it up",
            "public": True,
            "approval": False,
            "is_step": False,
        }
        assert closing["data"].pop("duration_ms") >= 0
        assert closing["data"] == {"tool_call_id": "c", "result": {"order_id": "A17", "cents": 1200}}
        assert not [one for one in worker.came if one["op"] == "end"]
        worker.send("reply", id=closing["id"], ok={})
        assert (await worker.end())["result"] == {"got": {"order_id": "A17", "cents": 1200}}


async def test_what_the_journal_has_is_not_run_again_and_is_of_the_same_type() -> None:
    seen = []

    @agent("typed")
    async def typed(ctx: Context, input: None) -> None:
        seen.append(await find_order("A17"))

    async with host_of(typed) as worker:
        worker.answer = of_calls({"do": "replay", "result": {"order_id": "A17", "cents": 7}})
        await worker.result_of("typed", None)
        assert asks(worker) == ["open_call"]
    assert seen == [Order(order_id="A17", cents=7)]


async def test_an_error_of_the_journal_is_raised_where_the_tool_would_have_raised() -> None:
    unknown = {"do": "error", "error": {"code": "outcome_unknown", "message": "Find out first."}}
    told, worker = await got(find_order, "A17", answer=of_calls(unknown))
    assert told == {"code": "outcome_unknown", "message": "Find out first."}
    assert asks(worker) == ["open_call"]


@pytest.mark.parametrize(
    ("order_id", "result"), [("new", {"paid": "new"}), ("old", {"paid": "old", "by": "k"})], ids=["not done", "done"]
)
async def test_a_call_that_was_cut_is_asked_for_at_its_destination(order_id: str, result: Any) -> None:
    told, worker = await got(
        pay, order_id, answer=of_calls({"do": "resolve", "tool_call_id": "c", "idempotency_key": "k"})
    )
    assert told == {"got": result}
    assert worker.asked[0]["data"]["has_resolve"] is True
    assert asks(worker) == CLOSED


@pytest.mark.parametrize("order_id", BANK_IS_AWAY)
async def test_if_the_destination_cannot_tell_the_outcome_of_a_call_that_was_cut_is_unknown_and_it_is_not_made_again(
    order_id: str,
) -> None:
    told, worker = await got(
        pay, order_id, answer=of_calls({"do": "resolve", "tool_call_id": "c", "idempotency_key": "k"})
    )
    assert told == {"code": "outcome_unknown", "message": calls.UNKNOWN.format("pay")}
    assert asks(worker) == CLOSED
    assert worker.asked[1]["data"]["error"] == told
    traces = [trace["traceback"] for kind, trace in worker.events() if kind == "internal.call_trace"]
    assert ["never show planted" in trace for trace in traces] == [True] * (order_id == "planted")


async def test_an_exception_s_text_reaches_nobody_but_operators(caplog: pytest.LogCaptureFixture) -> None:
    told, worker = await got(broken, "planted")
    assert told == {"code": "failed", "message": "ValueError"}
    assert worker.asked[1]["data"]["error"] == {"code": "failed", "message": "ValueError"}
    [(kind, trace)] = worker.events()
    assert kind == "internal.call_trace"
    assert "never show planted" in trace["traceback"]
    assert "the tool broken raised ValueError, tests/lastevent/apps/desk.py:" in caplog.text
    assert "planted" not in caplog.text


class Unusual(BaseException):
    pass


@pytest.mark.parametrize("raised", [Unusual, GeneratorExit])
async def test_a_tool_fails_whatever_it_raises(raised: type[BaseException]) -> None:
    @tool
    async def awaited() -> None:
        raise raised

    @tool
    def called() -> None:
        raise raised

    for one in (awaited, called):
        told, worker = await got(one)
        assert told == {"code": "failed", "message": raised.__name__}
        assert asks(worker) == CLOSED
    async with host_of(Agent("odd", model="m", tools=[awaited])) as worker:
        await worker.open("odd")
        assert (await worker.ask("call", tool="awaited", args={}))["error"]["type"] == raised.__name__


async def test_a_tool_error_s_message_is_the_answer() -> None:
    @tool
    async def refuses() -> None:
        raise ToolError("Out of stock.")

    told, worker = await got(refuses)
    assert told == {"code": "failed", "message": "Out of stock."}
    assert worker.events() == []


MOODY = {"code": "failed", "message": "Not in the mood."}


@pytest.mark.parametrize(("good_after", "told"), [(2, {"got": 3}), (3, MOODY)])
async def test_a_tool_that_asks_for_it_is_tried_twice_more(
    good_after: int, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "RETRY_S", (0, 0))
    monkeypatch.setattr(desk, "tries", 0)
    found, worker = await got(moody, good_after)
    assert found == told
    assert desk.tries == 3
    assert asks(worker) == CLOSED


async def test_a_tool_that_takes_too_long_is_cut() -> None:
    told, worker = await got(sleepy, 3600)
    assert told == {"code": "timeout", "message": "sleepy took longer than 0.1 s."}
    assert asks(worker) == CLOSED


async def test_a_thread_that_takes_too_long_is_left_alone_and_may_see_it() -> None:
    seen, left = threading.Event(), threading.Event()

    @tool(timeout_s=0.1)
    def stubborn() -> None:
        ctx = current()
        while not ctx.cancelled:
            seen.wait(0.01)
        left.set()

    told, _ = await got(lambda: asyncio.to_thread(stubborn))
    assert told["code"] == "timeout"
    assert await asyncio.to_thread(left.wait, 10)


async def test_a_result_that_is_too_large_or_no_json_is_an_error() -> None:
    @tool
    async def large() -> str:
        return "x" * (256 * 1024)

    @tool
    async def odd() -> object:
        return threading.Lock()

    assert (await got(large))[0]["code"] == "result_too_large"
    assert (await got(odd))[0] == {"code": "failed", "message": "odd gave lock, which is not JSON."}


async def test_a_failure_is_told_however_long_its_text_is() -> None:
    @tool
    async def chatty() -> None:
        raise ToolError("x" * 5_000_000)

    @tool
    async def mumbling() -> None:
        class Mumble(Exception):
            def __str__(self) -> str:
                raise ValueError(5_000_000 * "x")

        raise Mumble

    told, worker = await got(chatty)
    assert told == {"code": "failed", "message": "x" * 65_536}
    assert asks(worker) == CLOSED
    assert (await got(mumbling))[0] == {"code": "failed", "message": "Mumble"}


async def test_a_tool_that_ends_its_process_only_fails() -> None:
    @tool
    async def leaves() -> None:
        raise SystemExit(3)

    @tool
    def stops() -> None:
        next(iter([]))

    assert (await got(leaves))[0] == {"code": "failed", "message": "SystemExit"}
    assert (await got(lambda: asyncio.to_thread(stops)))[0] == {"code": "failed", "message": "StopIteration"}


# -- from where frameworks call ------------------------------------------------------------------------------


def _in_the_loop() -> Any:
    return refund("A17", 5)


async def _in_a_thread() -> Any:
    return await asyncio.to_thread(refund, order_id="A17", cents=5)


async def _in_an_executor() -> Any:
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(None, lambda: context.run(refund, "A17", 5))


async def _in_a_task() -> Any:
    async def call() -> Any:
        return refund("A17", cents=5)

    return await asyncio.create_task(call())


async def _in_a_loop_of_its_own() -> Any:
    async def call() -> Any:
        await find_order("A17")
        return refund("A17", 5)

    return await asyncio.to_thread(asyncio.run, call())


@pytest.mark.parametrize("way", [_in_the_loop, _in_a_thread, _in_an_executor, _in_a_task, _in_a_loop_of_its_own])
async def test_a_call_is_journalled_wherever_a_framework_makes_it(way: Any) -> None:
    told, worker = await got(way)
    assert told == {"got": "refunded 5 of A17 under key-refund"}
    assert asks(worker)[-2:] == CLOSED
    assert worker.asked[-2]["data"]["args"] == {"order_id": "A17", "cents": 5}
    progress = {"tool_call_id": "id-refund", "tool": "refund", "message": "Asking the bank…", "order_id": "A17"}
    assert worker.events() == [("tool_progress", progress)]


async def test_a_context_given_in_a_run_is_not_needed_and_does_no_harm() -> None:
    told, _ = await got(lambda: refund(current(), "A17", cents=5))
    assert told == {"got": "refunded 5 of A17 under key-refund"}


async def test_whether_a_call_needs_approval_is_decided_by_its_arguments() -> None:
    _, worker = await got(_in_the_loop)
    assert worker.asked[0]["data"]["approval"] is False
    _, worker = await got(lambda: refund("A17", 20_000))
    assert worker.asked[0]["data"]["approval"] is True
    assert worker.asked[0]["data"]["key"] == ["order_id"]


async def test_a_call_that_is_refused_never_begins() -> None:
    def refuse(what: str, data: dict[str, Any]) -> Any:
        raise Refuse("budget_exceeded", "Enough for today.")

    told, _ = await got(refund, "A17", 5, answer=refuse)
    assert told == {"code": "budget_exceeded", "message": "Enough for today."}


async def test_a_step_is_journalled_like_a_tool_and_shown_to_nobody() -> None:
    @agent("stepper")
    async def stepper(ctx: Context, input: int) -> list[Any]:
        async def double(number: int) -> int:
            await current().progress("doubling")
            return number * 2

        return [
            await ctx.step("double", double, input),
            await ctx.step("plain", lambda: threading.current_thread().name.startswith("lastevent")),
            await ctx.step("wrapped", lambda: double(input)),
        ]

    async with host_of(stepper) as worker:
        assert await worker.result_of("stepper", 4) == [8, True, 8]
        assert asks(worker) == CLOSED * 3
        told = worker.asked[0]["data"]
        assert (told["tool"], told["args"], told["is_step"], told["public"]) == ("double", {"0": 4}, True, False)
        assert {kind for kind, _ in worker.events()} == {"internal.tool_progress"}


# -- a cancel --------------------------------------------------------------------------------------------------


async def test_a_tool_that_a_cancel_cuts_has_no_result_and_its_finally_runs() -> None:
    finished = asyncio.Event()

    @tool
    async def long() -> None:
        current().status("at it")
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            finished.set()

    async with host_of(calling(long)) as worker:
        worker.run("caller", None)
        await worker.message("event", kind="status")
        worker.send("cancel", run="r")
        assert (await worker.end())["error"]["code"] == "cancelled"
        assert finished.is_set()
        assert asks(worker) == ["open_call"]


async def test_a_tool_that_its_caller_cuts_is_given_up_and_the_run_goes_on() -> None:
    @tool
    async def long() -> None:
        await asyncio.sleep(3600)

    @agent("impatient")
    async def impatient(ctx: Context, input: None) -> str:
        with suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(long(), 0.01)
        return "went on"

    async with host_of(impatient) as worker:
        assert await worker.result_of("impatient", None) == "went on"
        assert asks(worker) == ["open_call", "give_up_call"]


async def test_after_a_cancel_no_tool_begins() -> None:
    begun = []

    @tool
    async def begins() -> None:
        begun.append(1)

    @agent("stubborn")
    async def stubborn(ctx: Context, input: None) -> str:
        try:
            await begins()
        except asyncio.CancelledError:
            with pytest.raises(asyncio.CancelledError):
                await begins()
        return "went on"

    def hold(what: str, data: dict[str, Any]) -> Any:
        raise Silence

    async with host_of(stubborn) as worker:
        worker.answer = hold
        worker.run("stubborn", None)
        opened = await worker.message("ask", what="open_call")
        worker.send("cancel", run="r")
        worker.send("reply", id=opened["id"], ok={"do": "run", "tool_call_id": "c", "idempotency_key": "k"})
        assert (await worker.end())["error"]["code"] == "cancelled"
        assert worker.asked == []
    assert begun == []
