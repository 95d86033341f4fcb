"""memory: what an idle viewer costs the server, 5,000 of them on one stream and on a stream each."""

from __future__ import annotations

import sys
from contextlib import ExitStack

from bench.contestants.lastevent import start_lastevent
from bench.contestants.side import SERVER, Shape
from bench.load.agent import python_agent
from bench.meter import memory_bytes
from bench.scenario import Options
from bench.table import Table, number

VIEWERS, VIEWERS_SHORT = 5000, 100


def memory(options: Options) -> list[Table]:
    viewers = VIEWERS_SHORT if options.short else VIEWERS
    shapes = (Shape(1, viewers, 0), Shape(viewers, 1, 0))
    return [
        Table(
            f"memory: {viewers:,} idle viewers, one server process",
            ("streams", "server before, MB", "after, MB", "KiB of RSS a viewer", "of PSS"),
            [_row(shape) for shape in shapes],
            ["The kernel's memory for sockets is not in it."],
        )
    ]


def _row(shape: Shape) -> list[str]:
    print(f"  … {shape.viewers:,} viewers on {shape.streams:,} streams", file=sys.stderr)
    with ExitStack() as stack:
        side = start_lastevent(stack, shape)
        # The first viewers bring what is loaded and allocated once.
        first = python_agent(stack, "bench.load.viewers")
        first.ask("connect", port=side.port, paths=side.paths[:1], each=10)
        before = memory_bytes(side.parts[SERVER])
        agent = python_agent(stack, "bench.load.viewers")
        agent.ask("connect", port=side.port, paths=side.paths, each=shape.viewers_each)
        after = memory_bytes(side.parts[SERVER])
    rss, pss = (number((b - a) / shape.viewers / 1024) for a, b in zip(before, after, strict=True))
    return [f"{shape.streams:,}", number(before[0] / 1e6), number(after[0] / 1e6), rss, pss]
