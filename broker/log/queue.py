"""arq's queues of streams that wait for a worker. Only this file puts streams into them, and so chooses their order.

A plain stream any worker can run; an agent's only a worker that was given the agent's app: it waits in the app's queue.

arq scores a job with the clock of the host that queues it, and a worker takes what its own clock has passed: behind a
slow clock every job would wait. Here Redis' clock scores, in seconds, where a worker compares with milliseconds. To any
worker that is a day in January 1970, long past; and the order is that of arrival, to the microsecond.
"""

from __future__ import annotations

from typing import Any

import orjson
from arq.connections import ArqRedis
from arq.constants import job_key_prefix
from arq.jobs import serialize_job
from redis.asyncio import Redis

from broker.log.keys import Keys
from broker.store.connect import ReleasingPipeline, pool
from broker.store.errors import translating_redis_errors

JOB = "generate"
"""The name of the one kind of job, which the worker registers with arq."""


class _Queue(ArqRedis):
    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> ReleasingPipeline:
        return ReleasingPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


def connect_queue(redis_url: str, keys: Keys, *, connections: int = 4) -> ArqRedis:
    """The queue. Jobs are JSON, not arq's pickle: write access to Redis must not become the right to run code here."""
    queue = _Queue(
        pool(redis_url, connections),
        job_serializer=_dumps,
        job_deserializer=_loads,
        default_queue_name=keys.jobs,
    )
    queue.auto_close_connection_pool = True
    return queue


LIFE_MS = 86_400_000
"""Of a job that no worker takes. A sweeper has found its stream long before."""

_ENQUEUE = """
-- enqueue(sid, job, its life (ms), channel) → 1, or 0 if it waits already
--
-- The notification first: Redis may refuse it, and a refused script keeps what it wrote before. Nobody can look at the
-- queue before this script has ended.
if redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end
redis.call('PUBLISH', ARGV[4], ARGV[1])
redis.call('PSETEX', KEYS[2], ARGV[3], ARGV[2])
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], string.format('%d.%06d', time[1], time[2]), ARGV[1])
return 1
"""


async def enqueue(queue: Redis, keys: Keys, sid: str, app: str | None = None) -> None:
    """Queue this stream for any worker of its app, or for any at all, and wake the workers that wait for work.

    Harmless if it waits already. Raises RedisUnavailable.
    """
    job = serialize_job(JOB, (sid,), {}, None, 0, serializer=_dumps)
    with translating_redis_errors():
        await queue.register_script(_ENQUEUE)(
            keys=[keys.jobs_of(app), job_key_prefix + sid], args=[sid, job, LIFE_MS, keys.queued]
        )


async def take_out(queue: Redis, keys: Keys, sid: str, app: str) -> None:
    """This stream waits no more, and no worker of its app may ever come to find that. Raises RedisUnavailable."""
    with translating_redis_errors():
        await queue.zrem(keys.jobs_of(app), sid)
        await queue.delete(job_key_prefix + sid)


def _dumps(job: dict[str, Any]) -> bytes:
    return orjson.dumps(job, default=str)


def _loads(job: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = orjson.loads(job)
    return loaded
