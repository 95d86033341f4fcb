"""Notices when the code of an app changes, for `up --reload`.

It looks, and asks no kernel to tell it: some editors and containers' mounts tell nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

LOOK_S = 0.5

LEFT_OUT = frozenset({"node_modules", "site-packages", "__pycache__"})


def folder_of(app: str, cwd: Path) -> Path:
    """Where the code of `module` or `module:attribute` is: its package here, or all that is here beside it."""
    package = cwd / app.partition(":")[0].partition(".")[0]
    return package if package.is_dir() else cwd


async def changes(folder: Path) -> AsyncIterator[None]:
    """At each change of a .py file in it, when no further one has come for a moment: editors write several files."""
    seen = await asyncio.to_thread(_files, folder)
    is_changing = False
    while True:
        await asyncio.sleep(LOOK_S)
        now = await asyncio.to_thread(_files, folder)
        if is_changing and now == seen:
            yield
        is_changing, seen = now != seen, now


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_left_out(where, name)]
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(where, name)
                try:
                    status = os.stat(path)
                except OSError:
                    continue  # it has just been removed
                found[path] = (status.st_mtime_ns, status.st_size)
    return found


def _is_left_out(where: str, name: str) -> bool:
    is_an_environment = os.path.exists(os.path.join(where, name, "pyvenv.cfg"))
    return name.startswith(".") or name in LEFT_OUT or is_an_environment
