"""`lastevent up`, as a user starts it, on a free port, its data in a temporary directory, while a benchmark runs."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from bench.ports import free_port
from bench.processes import clean_environment
from bench.tree import HERE, Tree


@contextmanager
def running(tree: Tree = HERE, **settings: str) -> Iterator[int]:
    """The port of a Lastevent that is ready."""
    port = free_port()
    with tempfile.TemporaryDirectory() as data_dir:
        argv = [sys.executable, "-m", "broker", "up", "--port", str(port), "--data-dir", data_dir]
        environment = clean_environment() | tree.settings | settings
        with subprocess.Popen(argv, cwd=tree.folder, stdout=subprocess.PIPE, text=True, env=environment) as up:
            try:
                assert up.stdout
                if "ready" not in up.stdout.readline():
                    raise SystemExit("lastevent up did not start")
                yield port
            finally:
                up.send_signal(signal.SIGTERM)
