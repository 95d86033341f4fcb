"""Two servers and a worker for this folder's files, the clients' packages, and all clients."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.dialects.ai_sdk.clients import clients_of
from tests.clients.dialects.chat_clients.asking import Asking
from tests.clients.dialects.chat_clients.in_process import InProcess
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
    return once(tmp_path_factory, "chat-clients", lambda folder: install(Path(__file__).parent / "npm", folder, npm))


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """It stays up: leave every part as it was."""
    with deployment_in(tmp_path_factory.mktemp("chat-pair"), LASTEVENT_HEARTBEAT_S=HEARTBEAT_S) as deployment:
        yield deployment


@pytest.fixture(scope="module")
async def asking(pair: Deployment, packages: Path) -> AsyncIterator[Asking]:
    async with cutting(*pair.ports) as cutter, clients_of(packages, cutter) as of_javascript:
        of_python = InProcess(cutter)
        try:
            yield Asking(of_javascript, of_python)
        finally:
            await of_python.close()
