"""An app with one of each: own code as a generator and as a coroutine, the built-in loop, tools of both kinds."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, Field

from lastevent import NOT_DONE, Agent, Context, Limits, Status, ToolError, agent, tool


class Order(BaseModel):
    order_id: str
    cents: int


@dataclass
class Ask:
    question: str
    times: int = 1


@tool(idempotent=True, title="Looking it up")
async def find_order(order_id: str) -> Order:
    """Find an order by its number."""
    return Order(order_id=order_id, cents=1200)


@tool(timeout_s=20, key=("order_id",), approval=lambda args: args["cents"] > 10_000)
def refund(ctx: Context, order_id: str, cents: Annotated[int, Field(gt=0, le=50_000)]) -> str:
    """Refund an order."""
    ctx.progress("Asking the bank…", order_id=order_id)
    return f"refunded {cents} of {order_id} under {ctx.idempotency_key}"


BANK_IS_AWAY = {"planted": OSError("never show planted"), "told": ToolError("The bank is closed.", retry=True)}


async def ask_the_bank(ctx: Context, order_id: str) -> object:
    if order_id in BANK_IS_AWAY:
        raise BANK_IS_AWAY[order_id]
    return NOT_DONE if order_id == "new" else {"paid": order_id, "by": ctx.idempotency_key}


@tool(resolve=ask_the_bank, public=False)
async def pay(order_id: str) -> dict[str, str]:
    return {"paid": order_id}


@tool(timeout_s=0.1)
async def sleepy(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "awake"


tries = 0


@tool
async def moody(good_after: int) -> int:
    global tries
    tries += 1
    if tries <= good_after:
        raise ToolError("Not in the mood.", retry=True)
    return tries


@tool
def broken(secret: str) -> str:
    raise ValueError(f"never show {secret}")


@tool
async def hogging() -> None:
    hold("sleep")


@agent("digest")
async def digest(ctx: Context, ask: Ask):
    """Says its question back."""
    yield Status("Reading…")
    for _ in range(ask.times):
        yield ask.question


@agent("clerk", limits=Limits(seconds=30))
async def clerk(ctx: Context, order_id: str) -> dict[str, object]:
    order = await find_order(order_id)
    said = await asyncio.to_thread(refund, order_id, order.cents)
    await ctx.text(said)
    noted = await ctx.step("note", lambda one: {"noted": one}, order_id)
    return {"order": order, "noted": noted}


@agent("sturdy")
async def sturdy(ctx: Context, seconds: float) -> None:
    try:
        await ctx.text("waiting")
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(seconds)
        print("the finally is over", flush=True)


@agent("blocker")
async def blocker(ctx: Context, how: str):
    yield "I hold it up."
    if how == "task":
        await asyncio.create_task(_hold_soon("sleep"))
    else:
        hold(how)
    yield "never said"


@agent("counter")
async def counter(ctx: Context, times: int):
    for number in range(times):
        yield f"{number} "


@agent("leaver")
async def leaver(ctx: Context, code: int) -> None:
    raise SystemExit(code)


@agent("surroundings")
async def surroundings(ctx: Context, what: str) -> object:
    print("printed by the app")
    if what == "starts":
        return await asyncio.to_thread(_what_a_program_has)
    if what == "forks":
        return _what_a_fork_says()
    if what == "goes on in a fork":
        return await _what_two_processes_do()
    await ctx.text("hanging")
    await asyncio.to_thread(time.sleep, 3600)
    return None


def _what_a_program_has() -> object:
    program = (
        "import json, os, sys; wires = [one for one in os.listdir('/proc/self/fd') if int(one) > 2 "
        "and os.path.exists(f'/proc/self/fd/{one}') and os.readlink(f'/proc/self/fd/{one}').startswith('socket')];"
        "print(json.dumps({'wires': len(wires), 'stdin': sys.stdin.read()}))"
    )
    started = subprocess.run([sys.executable, "-c", program], close_fds=False, stdout=subprocess.PIPE, check=True)
    return json.loads(started.stdout)


def _what_a_fork_says() -> str:
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            refund("A17", 5)
        except BaseException as error:
            os.write(writing, type(error).__name__.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        name = said.read()
    os.waitpid(child, 0)
    return name


async def _what_two_processes_do() -> int:
    """How many of them come back to what waits in the event loop."""
    reading, writing = os.pipe()

    async def other() -> None:
        await asyncio.sleep(0)
        os.write(writing, b".")

    another = asyncio.create_task(other())
    child = os.fork()
    await another
    # It blocks the loop if the fork goes on in the child, which it must not.
    os.waitpid(child, 0)  # noqa: ASYNC222
    os.close(writing)
    with os.fdopen(reading) as did:
        return len(did.read())


support = Agent(
    "support",
    model="anthropic/claude-sonnet-5-5",
    fallbacks=["openai/gpt-5.2"],
    instructions=lambda ctx, prompt: f"You help {ctx.user_id}, who asked: {prompt.text}",
    tools=[find_order, refund, pay, sleepy, moody, broken, hogging, digest],
    show=["results"],
)


async def _hold_soon(how: str) -> None:
    hold(how)


def hold(how: str) -> None:
    if how == "sleep":
        time.sleep(60)
    elif how == "spin":
        while True:
            pass
    else:
        ours, _theirs = socket.socketpair()
        ours.recv(1)
