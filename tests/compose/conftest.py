"""`balanced`: two servers with keys behind nginx; `own_balanced`: the same for tests that break parts of it.

`services` and `started`: the services of compose.yaml as processes, each started by its own command.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.compose.balancer import Balanced, balancing
from tests.compose.compose_file import SERVICES, on_this_machine
from tests.compose.services import Services, make_seal_key
from tests.rig.deployment import Deployment, Process


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Path:
    """Where the certificate is that compose.yaml's `certificate` makes."""
    require("openssl", "openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = on_this_machine(SERVICES["certificate"]["command"], {"/tls/": f"{folder}/"})
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def seals(tmp_path: Path, require: Callable[[str, str], str]) -> Path:
    """What stands for /seal: the key pair that compose.yaml's `seal-key` makes."""
    require("openssl", "openssl")
    folder = tmp_path / "seal"
    for place in ("key", "public"):
        (folder / place).mkdir(parents=True)
    make_seal_key(folder)
    return folder


@pytest.fixture
def services(tmp_path: Path, seals: Path) -> Services:
    return Services(tmp_path, seals)


@pytest.fixture
def started(services: Services) -> Iterator[Callable[..., Process]]:
    """started("valkey") → its process."""
    with ExitStack() as stack:

        def start(name: str, **settings: str) -> Process:
            process = services.process(name, **settings)
            stack.callback(process.kill)
            process.start()
            return process

        yield start


@pytest.fixture(scope="session")
def balanced(
    deployment: Deployment,
    certificate: Path,
    tmp_path_factory: pytest.TempPathFactory,
    require: Callable[[str, str], str],
) -> Iterator[Balanced]:
    require("nginx", "nginx")
    with balancing(deployment, tmp_path_factory.mktemp("balanced"), certificate) as balanced:
        yield balanced


@pytest.fixture
def own_balanced(
    deployment: Deployment, certificate: Path, tmp_path: Path, require: Callable[[str, str], str]
) -> Iterator[Balanced]:
    require("nginx", "nginx")
    with balancing(deployment, tmp_path, certificate) as balanced:
        yield balanced
