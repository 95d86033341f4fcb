"""Webhooks: a stream's ending, until its receiver has it.

    le:{sid}:hook   hash   what is sent, and what became of it
        state        pending → delivered (2xx) | stopped (410) | failed (nobody took it, in all tries)
        attempts     how many were begun
        last_status  of the last answer; absent: there was none
        next_at      when the next attempt may begin (ms)
        held_until   an attempt is under way, of the worker that began it, until then at most (ms)
        url body tenant user session      while it is pending; then they go
    le:webhooks     zset   sid → when to look at it next. An index: never later than the hash says, or late by one hold

The sweeper collects: it writes the hash and then the index, before the stream leaves le:leases (worker/sweeper.py). The
couriers deliver (worker/courier.py). A step is one script on one stream's keys and may be repeated. The races:

- ending ↔ sweep. The body is made of meta once that is terminal: an ending does not change, and neither does the body,
  since what is there already is left alone. Redis has lost the ending between the read and the step: the step finds
  the stream running, and the sweeper looks again.
- sweep ↔ sweep. Two sweepers collect one stream: the second one finds the hash. One that stood still until after the
  delivery finds it too, delivered: it lives for LIFE_S, whatever comes of it.
- a worker killed. Before the hash: the stream is in le:leases. Between hash and index: likewise; collecting again adds
  it to the index. While it delivers: the hold ends, and another worker begins the next attempt. After the delivery and
  before `settle`: it is delivered twice; `webhook-id` is the stream's, so the receiver drops one.
- two couriers. `begin` gives one attempt at a time: by Redis' clock, in the hash, not in the index. One that stood
  still for longer than its hold settles an attempt that is not the last one any more: a delivery counts, a failure
  does not.
- Redis rolled back. What is lost is the end of what was written, so a hash without its stream's ending, or an index
  without its hash, does not come about; a stream whose hash is gone is in le:leases again. What would hurt is an
  ending that a receiver was told, and Redis forgets: the first attempt waits for Redis' disk (store/durable.py).
  A lost `settle` is another delivery.
- erased meanwhile. Erasing removes hash and entry after it has left the tombstone; `collect` and `begin` look for the
  tombstone in the same step in which they write or give. So no hash comes after it, and no attempt begins. One that is
  under way ends within its time limit, and writes nothing: `settle` does not make a hash.
- archived meanwhile, or past its retention. The hash stands by itself: it needs neither meta nor log.
- an order to erase a person finds the hash of a stream whose other keys are gone: by le:webhooks and its own fields.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
from redis.asyncio import Redis

from broker.log.event import ERROR
from broker.log.keys import Keys
from broker.log.meta import Meta

PENDING, DELIVERED, STOPPED, FAILED = "pending", "delivered", "stopped", "failed"

LIFE_S = 4 * 86_400
"""Of a hook, from its stream's ending on. All tries together take 3.8 days at the most (worker/courier.py)."""

HOLD_S = 20.0
"""An attempt takes 10 s at the most, Redis' disk 3 s before it, and the rest is for Redis and a loop that is late."""

PAGE = 200

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

_COLLECT = """
-- KEYS: meta, hook. collect(life (ms), field, value, …) → its state; 'gone': erased; 'running': it has not ended
local m = redis.call('HMGET', KEYS[1], 'state', 'erased')
if m[2] then
  return 'gone'
end
if m[1] and m[1] ~= 'done' and m[1] ~= 'error' and m[1] ~= 'cancelled' then
  return 'running'
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('HSET', KEYS[2], 'state', 'pending', 'attempts', '0', unpack(ARGV, 2))
  redis.call('PEXPIRE', KEYS[2], ARGV[1])
end
return redis.call('HGET', KEYS[2], 'state')
"""

_BEGIN = (
    _NOW
    + """
-- KEYS: meta, hook. begin(hold (ms)) → 0: there is nothing (more) to deliver; 1, when to look again (ms): not now;
--   2, until when it is ours (ms), attempts, url, body, tenant
if redis.call('HGET', KEYS[1], 'erased') then
  redis.call('DEL', KEYS[2])
  return { 0 }
end
local h = redis.call('HMGET', KEYS[2], 'state', 'next_at', 'held_until', 'url', 'body', 'tenant')
if h[1] ~= 'pending' then
  return { 0 }
end
local from = math.max(tonumber(h[2] or 0), tonumber(h[3] or 0))
if from > now then
  return { 1, from }
end
local ours = string.format('%.0f', now + ARGV[1])
redis.call('HSET', KEYS[2], 'held_until', ours)
return { 2, tonumber(ours), redis.call('HINCRBY', KEYS[2], 'attempts', 1), h[4], h[5], h[6] }
"""
)

_GIVE_BACK = """
-- KEYS: hook. give_back(attempt)
local h = redis.call('HMGET', KEYS[1], 'state', 'attempts')
if h[1] == 'pending' and h[2] == ARGV[1] then
  redis.call('HINCRBY', KEYS[1], 'attempts', -1)
end
"""

_SETTLE = """
-- KEYS: hook. settle(attempt, state, status or '', next try (ms) or '') → 1; 0: it is gone, or another's by now
local h = redis.call('HMGET', KEYS[1], 'state', 'attempts')
if h[1] ~= 'pending' or (ARGV[2] ~= 'delivered' and h[2] ~= ARGV[1]) then
  return 0
end
redis.call('HDEL', KEYS[1], 'held_until', 'next_at', 'last_status')
redis.call('HSET', KEYS[1], 'state', ARGV[2])
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'last_status', ARGV[3])
end
if ARGV[2] == 'pending' then
  redis.call('HSET', KEYS[1], 'next_at', ARGV[4])
else
  redis.call('HDEL', KEYS[1], 'url', 'body', 'user', 'session')
end
return 1
"""


class Attempt(NamedTuple):
    """One that this worker has begun. `number`: 1 is the first. `held_until`: ms by Redis' clock."""

    sid: str
    number: int
    held_until: int
    url: str
    body: bytes
    tenant: str


class Due(NamedTuple):
    """One whose time has come. `url`: '' if there is none any more."""

    sid: str
    url: str
    tenant: str


class Hook(NamedTuple):
    """What became of a stream's webhook. Times in ms."""

    state: str
    attempts: int = 0
    last_status: int | None = None
    next_at: int | None = None


def body_of(sid: str, meta: Meta) -> bytes:
    """What is sent, JSON: {"type": "stream.<state>", "timestamp", "data": {…}}, as Standard Webhooks has it.

    Thin: no text, for which there is `GET /v1/streams/{id}/text`.
    """
    ending = meta.ending if isinstance(meta.ending, Mapping) else {}
    data = {
        "id": sid,
        "agent": meta.agent,
        "session_id": meta.session,
        "user_id": meta.user,
        "state": meta.state,
        "last_event_id": meta.tail,
        "stop_reason": ending.get("stop_reason"),
        "code": ending.get("code") if meta.state == ERROR else None,
        "usage": ending.get("usage"),
        "cost_usd": cost if type(cost := ending.get("cost_usd")) in (int, float) else None,
        "metadata": orjson.Fragment(meta.fields.get("metadata", "{}")),
    }
    at = datetime.fromtimestamp((meta.finished or 0) / 1000, UTC).isoformat(timespec="milliseconds")
    return orjson.dumps({"type": f"stream.{meta.state}", "timestamp": at.replace("+00:00", "Z"), "data": data})


class Hooks:
    """Any method may raise RedisUnavailable."""

    def __init__(self, redis: Redis, keys: Keys, *, hold_s: float = HOLD_S, life_s: float = LIFE_S) -> None:
        self.redis = redis
        self._keys = keys
        self._hold_ms = round(hold_s * 1000)
        self._life_ms = round(life_s * 1000)
        self._collect = redis.register_script(_COLLECT)
        self._begin = redis.register_script(_BEGIN)
        self._give_back = redis.register_script(_GIVE_BACK)
        self._settle = redis.register_script(_SETTLE)

    async def collect(self, sid: str, meta: Meta, now_ms: int) -> bool:
        """A stream that has ended, and names a webhook. `meta`: all of it. False: it has not ended after all."""
        fields: dict[str, str | bytes] = {"url": meta.webhook or "", "body": body_of(sid, meta), "tenant": meta.tenant}
        fields |= {"user": meta.user or "", "session": meta.session or ""}
        args: list[str | bytes | int] = [self._life_ms, *(part for field in fields.items() for part in field)]
        state = (await self._collect(keys=self._both(sid), args=args)).decode()
        if state == PENDING:
            await self.redis.zadd(self._keys.webhooks, {sid: now_ms}, nx=True)
        return bool(state != "running")

    async def due(self, now_ms: int, start: int, count: int = PAGE) -> list[Due]:
        """Those whose time has come, which has come first first."""
        found = await self.redis.zrangebyscore(self._keys.webhooks, "-inf", now_ms, start=start, num=count)
        if not found:
            return []
        async with self.redis.pipeline(transaction=False) as pipe:
            for sid in found:
                pipe.hmget(self._keys.stream(sid.decode()).hook, ["url", "tenant"])
            texts = await pipe.execute()
        return [
            Due(sid.decode(), (url or b"").decode(), (tenant or b"").decode())
            for sid, (url, tenant) in zip(found, texts, strict=True)
        ]

    async def waiting(self) -> int:
        """How many are pending."""
        return int(await self.redis.zcard(self._keys.webhooks))

    async def begin(self, sid: str) -> Attempt | None:
        """The next attempt, if its time has come and nobody else is at it. Its entry in the index is to be moved
        (`hold`), so that nobody looks at it meanwhile."""
        found, *rest = await self._begin(keys=self._both(sid), args=[self._hold_ms])
        if found == 0:
            await self.redis.zrem(self._keys.webhooks, sid)
            return None
        if found == 1:
            await self._move(sid, rest[0])
            return None
        held_until, number, url, body, tenant = rest
        return Attempt(sid, number, held_until, url.decode(), body, tenant.decode())

    def held(self, attempts: Sequence[Attempt]) -> list[Any]:
        """The command that moves the entries of attempts that have begun."""
        pairs = [part for attempt in attempts for part in (attempt.held_until, attempt.sid)]
        return ["ZADD", self._keys.webhooks, "XX", *pairs]

    async def give_back(self, attempt: Attempt) -> None:
        """Nothing was sent, and it is none: the next one, after its hold, has its number."""
        await self._give_back(keys=[self._keys.stream(attempt.sid).hook], args=[attempt.number])

    async def settle(self, attempt: Attempt, state: str, status: int | None, next_ms: int | None = None) -> bool:
        """What became of it. `next_ms`: of one that stays pending. False: it was erased, or is another's by now."""
        args: list[str | int] = [
            attempt.number,
            state,
            "" if status is None else status,
            "" if next_ms is None else next_ms,
        ]
        is_ours = bool(await self._settle(keys=[self._keys.stream(attempt.sid).hook], args=args))
        if state == PENDING and next_ms is not None:
            if is_ours:
                await self._move(attempt.sid, next_ms)
        else:
            await self.redis.zrem(self._keys.webhooks, attempt.sid)
        return is_ours

    async def left_ms(self, sid: str) -> int:
        """How long its hash still lives."""
        return int(await self.redis.pttl(self._keys.stream(sid).hook))

    async def forget(self, *sids: str) -> None:
        """Erased."""
        if sids:
            await self.redis.delete(*(self._keys.stream(sid).hook for sid in sids))
            await self.redis.zrem(self._keys.webhooks, *sids)

    async def read(self, sid: str) -> Hook | None:
        """None: there is none yet, or none any more."""
        fields = ["state", "attempts", "last_status", "next_at"]
        found = await self.redis.hmget(self._keys.stream(sid).hook, fields)  # type: ignore[misc]  # sync or async
        state, attempts, status, next_at = found
        if state is None:
            return None
        return Hook(state.decode(), int(attempts), *(None if text is None else int(text) for text in (status, next_at)))

    async def pending_of(self, tenant: str, user: str | None, session: str | None) -> AsyncIterator[list[str]]:
        """Streams of this user, or of this session, whose webhook is pending; in pages."""
        pending = [sid.decode() for sid in await self.redis.zrange(self._keys.webhooks, 0, -1)]
        for start in range(0, len(pending), PAGE):
            found = pending[start : start + PAGE]
            async with self.redis.pipeline(transaction=False) as pipe:
                for sid in found:
                    pipe.hmget(self._keys.stream(sid).hook, ["tenant", "user", "session"])
                whose = [[(text or b"").decode() for text in texts] for texts in await pipe.execute()]
            yield [
                sid
                for sid, (its_tenant, its_user, its_session) in zip(found, whose, strict=True)
                if its_tenant == tenant and (its_user == user if user is not None else its_session == session)
            ]

    def _both(self, sid: str) -> list[str]:
        keys = self._keys.stream(sid)
        return [keys.meta, keys.hook]

    async def _move(self, sid: str, at_ms: int) -> None:
        await self.redis.zadd(self._keys.webhooks, {sid: at_ms}, xx=True)  # not one that was erased
