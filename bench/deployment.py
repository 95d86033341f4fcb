"""`lastevent up`, as a user starts it, in a temporary directory on a free port, for as long as a benchmark runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def running(**settings: str) -> Iterator[int]:
    """The port of a Lastevent that is ready."""
    port = _free_port()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("LASTEVENT_", "ANTHROPIC_"))
    }
    with tempfile.TemporaryDirectory() as data_dir:
        argv = [sys.executable, "-m", "broker", "up", "--port", str(port), "--data-dir", data_dir]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment | settings) as up:
            try:
                assert up.stdout
                if "ready" not in up.stdout.readline():
                    raise SystemExit("lastevent up did not start")
                yield port
            finally:
                up.send_signal(signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
