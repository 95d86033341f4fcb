"""Results as tables: lined up on a terminal, Markdown in a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import quantiles


@dataclass
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """What must not be, such as a lost event; any of these fails the run."""

    def as_text(self) -> str:
        widths = [max(len(row[at]) for row in (self.columns, *self.rows)) for at in range(len(self.columns))]
        lines = [f"\n{self.title}"]
        for row in (self.columns, *self.rows):
            first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  " + "   ".join([row[0].ljust(len(first)), *others]))
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  FAILED: {failure}" for failure in self.failures]
        return "\n".join(lines)

    def as_markdown(self) -> str:
        lines = [f"### {self.title}", "", _row(self.columns), _row(["---", *["---:"] * (len(self.columns) - 1)])]
        lines += [_row(row) for row in self.rows]
        lines += [f"\n{note}" for note in self.notes]
        lines += [f"\n**Failed:** {failure}" for failure in self.failures]
        return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def p99(values: Sequence[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else max(values, default=0.0)


def number(value: float) -> str:
    """Three digits that matter, thousands apart."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
