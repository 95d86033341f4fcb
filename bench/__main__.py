"""python -m bench [NAME …]: run benchmarks, all of them by default."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.scenario import Options
from bench.suite import SCENARIOS, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="The benchmarks; all of them by default.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--rounds", type=int, help="rounds of each comparison")
    parser.add_argument("--short", action="store_true", help="small numbers, a few seconds: shows that they run")
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="write the results as Markdown, too")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in SCENARIOS]:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(SCENARIOS)}")
    tables = run(asked.names or list(SCENARIOS), Options(asked.rounds, asked.short), asked.report)
    return 1 if any(table.failures for table in tables) else 0


if __name__ == "__main__":
    sys.exit(main())
