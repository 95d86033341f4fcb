"""Each language's clients, made ready once for all processes of pytest-xdist."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.programs import Go, Language, Node, Python


def _once(tmp_path_factory: pytest.TempPathFactory, language: Language) -> Language:
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-gw") else base  # of the session, where xdist gives each its own
    folder = shared / f"clients-{language.name}"
    with (shared / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            language.make_ready(folder)
            (folder / "ready").touch()
    language.folder = folder
    return language


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Language:
    require("node", "nodejs")
    return _once(tmp_path_factory, Node(require("npm", "npm")))


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Language:
    return _once(tmp_path_factory, Python())


@pytest.fixture(scope="session")
def go(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Language:
    return _once(tmp_path_factory, Go(require("go", "golang-go, of 1.26 or newer")))


@pytest.fixture(scope="session")
def node_clients(node: Language) -> Path:
    return node.folder
