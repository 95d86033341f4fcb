"""An agent: a process of the load that is asked over its standard input and answers on its output, a JSON line each."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.tree import HERE, REPOSITORY, Tree

Answer = dict[str, Any]


class Agent:
    def __init__(self, stack: ExitStack, argv: Sequence[str], *, cwd: Path = REPOSITORY, **settings: str) -> None:
        self._process = subprocess.Popen(
            argv,
            cwd=cwd,
            env={**os.environ, **settings},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        stack.callback(self._end)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, do: str, **about: Any) -> Answer:
        self.tell(do, **about)
        return self.answer()

    def tell(self, do: str, **about: Any) -> None:
        """Ask, and fetch the answer later: several agents work at a time."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"do": do, **about}) + "\n")

    def answer(self) -> Answer:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a process of the load ended by itself; it has said why above")
        answer: Answer = json.loads(line)
        return answer

    def _end(self) -> None:
        self._process.kill()
        with self._process:  # closes the pipes, and waits
            pass


def python_agent(stack: ExitStack, module: str, *arguments: str, tree: Tree = HERE) -> Agent:
    return Agent(stack, [sys.executable, "-m", module, *arguments], cwd=tree.folder, **tree.settings)


def say(answer: Answer) -> None:
    """What an agent does with its answer."""
    os.write(1, json.dumps(answer).encode() + b"\n")


def raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
