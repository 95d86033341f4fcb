"""The connections a process has to Redis: a pool with a limit, whoever waits for it, and arq's queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import orjson
import redis.exceptions
from arq.connections import ArqRedis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection

from broker.keys import Keys

POOL_CONNECTIONS = 16
"""A process' reads and writes are short; more connections would only queue inside Redis instead of here."""

SOCKET_TIMEOUT_S = 5.0
"""A Redis that does not answer for so long is away: say so, rather than hang with it."""

JOB = "generate"


class _Cancellable(AbstractConnection):
    """redis-py writes within asyncio.wait_for, which before Python 3.12 swallows a cancellation that comes just as
    the write is done (bpo-37658): a viewer that had left was served on, and a drain waited for it in vain.
    """

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        if not self.is_connected:
            await self.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        elif check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        if isinstance(command, str):
            command = command.encode()
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command([command] if isinstance(command, bytes) else command)
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise redis.exceptions.TimeoutError("Timeout writing to the socket") from None
        except OSError as error:
            await self.disconnect(nowait=True)
            raise redis.exceptions.ConnectionError(f"Error while writing to the socket: {error}") from error
        except BaseException:  # a command half written: nothing may be written after it
            await self.disconnect(nowait=True)
            raise


def _pool(redis_url: str, connections: int) -> BlockingConnectionPool:
    pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
        redis_url,
        max_connections=connections,
        timeout=SOCKET_TIMEOUT_S,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
    )
    # The address' scheme has chosen the class: TCP, TLS or a unix socket.
    pool.connection_class = type("Connection", (_Cancellable, pool.connection_class), {})
    return pool


def connect(redis_url: str, *, connections: int = POOL_CONNECTIONS) -> Redis:
    return Redis.from_pool(_pool(redis_url, connections))


def connect_queue(redis_url: str, keys: Keys, *, connections: int = 4) -> ArqRedis:
    """arq's queue of streams that wait for a worker. Jobs are JSON: whoever can write Redis must not run code here."""
    queue = ArqRedis(
        _pool(redis_url, connections),
        job_serializer=_dumps,
        job_deserializer=_loads,
        default_queue_name=keys.jobs,
    )
    queue.auto_close_connection_pool = True
    return queue


def _dumps(job: dict[str, Any]) -> bytes:
    return orjson.dumps(job, default=str)


def _loads(job: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = orjson.loads(job)
    return loaded
