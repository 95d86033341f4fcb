"""nginx with docs/nginx.conf, in front of two servers with keys: beside those of `deployment`, over its Valkey."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.ports import free_port
from tests.compose.compose_file import KEY, ROOT, SERVICES, on_this_machine
from tests.rig.deployment import HTTP, Deployment, Process, wait_until

CONFIGURATION = ROOT / "docs" / "nginx.conf"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


class Balancer:
    """nginx, started as compose.yaml starts it, on free ports of loopback.


    Tests are one address that asks as often as it can. So `requests_s` is more than in production, except in
    test_limits.py.
    """

    def __init__(
        self,
        folder: Path,
        certificate: Path,
        upstreams: Sequence[int],
        *,
        requests_s: int = 100_000,
        connections: int = 2000,
        change: Callable[[str], str] = str,
    ) -> None:
        self.port = free_port()
        self.tls_port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.tls_url = f"https://localhost:{self.tls_port}"
        configuration = folder / "nginx.conf"
        there = _elsewhere(change(CONFIGURATION.read_text()), self.port, self.tls_port, upstreams)
        there = _replaced(there, r"(rate)=50r/s", f"={requests_s}r/s")
        configuration.write_text(_replaced(there, r"(connections_of_one) 2000;", f" {connections};", times=3))
        (folder / "tls").symlink_to(certificate)
        places = {"/etc/nginx/nginx.conf": str(configuration), "/tmp": str(folder)}
        self.argv = on_this_machine(SERVICES["nginx"]["command"], places)
        self.process = Process("nginx", self.argv, dict(os.environ), folder)

    @property
    def log(self) -> str:
        return self.process.output.read_text()

    def start(self) -> None:
        self.process.start()
        wait_until(self._listens, "nginx listens")

    def _listens(self) -> bool:
        """Asked without a request, which would go on to the servers."""
        assert self.process.is_alive(), self.log
        with socket.socket() as plug:
            return plug.connect_ex(("127.0.0.1", self.tls_port)) == 0


def _elsewhere(configuration: str, port: int, tls_port: int, upstreams: Sequence[int]) -> str:
    """The configuration with other addresses, and nothing else changed: each line that has one is found once."""
    addresses = {r"(listen) 8080 ": port, r"(listen) 8443 ": tls_port}
    addresses |= {rf"(server) server-{n}:8000 ": upstream for n, upstream in enumerate(upstreams, start=1)}
    for theirs, ours in addresses.items():
        configuration = _replaced(configuration, theirs, f" 127.0.0.1:{ours} ")
    return configuration


def _replaced(configuration: str, theirs: str, ours: str, times: int = 1) -> str:
    configuration, found = re.subn(theirs, rf"\g<1>{ours}", configuration)
    assert found == times, theirs
    return configuration


class Balanced:
    """`front` is what stands in front of the servers, called `nginx` here whatever it is; `settings`, the servers'."""

    def __init__(
        self,
        deployment: Deployment,
        folder: Path,
        certificate: Path,
        front: Callable[[Path, Path, Sequence[int]], Balancer] = Balancer,
        **settings: str,
    ) -> None:
        self.ports = [free_port(), free_port()]
        limits = {"LASTEVENT_VIEWERS_PER_TOKEN": "1000", "LASTEVENT_CONNECTS_PER_MINUTE": "100000"}  # one token for all
        environment = {**deployment.environment, **limits, "LASTEVENT_API_KEYS": KEY, **settings}
        self.servers = [
            Process(f"keyed-{n}", deployment.serve_argv(port), environment, folder) for n, port in enumerate(self.ports)
        ]
        self.nginx = front(folder, certificate, self.ports)

    def start(self) -> None:
        self.start_servers()
        self.nginx.start()

    def start_servers(self) -> None:
        for server in self.servers:
            server.start()
        for port in self.ports:
            wait_until(lambda port=port: self._is_ready(port), f"the server on {port} is ready")

    def kill_servers(self) -> None:
        for server in self.servers:
            server.kill()

    def stop(self) -> None:
        self.nginx.process.stop()  # a killed nginx leaves its processes behind
        self.kill_servers()

    def create(self, **body: Any) -> dict[str, Any]:
        """The record of a new stream, made through nginx."""
        answer = HTTP.post(f"{self.nginx.url}/v1/streams", json=body, headers=AUTHORIZED)
        assert answer.status_code == 201, answer.text
        record: dict[str, Any] = answer.json()
        return record

    def viewers(self) -> list[int]:
        """How many each server says it has."""
        pages = [HTTP.get(f"http://127.0.0.1:{port}/metrics", headers=AUTHORIZED).text for port in self.ports]
        return [sum(map(float, re.findall(r"^lastevent_viewers\{\S+ (\S+)$", page, re.MULTILINE))) for page in pages]

    @staticmethod
    def _is_ready(port: int) -> bool:
        try:
            return HTTP.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def balancing(deployment: Deployment, folder: Path, certificate: Path) -> Iterator[Balanced]:
    balanced = Balanced(deployment, folder, certificate)
    try:
        balanced.start()
        yield balanced
    finally:
        balanced.stop()
