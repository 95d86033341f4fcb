"""sockets: viewers on sockets, one follow each, beside as many of SSE; the two in turn, round by round.

What must hold (issue 29): of the idle ones at most 0.7 × the memory, and at most 1.15 × the CPU an event.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from statistics import median

from bench.contestants.lastevent import start_lastevent
from bench.contestants.side import SERVER, Shape
from bench.delivery import watch
from bench.load.agent import python_agent
from bench.memory import idle_cost_kib
from bench.relay import MEASURED_S, WARM_UP_S
from bench.scenario import Options
from bench.table import Table, number

SSE, SOCKET = "bench.load.viewers", "bench.load.socket_viewers"
ROUNDS = 3

SHAPES, SHORT = (
    [Shape(1500, 1, 20), Shape(1, 2000, 20), Shape(10_000, 1, 1), Shape(1, 10_000, 2)],
    [Shape(30, 1, 20), Shape(1, 30, 20)],
)
IDLE, IDLE_SHORT = [Shape(10_000, 1, 0), Shape(1, 9_900, 0)], [Shape(50, 1, 0)]
"""A stream has 10,000 viewers at most, and some are there before."""


def sockets(options: Options) -> list[Table]:
    rounds = 1 if options.short else options.rounds or ROUNDS
    return [_cpu(options, rounds), _memory(options, rounds)]


def _cpu(options: Options, rounds: int) -> Table:
    rows, failures = [], []
    for shape in SHORT if options.short else SHAPES:
        us: dict[str, list[float]] = {SSE: [], SOCKET: []}
        p99: dict[str, list[float]] = {SSE: [], SOCKET: []}
        for round_ in range(rounds):
            for agent in (SSE, SOCKET) if round_ % 2 == 0 else (SOCKET, SSE):
                print(f"  … {_name(shape)}, round {round_ + 1}: {agent}", file=sys.stderr)
                with ExitStack() as stack:
                    side = start_lastevent(stack, shape)
                    viewers = python_agent(stack, agent)
                    viewers.ask("connect", port=side.port, paths=side.paths, each=shape.viewers_each)
                    warm_up_s, seconds = (0.5, 1.0) if options.short else (WARM_UP_S, MEASURED_S)
                    sample = watch(side, [viewers], shape, warm_up_s=warm_up_s, seconds=seconds)
                us[agent].append(sample.cpu_us[SERVER])
                p99[agent].append(sample.p99_ms)
                if wrong := sample.missing + sample.doubled:
                    failures.append(f"{_name(shape)}: viewers of {agent} miss, or have twice, {wrong} events")
        rows.append([_name(shape), *_beside(us), number(median(p99[SSE])), number(median(p99[SOCKET]))])
    columns = ("viewers", "SSE, server µs/event", "socket", "× SSE", "SSE, p99 ms", "socket, p99 ms")
    return Table(f"sockets: CPU, medians of {rounds} rounds", columns, rows, failures=failures)


def _memory(options: Options, rounds: int) -> Table:
    rows = []
    for shape in IDLE_SHORT if options.short else IDLE:
        kib: dict[str, list[float]] = {SSE: [], SOCKET: []}
        for round_ in range(rounds):
            for agent in kib:
                print(f"  … idle, {_name(shape)}, round {round_ + 1}: {agent}", file=sys.stderr)
                kib[agent].append(idle_cost_kib(shape, agent))
        rows.append([_name(shape), *_beside(kib)])
    return Table("sockets: memory of idle viewers, KiB of RSS each", ("viewers", "SSE", "socket", "× SSE"), rows)


def _beside(of: dict[str, list[float]]) -> list[str]:
    ratios = [socket / sse for sse, socket in zip(of[SSE], of[SOCKET], strict=True) if sse]
    return [number(median(of[SSE])), number(median(of[SOCKET])), f"{median(ratios):.2f}" if ratios else "–"]


def _name(shape: Shape) -> str:
    rate = f" × {shape.events_per_s:g} events/s" if shape.events_per_s else ""
    return f"{shape.streams:,} × {shape.viewers_each:,}{rate}"
