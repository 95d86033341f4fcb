"""ten_thousand: 10,000 streams with a viewer each on one server process; and what a stream costs by being there.

First 2 events/s to each, then 5 (20,000 and 50,000 a second in all). Then the same 2,000 events/s over 100 streams and
over 10,000, taking turns: what grows with streams shows as a ratio above 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import NamedTuple

from bench.contestants.lastevent import HEARTBEAT_S, start_lastevent
from bench.contestants.side import REDIS, SERVER, Shape, Side
from bench.delivery import PUBLISHED_ENOUGH, Sample, shared_out, watch
from bench.load.agent import Agent, python_agent
from bench.meter import memory_bytes
from bench.scenario import Options
from bench.table import Table, number

PUBLISHERS = VIEWING = 2  # processes of the load: one of each could not keep up with 50,000 events/s
RATES = (2.0, 5.0)
WARM_UP_S, MEASURED_S = 5.0, 10.0
SETTLE_S = 60.0
"""Every event has to arrive, however far this machine is behind when publishing ends."""

SCALING_ROUNDS = 2
SCALING_TARGET = 1.3
# Each of 10,000 streams gets an event every five seconds: the warm-up is for each to have had one.


class Watched(NamedTuple):
    side: Side
    viewers: Sequence[Agent]
    seconds: float
    memory: tuple[int, int]
    """RSS and PSS of the server that its viewers have added."""


def ten_thousand(options: Options) -> list[Table]:
    streams, few = (100, 10) if options.short else (10_000, 100)
    return [_delivery(streams, options), _scaling(few, streams, options)]


def _delivery(streams: int, options: Options) -> Table:
    samples = {}
    with ExitStack() as stack:
        watched = _start(stack, streams)
        for rate in RATES:
            print(f"  … {streams:,} streams, {rate:g} events/s each", file=sys.stderr)
            samples[rate] = _watch(watched, Shape(streams, 1, rate), options)
    table = Table(
        f"ten_thousand: {streams:,} streams × 1 viewer, one server process",
        (
            *("events/s each", "asked/s", "delivered/s", "p50 ms", "p99 ms", "max ms", "events a read"),
            *("server µs/event", "Redis µs/event", "missing"),
        ),
        [_row(rate, sample, streams) for rate, sample in samples.items()],
    )
    rss, pss = (size / streams / 1024 for size in watched.memory)
    table.notes.append(
        f"Connecting {streams:,} viewers took {watched.seconds:.1f} s, and {rss:.1f} KiB of RSS each "
        f"({pss:.1f} of PSS) in the server."
    )
    for rate, sample in samples.items():
        if sample.published < PUBLISHED_ENOUGH:
            table.notes.append(
                f"At {rate:g} events/s this machine could only publish {sample.published:.0%} of what it was asked to."
            )
        if sample.missing or sample.doubled:
            table.failures.append(f"{sample.missing} events missing, {sample.doubled} doubled at {rate:g} events/s")
    return table


def _row(rate: float, sample: Sample, streams: int) -> list[str]:
    return [
        *(f"{rate:g}", number(streams * rate), number(sample.delivered_per_s)),
        *(number(sample.p50_ms), number(sample.p99_ms), number(sample.max_ms), f"{sample.events_a_read:.1f}"),
        *(number(sample.cpu_us[SERVER]), number(sample.cpu_us[REDIS]), f"{sample.missing}"),
    ]


def _scaling(few: int, many: int, options: Options) -> Table:
    total = 2000 / 10_000 * many
    shapes = Shape(few, 1, total / few), Shape(many, 1, total / many)
    samples: list[list[Sample]] = [[], []]
    rounds = 1 if options.short else options.rounds or SCALING_ROUNDS
    with ExitStack() as stack:
        both = [_start(stack, shape.streams) for shape in shapes]
        for round_ in range(rounds):
            for at, (watched, shape) in enumerate(zip(both, shapes, strict=True)):
                print(f"  … scaling, round {round_ + 1}: {shape.streams:,} streams", file=sys.stderr)
                samples[at].append(_watch(watched, shape, options))
    rows = []
    for part in (SERVER, REDIS):
        pairs = [(a.cpu_us[part], b.cpu_us[part]) for a, b in zip(*samples, strict=True)]
        over_few, over_many = (median(costs) for costs in zip(*pairs, strict=True))
        ratio = median(b / a for a, b in pairs)
        rows.append([part, number(over_few), number(over_many), f"{ratio:.2f}"])
    table = Table(
        f"ten_thousand: the same {total:,.0f} events/s over few and over many streams, CPU µs/event",
        ("part", f"{few:,} streams", f"{many:,} streams", "ratio"),
        rows,
        [
            f"Medians of {rounds} rounds. Target: a ratio of at most {SCALING_TARGET}. Redis has heartbeats, too: "
            f"{few / HEARTBEAT_S:,.0f} a second over few streams, {many / HEARTBEAT_S:,.0f} over many."
        ],
    )
    if wrong := sum(sample.missing + sample.doubled for of in samples for sample in of):
        table.failures.append(f"{wrong} events missing or doubled")
    return table


def _start(stack: ExitStack, streams: int) -> Watched:
    side = start_lastevent(stack, Shape(streams, 1, 0), publishers=PUBLISHERS)
    viewers = [python_agent(stack, "bench.load.viewers") for _ in range(VIEWING)]
    before = memory_bytes(side.parts[SERVER])
    for agent, paths in zip(viewers, shared_out(side.paths, VIEWING), strict=True):
        agent.tell("connect", port=side.port, paths=paths, each=1, first_event_id=side.first_event_id)
    seconds = max(agent.answer()["seconds"] for agent in viewers)
    after = memory_bytes(side.parts[SERVER])
    return Watched(side, viewers, seconds, (after[0] - before[0], after[1] - before[1]))


def _watch(watched: Watched, shape: Shape, options: Options) -> Sample:
    short = options.short
    return watch(
        watched.side,
        watched.viewers,
        shape,
        warm_up_s=1 if short else WARM_UP_S,
        seconds=2 if short else MEASURED_S,
        settle_s=SETTLE_S,
    )
