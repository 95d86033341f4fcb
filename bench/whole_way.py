"""whole_way: provider → worker → Redis → server → viewers, and what the three of ours cost for each event.

As `worker`, but a server runs, too, and each stream has a viewer who reads it over SSE, all in one process of its own.
A delta's delay is from the provider's write to that process' read.
"""

from __future__ import annotations

import sys
from functools import partial

from bench.contestants.lastevent_worker import WithViewers
from bench.contestants.side import REDIS, SERVER
from bench.generating import WORKER, Sample, measure
from bench.loads import Load, loads
from bench.scenario import Measured, Options, Pairing
from bench.table import Table, number
from bench.tree import Tree
from bench.worker import busy, delay_figures, delays, notes

LOADS, LOADS_SHORT = loads("100x30"), loads("10x30")
PARTS = (WORKER, REDIS, SERVER)


def whole_way(options: Options) -> list[Table]:
    rows, failures = [], []
    for load in _loads(options):
        print(f"  … {load.name}", file=sys.stderr)
        sample = measure(WithViewers, load, short=options.short)
        rows.append(_row(load, sample))
        failures += [f"{load.name}: {failure}" for failure in sample.failures]
    return [
        Table(
            "whole_way: provider → worker → Redis → server → viewers, one worker, one server, a viewer of each stream",
            (
                *("provider", "generations at a time", "events/s", *(f"{part} µs/event" for part in PARTS)),
                *("whole way", "delta p50 ms", "p99 ms", "worker busy"),
            ),
            rows,
            failures=failures,
        )
    ]


def _row(load: Load, sample: Sample) -> list[str]:
    return [
        *(load.provider, f"{load.generations}", number(sample.events_per_s)),
        *(number(sample.cpu_us[part]) for part in PARTS),
        *(number(_whole_way_us(sample)), *delays(sample), busy(load, sample)),
    ]


def whole_way_paired(options: Options) -> list[Pairing]:
    return [
        Pairing(f"whole_way {load.name}: {load.provider}, a viewer of each stream", partial(_measured, load, options))
        for load in _loads(options)
    ]


def _measured(load: Load, options: Options, tree: Tree) -> Measured:
    sample = measure(partial(WithViewers, tree=tree), load, short=options.short)
    figures = {
        **{f"{part} µs/event": sample.cpu_us[part] for part in PARTS},
        "whole way µs/event": _whole_way_us(sample),
        "events/s": sample.events_per_s,
        **delay_figures(sample),
        "worker busy %": 100 * sample.busy,
    }
    return Measured(figures, sample.failures, notes(load, sample))


def _loads(options: Options) -> list[Load]:
    return list(options.loads) or (LOADS_SHORT if options.short else LOADS)


def _whole_way_us(sample: Sample) -> float:
    return sum(sample.cpu_us[part] for part in PARTS)
