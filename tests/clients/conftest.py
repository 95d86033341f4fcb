"""Each language's clients, made ready once for all processes of pytest-xdist."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.programs import Go, Language, Node, Python
from tests.rig.npm import once


def _once(tmp_path_factory: pytest.TempPathFactory, language: Language) -> Language:
    language.folder = once(tmp_path_factory, f"clients-{language.name}", language.make_ready)
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
