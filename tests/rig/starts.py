"""Which tests start processes. The rest is `make quick`; nobody keeps a list of it.

A test starts processes (and gets the mark `processes`) if its folder is one of FOLDERS, if it stands on one of
FIXTURES, or if it, its module or its parameter carries the mark. Any other test in which a process starts fails there,
so this stays true as tests are added. Redis does not count: it is there after 20 ms of CPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.rig.zygote import FORK

MARK = "processes"
QUICK = f"not {MARK}"
"""What `make quick` gives to pytest's -m."""

FOLDERS = {
    "bench",
    "browser",
    "clients",
    "command",
    "compose",
    "conformance",
    "console",
    "docs",
    "faults",
    "frameworks",
    "js",
    "process",
    "viewers",
}
FILES = {"test_layout.py", "test_schemathesis.py"}
"""The first imports in processes of its own; the second asks the deployment, and costs 2 s of CPU to collect."""

FIXTURES = {"archived", "chromium", "deployment", "own_deployment", "postgres", "postgres_programs"}

_TESTS = Path(__file__).parents[1]

_CHEAP = {"valkey-server", "redis-server", "uname"}  # platform.processor() asks uname

_running: pytest.Item | None = None


def is_left_out(path: Path, markexpr: str) -> bool:
    """Whether a folder or file need not even be collected."""
    return markexpr == QUICK and (path.name in FOLDERS or path.name in FILES)


def folders_of(file: Path) -> tuple[str, ...]:
    """Of a test's file, from tests/ down."""
    return file.relative_to(_TESTS).parts[:-1]


def mark(items: list[pytest.Item]) -> None:
    for item in items:
        is_there = not FOLDERS.isdisjoint(folders_of(item.path)) or item.path.name in FILES
        if is_there or not FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(MARK)


@contextmanager
def only_if_marked(item: pytest.Item) -> Iterator[None]:
    global _running
    _running = item
    try:
        yield
    finally:
        _running = None


@contextmanager
def for_the_session() -> Iterator[None]:
    """For what every session needs: whichever test comes first does not pay for it."""
    global _running
    item, _running = _running, None
    try:
        yield
    finally:
        _running = item


def _heed(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in ("subprocess.Popen", FORK) or _running is None or _running.get_closest_marker(MARK):
        return
    program = os.path.basename(os.fsdecode(arguments[0]))
    if program not in _CHEAP:
        raise RuntimeError(f"{_running.nodeid} starts {program}: mark it pytest.mark.{MARK} (see tests/rig/starts.py)")


sys.addaudithook(_heed)
