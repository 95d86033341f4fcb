"""memory: what an idle viewer costs the server, 5,000 of them on one stream and on a stream each."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial

from bench.contestants.lastevent import start_lastevent
from bench.contestants.side import SERVER, Shape
from bench.load.agent import python_agent
from bench.meter import memory_bytes
from bench.scenario import Measured, Options, Pairing
from bench.table import Table, number
from bench.tree import HERE, Tree

VIEWERS, VIEWERS_SHORT = 5000, 100
FIGURES = ("server before, MB", "after, MB", "KiB of RSS a viewer", "of PSS")


def memory(options: Options) -> list[Table]:
    rows = []
    for shape in _shapes(options):
        print(f"  … {shape.viewers:,} viewers on {shape.streams:,} streams", file=sys.stderr)
        rows.append([f"{shape.streams:,}", *map(number, _figures(shape, HERE).values())])
    return [
        Table(
            f"memory: {_viewers(options):,} idle viewers, one server process",
            ("streams", *FIGURES),
            rows,
            ["The kernel's memory for sockets is not included."],
        )
    ]


def memory_paired(options: Options) -> list[Pairing]:
    return [
        Pairing(
            f"memory: {shape.viewers:,} idle viewers, streams: {shape.streams:,}, one server process",
            partial(_measured, shape),
        )
        for shape in _shapes(options)
    ]


def _shapes(options: Options) -> tuple[Shape, Shape]:
    viewers = _viewers(options)
    return Shape(1, viewers, 0), Shape(viewers, 1, 0)


def _viewers(options: Options) -> int:
    return VIEWERS_SHORT if options.short else VIEWERS


def _measured(shape: Shape, tree: Tree) -> Measured:
    return Measured(_figures(shape, tree))


def idle_cost_kib(shape: Shape, agent: str) -> float:
    """Of RSS, for each viewer of this agent."""
    return _figures(shape, HERE, agent)[FIGURES[2]]


def _figures(shape: Shape, tree: Tree, agent_module: str = "bench.load.viewers") -> dict[str, float]:
    with ExitStack() as stack:
        side = start_lastevent(stack, shape, tree=tree)
        # The first viewers bring what is loaded and allocated once.
        first = python_agent(stack, agent_module)
        first.ask("connect", port=side.port, paths=side.paths[:1], each=10)
        before = memory_bytes(side.parts[SERVER])
        agent = python_agent(stack, agent_module)
        agent.ask("connect", port=side.port, paths=side.paths, each=shape.viewers_each)
        after = memory_bytes(side.parts[SERVER])
    rss, pss = ((b - a) / shape.viewers / 1024 for a, b in zip(before, after, strict=True))
    return dict(zip(FIGURES, (before[0] / 1e6, after[0] / 1e6, rss, pss), strict=True))
