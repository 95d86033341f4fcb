"""Two servers and a worker for this folder's files, the clients' packages, and the process that is all clients."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.dialects.node import Clients, clients_of
from tests.conftest import deployment_in
from tests.js.cutting import cutting
from tests.rig.deployment import Deployment
from tests.rig.npm import install, once

HEARTBEAT_S = "0.02"
"""Clients must bear a sign of life between any two frames."""


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Path:
    npm = require("npm", "npm")
    require("node", "nodejs")
    return once(tmp_path_factory, "ag-ui", lambda folder: install(Path(__file__).parent / "npm", folder, npm))


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """It stays up: leave every part as it was."""
    with deployment_in(tmp_path_factory.mktemp("ag-ui-pair"), LASTEVENT_HEARTBEAT_S=HEARTBEAT_S) as deployment:
        yield deployment


@pytest.fixture(scope="module")
async def clients(pair: Deployment, packages: Path) -> AsyncIterator[Clients]:
    async with cutting(*pair.ports) as cutter, clients_of(packages, cutter) as clients:
        yield clients
