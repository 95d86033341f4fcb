"""The fault suite in short: one or two of each cheap fault, some seconds, nothing lost (`make chaos`: minutes)."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from tests.faults.chaos import Chaos, Options
from tests.faults.plan import Fault, plan_faults, plan_stream

# What delays a takeover comes early: a lease, the wait after a restart of Redis and the one after an outage then pass
# together.
FAULTS = [
    # Of the worker that lives, one after the other, as its batches come.
    Fault(0.3, "commit reset in a command", 1, 0),
    Fault(0.3, "commit stopped", 1, 0.3),
    Fault(0.4, "commit reset before its answer", 1, 0),
    Fault(0.5, "commit reset in its answer", 1, 0),
    Fault(0.6, "commit answered late", 1, 0.3),
    Fault(0.7, "worker kill", 0, 0.1),
    Fault(0.75, "redis kill before a commit's answer", 1, 0),
    Fault(1.0, "server stop", 1, 0.4),
    Fault(1.2, "redis full", 0, 0.3),
    Fault(1.4, "app kill", 1, 0),
    Fault(1.6, "client kill pubsub", 0, 0),
    Fault(1.7, "redis read-only", 0, 0.3),
    Fault(2.1, "redis stop", 0, 0.4),
    Fault(2.6, "client kill normal", 0, 0),
    Fault(2.7, "server kill", 0, 0.1),
    Fault(2.8, "worker stop", 1, 0.6),
    Fault(3.5, "client kill pubsub", 0, 0),
    Fault(3.6, "server stop", 1, 0.3),
    Fault(3.9, "client kill normal", 0, 0),
]


def test_nothing_is_lost_doubled_or_reordered_under_faults() -> None:
    options = Options(
        seed=5,
        seconds=4,
        faults=FAULTS,
        streams=12,
        agents=0.34,
        workers=2,
        longest_s=2.0,
        provider_fails=0.0,
        settle_s=60,
        silence_limit_s=20,  # a busy machine; the long form holds it to 10 s
    )
    # Not pytest's own directory: a socket's path has 107 bytes. It is left for analysis only if something was found.
    with tempfile.TemporaryDirectory(prefix="le-faults-", dir="/tmp") as folder:
        outcome = asyncio.run(Chaos(Path(folder), options).run())
        details = "".join(f"\n{path.read_text()}" for path in sorted((Path(folder) / "findings").glob("*.txt")))
    assert not outcome.problems, "\n".join(outcome.problems) + details
    assert outcome.injected.total() == len(FAULTS)
    assert outcome.counts["viewers"] >= options.streams
    assert outcome.counts["own cuts"] > 0
    assert outcome.endings["done"] > 0
    assert outcome.deeds.counts["texts"] > 0
    assert outcome.wires, "some providers spoke in unusual ways"


def test_a_seed_plans_the_same_faults_and_prompts_each_time() -> None:
    assert plan_faults(3, 60, 1.4, workers=3, servers=2) == plan_faults(3, 60, 1.4, workers=3, servers=2)
    assert plan_faults(3, 60, 1.4, workers=3, servers=2) != plan_faults(4, 60, 1.4, workers=3, servers=2)
    assert plan_stream(3, 1, 1, servers=2) == plan_stream(3, 1, 1, servers=2)
    assert plan_stream(3, 1, 1, servers=2) != plan_stream(3, 1, 2, servers=2)
