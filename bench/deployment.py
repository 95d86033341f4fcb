"""`lastevent up`, as a user starts it, in a temporary directory on a free port, for as long as a benchmark runs."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from bench.processes import clean_environment, free_port


@contextmanager
def running(**settings: str) -> Iterator[int]:
    """The port of a Lastevent that is ready."""
    port = free_port()
    with tempfile.TemporaryDirectory() as data_dir:
        argv = [sys.executable, "-m", "broker", "up", "--port", str(port), "--data-dir", data_dir]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=clean_environment() | settings) as up:
            try:
                assert up.stdout
                if "ready" not in up.stdout.readline():
                    raise SystemExit("lastevent up did not start")
                yield port
            finally:
                up.send_signal(signal.SIGTERM)
