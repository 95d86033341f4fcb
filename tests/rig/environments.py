"""Virtual environments with others' packages, kept in build/ for as long as their pins are the same."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.rig.kept import kept

INSTALL_LIMIT_S = 600

_CLIENTS = Path(__file__).parents[1] / "clients" / "dialects" / "responses" / "python.txt"


def python_of_clients() -> Path:
    """The interpreter with others' clients of our dialects, which want other versions than our own packages."""
    return python_with(_CLIENTS, "responses")


def python_with(pins: Path, name: str) -> Path:
    """The interpreter of an environment that has these packages and no others. `name`: of its folder."""

    def make(there: Path) -> None:
        venv.create(there, symlinks=True)
        _install(pins, there)

    return kept(name, pins.read_bytes() + sys.version.encode(), make) / "bin" / "python"


def _install(pins: Path, into: Path) -> None:
    """By the pip that is here: one of its own would take longer to install than most of what it installs."""
    packages = sysconfig.get_path("purelib", "venv", {"base": str(into)})
    # What is never imported need not be compiled.
    options = ["--require-hashes", "--no-deps", "--no-compile", "--only-binary", ":all:", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", packages, "-r", str(pins)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
