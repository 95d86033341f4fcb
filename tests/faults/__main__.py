"""python -m tests.faults --seconds 300 --seed 1: break everything for five minutes, then say what was lost.

Exits 1 if anything was found; the transcripts, the logs and the processes' own logs are kept then.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.faults.chaos import ROOT, Chaos, Options, Outcome
from tests.faults.plan import APP_FAULTS, plan_faults
from tests.faults.report import code_now, exceptions_in, render

SHOWN = 40


def main() -> int:
    arguments = _arguments()
    options = _options(arguments)
    if arguments.plan:
        print("\n".join(map(str, options.faults)))
        return 0
    folder = Path(tempfile.mkdtemp(prefix=f"le-faults-{options.seed}-", dir="/tmp"))  # short: it holds a socket
    print(f"{len(options.faults)} faults in {options.seconds:g} s, seed {options.seed}, in {folder}", flush=True)
    if arguments.before:
        options.before = _taken_out(arguments.before, folder)
    code = code_now()
    outcome = asyncio.run(_run(folder, options))
    table = render(options, outcome, code)
    print(table)
    if arguments.report:
        arguments.report.write_text(table)
    return _conclude(outcome, folder)


async def _run(folder: Path, options: Options) -> Outcome:
    task = asyncio.current_task()
    assert task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await Chaos(folder, options).run()


def _conclude(outcome: Outcome, folder: Path) -> int:
    for line, count in exceptions_in(folder).most_common():
        print(f"{count} × {line}")
    if not outcome.problems:
        shutil.rmtree(folder)
        return 0
    print(f"{len(outcome.problems)} findings; all of them, transcripts and logs are in {folder}/findings:")
    for problem in outcome.problems[:SHOWN]:
        print(f"  {problem[:400]}")
    return 1


def _options(arguments: argparse.Namespace) -> Options:
    faults = plan_faults(
        arguments.seed,
        arguments.seconds,
        arguments.faults_per_s,
        workers=arguments.workers,
        servers=arguments.servers,
        without=(*arguments.without, *(APP_FAULTS if not arguments.agents else ())),
    )
    return Options(
        seed=arguments.seed,
        seconds=arguments.seconds,
        faults=faults,
        streams=arguments.streams,
        workers=arguments.workers,
        servers=arguments.servers,
        agents=arguments.agents,
    )


def _taken_out(revision: str, folder: Path) -> Path:
    """All files of a commit."""
    (folder / "before").mkdir()
    taken = subprocess.run(["git", "archive", revision], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(taken)) as archive:
        archive.extractall(folder / "before", filter="data")
    return folder / "before"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--streams", type=int, default=100, help="generations at a time")
    parser.add_argument("--agents", type=float, default=0.3, help="the share of those that agents answer (0.3)")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--faults-per-s", type=float, default=1.4)
    parser.add_argument("--without", action="append", default=[], metavar="KIND", help="leave a kind of fault out")
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="write the table there, too")
    parser.add_argument(
        "--before", metavar="REV", help="a roll-out: every second worker and server runs that commit's code"
    )
    parser.add_argument("--plan", action="store_true", help="only print the faults")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
