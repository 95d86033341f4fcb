"""arq's queues of streams that wait for a worker. Only this file puts streams into them, and so chooses their order.

A plain stream any worker can run; an agent's only a worker that was given the agent's app: it waits in the app's queue.

Tenants share the workers: no matter how many streams one has queued, another's next one waits behind as few of them
as its share is worth (start-time fair queueing). arq takes jobs by their scores, lowest first. A score is a *virtual
time*: a tenant's next stream comes 1/weight after its last one, but never before the head of the queue, so that
nobody saves up turns. A tenant's streams keep the order of their arrival, exactly; so does all, where there is one
tenant.

arq means its scores as ms by the clock of the host that queues, and a worker takes what its own clock has passed:
behind a slow clock every job would wait. Here the virtual time begins, whenever nobody waits, at Redis' clock in
*seconds*, which is also what older releases scored with. To any worker that is a day in January 1970, long past.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix
from arq.jobs import serialize_job
from redis.asyncio import Redis

from broker.log.keys import Keys
from broker.log.running import Line
from broker.store.connect import ReleasingPipeline, pool
from broker.store.errors import translating_redis_errors
from broker.tenants.keyring import DEFAULT_TENANT

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

JOB_TIMEOUT_S = 60
"""A claim takes some ms; one that finds no Redis gives up well before this."""

IN_HAND_S = JOB_TIMEOUT_S + 10
"""Who takes a job has it in hand for as long, by arq, unless it ends before."""

CLAIM_S = 5
"""Who has had a job in hand for as long has died. If it has not, the lease decides between it and the next one."""

SHARES_KEPT_S = 7 * 86_400

_ENQUEUE = """
-- enqueue(sid, job, its life (ms), channel, tenant, 1/weight, shares' life (s), '1' if it is not to be parked,
--         what is left of having it in hand after a claim's time (ms))
--   → 1, or 0 if it waits already
--
-- The notification first: Redis may refuse it, and a refused script keeps what it wrote before. Nobody can look at the
-- queue before this script has ended.
local queue, job, shares = KEYS[1], KEYS[2], KEYS[3]
local sid, tenant = ARGV[1], ARGV[5]
if redis.call('EXISTS', job) == 1 and redis.call('ZSCORE', queue, sid) then
  local left = redis.call('PTTL', KEYS[5])
  if left >= 0 and left < tonumber(ARGV[9]) then
    redis.call('PUBLISH', ARGV[4], sid)
    redis.call('DEL', KEYS[5])
  end
  return 0
end
if ARGV[8] == '' and redis.call('EXISTS', KEYS[4]) == 1 then -- others of its tenant wait for a place: so does it
  local time = redis.call('TIME')
  return redis.call('ZADD', KEYS[4], 'NX', string.format('%.0f', time[1] * 1000000 + time[2]), sid)
end
redis.call('PUBLISH', ARGV[4], sid)
redis.call('PSETEX', job, ARGV[3], ARGV[2])
local head = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')[2]
if not head then
  redis.call('DEL', shares) -- nobody waits: nobody has had more than another
  local time = redis.call('TIME')
  redis.call('ZADD', queue, string.format('%d.%06d', time[1], time[2]), sid)
  return 1
end
local v = tonumber(head)
local score = math.max(v, tonumber(redis.call('HGET', shares, tenant) or 0)) + ARGV[6]
local written = string.format('%.17g', score)
redis.call('ZADD', queue, written, sid)
local is_new = redis.call('HSET', shares, tenant, written) == 1
if is_new or math.floor(score) % 64 == 0 then -- now and then is often enough for a week
  redis.call('EXPIRE', shares, ARGV[7])
end
if is_new then
  local held = redis.call('HLEN', shares)
  if held % 128 == 0 then -- those whose last turn has passed are as good as new ones
    local all = redis.call('HGETALL', shares)
    for at = 1, #all, 2 do
      if tonumber(all[at + 1]) <= v then
        redis.call('HDEL', shares, all[at])
      end
    end
  end
end
return 1
"""


async def enqueue(
    queue: Redis,
    keys: Keys,
    sid: str,
    app: str | None = None,
    *,
    tenant: str = DEFAULT_TENANT,
    weight: float = 1,
    has_turn: bool = False,
) -> None:
    """Queue this stream for any worker of its app, or for any at all, and wake the workers that wait for work.

    Where others of its tenant wait for a place (running.py) it is parked behind them at once, unless it `has_turn`: a
    worker would spend as much on finding that out as on a short answer. `weight`: the tenant's share, against the
    others'. Harmless if it waits already; if a worker died with it in hand, others may take it now. Raises
    RedisUnavailable.
    """
    never_parked = has_turn or tenant == DEFAULT_TENANT  # whose streams do not ask: few deployments limit it
    with translating_redis_errors():
        await queue.register_script(_ENQUEUE)(
            keys=[
                *(keys.jobs_of(app), job_key_prefix + sid, keys.shares(app), keys.parked(str(Line(tenant, app)))),
                in_progress_key_prefix + sid,
            ],
            args=[
                *(sid, _job(sid, tenant), LIFE_MS, keys.queued),
                *(tenant, repr(1 / weight), SHARES_KEPT_S, "1" if never_parked else ""),
                (IN_HAND_S - CLAIM_S) * 1000,
            ],
        )


def _job(sid: str, tenant: str) -> bytes:
    """Beside what arq puts into it, the tenant: who takes the job looks for a place first, without another command.

    Not as an argument: a worker of release 0.1 knows none, and takes the job all the same.
    """
    job: dict[str, Any] = orjson.loads(serialize_job(JOB, (sid,), {}, None, 0, serializer=_dumps))
    return _dumps({**job, "tenant": tenant} if tenant != DEFAULT_TENANT else job)


async def lost(queue: Redis, keys: Keys, sids: Sequence[str], app: str | None) -> set[str]:
    """Which of these no worker is going to take out of the queue: it has them not, or a worker took them and died.

    Raises RedisUnavailable.
    """
    if not sids:
        return set()
    scores = await queue.zmscore(keys.jobs_of(app), list(sids))
    in_hand = await queue.mget([in_progress_key_prefix + sid for sid in sids])
    return {sid for sid, score, hand in zip(sids, scores, in_hand, strict=True) if score is None or hand is not None}


async def take_out(queue: Redis, keys: Keys, sid: str, app: str | None) -> None:
    """This stream waits no more, and no worker of its app may ever come to find that. Raises RedisUnavailable."""
    with translating_redis_errors():
        await queue.zrem(keys.jobs_of(app), sid)
        await queue.delete(job_key_prefix + sid)


def _dumps(job: dict[str, Any]) -> bytes:
    return orjson.dumps(job, default=str)


def _loads(job: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = orjson.loads(job)
    if "tenant" in loaded:
        loaded["k"] = {**loaded["k"], "tenant": loaded["tenant"]}
    return loaded
