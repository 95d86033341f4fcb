"""The JavaScript package, packed and installed, and a runtime to try it in."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig.npm import install, once

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "clients" / "js"
LIMIT_S = 60


def installed(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Path:
    """A folder with the programs of npm/, their packages, and beside them `lastevent` as npm packs it."""
    npm = require("npm", "npm")
    require("node", "nodejs")
    return once(tmp_path_factory, "js", lambda folder: make_ready(folder, npm))


def make_ready(folder: Path, npm: str) -> None:
    install(Path(__file__).parent / "npm", folder, npm)
    shutil.copy(ROOT / "tests" / "clients" / "npm" / "xhr.mjs", folder)
    subprocess.run(["make", "-C", ROOT, "pack", f"into={folder}"], timeout=LIMIT_S, check=True, capture_output=True)
    package = folder / "node_modules" / "lastevent"
    package.mkdir()
    subprocess.run(["tar", "-xzf", packed(folder), "--strip-components=1", "-C", package], check=True)


def packed(folder: Path) -> Path:
    """The file that a release is."""
    [file] = folder.glob("lastevent-*.tgz")
    return file


def runtime(name: str, folder: Path) -> list[str]:
    """What runs a program: node, deno or bun, with what is in the folder alone: nothing is downloaded.

    The last two are npm packages, of which the platform's own is the program.
    """
    if name == "node":
        return ["node"]
    arch = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    modules = folder / "node_modules"
    if name == "bun":
        return [str(modules / "@oven" / f"bun-{sys.platform}-{arch}" / "bin" / "bun"), "--no-install"]
    libc = "-glibc" if sys.platform == "linux" else ""
    deno = modules / "@deno" / f"{sys.platform}-{arch}{libc}" / "deno"
    return [str(deno), "run", "--allow-all", "--quiet", "--cached-only"]


def environment(folder: Path) -> dict[str, str]:
    """For runtimes: what they keep is kept in the folder, and none asks for a newer version of itself."""
    return {**os.environ, "DENO_DIR": str(folder / "deno"), "DENO_NO_UPDATE_CHECK": "1", "DO_NOT_TRACK": "1"}


def output(command: list[str], folder: Path, limit_s: float = LIMIT_S) -> str:
    """What a program in the folder writes; it must succeed, and warn of nothing."""
    ran = subprocess.run(
        command, cwd=folder, env=environment(folder), timeout=limit_s, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout + ran.stderr
    return ran.stdout
