"""npm packages for tests: what a folder's package-lock.json names, installed beside a copy of that folder's files."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig.kept import kept, made

INSTALL_LIMIT_S = 120


def install(folder: Path, into: Path, npm: str) -> Path:
    """Copy the files of `folder`, with its packages: nothing is written where the tests stand, nor where those are.

    A test may add packages, and must not change these: their files are linked, if they can be.
    """
    for file in folder.iterdir():
        if file.is_file():
            shutil.copy(file, into)
    shutil.copytree(packages(folder, npm) / "node_modules", into / "node_modules", copy_function=_link, symlinks=True)
    return into


def packages(folder: Path, npm: str) -> Path:
    """Where they are kept."""
    files = [folder / name for name in ("package.json", "package-lock.json", ".npmrc")]

    def make(there: Path) -> None:
        for file in files:
            if file.exists():
                shutil.copy(file, there)
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        ran = subprocess.run(command, cwd=there, timeout=INSTALL_LIMIT_S, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr

    made_of = b"".join(file.read_bytes() for file in files if file.exists())
    return kept(f"npm/{folder.parent.name}", made_of, make)


def _link(file: str, to: str) -> None:
    try:
        os.link(file, to)
    except OSError:  # another file system
        shutil.copy2(file, to)


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make_ready: Callable[[Path], object]) -> Path:
    """A folder that `make_ready` fills, for all processes of pytest-xdist together."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-gw") else base  # of the session, where xdist gives each its own
    return made(shared / name, make_ready)
