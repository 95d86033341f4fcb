"""`balanced`: two servers with keys behind nginx; `own_balanced`: the same for tests that break parts of it."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.compose.balancer import Balanced, balancing
from tests.compose.compose_file import SERVICES, on_this_machine
from tests.deployment import Deployment


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Path:
    """Where the certificate is that compose.yaml's `certificate` makes."""
    require("openssl", "openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = on_this_machine(SERVICES["certificate"]["command"], {"/tls/": f"{folder}/"})
    subprocess.run(command, check=True, capture_output=True)
    return folder


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
