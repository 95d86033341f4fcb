"""A run: what it says, within its credit, what it asks, how it is cancelled, and its one end."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from lastevent import Agent, CallFailed, Context, Event, Input, Prompt, Thinking, agent, current
from tests.lastevent.apps.desk import clerk, counter, digest, find_order, leaver, refund, sturdy, support
from tests.lastevent.worker_end import Refuse, Silence, WorkerEnd, host_of

INFO = {"stream_id": "s", "session_id": "c", "user_id": "u", "metadata": {"a": 1}, "attempt": 2, "agent": "boss.1"}


async def test_a_generator_s_text_and_events_are_the_stream_s() -> None:
    async with host_of(digest) as worker:
        assert await worker.result_of("digest", {"question": "Why?", "times": "2"}) is None
        text = ("text_delta", {"text": "Why?"})
        assert worker.events() == [("status", {"message": "Reading…"}), text, text]


async def test_a_coroutine_s_return_is_the_result() -> None:
    async with host_of(clerk) as worker:
        assert await worker.result_of("clerk", "A17") == {
            "order": {"order_id": "A17", "cents": 1200},
            "noted": {"noted": "A17"},
        }
        assert worker.text() == "refunded 1200 of A17 under key-refund"


async def test_what_a_run_is_told() -> None:
    @agent("told")
    async def told(ctx: Context, input: None) -> list[Any]:
        assert current() is ctx
        return [ctx.stream_id, ctx.session_id, ctx.user_id, ctx.metadata, ctx.attempt, ctx.agent, ctx.idempotency_key]

    async with host_of(told) as worker:
        assert await worker.result_of("told", None, **INFO) == ["s", "c", "u", {"a": 1}, 2, "boss.1", None]


async def test_all_that_can_be_said() -> None:
    @agent("talker")
    async def talker(ctx: Context, input: None) -> Any:
        await ctx.text("half an emoji: \ud83d")
        await ctx.text("")
        await ctx.progress("half way")
        await ctx.emit("scored", {"by": float("nan")})
        await ctx.emit("scored", {"by": {1}}, public=True)
        await asyncio.to_thread(lambda: ctx.status("from a thread"))
        yield Thinking("hm")
        yield Event("looked")
        with pytest.raises(ValueError, match="Only Lastevent"):
            await ctx.emit("done", public=True)
        for kind in ("text_delta", "thinking_delta"):
            with pytest.raises(TypeError, match="has a text"):
                await ctx.emit(kind, {"text": 7}, public=True)
        with pytest.raises(ValueError, match="not JSON"):
            await ctx.emit("scored", {"by": object()})
        with pytest.raises(ValueError, match="4,194,304 may be said at once"):
            await ctx.text("x" * 4 * 1024 * 1024)

    async with host_of(talker) as worker:
        await worker.result_of("talker", None)
        assert worker.events() == [
            ("text_delta", {"text": "half an emoji: \ufffd"}),
            ("status", {"message": "half way"}),
            ("internal.scored", {"by": None}),
            ("scored", {"by": [1]}),
            ("status", {"message": "from a thread"}),
            ("thinking_delta", {"text": "hm"}),
            ("internal.looked", {}),
        ]


async def test_what_may_not_be_yielded_ends_the_run() -> None:
    @agent("odd")
    async def odd(ctx: Context, input: None) -> Any:
        yield 7

    async with host_of(odd) as worker:
        worker.run("odd", None)
        error = (await worker.end())["error"]
        assert (error["code"], error["type"]) == ("agent_failed", "TypeError")
        assert error["message"] == "The agent odd yielded int; it may yield str and Event."
        assert "_say_piece" in error["traceback"]


async def test_an_agent_that_ends_its_process_only_fails() -> None:
    async with host_of(leaver) as worker:
        worker.run("leaver", 3)
        error = (await worker.end())["error"]
        assert (error["code"], error["type"]) == ("agent_failed", "SystemExit")


class Unusual(BaseException):
    """As some libraries have for leaving from deep within: no `except Exception` meets it."""


async def test_whatever_an_agent_raises_is_told_as_what_it_is() -> None:
    @agent("odd")
    async def odd(ctx: Context, raised: str) -> None:
        raise {"unusual": Unusual, "closed": GeneratorExit, "long": type("N" * 3000, (Exception,), {})}[raised]("words")

    async with host_of(odd) as worker:
        for raised, name in (("unusual", "Unusual"), ("closed", "GeneratorExit"), ("long", "N" * 100)):
            worker.run("odd", raised, run=raised)
            error = (await worker.end(raised))["error"]
            assert (error["code"], error["type"], error["message"]) == ("agent_failed", name, "words")
            assert "in odd" in error["traceback"]


async def test_what_nobody_awaited_is_in_the_trace_and_its_words_are_not_in_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @agent("careless")
    async def careless(ctx: Context, input: None) -> None:
        async def fail() -> None:
            raise ValueError("planted")

        lost = asyncio.create_task(fail())
        await asyncio.wait({lost})

    async with host_of(careless) as worker:
        worker.run("careless", None)
        assert "planted" in (await worker.message("event", kind="internal.task_trace"))["data"]["traceback"]
        await worker.end()
    logged = capsys.readouterr().err
    assert "Task exception was never retrieved: ValueError, " in logged
    assert "in fail" in logged
    assert "planted" not in logged


async def test_an_input_that_does_not_fit_is_refused_without_an_echo() -> None:
    async with host_of(digest) as worker:
        worker.run("digest", {"question": 7, "times": "planted"})
        error = (await worker.end())["error"]
        assert error["code"] == "invalid_input"
        assert "question: " in error["message"]
        assert "times: " in error["message"]
        assert "planted" not in str(error)


async def test_a_run_of_an_agent_that_is_not_there_ends() -> None:
    async with host_of(digest) as worker:
        worker.run("gone", None)
        assert "There is no agent gone" in (await worker.end())["error"]["message"]


# -- credit ----------------------------------------------------------------------------------------------------


async def test_a_run_says_no_more_than_its_credit() -> None:
    async with host_of(counter) as worker:
        worker.run("counter", 20, credit=5)
        worker.run("counter", 3, run="other", credit=256)
        await worker.end("other")  # who waits holds nobody up
        assert worker.text() == "0 1 2 3 4 "
        worker.send("credit", run="r", n=10)
        await worker.until(lambda: worker.text().endswith("14 "))
        worker.send("credit", run="r", n=256)
        await worker.end()
        assert worker.text() == "".join(f"{number} " for number in range(20))


async def test_threads_wait_for_credit_too() -> None:
    @agent("threads")
    async def threads(ctx: Context, input: None) -> None:
        def say() -> None:
            for _ in range(10):
                ctx.text("x")

        await asyncio.gather(*(asyncio.to_thread(say) for _ in range(3)))

    async with host_of(threads) as worker:
        worker.run("threads", None, credit=4)
        await worker.until(lambda: worker.text() == "xxxx")
        worker.send("credit", run="r", n=256)
        await worker.end()
        assert worker.text() == "x" * 30


async def test_one_who_gave_up_waiting_costs_no_credit() -> None:
    gave_up = threading.Event()

    @agent("hasty")
    async def hasty(ctx: Context, input: None) -> None:
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(_awaited(ctx.text("never")), 0.01)
        gave_up.set()
        await ctx.status("gave up")
        await ctx.text("said")

    async with host_of(hasty) as worker:
        worker.run("hasty", None, credit=0)
        assert await asyncio.to_thread(gave_up.wait, 10)
        worker.send("credit", run="r", n=2)
        await worker.end()
        assert worker.events() == [("status", {"message": "gave up"}), ("text_delta", {"text": "said"})]


async def _awaited(one: Any) -> None:
    await one


# -- what it asks ------------------------------------------------------------------------------------------------


async def test_other_agents_have_paths_by_the_order_of_their_start() -> None:
    @agent("boss")
    async def boss(ctx: Context, input: None) -> list[Any]:
        first = ctx.run(digest, {"question": "a"})
        second = ctx.run("digest", {"question": "b"}, public=True)
        third = ctx.run(support, Prompt(prompt="c"))
        return [await third, await second, await first]

    def answer(what: str, data: dict[str, Any]) -> Any:
        if data["agent"] == "support":
            raise Refuse("agent_failed", "It failed.")
        return {"result": data["path"]}

    @agent("brave")
    async def brave(ctx: Context, input: None) -> Any:
        with pytest.raises(CallFailed) as failed:
            await ctx.run("support", {"prompt": "c"})
        return [failed.value.code, await ctx.run("digest")]

    async with host_of(boss, brave) as worker:
        worker.answer = lambda what, data: {"result": [data["path"], data["input"], data["public"]]}
        assert await worker.result_of("boss", None, agent="boss.1") == [
            ["boss.1/support.1", {"prompt": "c", "messages": None}, False],
            ["boss.1/digest.2", {"question": "b"}, True],
            ["boss.1/digest.1", {"question": "a"}, False],
        ]
        worker.answer = answer
        assert await worker.result_of("brave", None) == ["agent_failed", "digest.1"]


async def test_inputs_come_as_they_are_sent_and_routes_are_chosen() -> None:
    @agent("listener")
    async def listener(ctx: Context, input: None) -> Any:
        got: list[Input] = []
        async for message in ctx.inputs():
            got.append(message)
            if len(got) == 2:
                break
        got += [message async for message in ctx.inputs()]
        return [[one.text, one.data] for one in got] + [await ctx.route("?", {"a": "for a"})]

    given = [{"text": "one"}, {"data": {"two": 2}}, {"text": "three"}, None]

    def answer(what: str, data: dict[str, Any]) -> Any:
        return {"input": given[data["after"]]} if what == "next_input" else {"choice": next(iter(data["choices"]))}

    async with host_of(listener) as worker:
        worker.answer = answer
        assert await worker.result_of("listener", None) == [["one", None], [None, {"two": 2}], ["three", None], "a"]


# -- a cancel ----------------------------------------------------------------------------------------------------


async def test_a_cancel_reaches_the_code_and_its_finally_runs_before_the_end() -> None:
    async with host_of(sturdy) as worker:
        worker.run("sturdy", 0.05)
        await worker.message("event", kind="text_delta")
        worker.send("cancel", run="r")
        assert (await worker.end())["error"]["code"] == "cancelled"


async def test_a_generator_hears_of_a_cancel_wherever_it_is() -> None:
    heard: list[str] = []

    @agent("yields")
    async def yields(ctx: Context, input: int) -> Any:
        try:
            for _ in range(10):
                yield "x"
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await ctx.status("it says nothing any more, and goes on")
            heard.append("cancelled")
            raise

    async with host_of(yields) as worker:
        for credit in (3, 256):  # waiting for credit; waiting for something else
            worker.run("yields", 0, run=str(credit), credit=credit)
            await worker.until(lambda: len(worker.text(str(credit))) == min(credit, 10))  # noqa: B023
            worker.send("cancel", run=str(credit))
            assert (await worker.end(str(credit)))["error"]["code"] == "cancelled"
            assert not [kind for kind, _ in worker.events(str(credit)) if kind == "status"]
    assert heard == ["cancelled"] * 2


async def test_a_cancel_before_the_first_step_has_its_end_too() -> None:
    async with host_of(sturdy) as worker:
        worker.run("sturdy", 0)
        worker.send("cancel", run="r")
        assert (await worker.end())["error"]["code"] == "cancelled"


async def test_code_in_threads_sees_a_cancel() -> None:
    left = threading.Event()

    @agent("threaded")
    async def threaded(ctx: Context, input: None) -> None:
        def work() -> None:
            try:
                while True:
                    ctx.progress("on it")
            except asyncio.CancelledError:
                left.set()

        await asyncio.to_thread(work)

    async with host_of(threaded) as worker:
        worker.run("threaded", None, credit=3)
        await worker.until(lambda: len(worker.events()) == 3)
        worker.send("cancel", run="r")
        await worker.end()
        assert await asyncio.to_thread(left.wait, 10)


async def test_a_cancelled_run_waits_for_no_answer() -> None:
    @agent("asks")
    async def asks(ctx: Context, input: None) -> Any:
        return await ctx.run("other")

    def hold(what: str, data: dict[str, Any]) -> Any:
        raise Silence

    async with host_of(asks) as worker:
        worker.answer = hold
        worker.run("asks", None)
        await worker.message("ask", what="run_agent")
        worker.send("cancel", run="r")
        assert (await worker.end())["error"]["code"] == "cancelled"


async def test_who_is_cancelled_alone_gives_up_what_was_asked_for_and_the_run_goes_on() -> None:
    @agent("impatient")
    async def impatient(ctx: Context, input: None) -> str:
        try:
            await asyncio.wait_for(ctx.run("other"), 0.01)
        except TimeoutError:  # one is not the other before 3.11
            return "went on"
        return "had it"

    def hold(what: str, data: dict[str, Any]) -> Any:
        raise Silence

    async with host_of(impatient) as worker:
        worker.answer = hold
        worker.run("impatient", None)
        asked = await worker.message("ask", what="run_agent")
        await worker.message("cancel_ask", run="r", id=asked["id"])
        assert (await worker.end())["result"] == "went on"


# -- a run of the built-in loop -----------------------------------------------------------------------------------


async def test_the_loop_asks_for_instructions_and_checks() -> None:
    async with host_of(support) as worker:
        await worker.open("support", {"prompt": "Where is it?"}, **INFO)
        assert await worker.ask("validate") == {"op": "reply", "id": 1, "ok": {}}
        assert (await worker.ask("instructions"))["ok"] == {"text": "You help u, who asked: Where is it?"}
        for cents, needed in (("5", False), (20_000, True)):
            checked = await worker.ask("check", tool="refund", args={"order_id": "A17", "cents": cents})
            assert checked["ok"] == {"needs_approval": needed}
        refused = await worker.ask("check", tool="refund", args={"cents": 0})
        assert refused["error"]["code"] == "invalid_args"
        assert refused["error"]["message"] == "order_id: Field required; cents: Input should be greater than 0"
        assert (await worker.ask("check", tool="digest", args={"question": "a"}))["ok"] == {"needs_approval": False}
        assert (await worker.ask("check", tool="digest", args={}))["error"]["code"] == "invalid_args"
        assert (await worker.ask("check", tool="gone", args={}))["error"]["code"] == "invalid_args"
        worker.send("close", run="r")
        assert (await worker.ask("validate"))["error"]["code"] == "no_run"


async def test_an_input_that_does_not_fit_is_said_to_the_loop() -> None:
    async with host_of(support) as worker:
        await worker.open("support", {"text": "planted"})
        error = (await worker.ask("validate"))["error"]
        assert error["code"] == "invalid_input"
        assert "planted" not in str(error)


async def test_the_loop_s_calls_are_run_once_each_with_types_of_the_signature() -> None:
    async with host_of(support) as worker:
        await worker.open("support")
        done = await worker.ask("call", tool="refund", args={"order_id": "A17", "cents": "5"})
        assert done["ok"] == {"result": "refunded 5 of A17 under key1"}
        assert worker.events()[0][0] == "tool_progress"
        told = (await worker.ask("call", tool="moody", args={"good_after": 99}))["error"]
        assert (told["code"], told["message"], told["retry"]) == ("failed", "Not in the mood.", True)
        told = (await worker.ask("call", tool="broken", args={"secret": "planted"}))["error"]
        assert (told["code"], told["message"], told["retry"], told["type"]) == (
            "failed",
            "ValueError",
            False,
            "ValueError",
        )
        assert "planted" in told["traceback"]
        [(_, trace)] = [event for event in worker.events() if event[0] == "internal.call_trace"]
        assert (trace["tool"], trace["traceback"]) == ("broken", told["traceback"])
        assert (await worker.ask("call", tool="sleepy", args={"seconds": 9}))["error"]["code"] == "timeout"
        assert (await worker.ask("resolve", tool="pay", args={"order_id": "new"}))["ok"] == {
            "done": False,
            "result": None,
        }
        resolved = await worker.ask("resolve", tool="pay", args={"order_id": "old"})
        assert resolved["ok"]["result"]["paid"] == "old"
        told = (await worker.ask("resolve", tool="pay", args={"order_id": "planted"}))["error"]
        assert (told["code"], "planted" in told["message"]) == ("outcome_unknown", False)
        assert "planted" in told["traceback"]
        assert worker.asked == []  # the journal is the loop's


def waiting() -> tuple[Agent, asyncio.Event]:
    from lastevent import tool

    finished = asyncio.Event()

    @tool
    async def long() -> None:
        await current().status("at it")
        try:
            await asyncio.sleep(3600)
        finally:
            finished.set()

    return Agent("waiting", model="m", tools=[long]), finished


async def _at_work(worker: WorkerEnd) -> int:
    number = worker.begin_ask("call", tool="long", args={})
    await worker.message("event", kind="status")
    return number


async def test_one_call_can_be_cancelled() -> None:
    built, finished = waiting()
    async with host_of(built) as worker:
        await worker.open("waiting")
        number = await _at_work(worker)
        worker.send("cancel_ask", id=number)
        assert (await worker.message("reply", id=number))["error"]["code"] == "cancelled"
        assert finished.is_set()
        assert (await worker.ask("validate"))["ok"] == {}


async def test_a_cancel_ends_all_calls_and_then_the_run() -> None:
    built, finished = waiting()
    async with host_of(built) as worker:
        await worker.open("waiting")
        number = await _at_work(worker)
        worker.send("cancel", run="r")
        assert (await worker.end())["error"]["code"] == "cancelled"
        assert finished.is_set()
        assert (await worker.message("reply", id=number))["error"]["code"] == "cancelled"
        assert (await worker.ask("call", tool="long", args={}))["error"]["code"] == "no_run"


async def test_tools_of_tools_are_the_journal_s() -> None:
    """A tool of the built-in loop that calls another one: that call is asked for like one of own code."""
    from lastevent import tool

    @tool
    async def both(order_id: str) -> str:
        order = await find_order(order_id)
        return refund(order_id, order.cents)

    async with host_of(Agent("a", model="m", tools=[both])) as worker:
        await worker.open("a")
        done = await worker.ask("call", tool="both", args={"order_id": "A17"})
        assert done["ok"] == {"result": "refunded 1200 of A17 under key-refund"}
        assert [one["what"] for one in worker.asked] == ["open_call", "close_call"] * 2
