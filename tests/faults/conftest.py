"""A stand-in of its own process: it outlives the workers that are killed, and tells how many requests are open."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

import httpx
import pytest

from bench.ports import free_port
from tests.rig.deployment import HTTP, Deployment, Process, wait_until


class Provider:
    def __init__(self, url: str) -> None:
        self.url = url

    def open(self) -> int:
        """How many requests are being answered."""
        counts: dict[str, int] = HTTP.get(f"{self.url}/open").json()
        return counts["open"]

    def is_up(self) -> bool:
        try:
            return self.open() >= 0
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="session")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    port = free_port()
    argv = [sys.executable, "-m", "worker.standin", "--port", str(port)]
    process = Process("standin", argv, dict(os.environ), tmp_path_factory.mktemp("standin"))
    provider = Provider(f"http://127.0.0.1:{port}")
    process.start()
    try:
        wait_until(provider.is_up, "the stand-in is up")
        yield provider
    finally:
        process.kill()


@pytest.fixture
def deploy(own_deployment: Callable[..., Deployment], provider: Provider) -> Callable[..., Deployment]:
    """own_deployment, on this stand-in."""
    return lambda **options: own_deployment(
        **{"ANTHROPIC_BASE_URL": provider.url, "ANTHROPIC_API_KEY": "stand-in", **options}
    )
