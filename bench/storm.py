"""storm: 5,000 viewers of streams that go on are cut at once, and come back at once with their cursors.

What a deploy, or a tunnel full of phones, does. Each viewer has caught up when it has what its stream had when it came
back; meanwhile the streams are written on.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from statistics import median

from bench.contestants.lastevent import start_lastevent
from bench.contestants.side import SERVER, Shape
from bench.delivery import finish
from bench.load.agent import Answer, python_agent
from bench.meter import CpuMeter
from bench.scenario import Options
from bench.table import Table, number, p99

SHAPE, SHAPE_SHORT = Shape(500, 10, 2), Shape(20, 5, 10)
STORMS = 3
AWAY_S = 2.0
LIMIT_S = 600.0
BETWEEN_S = 3.0


def storm(options: Options) -> list[Table]:
    shape = SHAPE_SHORT if options.short else SHAPE
    storms = 1 if options.short else options.rounds or STORMS
    rows: list[list[str]] = []
    with ExitStack() as stack:
        side = start_lastevent(stack, shape)
        viewers = python_agent(stack, "bench.load.viewers")
        viewers.ask(
            "connect", port=side.port, paths=side.paths, each=shape.viewers_each, first_event_id=side.first_event_id
        )
        [publisher] = side.publishers
        publisher.ask("go", rate=shape.events_per_s, seconds=LIMIT_S)
        for number_ in range(storms):
            time.sleep(BETWEEN_S)
            print(f"  … storm {number_ + 1}", file=sys.stderr)
            viewers.ask("cut")
            time.sleep(AWAY_S)
            meter = CpuMeter({SERVER: side.parts[SERVER]})
            back: Answer = viewers.ask("come_back", targets=publisher.ask("written")["written"])
            rows.append(_row(number_ + 1, shape, back, meter.spent_us()[SERVER]))
        publisher.ask("stop")
        missing, doubled, _ = finish(side, [viewers])
    table = Table(
        f"storm: {shape.viewers:,} viewers on {shape.streams:,} streams ({shape.events_per_s:g} events/s each) cut at "
        f"once, back {AWAY_S:g} s later at once",
        (
            *("storm", "all caught up, s", "events", "MB", "first byte p50 ms", "p99 ms"),
            *("turned away", "server ms of CPU, each"),
        ),
        rows,
        [
            f"Missing over all storms: {missing}; doubled: {doubled}. First byte: counted from connect().",
            "Turned away: the server ended the response; the viewer came back 1.5 s later.",
        ],
    )
    if missing or doubled:
        table.failures.append(f"{missing} events missing, {doubled} doubled")
    return [table]


def _row(number_: int, shape: Shape, back: Answer, spent_us: float) -> list[str]:
    return [
        *(f"{number_}", number(back["seconds"]), number(back["events"]), number(back["bytes"] / 1e6)),
        *(number(median(back["first_byte_ms"])), number(p99(back["first_byte_ms"]))),
        *(f"{back['turned_away']:,}", number(spent_us / 1000 / shape.viewers)),
    ]
