"""What a scenario is, and how long each takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bench.table import Table


class Options(NamedTuple):
    rounds: int | None = None
    """None: the scenario's own number."""
    short: bool = False
    """Seconds, with small numbers: shows that the benchmark runs, and measures nothing."""


Scenario = Callable[[Options], list[Table]]
