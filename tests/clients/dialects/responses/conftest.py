"""The clients' packages, and responses for all of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.dialects.responses.recorded import Ended, record
from tests.rig.deployment import Deployment
from tests.rig.environments import python_of_clients
from tests.rig.npm import install, once

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Path:
    npm = require("npm", "npm")
    require("node", "nodejs")
    return once(tmp_path_factory, "responses", lambda folder: install(HERE / "npm", folder, npm))


@pytest.fixture(scope="session")
def python() -> Path:
    """An interpreter with the clients of python.in."""
    return python_of_clients()


@pytest.fixture(scope="session")
def ended(deployment: Deployment) -> dict[str, Ended]:
    return record(deployment)
