"""npm packages for tests: what a folder's package-lock.json names, installed in a copy of that folder."""

import fcntl
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

INSTALL_LIMIT_S = 120


def install(folder: Path, into: Path, npm: str) -> Path:
    """Copy the files of `folder` and run `npm ci` there: nothing is written where the tests stand."""
    for file in folder.iterdir():
        if file.is_file():
            shutil.copy(file, into)
    command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    ran = subprocess.run(command, cwd=into, timeout=INSTALL_LIMIT_S, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return into


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make_ready: Callable[[Path], object]) -> Path:
    """A folder that `make_ready` fills, for all processes of pytest-xdist together."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-gw") else base  # of the session, where xdist gives each its own
    folder = shared / name
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make_ready(folder)
            (folder / "ready").touch()
    return folder
