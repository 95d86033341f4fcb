"""Two commits beside each other: a round of each in turn, A B, then B A, and ratios that are taken within a round.

Whatever else the machine does for a while meets both sides of a round alike; what favours the first or the second of a
round meets each side every other time. The spread of the rounds' ratios says how much of a median to believe.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from bench.scenario import Measured, Options, Pairing
from bench.table import Table, number
from bench.tree import Sides, Tree

ROUNDS = 5


class Ratio(NamedTuple):
    middle: float
    least: float
    greatest: float


def pair(pairing: Pairing, sides: Sides, options: Options) -> Table:
    """Rounds of both sides in turn; a row for each figure."""
    rounds = options.rounds or (1 if options.short else ROUNDS)
    then: list[Measured] = []
    now: list[Measured] = []
    for round_ in range(rounds):
        turns = [(sides.then, then), (sides.now, now)]
        for tree, measured in turns if round_ % 2 == 0 else reversed(turns):
            print(f"  … {pairing.title.split(':')[0]}, round {round_ + 1}: {tree.name}", file=sys.stderr)
            measured.append(pairing.measure(tree))
    return Table(
        pairing.title,
        ("", sides.then.name, "now", f"now/{sides.then.name}", "least", "greatest"),
        [_row(name, [of.figures[name] for of in then], [of.figures[name] for of in now]) for name in then[0].figures],
        [
            f"Medians of {rounds} rounds; of the ratio: each round's own, and their least and greatest.",
            *dict.fromkeys([*_notes(sides.then, then), *_notes(sides.now, now)]),
        ],
        [*_failures(sides.then, then), *_failures(sides.now, now)],
    )


def _row(name: str, then: Sequence[float], now: Sequence[float]) -> list[str]:
    ratio = ratio_of(then, now)
    ratios = ["–"] * len(Ratio._fields) if ratio is None else [f"{value:.3f}" for value in ratio]
    return [name, number(median(then)), number(median(now)), *ratios]


def ratio_of(then: Sequence[float], now: Sequence[float]) -> Ratio | None:
    """now/then of each round: their median, least and greatest. None if a round has no ratio that means something."""
    if not all(math.isfinite(value) for value in (*then, *now)) or min(then) <= 0:
        return None
    ratios = [b / a for a, b in zip(then, now, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios))


def _failures(tree: Tree, measured: Sequence[Measured]) -> list[str]:
    return [f"{tree.name}: {failure}" for of in measured for failure in of.failures]


def _notes(tree: Tree, measured: Sequence[Measured]) -> list[str]:
    return [f"{tree.name}: {note}" for of in measured for note in of.notes]
