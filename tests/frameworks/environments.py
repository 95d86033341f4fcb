"""Virtual environments of the frameworks, kept in build/ for as long as their pins are the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp

HERE = Path(__file__).parent
KEPT = HERE.parents[1] / "build" / "frameworks"

INSTALL_LIMIT_S = 600


def pythons(names: Sequence[str]) -> dict[str, Path]:
    """The interpreter of each environment. They are installed side by side: most of it is waiting."""
    with ThreadPoolExecutor() as side_by_side:
        return dict(zip(names, side_by_side.map(_python, names), strict=True))


def _python(name: str) -> Path:
    pins = HERE / f"{name}.txt"
    version = sha256(pins.read_bytes() + sys.version.encode()).hexdigest()[:12]
    there = KEPT / f"{name}-{version}"
    if not there.exists():
        for outdated in KEPT.glob(f"{name}-*"):
            shutil.rmtree(outdated)
        _make(there, pins)
    return there / "bin" / "python"


def _make(there: Path, pins: Path) -> None:
    """Elsewhere first: what is there is whole, and another run of the suite may be making it too."""
    KEPT.mkdir(parents=True, exist_ok=True)
    making = Path(mkdtemp(dir=KEPT, prefix=".making-"))
    try:
        venv.create(making, symlinks=True)
        _install(pins, making)
        with suppress(OSError):  # the other run was first
            making.rename(there)
        assert there.exists()
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _install(pins: Path, into: Path) -> None:
    """By the pip that is here: one of its own would take longer to install than most of what it installs."""
    packages = sysconfig.get_path("purelib", "venv", {"base": str(into)})
    # What is never imported need not be compiled.
    options = ["--require-hashes", "--no-deps", "--no-compile", "--only-binary", ":all:", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", packages, "-r", str(pins)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
