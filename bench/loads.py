"""What a worker is loaded with: so many generations at a time, at a pace, on a provider's wire, or by own code.

`100x30+tls`, `100xmax+gemini`, `100x30+agent` on the command line.
"""

from __future__ import annotations

import argparse
import re
from typing import NamedTuple

from bench.load.wires import WIRES

UNPACED_DELTAS, UNPACED_DELTAS_SHORT = 160_000, 30_000  # of all generations together
MEASURED_S, MEASURED_S_SHORT = 8.0, 1.0
BEGIN_S, BEGIN_S_SHORT = 6.0, 1.0
"""Every generation must have begun before the measured time, and none may end within it."""
BEGUN_PER_S = 50  # generations that a worker begins in a second, beside those that run (400 took 6 s)
DEFAULT_WIRE = "anthropic"
AGENT = "agent"
"""No wire: the deltas are own code's (load/speaker.py), and no provider is asked."""
FORM = re.compile(rf"([1-9][0-9]*)x([1-9][0-9]*|max)(\+tls)?(?:\+({'|'.join([*WIRES, AGENT])}))?", re.ASCII)


class Load(NamedTuple):
    generations: int
    """At a time, and in all."""
    rate: int
    """Deltas a second of each, each a write of its own; 0: as fast as they are read, 64 in a write."""
    tls: bool = False
    wire: str = DEFAULT_WIRE

    @property
    def name(self) -> str:
        wire = "" if self.wire == DEFAULT_WIRE else f"+{self.wire}"
        return f"{self.generations}x{self.rate or 'max'}{'+tls' if self.tls else ''}{wire}"

    @property
    def is_agent(self) -> bool:
        return self.wire == AGENT

    @property
    def provider(self) -> str:
        """The provider, as a table tells it."""
        pace = f"{self.rate}/s each: {self.asked_per_s:,}/s" if self.rate else "as fast as it is read"
        wire = "" if self.wire == DEFAULT_WIRE else f", {self.wire}"
        return f"{pace}, TLS{wire}" if self.tls else f"{pace}{wire}"

    @property
    def asked_per_s(self) -> int:
        return self.generations * self.rate

    def measured_s(self, *, short: bool) -> float:
        return MEASURED_S_SHORT if short else MEASURED_S

    def deltas(self, *, short: bool) -> int:
        """Of each generation."""
        if not self.rate:
            return (UNPACED_DELTAS_SHORT if short else UNPACED_DELTAS) // self.generations
        begin_s = BEGIN_S_SHORT if short else BEGIN_S + self.generations / BEGUN_PER_S
        return int(self.rate * (begin_s + self.measured_s(short=short)))


def load(name: str) -> Load:
    """The load of this name. Raises ArgumentTypeError."""
    form = FORM.fullmatch(name)
    if not form:
        raise argparse.ArgumentTypeError(
            f"{name!r} is no load: write generations x deltas a second each, as 100x30, 100x30+tls, 100xmax+gemini"
        )
    generations, rate, tls, wire = form.groups()
    return Load(int(generations), 0 if rate == "max" else int(rate), tls is not None, wire or DEFAULT_WIRE)


def loads(names: str) -> list[Load]:
    """The loads of these names, separated by commas. Raises ArgumentTypeError."""
    return [load(name) for name in names.split(",")]
