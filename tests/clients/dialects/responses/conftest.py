"""Two servers and a worker for this folder's files, and the clients' packages."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.dialects.responses.recorded import Ended, record
from tests.conftest import deployment_in
from tests.rig.deployment import Deployment
from tests.rig.environments import python_with
from tests.rig.npm import install, once

HERE = Path(__file__).parent

HEARTBEAT_S = "0.02"
"""Clients must bear a sign of life between any two frames."""


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Path:
    npm = require("npm", "npm")
    require("node", "nodejs")
    return once(tmp_path_factory, "responses", lambda folder: install(HERE / "npm", folder, npm))


@pytest.fixture(scope="session")
def python() -> Path:
    """An interpreter with the clients of python.in."""
    return python_with(HERE / "python.txt", "responses")


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """It stays up: leave every part as it was."""
    with deployment_in(tmp_path_factory.mktemp("responses"), LASTEVENT_HEARTBEAT_S=HEARTBEAT_S) as deployment:
        yield deployment


@pytest.fixture(scope="session")
def ended(pair: Deployment) -> dict[str, Ended]:
    return record(pair)
