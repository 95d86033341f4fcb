"""LangGraph's SDK for JavaScript, installed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig.npm import install, once


@pytest.fixture(scope="session")
def js(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Path:
    """The folder npm/ with its packages."""
    npm = require("npm", "npm")
    require("node", "nodejs")
    folder = Path(__file__).parent / "npm"
    return once(tmp_path_factory, "langgraph", lambda into: install(folder, into, npm))
