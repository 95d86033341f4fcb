"""The app that the fault suite's workers run. Its tools leave a line each in a ledger, outside of the product: that is
their side effect, and what the suite judges by (ledger.py).

What own code says is a function of what its calls gave it: `<charge=charged 0><look=looked 1>…`; of a call whose
outcome nobody knows it says `<charge!outcome_unknown>`.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from pydantic import BaseModel

from lastevent import NOT_DONE, Agent, CallFailed, Context, Limits, Status, agent, tool

LEDGER = "FAULTS_LEDGER"
"""The variable with the ledger's path. It is not one of Lastevent's, so processes of the app are given it."""


def note(ctx: Context, tool: str, n: int) -> None:
    """One write: lines of several processes do not mix."""
    line = {"at": time.time(), "sid": ctx.stream_id, "agent": ctx.agent, "tool": tool, "n": n}
    with Path(os.environ[LEDGER]).open("a") as ledger:
        ledger.write(json.dumps({**line, "key": ctx.idempotency_key}) + "\n")


def noted(key: str | None) -> Iterator[str]:
    ledger = Path(os.environ[LEDGER])
    ledger.touch()  # nobody may have noted anything yet
    with ledger.open() as lines:
        yield from (line for line in lines if json.loads(line)["key"] == key)


# -- tools -----------------------------------------------------------------------------------------------


@tool
async def charge(ctx: Context, n: int, ms: int) -> str:
    """Charge: never to be done twice."""
    note(ctx, "charge", n)
    await asyncio.sleep(ms / 1000)
    return f"charged {n}"


@tool(idempotent=True)
async def look(ctx: Context, n: int, ms: int) -> str:
    """Look: as often as one likes."""
    note(ctx, "look", n)
    await asyncio.sleep(ms / 1000)
    return f"looked {n}"


async def was_settled(ctx: Context, n: int, ms: int) -> object:
    return f"settled {n}" if any(noted(ctx.idempotency_key)) else NOT_DONE


@tool(resolve=was_settled)
async def settle(ctx: Context, n: int, ms: int) -> str:
    """Settle: whether it was done can be found out."""
    note(ctx, "settle", n)
    await asyncio.sleep(ms / 1000)
    return f"settled {n}"


@tool(public=False)
def stamp(ctx: Context, n: int, ms: int) -> str:
    """Stamp: a plain function, in a thread."""
    note(ctx, "stamp", n)
    time.sleep(ms / 1000)
    return f"stamped {n}"


TOOLS = {"charge": charge, "look": look, "settle": settle, "stamp": stamp}

# -- agents ----------------------------------------------------------------------------------------------


class Walk(BaseModel):
    """Each step's calls are made at once."""

    steps: list[list[str]]
    ms: int = 100


ROOM = Limits(turns=30, tool_calls=60, parallel=4)


@agent("walker", limits=ROOM)
async def walker(ctx: Context, walk: Walk) -> AsyncIterator[str | Status]:
    yield Status("Walking…")
    n = 0
    for step in walk.steps:
        for said in await asyncio.gather(*(_said(name, n + at, walk.ms) for at, name in enumerate(step))):
            yield said
        n += len(step)
    yield "."


async def _said(name: str, n: int, ms: int) -> str:
    try:
        if name == "stamp":
            return f"<stamp={await asyncio.to_thread(stamp, n=n, ms=ms)}>"  # type: ignore[call-arg]
        return f"<{name}={await TOOLS[name](n=n, ms=ms)}>"  # type: ignore[operator]
    except CallFailed as failed:
        return f"<{name}!{failed.code}>"


clerk = Agent("clerk", model="anthropic/stand-in", instructions="You keep books.", tools=[*TOOLS.values()], limits=ROOM)


class Crowd(BaseModel):
    children: int
    events: int
    pause_ms: int = 0


@agent("crowd")
async def crowd(ctx: Context, given: Crowd) -> AsyncIterator[str]:
    """Children that all write at once."""
    said = await asyncio.gather(
        *(ctx.run("writer", given.model_dump(), public=True) for _ in range(given.children)),
    )
    yield " ".join(str(len(text)) for text in said)


@agent("writer")
async def writer(ctx: Context, given: Crowd) -> AsyncIterator[str]:
    for number in range(given.events):
        yield f"{number},"
        await asyncio.sleep(given.pause_ms / 1000)


SECRET = "what-only-the-code-knows"
"""In the text, the arguments and the traceback of whatever goes wrong here."""


@agent("culprit")
async def culprit(ctx: Context, how: str) -> AsyncIterator[str]:
    yield "It begins. "
    secret = SECRET
    if how == "sleep":
        time.sleep(3600)  # noqa: ASYNC251 (what must not be done is under test)
    elif how == "spin":
        while secret:
            pass
    elif how == "receive":
        here, there = socket.socketpair()
        here.recv(1)
        there.close()
    elif how == "C":
        # PyDLL: the interpreter's lock is held, so no thread runs and no signal's handler.
        ctypes.PyDLL(None).sleep(3600)
    elif how == "exit":
        os._exit(3)
    elif how == "segfault":
        ctypes.string_at(0)
    raise ValueError(f"{secret}: {how}")


@agent("patient", limits=Limits(tool_calls=1_000_000))
async def patient(ctx: Context, how: str) -> AsyncIterator[str]:
    """To be cancelled. `how`: what it waits in."""
    began, left = (Path(f"{os.environ[LEDGER]}.{ctx.stream_id}.{name}") for name in ("began", "left"))
    try:
        yield "It waits. "
        began.touch()
        if how == "await":
            await asyncio.sleep(3600)
        elif how == "tool":
            await charge(n=0, ms=3_600_000)  # type: ignore[call-arg]
        elif how == "thread":
            await asyncio.to_thread(wait_in_thread)  # type: ignore[call-arg]
        elif how == "tools":
            for n in range(100_000):
                await asyncio.gather(*(_said(tool, n, 1) for tool in TOOLS))
    finally:
        left.write_text(str(time.time()))
        await asyncio.sleep(0.1)
        with left.open("a") as file:
            file.write(" to its end")


@tool
def wait_in_thread(ctx: Context) -> str:
    while not ctx.cancelled:
        time.sleep(0.02)
    Path(f"{os.environ[LEDGER]}.{ctx.stream_id}.thread").touch()
    return "a result of a call that was cut"
