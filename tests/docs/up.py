"""A document's blocks, and `lastevent up` on a free port to run them against."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.ports import free_port
from tests.rig.deployment import Process, wait_until

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

_TAKEN_OUT = ("LASTEVENT_", "ANTHROPIC_", "OPENAI_", "GEMINI_", "GOOGLE_")


def blocks_of(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)


AGENTS = (ROOT / "docs" / "AGENTS.md").read_text()
PARTS = [block for block in blocks_of(AGENTS, "python") if not block.startswith("# test_")]
"""Of its app, shop.py."""


class Up:
    page_port = 0
    """Of a page that is served from elsewhere."""

    def __init__(self, port: int, folder: Path, process: Process) -> None:
        self.port = port
        self.folder = folder
        self.process = process

    def sh(self, script: str, *, with_stderr: bool = False) -> str:
        """Run a block with this server in the place of port 8000; what it prints."""
        script = script.replace("localhost:8000", f"localhost:{self.port}")
        environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "LASTEVENT_URL": f"http://localhost:{self.port}",
        }
        stderr = subprocess.STDOUT if with_stderr else subprocess.PIPE
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        return done.stdout


@contextmanager
def running_up(folder: Path, *options: str, **settings: str) -> Iterator[Up]:
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_TAKEN_OUT)}
    environment |= {"LASTEVENT_ADMIN_PORT": "0", **settings}
    process = Process("up", [str(BIN / "lastevent"), "up", "--port", str(port), *options], environment, folder)
    process.start()
    try:
        ready = f"Lastevent is ready: http://127.0.0.1:{port}"
        wait_until(lambda: ready in process.output.read_text(), "lastevent up is ready", limit_s=90)
        yield Up(port, folder, process)
    finally:
        process.send(signal.SIGTERM)
        process.wait()
