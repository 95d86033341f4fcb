"""The suite's and the clients' packages, and two servers behind nginx that let the suite's pages in."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.dialects.node import Clients, clients_of
from tests.compose.balancer import Balanced
from tests.compose.conftest import certificate as certificate  # a fixture
from tests.js.cutting import cutting
from tests.rig.deployment import Deployment
from tests.rig.npm import install, once

PAGE = "https://example.com"
"""Where the suite says that it comes from."""


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Path:
    npm = require("npm", "npm")
    require("node", "nodejs")
    return once(tmp_path_factory, "durable-streams", lambda folder: install(Path(__file__).parent / "npm", folder, npm))


@pytest.fixture(scope="session")
def balanced(
    deployment: Deployment,
    certificate: Path,
    tmp_path_factory: pytest.TempPathFactory,
    require: Callable[[str, str], str],
) -> Iterator[Balanced]:
    """Two servers behind nginx."""
    require("nginx", "nginx")
    folder = tmp_path_factory.mktemp("durable-streams")
    balanced = Balanced(deployment, folder, certificate, LASTEVENT_CORS_ORIGINS=PAGE)
    try:
        balanced.start()
        yield balanced
    finally:
        balanced.stop()


@pytest.fixture(scope="module")
async def clients(balanced: Balanced, packages: Path) -> AsyncIterator[Clients]:
    """Whose requests go to the two servers in turn."""
    async with cutting(*balanced.ports) as cutter, clients_of(packages, cutter) as clients:
        yield clients
