"""The first process of a container ends at SIGTERM, also while it is still importing."""

from __future__ import annotations

import subprocess
import sys

import pytest

STARTED = """
import os, runpy, signal, sys
os.getpid = lambda: 1  # to the kernel it is another: what is tested is that there is a handler

class Stop:
    def find_spec(self, name, *_):
        if name == "pydantic":
            signal.raise_signal(signal.SIGTERM)

sys.meta_path.insert(0, Stop())
sys.argv = [sys.argv[1], *sys.argv[2:]]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("command", [["broker", "serve"], ["broker", "up"], ["worker"]], ids=" ".join)
def test_it_ends_while_it_imports(command: list[str]) -> None:
    ended = subprocess.run([sys.executable, "-c", STARTED, *command], capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + 15, b"", b"")
