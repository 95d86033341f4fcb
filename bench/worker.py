"""worker: how many provider events a second one worker process brings into the log, what one costs, how long it takes.

A real worker (`python -m worker`, arq, leases, the anthropic SDK over HTTP) against a loopback provider in a process
of its own (load/provider.py). Two kinds of provider:

    as fast as it is read   64 deltas in a write: the most a worker can take
    paced                   each delta a write of its own, as models speak; what a delta costs then

Beside ours at some of the paces: the naive worker (contestants/naive_worker.py). generating.py says when it measures,
and what. A delta's delay is from the provider's write to a subscriber of Redis; the naive worker's, to its entry there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from bench.contestants.lastevent_worker import LasteventWorker
from bench.contestants.naive_worker import NAIVE_WORKERS
from bench.contestants.side import REDIS
from bench.generating import PROVIDER, WORKER, Sample, Start, measure
from bench.loads import Load, loads
from bench.scenario import Measured, Options, Pairing
from bench.table import Table, number
from bench.tree import Tree

OURS = "Lastevent"
TARGET_PER_S = 10_000
LOADS = loads("20xmax,100xmax,300xmax,20x30,60x30,100x30,400x30,20x30+tls,100x30+tls")
LOADS_PAIRED = loads("100xmax,20x30,60x30,100x30,400x30,100x30+tls")
LOADS_NAIVE = loads("20x30,60x30,100x30")
LOADS_SHORT = loads("10xmax,10x30+tls")


def worker(options: Options) -> list[Table]:
    rows, failures = [], []
    for load in options.loads or (LOADS_SHORT if options.short else LOADS):
        workers: list[tuple[str, Start]] = [(OURS, LasteventWorker), *_naive(load, options)]
        for name, start in workers:
            print(f"  … {load.name}: {name}", file=sys.stderr)
            sample = measure(start, load, short=options.short)
            rows.append(_row(load, name, sample))
            failures += [f"{load.name}, {name}: {failure}" for failure in sample.failures]
    return [
        Table(
            "worker: provider events into the log, one worker process",
            (
                *("provider", "worker", "generations at a time", "events/s", "worker µs/event", "Redis µs/event"),
                *("commits an event", "delta p50 ms", "p99 ms", "worker busy", "(provider µs/event)"),
            ),
            rows,
            [f"Target: {TARGET_PER_S:,} events/s from one worker process."],
            failures,
        )
    ]


def _naive(load: Load, options: Options) -> list[tuple[str, Start]]:
    if load.is_agent:
        return []
    able = [(naive.name, naive.start) for naive in NAIVE_WORKERS]
    if options.short:
        return able[-1:] if load.rate else []
    return able if load in LOADS_NAIVE else []


def _row(load: Load, name: str, sample: Sample) -> list[str]:
    return [
        *(load.provider, name, f"{load.generations}", number(sample.events_per_s)),
        *(number(sample.cpu_us[part]) for part in (WORKER, REDIS)),
        *(number(sample.commits_an_event), *delays(sample), busy(load, sample), number(sample.cpu_us[PROVIDER])),
    ]


def delays(sample: Sample) -> Sequence[str]:
    """Two cells: median and p99."""
    return [number(ms) for ms in sample.delay_ms] if sample.delay_ms else ("–", "–")


def busy(load: Load, sample: Sample) -> str:
    return f"{sample.busy:.0%}{', full' if sample.is_full(load) else ''}"


def worker_paired(options: Options) -> list[Pairing]:
    return [
        Pairing(f"worker {load.name}: {load.provider}", partial(_measured, load, options))
        for load in options.loads or (LOADS_SHORT if options.short else LOADS_PAIRED)
    ]


def _measured(load: Load, options: Options, tree: Tree) -> Measured:
    sample = measure(partial(LasteventWorker, tree=tree), load, short=options.short)
    return Measured(
        {
            "worker µs/event": sample.cpu_us[WORKER],
            "Redis µs/event": sample.cpu_us[REDIS],
            "events/s": sample.events_per_s,
            "commits an event": sample.commits_an_event,
            **delay_figures(sample),
            "worker busy %": 100 * sample.busy,
        },
        sample.failures,
        notes(load, sample),
    )


def notes(load: Load, sample: Sample) -> list[str]:
    return ["the worker is full in a round"] if sample.is_full(load) else []


def delay_figures(sample: Sample) -> dict[str, float]:
    return dict(zip(("delta p50 ms", "delta p99 ms"), sample.delay_ms or (), strict=False))
