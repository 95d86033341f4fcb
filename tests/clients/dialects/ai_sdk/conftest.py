"""The clients' packages, and the process that is all clients."""

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.clients.dialects.node import Clients, clients_of
from tests.js.cutting import cutting
from tests.rig.deployment import Deployment
from tests.rig.npm import once
from tests.rig.npm import packages as kept_packages


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Path:
    npm = require("npm", "npm")
    require("node", "nodejs")
    return once(tmp_path_factory, "ai-sdk", lambda folder: _make_ready(folder, npm))


def _make_ready(folder: Path, npm: str) -> None:
    """Its packages are 7,000 files, and no test adds one: a link will do."""
    programs = Path(__file__).parent / "npm"
    shutil.copytree(programs, folder, dirs_exist_ok=True)
    (folder / "node_modules").symlink_to(kept_packages(programs, npm) / "node_modules")


@pytest.fixture(scope="module")
async def clients(deployment: Deployment, packages: Path) -> AsyncIterator[Clients]:
    async with cutting(*deployment.ports) as cutter, clients_of(packages, cutter) as clients:
        yield clients
