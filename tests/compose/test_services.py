"""The commands and health checks of compose.yaml, run as the processes that they are, on this machine's loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import ConnectionError as RedisConnectionError
from redis import Redis

from tests.compose.balancer import Balanced, Balancer
from tests.compose.compose_file import SERVICES, on_this_machine
from tests.compose.services import Services, make_seal_key
from tests.rig.deployment import Process, wait_until

NOBODY = 65534


@pytest.fixture
def valkey(services: Services, started: Callable[[str], Process]) -> Redis:
    """The admin's client with no connection open: its own would be taken for the worker's."""
    started("valkey")
    with Redis(port=services.valkey_port) as anybody:
        wait_until(lambda: _answers(anybody), "Valkey answers")
    return services.admin()


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


def test_a_server_is_healthy_while_it_reaches_valkey(services: Services, started: Callable[[str], Process]) -> None:
    places = {"python": sys.executable, "8000": str(services.port)}
    valkey = started("valkey")
    started("server-1")
    wait_until(lambda: services.is_healthy("server-1", **places), "it is healthy")
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


def test_a_seal_key_that_is_there_stays_and_nobody_else_may_read_it(seals: Path) -> None:
    private, public = seals / "key" / "seal-key.pem", seals / "public" / "seal-public.pem"
    there = (private.read_bytes(), public.read_bytes())
    assert private.stat().st_mode & 0o077 == 0
    make_seal_key(seals)
    assert (private.read_bytes(), public.read_bytes()) == there
    public.unlink()
    make_seal_key(seals)
    assert (private.read_bytes(), public.read_bytes()) == there


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
