"""arq's queue of streams that wait for a worker. Only this file puts streams into it, and so chooses their order."""

from __future__ import annotations

from typing import Any

import orjson
from arq.connections import ArqRedis

from broker.log.keys import Keys
from broker.store.connect import pool
from broker.store.errors import translating_redis_errors

JOB = "generate"
"""The name of the one kind of job, which the worker registers with arq."""


def connect_queue(redis_url: str, keys: Keys, *, connections: int = 4) -> ArqRedis:
    """The queue. Jobs are JSON, not arq's pickle: write access to Redis must not become the right to run code here."""
    queue = ArqRedis(
        pool(redis_url, connections),
        job_serializer=_dumps,
        job_deserializer=_loads,
        default_queue_name=keys.jobs,
    )
    queue.auto_close_connection_pool = True
    return queue


async def enqueue(queue: ArqRedis, keys: Keys, sid: str) -> None:
    """Queue this stream for any worker, and wake the workers that wait for work. Raises RedisUnavailable."""
    with translating_redis_errors():
        await queue.enqueue_job(JOB, sid, _job_id=sid)
        await queue.publish(keys.queued, sid)


def _dumps(job: dict[str, Any]) -> bytes:
    return orjson.dumps(job, default=str)


def _loads(job: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = orjson.loads(job)
    return loaded
