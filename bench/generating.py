"""Generations, measured: a worker brings a provider's deltas into Redis, and what that costs is metered.

A paced load is measured for some seconds that begin when every generation has its first delta, and that are over before
the first of them ends. (A full worker begins some so late that it never runs all at a time: there these are the last
seconds before the first of them ends.) A load without a pace is measured while its middle is written, from 30 to 70 %.

Commits are counted from outside, alike for every worker: what Redis has read (`total_reads_processed`) less what the
meter has asked. One batch is one read, up to 16 KB of it; the worker's few other commands are in it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import NamedTuple, Protocol

from redis.asyncio.client import Pipeline

from bench.contestants.side import REDIS
from bench.load.certificate import self_signed
from bench.load.wires import BASE_URLS
from bench.loads import DEFAULT_WIRE, Load
from bench.meter import CpuMeter
from bench.ports import free_port
from bench.processes import start, start_redis, temporary_folder, wait_for_port
from bench.table import p99
from broker.store.connect import Client

WORKER, PROVIDER = "worker", "provider"
LIMIT_S = 240.0  # a full worker takes minutes for what 400 generations ask of it
POLL_S = 0.05
MIDDLE = 0.3, 0.7
FULL_BUSY = 0.9
KEPT_UP = 0.97


class Place(NamedTuple):
    """What a worker finds: a Redis and a provider."""

    redis_port: int
    provider: Mapping[str, str]
    """Settings, as the SDK reads them."""
    deltas: int
    """Of each generation."""

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.redis_port}"


class Generating(Protocol):
    """A worker under measurement, its process running."""

    parts: dict[str, int]
    """The processes whose CPU counts."""
    redis: Client
    first_delta: int
    """How many events a stream has with its first delta."""
    own_events: int
    """Of each stream, beside its deltas."""

    async def begin(self) -> None:
        """All generations are asked for."""

    def ask_counts(self, pipe: Pipeline) -> None:
        """A command for each stream: how many events it has."""

    async def begin_timing(self) -> None: ...

    async def delays_ms(self) -> list[float]:
        """From the provider's write of a delta to where this worker's deltas come out; since `begin_timing`."""

    async def missing(self, deltas: int) -> int:
        """Of so many deltas in all, when all are in the log: how many did not come out."""

    async def aclose(self) -> None: ...


Start = Callable[[ExitStack, Place, Load], Generating]


class Sample(NamedTuple):
    """One measurement."""

    events_per_s: float
    cpu_us: dict[str, float]
    """By part, an event."""
    commits_an_event: float
    delays_ms: list[float]
    """Empty if the provider does not stamp its deltas."""
    busy: float
    """The share of a core that the worker has taken."""
    lost: int
    missing: int

    @property
    def delay_ms(self) -> tuple[float, float] | None:
        """Median and p99."""
        return (median(self.delays_ms), p99(self.delays_ms)) if self.delays_ms else None

    @property
    def failures(self) -> list[str]:
        told = {
            f"{self.lost} events are not in the log": self.lost,
            f"{self.missing} deltas did not come out": self.missing,
        }
        return [failure for failure, count in told.items() if count]

    def is_full(self, load: Load) -> bool:
        """Whether the worker had no room left. What it costs then, and its delays, say little of one that has."""
        return bool(load.rate) and (self.busy >= FULL_BUSY or self.events_per_s < KEPT_UP * load.asked_per_s)


class Moment(NamedTuple):
    counts: list[int]
    at_s: float
    spent_us: dict[str, float]
    reads: int
    """Of Redis, without the meter's."""

    @property
    def events(self) -> int:
        return sum(self.counts)


def measure(start_worker: Start, load: Load, *, short: bool = False) -> Sample:
    with ExitStack() as stack:
        redis_pid, redis_port = start_redis(stack)
        provider_pid, provider = _start_provider(stack, load, short=short)
        worker = start_worker(stack, Place(redis_port, provider, load.deltas(short=short)), load)
        meter = CpuMeter({**worker.parts, REDIS: redis_pid, PROVIDER: provider_pid})
        return asyncio.run(_measure(worker, meter, load, short=short))


def _start_provider(stack: ExitStack, load: Load, *, short: bool) -> tuple[int, dict[str, str]]:
    port, wire = free_port(), DEFAULT_WIRE if load.is_agent else load.wire
    argv = [str(port), str(load.deltas(short=short)), str(load.rate), wire]
    address, key, path = BASE_URLS[wire]
    settings = {address: f"http://127.0.0.1:{port}{path}", key: "x", "LASTEVENT_DEFAULT_MODEL": f"{wire}/bench"}
    if load.tls:
        certificate = self_signed(temporary_folder(stack))
        argv += map(str, certificate)
        settings |= {
            address: f"https://127.0.0.1:{port}{path}",
            "SSL_CERT_FILE": str(certificate.chain),
        }
    pid = start(stack, [sys.executable, "-m", "bench.load.provider", *argv])
    wait_for_port(port, pid)
    return pid, settings


async def _measure(worker: Generating, meter: CpuMeter, load: Load, *, short: bool) -> Sample:
    try:
        watch = _Watch(worker, meter, load.deltas(short=short))
        await worker.begin()
        if load.rate:
            first, last, delays_ms = await _while_all_run(watch, load, short=short)
        else:
            first, last = await _the_middle(watch)
            delays_ms = []
        lost = await watch.until_the_end()
        missing = await worker.missing(load.generations * load.deltas(short=short)) if load.rate else 0
        return _sample(first, last, delays_ms, lost, missing)
    finally:
        await worker.aclose()


def _sample(first: Moment, last: Moment, delays_ms: list[float], lost: int, missing: int) -> Sample:
    events, seconds = max(1, last.events - first.events), last.at_s - first.at_s
    spent_us = {part: last.spent_us[part] - first.spent_us[part] for part in first.spent_us}
    return Sample(
        events_per_s=events / seconds,
        cpu_us={part: us / events for part, us in spent_us.items()},
        commits_an_event=(last.reads - first.reads) / events,
        delays_ms=delays_ms,
        busy=spent_us[WORKER] / 1e6 / seconds,
        lost=lost,
        missing=missing,
    )


class _Watch:
    """Looks at all streams, until all have ended."""

    def __init__(self, worker: Generating, meter: CpuMeter, deltas: int) -> None:
        self.worker = worker
        self._meter = meter
        self._each = worker.own_events + deltas
        self._asked = 0
        self._deadline_s = time.monotonic() + LIMIT_S

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self._deadline_s

    async def look(self) -> Moment:
        async with self.worker.redis.pipeline(transaction=False) as pipe:
            pipe.info("stats")
            self.worker.ask_counts(pipe)
            stats, *counts = await pipe.execute()
        self._asked += 1  # a read, too
        reads = stats["total_reads_processed"] - self._asked
        return Moment([int(count or 0) for count in counts], time.monotonic(), self._meter.spent_us(), reads)

    def wanted(self, moment: Moment) -> int:
        return len(moment.counts) * self._each

    async def until_the_end(self) -> int:
        """Until all streams are complete; how many events are lacking when it is no use to wait longer."""
        while True:
            moment = await self.look()
            lost = self.wanted(moment) - moment.events
            if not lost or self.is_over:
                return lost
            await asyncio.sleep(POLL_S)


async def _while_all_run(watch: _Watch, load: Load, *, short: bool) -> tuple[Moment, Moment, list[float]]:
    seconds, each = load.measured_s(short=short), load.deltas(short=short)
    while not is_time(await watch.look(), watch.worker.first_delta, at_most=each - int(seconds * load.rate)):
        if watch.is_over:
            raise SystemExit(f"no generation has got far in {LIMIT_S:g} s; has the worker begun?")
        await asyncio.sleep(POLL_S)
    await watch.worker.begin_timing()
    first = await watch.look()
    await asyncio.sleep(seconds)
    last = await watch.look()
    return first, last, await watch.worker.delays_ms()


def is_time(moment: Moment, first_delta: int, at_most: int) -> bool:
    """Whether all generations run, or the first of them has no more time to wait for the others: `at_most` deltas."""
    return min(moment.counts) >= first_delta or max(moment.counts) >= first_delta + at_most


async def _the_middle(watch: _Watch) -> tuple[Moment, Moment]:
    moments = [await watch.look()]
    wanted = watch.wanted(moments[0])
    while moments[-1].events < MIDDLE[1] * wanted and not watch.is_over:
        await asyncio.sleep(POLL_S)
        moments.append(await watch.look())
    return middle(moments, wanted)


def middle(moments: Sequence[Moment], wanted: int) -> tuple[Moment, Moment]:
    """From where 30 % are written to the last; from the beginning if both are one moment."""
    first = next((moment for moment in moments if moment.events >= MIDDLE[0] * wanted), moments[-1])
    return first if first is not moments[-1] else moments[0], moments[-1]
