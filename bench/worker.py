"""worker: how many provider events a second one worker process brings into the log, what one costs, how long it takes.

A real worker (`python -m worker`, arq, leases, the anthropic SDK over HTTP) against a loopback provider in a process
of its own (load/provider.py). Two kinds of provider:

    as fast as it is read   64 deltas in a write: the most a worker can take
    paced                   each delta a write of its own, as models speak; what a delta costs then

generating.py says when it measures, and what. A delta's delay is from the provider's write to a subscriber of Redis.
"""

from __future__ import annotations

import sys
from functools import partial

from bench.contestants.lastevent_worker import LasteventWorker
from bench.contestants.side import REDIS
from bench.generating import PROVIDER, WORKER, Sample, measure
from bench.loads import Load, loads
from bench.scenario import Measured, Options, Pairing
from bench.table import Table, number
from bench.tree import Tree

TARGET_PER_S = 10_000
LOADS = loads("20xmax,100xmax,300xmax,20x30,60x30,100x30,400x30,20x30+tls,100x30+tls")
LOADS_PAIRED = loads("100xmax,20x30,60x30,100x30,400x30,100x30+tls")
LOADS_SHORT = loads("10xmax,10x30+tls")


def worker(options: Options) -> list[Table]:
    rows, failures = [], []
    for load in options.loads or (LOADS_SHORT if options.short else LOADS):
        print(f"  … {load.name}", file=sys.stderr)
        sample = measure(LasteventWorker, load, short=options.short)
        rows.append(_row(load, "Lastevent", sample))
        failures += [f"{load.name}: {failure}" for failure in sample.failures]
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


def _row(load: Load, name: str, sample: Sample) -> list[str]:
    return [
        *(load.provider, name, f"{load.generations}", number(sample.events_per_s)),
        *(number(sample.cpu_us[part]) for part in (WORKER, REDIS)),
        number(sample.commits_an_event),
        *(map(number, sample.delay_ms) if sample.delay_ms else ("–", "–")),
        f"{sample.busy:.0%}{', full' if sample.is_full(load) else ''}",
        number(sample.cpu_us[PROVIDER]),
    ]


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
    )


def delay_figures(sample: Sample) -> dict[str, float]:
    return dict(zip(("delta p50 ms", "delta p99 ms"), sample.delay_ms or (), strict=False))
