"""The app of the benchmarks: an agent that says as many deltas as it is asked for, at that pace, each with its time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from lastevent import Context, agent


@dataclass
class Asked:
    """`rate`: deltas a second; 0: as fast as they are taken."""

    deltas: int
    rate: int


@agent("speaker")
async def speaker(_: Context, asked: Asked) -> AsyncIterator[str]:
    clock = asyncio.get_running_loop().time
    began_s = clock() + (id(asked) % 997 / 997 / asked.rate if asked.rate else 0)  # not in step with others
    for at in range(asked.deltas):
        if asked.rate:
            await asyncio.sleep(max(0.0, began_s + at / asked.rate - clock()))
        yield f"~{time.time_ns()}" if asked.rate else " word"
