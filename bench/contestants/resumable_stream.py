"""resumable-stream, Vercel's, on Node: a server for the viewers, and a producer, as its README has them (see .cjs).

It keeps no log: what has been said is in the producer's memory, Redis carries it to viewers by pub/sub, and each one
that comes back gets all chunks joined and cut at its place. So Redis costs less here, and does less.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

from bench.contestants.side import REDIS, SERVER, Contestant, Shape, Side
from bench.load.agent import Agent
from bench.ports import free_port
from bench.processes import start, start_redis, wait_for_port
from bench.tree import REPOSITORY

FOLDER = REPOSITORY / "build" / "bench"
SCRIPT = Path(__file__).with_suffix(".cjs")
INSTALL = "npm install --no-save --no-package-lock --prefix build/bench resumable-stream@2.2.13 redis@6.3.1"


def lack() -> str | None:
    if not shutil.which("node"):
        return "Node 18 or newer, and then: " + INSTALL
    return None if (FOLDER / "node_modules" / "resumable-stream").exists() else INSTALL


def start_resumable_stream(stack: ExitStack, shape: Shape) -> Side:
    redis_pid, redis_port = start_redis(stack)
    redis_url, port = f"redis://127.0.0.1:{redis_port}", free_port()
    pid = start(stack, ["node", SCRIPT, "serve", str(port)], cwd=FOLDER, REDIS_URL=redis_url)
    wait_for_port(port, pid)
    producer = Agent(stack, ["node", str(SCRIPT), "produce"], cwd=FOLDER, REDIS_URL=redis_url)
    paths = producer.ask("open", streams=shape.streams)["paths"]
    return Side(port, paths, {SERVER: pid, REDIS: redis_pid}, [producer])


RESUMABLE_STREAM = Contestant("resumable-stream", start_resumable_stream, lack)
