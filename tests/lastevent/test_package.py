"""lastevent-client: the wheel of `make pack-python`, in an interpreter that has nothing but httpx2 besides."""

from __future__ import annotations

import re
import subprocess
import tomllib
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.rig.deployment import Deployment

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
FOLLOW = """
import sys
from lastevent import AsyncClient, Client, Producer, StreamError, fold, forward
with Client(sys.argv[1]) as client:
    print(client.start("[[tokens=5 rate=0 ttft_ms=0]]").wait().state)
loaded = {name.partition(".")[0] for name in sys.modules}
print(*sorted(loaded & {"pydantic", "orjson", "starlette", "broker", "pytest"}))
"""


def test_it_follows_where_there_is_nothing_but_httpx2(deployment: Deployment, tmp_path: Path) -> None:
    made = subprocess.run(
        ["make", "-s", "pack-python", f"into={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    wheel = Path(made.stdout.split()[-1])
    venv.create(tmp_path / "bare", symlinks=True)
    [packages] = (tmp_path / "bare" / "lib").glob("python3*/site-packages")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(packages)
    for name in _needed("httpx2"):
        for file in distribution(name).files or ():
            if not file.parts[0].startswith(".."):
                there = packages / file
                there.parent.mkdir(parents=True, exist_ok=True)
                if not there.exists():
                    there.symlink_to(file.locate())
    argv = [str(tmp_path / "bare" / "bin" / "python"), "-c", FOLLOW, deployment.url]
    ran = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["done", ""]


def _needed(name: str) -> set[str]:
    """A distribution, and what it needs, without its extras."""
    found = {name}
    for line in distribution(name).requires or ():
        requirement, _, marker = line.partition(";")
        if "extra ==" not in marker:
            [bare] = re.findall(r"^[\w.-]+", requirement)
            try:
                found |= _needed(bare)
            except ModuleNotFoundError:  # of another Python, or another system
                continue
    return found


def test_its_version_is_the_main_packages_and_it_has_all_rooms() -> None:
    own = tomllib.loads((ROOT / "lastevent" / "pyproject.toml").read_text())
    main = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert own["project"]["version"] == main["project"]["version"]
    assert own["project"]["dependencies"] == [one for one in main["project"]["dependencies"] if "httpx2" in one]
    rooms = [name for name in main["tool"]["setuptools"]["packages"] if name.partition(".")[0] == "lastevent"]
    assert own["tool"]["setuptools"]["packages"] == rooms
