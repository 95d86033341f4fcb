"""The JavaScript package, packed and installed, and a runtime to try it in."""

import json
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

    def make_ready(folder: Path) -> None:
        install(Path(__file__).parent / "npm", folder, npm)
        shutil.copy(ROOT / "tests" / "clients" / "npm" / "xhr.mjs", folder)
        package = folder / "node_modules" / "lastevent"
        package.mkdir()
        subprocess.run(["tar", "-xzf", pack(folder, npm), "--strip-components=1", "-C", package], check=True)

    return once(tmp_path_factory, "js", make_ready)


def pack(into: Path, npm: str) -> Path:
    """The file that a release is."""
    command = [npm, "pack", "--json", "--ignore-scripts", "--pack-destination", str(into)]
    ran = subprocess.run(command, cwd=PACKAGE, timeout=LIMIT_S, capture_output=True, text=True, check=True)
    return into / json.loads(ran.stdout)[0]["filename"]


def runtime(name: str, folder: Path) -> list[str]:
    """What runs a program: node, deno or bun. The last two are npm packages, of which the platform's own is the program."""
    if name == "node":
        return ["node"]
    arch = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    modules = folder / "node_modules"
    if name == "bun":
        return [str(modules / "@oven" / f"bun-{sys.platform}-{arch}" / "bin" / "bun")]
    libc = "-glibc" if sys.platform == "linux" else ""
    return [str(modules / "@deno" / f"{sys.platform}-{arch}{libc}" / "deno"), "run", "--allow-all", "--quiet"]
