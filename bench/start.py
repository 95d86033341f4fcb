"""start: how soon `lastevent up` says that it is ready, and what its word is worth.

One start after another, each with an empty data directory, on a stand-in that answers at once. Two times of each: from
the command to "Lastevent is ready", and from there to the first text of a generation that is asked for in that moment.
Whoever tries the README's first example is that caller.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import NamedTuple

from bench.deployment import running
from bench.first_token import first_text_ms
from bench.scenario import Measured, Options, Pairing
from bench.table import Table, number
from bench.tree import HERE, Tree

STARTS, STARTS_SHORT = 20, 2
STARTS_A_ROUND = 4
TARGET_MS = 1000.0


class Start(NamedTuple):
    ready_ms: float
    text_ms: float


def start(options: Options) -> list[Table]:
    starts = list(_starts(HERE, STARTS_SHORT if options.short else options.rounds or STARTS))
    ready, text = zip(*starts, strict=True)
    late = sum(ms > TARGET_MS for ms in text)
    return [
        Table(
            f"start: {len(starts)} starts of `lastevent up`",
            ("", "median ms", "max ms"),
            [
                ["the command → ready", number(median(ready)), number(max(ready))],
                ["ready → first text", number(median(text)), number(max(text))],
            ],
            [f"Later than {TARGET_MS:g} ms: {late} of {len(starts)} first texts. Target: none."],
        )
    ]


def start_paired(options: Options) -> list[Pairing]:
    starts = STARTS_SHORT if options.short else STARTS_A_ROUND
    return [Pairing(f"start: {starts} starts of `lastevent up` a round", partial(_start_once, starts))]


def _start_once(starts: int, tree: Tree) -> Measured:
    ready, text = zip(*_starts(tree, starts), strict=True)
    return Measured(
        {
            "the command → ready, median ms": median(ready),
            "ready → first text, median ms": median(text),
            "ready → first text, max ms": max(text),
        }
    )


def _starts(tree: Tree, starts: int) -> Iterator[Start]:
    for _ in range(starts):
        began = time.perf_counter()
        with running(tree) as port:
            ready_ms = (time.perf_counter() - began) * 1000
            yield Start(ready_ms, first_text_ms(port))
