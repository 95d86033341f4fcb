"""The connections a process has to Redis: a pool with a limit, whoever waits for it, and arq's queue."""

from __future__ import annotations

from typing import Any

import orjson
from arq.connections import ArqRedis
from redis.asyncio import BlockingConnectionPool, Redis

from broker.keys import Keys

POOL_CONNECTIONS = 16
"""A process' reads and writes are short; more connections would only queue inside Redis instead of here."""

SOCKET_TIMEOUT_S = 5.0
"""A Redis that does not answer for so long is away: say so, rather than hang with it."""

JOB = "generate"


def _pool(redis_url: str, connections: int) -> BlockingConnectionPool:
    return BlockingConnectionPool.from_url(
        redis_url,
        max_connections=connections,
        timeout=SOCKET_TIMEOUT_S,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
    )


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
