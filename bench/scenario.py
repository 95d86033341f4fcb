"""What a scenario is, and how long each takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bench.loads import Load
from bench.table import Table
from bench.tree import Tree


class Options(NamedTuple):
    rounds: int | None = None
    """None: the scenario's own number."""
    short: bool = False
    """Seconds, with small numbers: shows that the benchmark runs, and measures nothing."""
    loads: Sequence[Load] = ()
    """Of a worker; none: the scenario's own."""


Scenario = Callable[[Options], list[Table]]


class Measured(NamedTuple):
    """One round of one side."""

    figures: Mapping[str, float]
    """By name and unit; the same names from every round."""
    failures: Sequence[str] = ()
    notes: Sequence[str] = ()
    """What a reader of the figures must know."""


class Pairing(NamedTuple):
    """What of a scenario can be measured for two commits in turn."""

    title: str
    measure: Callable[[Tree], Measured]
    """A round: the tree's servers are started afresh, and ended."""


Pairable = Callable[[Options], list[Pairing]]
