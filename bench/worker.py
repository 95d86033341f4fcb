"""worker: how many provider events a second one worker process brings into the log, and what one costs.

A real worker (`python -m worker`, arq, leases, the anthropic SDK over HTTP) against a loopback provider in a process
of its own (load/provider.py). Two kinds of provider:

    as fast as it is read   64 deltas in a write: the most a worker can take
    paced                   each delta a write of its own, as models speak; what a delta costs then

Counted in the log itself (the tails of all streams), while the middle of it was written, from 30 to 70 %:
then all generations run.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import ExitStack
from typing import NamedTuple

from bench.contestants.side import REDIS
from bench.meter import CpuMeter
from bench.processes import free_port, start, start_redis, wait_for_port
from bench.scenario import Options
from bench.table import Table, number
from broker.log.keys import Keys
from broker.log.meta import NewStream, new_sid
from broker.log.queue import connect_queue, enqueue
from broker.log.stream_log import StreamLog
from broker.store.connect import connect

WORKER, PROVIDER = "worker", "provider"
TARGET_PER_S = 10_000
LIMIT_S = 120.0
POLL_S = 0.05
OWN_EVENTS = 3  # of each stream: queued, start, done


class Load(NamedTuple):
    generations: int
    """At a time, and in all."""
    deltas: int
    rate: float
    """Deltas a second of each; 0: as fast as they are read."""


LOADS = (Load(20, 8000, 0), Load(100, 1600, 0), Load(300, 533, 0), Load(100, 600, 30), Load(400, 600, 30))
LOADS_SHORT = (Load(10, 3000, 0), Load(10, 30, 30))


class Moment(NamedTuple):
    events: int
    at_s: float
    spent_us: dict[str, float]


def worker(options: Options) -> list[Table]:
    rows, failures = [], []
    for load in LOADS_SHORT if options.short else LOADS:
        print(f"  … {load}", file=sys.stderr)
        with ExitStack() as stack:
            first, last, lost = _measure(stack, load)
        events, seconds = last.events - first.events, last.at_s - first.at_s
        cpu_us = {part: (last.spent_us[part] - first.spent_us[part]) / events for part in first.spent_us}
        busy = (last.spent_us[WORKER] - first.spent_us[WORKER]) / 1e6 / seconds
        pace = f"{load.rate:g}/s each: {load.generations * load.rate:,.0f}/s" if load.rate else "as fast as it is read"
        rows.append(
            [
                *(pace, f"{load.generations}", number(events / seconds)),
                *(number(cpu_us[part]) for part in (WORKER, REDIS, PROVIDER)),
                f"{busy:.0%}",
            ]
        )
        failures += [f"{load}: {lost} events are not in the log"] if lost else []
    return [
        Table(
            "worker: provider events into the log, one worker process",
            (
                *("provider", "generations at a time", "events/s", "worker µs/event"),
                *("Redis µs/event", "(provider µs/event)", "worker busy"),
            ),
            rows,
            [f"Target: {TARGET_PER_S:,} events/s from one worker process."],
            failures,
        )
    ]


def _measure(stack: ExitStack, load: Load) -> tuple[Moment, Moment, int]:
    redis_pid, redis_port = start_redis(stack)
    redis_url, provider_port = f"redis://127.0.0.1:{redis_port}", free_port()
    argv = [sys.executable, "-m", "bench.load.provider", str(provider_port), str(load.deltas), str(load.rate)]
    provider_pid = start(stack, argv)
    wait_for_port(provider_port, provider_pid)
    worker_pid = start(
        stack,
        [sys.executable, "-m", "worker", "--concurrency", str(load.generations)],
        LASTEVENT_REDIS_URL=redis_url,
        LASTEVENT_WORKER_DRAIN_S="1",
        ANTHROPIC_BASE_URL=f"http://127.0.0.1:{provider_port}",
        ANTHROPIC_API_KEY="x",
    )
    return asyncio.run(_run(redis_url, load, {WORKER: worker_pid, REDIS: redis_pid, PROVIDER: provider_pid}))


async def _run(redis_url: str, load: Load, parts: dict[str, int]) -> tuple[Moment, Moment, int]:
    log = StreamLog(connect(redis_url))
    sids = [new_sid() for _ in range(load.generations)]
    await _start(redis_url, log, sids)
    meter, wanted = CpuMeter(parts), load.generations * (load.deltas + OWN_EVENTS)
    moments = [Moment(0, time.monotonic(), meter.spent_us())]
    deadline = time.monotonic() + LIMIT_S
    while moments[-1].events < wanted and time.monotonic() < deadline:
        await asyncio.sleep(POLL_S)
        moments.append(Moment(await _events(log, sids), time.monotonic(), meter.spent_us()))
    await log.redis.aclose()
    lost = wanted - moments[-1].events
    last = next((moment for moment in moments if moment.events >= wanted * 0.7), moments[-1])
    first = next(moment for moment in moments if moment.events >= wanted * 0.3)
    return first if first is not last else moments[0], last, lost


async def _start(redis_url: str, log: StreamLog, sids: list[str]) -> None:
    """Create the streams and queue them, as the server does for a POST."""
    request = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": 1024}
    queue = connect_queue(redis_url, Keys())
    for sid in sids:
        await log.create(NewStream(sid=sid, tenant="default", session=sid, model="anthropic/bench", request=request))
        await enqueue(queue, log.keys, sid)
    await queue.aclose(close_connection_pool=True)


async def _events(log: StreamLog, sids: list[str]) -> int:
    async with log.redis.pipeline(transaction=False) as pipe:
        for sid in sids:
            pipe.hget(log.keys.stream(sid).meta, "tail")
        return sum(int(tail) for tail in await pipe.execute())
