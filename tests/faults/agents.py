"""python -m tests.faults.agents --takeovers 200: workers are killed and stopped while agents act, and what ran counts.

The engine is that of `make chaos`, with agents alone and two faults: kill -9, and SIGSTOP for longer than a lease. A
fault waits until all workers are up and warm, so a notice after a kill may take no longer than 10 s.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.faults.chaos import Chaos, Options, Outcome
from tests.faults.plan import Fault
from tests.rig.deployment import until

WORKERS = 3
STOPPED_S = 9.0
PAUSE_S = (3.0, 8.0)
WARM_LIMIT_S = 120.0


def faults(seed: int, count: int) -> Iterator[Fault]:
    rng = Random(f"agents {seed}")
    for _ in range(count):
        kind = rng.choice(("worker kill", "worker kill", "worker stop beyond its lease"))
        yield Fault(0, kind, rng.randrange(WORKERS), 0.1 if kind == "worker kill" else STOPPED_S)


def options(seed: int, takeovers: int, streams: int) -> Options:
    planned = list(faults(seed, 2 + round(1.25 * takeovers * WORKERS / streams)))
    return Options(
        seed=seed,
        seconds=math.inf,
        faults=planned,
        streams=streams,
        workers=WORKERS,
        servers=1,
        agents=1.0,
        cancelled_agents=0.05,
        longest_s=20.0,
    )


class Takeovers(Chaos):
    """Each fault waits until all workers are warm: how long a takeover takes is then the product's."""

    async def _inject(self) -> None:
        rng = Random(f"takeovers {self.options.seed}")
        starts = dict.fromkeys(range(WORKERS), 1)
        for fault in self.options.faults:
            await until(lambda: all(map(self._is_warm, starts, starts.values())), "all workers are warm", WARM_LIMIT_S)
            await asyncio.sleep(rng.uniform(*PAUSE_S))  # the moment is random, that is the test
            starts[fault.target] += fault.kind == "worker kill"
            await self._perform(fault)
        self.options.seconds = time.time() - self._began  # no new streams

    def _is_warm(self, number: int, starts: int) -> bool:
        return self.stage.workers[number].process.output.read_text().count("this worker takes generations") >= starts


def render(outcome: Outcome) -> str:
    notices = sorted(silence.own_s for silence in outcome.verdict.silences) or [0.0]
    rows: dict[str, object] = {
        **dict(sorted(outcome.injected.items())),
        **{f"streams that ended {ending}": count for ending, count in outcome.endings.most_common()},
        **dict(sorted(outcome.deeds.counts.items())),
        "notices after a kill": len(outcome.verdict.silences),
        "… median": f"{statistics.median(notices):.1f} s",
        "… longest": f"{notices[-1]:.1f} s",
        "viewers": outcome.counts["viewers"],
        "… cut by themselves": outcome.counts["own cuts"],
        "findings": len(outcome.problems),
    }
    return "\n".join(f"{count!s:>8}  {name}" for name, count in rows.items())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.agents", description=__doc__)
    parser.add_argument("--takeovers", type=int, default=200, help="about so many (200)")
    parser.add_argument("--streams", type=int, default=24, help="at a time (24)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    some = options(arguments.seed, arguments.takeovers, arguments.streams)
    folder = Path(tempfile.mkdtemp(prefix=f"le-agents-{arguments.seed}-", dir="/tmp"))
    print(f"{len(some.faults)} faults, seed {some.seed}, in {folder}", flush=True)
    outcome = asyncio.run(Takeovers(folder, some).run())
    print(render(outcome))
    for problem in outcome.problems[:40]:
        print(f"  {problem[:600]}")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
