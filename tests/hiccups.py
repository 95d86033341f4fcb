"""The suite while its processes stand still for moments, as on a busy machine: `make hiccups`.

What fails then stands on time: a test, or the product, that takes the usual order of two things for the only one. A
test that measures time, or stops processes itself, may fail and be right.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

AT_ONCE = 3
PAUSE_S = 0.3
LONGEST_S = 0.4


def main() -> int:
    parser = argparse.ArgumentParser(prog="make hiccups", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of what is stopped, and for how long")
    parser.add_argument("--longest", type=float, default=LONGEST_S, metavar="S", help="a moment's length, at most")
    options, for_pytest = parser.parse_known_args()
    suite = subprocess.Popen(["make", "test", f"ARGS={' '.join(for_pytest)}"])
    disturbers = [
        threading.Thread(target=disturb, args=(suite, random.Random(options.seed + at), options.longest))
        for at in range(AT_ONCE)
    ]
    for disturber in disturbers:
        disturber.start()
    for disturber in disturbers:
        disturber.join()
    return suite.wait()


def disturb(suite: subprocess.Popen[bytes], numbers: random.Random, longest_s: float) -> None:
    while suite.poll() is None:
        time.sleep(numbers.uniform(0, PAUSE_S))
        if below := list(running_below(suite.pid)):
            pid = numbers.choice(below)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(numbers.uniform(0, longest_s))
                os.kill(pid, signal.SIGCONT)


def running_below(root: int) -> Iterator[int]:
    """Its descendants, without those that somebody has stopped already."""
    states: dict[int, str] = {}
    children = defaultdict(list)
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            states[int(folder.name)] = state
            children[int(parent)].append(int(folder.name))
    found = children[root]
    for pid in found:  # grows
        found += children[pid]
        if states[pid] in "RSD":
            yield pid


if __name__ == "__main__":
    raise SystemExit(main())
