"""What the image installs: a wheel of the files that compose.yaml copies, and of no others."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from tests.compose.compose_file import ROOT, SERVICES

IMAGE = SERVICES["worker"]["build"]["dockerfile_inline"]
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
CONSOLE = ROOT / "broker" / "console"
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def copied() -> dict[str, str]:
    """What is copied into the image's /src → where."""
    lines = re.findall(r"^COPY (?!--)(.+) (\S+)$", IMAGE, re.MULTILINE)
    return {source: target for sources, target in lines for source in sources.split()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Those of the wheel."""
    folder, into = tmp_path_factory.mktemp("image"), tmp_path_factory.mktemp("wheel")
    for source, target in copied().items():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, folder / target)
    subprocess.run([sys.executable, "-c", BUILD, str(into)], cwd=folder, check=True, capture_output=True, timeout=60)
    [wheel] = into.iterdir()
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_copied_and_is_in_the_wheel(files: set[str], package: str) -> None:
    path = package.replace(".", "/")
    assert any(path == source or path.startswith(f"{source}/") for source in copied())
    assert {f"{path}/{file.name}" for file in (ROOT / path).glob("*.py")} <= files


def test_the_console_s_link_to_its_client_leads_to_what_is_copied_too() -> None:
    link = CONSOLE / "lastevent"
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    target = str(link.resolve().relative_to(ROOT))
    assert copied()[target] == target


def test_the_wheel_has_the_files_of_the_client_in_place_of_the_link(files: set[str]) -> None:
    client = {f"broker/console/lastevent/{file.name}" for file in (ROOT / "clients/js/src").glob("*.js")}
    assert client <= files
    assert "broker/console/lastevent/index.js" in client
