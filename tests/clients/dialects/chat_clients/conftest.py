"""The clients' packages, and all clients."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.clients.dialects.chat_clients.asking import Asking
from tests.clients.dialects.chat_clients.in_process import InProcess
from tests.clients.dialects.node import clients_of
from tests.js.cutting import cutting
from tests.rig.deployment import Deployment
from tests.rig.npm import install, once


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Path:
    npm = require("npm", "npm")
    require("node", "nodejs")
    return once(tmp_path_factory, "chat-clients", lambda folder: install(Path(__file__).parent / "npm", folder, npm))


@pytest.fixture(scope="module")
def pair(deployment: Deployment) -> Deployment:
    """Two servers and a worker, for this file's clients. They stay up: leave every part as it was."""
    return deployment


@pytest.fixture(scope="module")
async def asking(pair: Deployment, packages: Path) -> AsyncIterator[Asking]:
    async with cutting(*pair.ports) as cutter, clients_of(packages, cutter) as of_javascript:
        of_python = InProcess(cutter)
        try:
            yield Asking(of_javascript, of_python)
        finally:
            await of_python.close()
