"""python -m bench [NAME …]: run benchmarks, all of them by default."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.against import ROUNDS
from bench.loads import loads
from bench.scenario import Options
from bench.suite import LOADED, PAIRED, SCENARIOS, run, run_against
from bench.tree import CannotPair

AGAINST = f"""\
--against REV measures a commit and this work tree (uncommitted changes included) in turn: A B, then B A, and so on,
{ROUNDS} rounds unless --rounds says otherwise. Each figure is given for both sides, with the ratio now/REV: the median,
the least and the greatest of the rounds. Both sides have the load and the meters of this work tree, and the packages
of its .venv. Nothing is written to a report. It can measure: {", ".join(PAIRED)}.

    python -m bench relay fanout memory first_token --against HEAD~1
    python -m bench worker --against HEAD~1 --loads 100x30,100x30+tls
"""

LOADS_HELP = (
    "what to load the worker with (worker, whole_way): generations x deltas a second each (100x30,100x30+tls,100xmax)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="The benchmarks; all of them by default.",
        epilog=AGAINST,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--rounds", type=int, help="rounds of each comparison")
    parser.add_argument("--short", action="store_true", help="small numbers, a few seconds: shows that they run")
    parser.add_argument("--loads", type=loads, default=(), metavar="LOAD,…", help=LOADS_HELP)
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--report", type=Path, metavar="FILE.md", help="write the results as Markdown, too")
    output.add_argument("--against", metavar="REV", help="measure a commit and this work tree side by side (see below)")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.names if name not in SCENARIOS]:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(SCENARIOS)}")
    if asked.loads and not LOADED.issuperset(asked.names or SCENARIOS):
        parser.error(f"--loads is for {', '.join(sorted(LOADED))} alone: name them")
    options = Options(asked.rounds, asked.short, asked.loads)
    if asked.against is None:
        tables = run(asked.names or list(SCENARIOS), options, asked.report)
    else:
        if alone := [name for name in asked.names if name not in PAIRED]:
            parser.error(f"--against cannot measure {', '.join(alone)}; it can measure {', '.join(PAIRED)}")
        try:
            tables = run_against(asked.against, asked.names or list(PAIRED), options)
        except CannotPair as error:
            print(f"python -m bench: {error}", file=sys.stderr)
            return 2
    return 1 if any(table.failures for table in tables) else 0


if __name__ == "__main__":
    sys.exit(main())
