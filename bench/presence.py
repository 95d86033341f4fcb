"""presence: 10,000 viewers of one stream, read: how long that takes, and how long it holds the loop for others.

One process beside Redis, nothing paced. Others are a task that wants a turn all the time: the longest of its waits.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from statistics import median

import orjson

from bench.processes import start_redis
from bench.scenario import Options
from bench.table import Table, number
from broker.live.hub import Hub
from broker.live.presence import Presence
from broker.log.keys import Keys
from broker.log.meta import new_sid
from broker.store.connect import connect

VIEWERS, VIEWERS_SHORT = (100, 1_000, 10_000), (100, 2_000)
ROUNDS = 5
HELD_MS = 50.0
"""What must not be exceeded."""


def presence(options: Options) -> list[Table]:
    with ExitStack() as stack:
        _, port = start_redis(stack)
        return [asyncio.run(_measure(f"redis://127.0.0.1:{port}", options))]


async def _measure(url: str, options: Options) -> Table:
    rounds = 1 if options.short else options.rounds or ROUNDS
    rows, failures = [], []
    for viewers in VIEWERS_SHORT if options.short else VIEWERS:
        took_ms, held_ms = zip(*[await _read(url, viewers) for _ in range(rounds)], strict=True)
        rows.append([f"{viewers:,}", number(median(took_ms)), number(median(held_ms)), number(max(held_ms))])
        if median(held_ms) > HELD_MS and not options.short:
            failures.append(f"{viewers:,} viewers hold the loop for {median(held_ms):.0f} ms")
    columns = ("viewers of a stream", "read in ms", "loop held, ms", "at most")
    return Table("presence: who follows one stream", columns, rows, failures=failures)


async def _read(url: str, viewers: int) -> tuple[float, float]:
    redis, keys, sid = connect(url), Keys(), new_sid()
    record = {
        "tenant": "t",
        "address": "192.0.2.7",
        "user_agent": "x" * 120,
        "format": "sse",
        "server": "a",
        "opened": 1,
    }
    records = {f"{n:032}": orjson.dumps({**record, "who": f"user:{n}"}) for n in range(viewers)}
    await redis.hset(keys.views_of(sid), mapping=records)  # type: ignore[misc,arg-type]  # redis-py's types
    await redis.zadd(keys.tiers, {"a": (await redis.time())[0] * 1000})
    asked = asyncio.create_task(Presence(redis, keys, Hub(redis, keys)).of(sid))
    began_s = turn_s = time.perf_counter()
    held_s = 0.0
    while not asked.done():
        await asyncio.sleep(0)
        now_s = time.perf_counter()
        held_s, turn_s = max(held_s, now_s - turn_s), now_s
    assert (await asked).connections == viewers
    await redis.delete(keys.views_of(sid))
    await redis.aclose()
    return (turn_s - began_s) * 1000, held_s * 1000
