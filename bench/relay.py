"""relay and fanout: events delivered as they are written, beside the floor and the peers.

    relay     1,500 streams with a viewer each, 20 events/s each: what chat answers look like; and 5 events/s
              each, which more of the peers can bear
    fanout    one stream with 2,000 viewers, 20 events/s

One measurement = a contestant started afresh with its own Redis, its viewers connected, two seconds of warm-up, then
the measured seconds. Contestants take turns round by round, so that whatever else the machine does meets all alike;
ratios are taken within a round, and their median is given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median

from bench.contestants.centrifugo import CENTRIFUGO, CENTRIFUGO_REDIS
from bench.contestants.durable_streams_server import DURABLE_STREAMS
from bench.contestants.floor import FLOOR
from bench.contestants.lastevent import LASTEVENT, start_lastevent
from bench.contestants.mercure import MERCURE
from bench.contestants.naive import NAIVE
from bench.contestants.nchan import NCHAN, NCHAN_REDIS
from bench.contestants.resumable_stream import RESUMABLE_STREAM
from bench.contestants.side import REDIS, SERVER, Contestant, Shape, Side
from bench.delivery import PUBLISHED_ENOUGH, Sample, watch
from bench.load.agent import python_agent
from bench.scenario import Measured, Options, Pairing
from bench.table import Table, number
from bench.tree import Tree

RELAY, RELAY_SHORT = Shape(1500, 1, 20), Shape(30, 1, 20)
CALM = Shape(1500, 1, 5)
FANOUT, FANOUT_SHORT = Shape(1, 2000, 20), Shape(1, 30, 20)
ROUNDS = 3
WARM_UP_S, MEASURED_S = 2.0, 8.0

CONTESTANTS = (
    *(FLOOR, LASTEVENT, NAIVE, NCHAN, NCHAN_REDIS),
    *(CENTRIFUGO, CENTRIFUGO_REDIS, MERCURE, DURABLE_STREAMS),
)


def relay(options: Options) -> list[Table]:
    contestants = (*CONTESTANTS, RESUMABLE_STREAM)
    return [compare(title, shape, contestants, options) for title, shape in _relayed(options)]


def fanout(options: Options) -> list[Table]:
    return [compare(title, shape, CONTESTANTS, options) for title, shape in _fanned_out(options)]


def relay_paired(options: Options) -> list[Pairing]:
    return [Pairing(title, partial(_measured, shape, options)) for title, shape in _relayed(options)]


def fanout_paired(options: Options) -> list[Pairing]:
    return [Pairing(title, partial(_measured, shape, options)) for title, shape in _fanned_out(options)]


def _relayed(options: Options) -> list[tuple[str, Shape]]:
    return [
        (f"relay: {shape.streams:,} streams × 1 viewer × {shape.events_per_s:g} events/s", shape)
        for shape in ([RELAY_SHORT] if options.short else [RELAY, CALM])
    ]


def _fanned_out(options: Options) -> list[tuple[str, Shape]]:
    shape = FANOUT_SHORT if options.short else FANOUT
    return [(f"fanout: 1 stream × {shape.viewers_each:,} viewers × {shape.events_per_s:g} events/s", shape)]


def compare(title: str, shape: Shape, contestants: Sequence[Contestant], options: Options) -> Table:
    able = [contestant for contestant in contestants if not contestant.lack()]
    samples: dict[str, list[Sample]] = {contestant.name: [] for contestant in able}
    for round_ in range(1 if options.short else options.rounds or ROUNDS):
        for contestant in able:
            print(f"  … {title.split(':')[0]}, round {round_ + 1}: {contestant.name}", file=sys.stderr)
            samples[contestant.name].append(measure(contestant.start, shape, short=options.short))
    table = _table(title, shape, samples)
    table.notes += [f"{other.name} was left out; it needs: {other.lack()}" for other in contestants if other.lack()]
    return table


def measure(start: Callable[[ExitStack, Shape], Side], shape: Shape, *, short: bool = False) -> Sample:
    with ExitStack() as stack:
        side = start(stack, shape)
        viewers = python_agent(stack, "bench.load.viewers")
        viewers.ask("connect", port=side.port, paths=side.paths, each=shape.viewers_each)
        return watch(side, [viewers], shape, warm_up_s=0.5 if short else WARM_UP_S, seconds=1 if short else MEASURED_S)


def _measured(shape: Shape, options: Options, tree: Tree) -> Measured:
    sample = measure(partial(start_lastevent, tree=tree), shape, short=options.short)
    figures = {
        "delivered/s": sample.delivered_per_s,
        "published, of asked": sample.published,
        "p50 ms": sample.p50_ms,
        "p99 ms": sample.p99_ms,
        "events a read": sample.events_a_read,
        **{f"{part} µs/event": us for part, us in sample.cpu_us.items()},
        "whole side µs/event": sample.whole_side_us,
    }
    wrong = sample.missing + sample.doubled
    return Measured(figures, [f"viewers miss, or have twice, {wrong} events"] if wrong else [])


# -- the table ---------------------------------------------------------------------------------------

COLUMNS = (
    *("contestant", "delivered/s", "of asked", "p50 ms", "p99 ms", "events a read"),
    *("server µs/event", "Redis µs/event", "whole side", "× Lastevent", "missing"),
)


def _table(title: str, shape: Shape, samples: dict[str, list[Sample]]) -> Table:
    ours = samples[LASTEVENT.name]
    rows = [_row(name, of, ours, shape) for name, of in samples.items()]
    table = Table(title, COLUMNS, rows)
    table.notes.append(f"Medians of {len(ours)} rounds. CPU is per delivered event; the ratio compares whole sides.")
    for name, of in samples.items():
        if (published := min(sample.published for sample in of)) < PUBLISHED_ENOUGH:
            table.notes.append(f"To {name}, only {published:.0%} of the events could be published in time.")
    if wrong := sum(sample.missing + sample.doubled for sample in ours):
        table.failures.append(f"Lastevent's viewers miss, or have twice, {wrong} events")
    return table


def _row(name: str, of: list[Sample], ours: list[Sample], shape: Shape) -> list[str]:
    def middle(value: Callable[[Sample], float]) -> float:
        return median(map(value, of))

    delivered = middle(lambda sample: sample.delivered_per_s)
    ratio = median(
        sample.whole_side_us / our.whole_side_us for sample, our in zip(of, ours, strict=True) if our.whole_side_us
    )
    redis = number(middle(lambda sample: sample.cpu_us[REDIS])) if REDIS in of[0].cpu_us else "–"
    return [
        *(name, number(delivered), f"{delivered / shape.deliveries_per_s:.0%}"),
        *(number(middle(lambda sample: sample.p50_ms)), number(middle(lambda sample: sample.p99_ms))),
        f"{middle(lambda sample: sample.events_a_read):.1f}",
        *(number(middle(lambda sample: sample.cpu_us[SERVER])), redis, number(middle(lambda s: s.whole_side_us))),
        *(f"{ratio:.2f}", f"{sum(sample.missing for sample in of):,}"),
    ]
