"""Places: how much of a tenant runs at once, and its streams that wait until they may.

A stream of a tenant takes a *place* before a worker claims it, keeps it by the heartbeat, and gives it back at its
ending. A place lasts PLACE_S: those of a worker that died come back by themselves. A stream that finds none is
*parked*: it is in no queue any more, costs nothing, and is queued again when its turn comes. See
docs/ARCHITECTURE.md, "Shares".

Two zsets hold a tenant's places: of what takes a slot of a worker, and of what takes none (*aside*: external streams,
and agents that wait for a person). All of them count against `most`, those with a slot also against `slots`.

A tenant's plain streams have one list, those of each app another: an app without a worker must not hold the others up.
In a list who came first is first, to the microsecond: a stream has its turn once fewer than the free places are before
it. It stays in the list while it is queued again, so that it loses its turn to nobody.

Every step prunes what has expired, and may be repeated. All may raise RedisUnavailable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from redis.asyncio import Redis

from broker.log.keys import Keys
from broker.log.steps import EXTERNAL_LEASE_S

PLACE_S = 10.0
"""Without a sign of life. A lost stream is taken over within 10 s (G4), and finds its place still there."""

EXTERNAL_PLACE_S = EXTERNAL_LEASE_S + 10
"""Of an external stream. A sweeper looks at it when its lease would have ended, and renews its place then."""

KEPT_S = 7 * 86_400
"""A list that nobody looks at: the sweepers look at each of its streams long before."""

WOKEN_AT_ONCE = 100

SHARE = 0.8
"""Of all workers' slots, the most that one tenant may hold: another's first text must not wait for an answer to end."""


class Places(NamedTuple):
    """How many a tenant may have at once: in all, and with a slot. None: no limit."""

    most: int | None = None
    slots: int | None = None


class Line(NamedTuple):
    """Where a tenant's streams are parked. `app`: whose agents they are; None: plain ones."""

    tenant: str
    app: str | None = None

    def __str__(self) -> str:
        return self.tenant if self.app is None else f"{self.tenant}:{self.app}"

    @classmethod
    def read(cls, text: str) -> Line:
        tenant, _, app = text.partition(":")
        return cls(tenant, app or None)


_FREE = """
local running, aside, parked, lines = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
redis.call('ZREMRANGEBYSCORE', running, '-inf', now)
redis.call('ZREMRANGEBYSCORE', aside, '-inf', now)
local function free(most, slots)
  local with_slot, left = redis.call('ZCARD', running), math.huge
  if most ~= '' then
    left = most - with_slot - redis.call('ZCARD', aside)
  end
  if slots ~= '' then
    left = math.min(left, slots - with_slot)
  end
  return left
end
local function hold(places, sid, life)
  redis.call('ZADD', places, string.format('%.0f', now + life), sid)
  redis.call('EXPIRE', places, LIFE_S)
end
local function leave(line, sid)
  if redis.call('ZREM', parked, sid) == 1 and redis.call('EXISTS', parked) == 0 then
    redis.call('SREM', lines, line)
  end
end
""".replace("LIFE_S", str(round(EXTERNAL_PLACE_S)))

_TAKE = (
    _FREE
    + """
-- take(line, sid, life (ms), most, slots, '1' if it is not to be refused)
--   → 1; 0: parked, none is free; 2: parked, and others have their turn before it
local line, sid, life, most, slots, is_owed = unpack(ARGV)
if is_owed ~= '1' and not redis.call('ZSCORE', running, sid) and not redis.call('ZSCORE', aside, sid) then
  local left, rank = free(most, slots), redis.call('ZRANK', parked, sid)
  if (rank or redis.call('ZCARD', parked)) >= left then
    if not rank then
      redis.call('SADD', lines, line)
      redis.call('ZADD', parked, string.format('%.0f', now_us), sid)
    end
    redis.call('EXPIRE', lines, KEPT_S)
    redis.call('EXPIRE', parked, KEPT_S)
    return left > 0 and 2 or 0
  end
end
redis.call('ZREM', aside, sid)
hold(running, sid, life)
leave(line, sid)
return 1
""".replace("KEPT_S", str(KEPT_S))
)

_TAKE_ASIDE = (
    _FREE
    + """
-- take aside(sid, life (ms), most) → 1, or 0: none is free
if not redis.call('ZSCORE', aside, ARGV[1]) and free(ARGV[3], '') <= 0 then
  return 0
end
hold(aside, ARGV[1], ARGV[2])
return 1
"""
)

_NEXT = (
    _FREE
    + """
-- next(line, most, slots, at once) → the streams whose turn it is
if redis.call('EXISTS', parked) == 0 then
  redis.call('SREM', lines, ARGV[1])
  return {}
end
local left = math.min(free(ARGV[2], ARGV[3]), ARGV[4])
if left <= 0 then
  return {}
end
redis.call('SADD', lines, ARGV[1])
return redis.call('ZRANGE', parked, 0, left - 1)
"""
)

_KEEP = (
    _FREE
    + """
-- keep(life (ms), how many have a slot, sid, …): these are held, counted or not
for at = 3, #ARGV do
  local has_slot = at - 2 <= tonumber(ARGV[2])
  redis.call('ZREM', has_slot and aside or running, ARGV[at])
  hold(has_slot and running or aside, ARGV[at], ARGV[1])
end
return 1
"""
)

_LET_GO = (
    _FREE
    + """
-- let go(line, sid, …): of their places, or of their turn
for at = 2, #ARGV do
  redis.call('ZREM', running, ARGV[at])
  redis.call('ZREM', aside, ARGV[at])
  leave(ARGV[1], ARGV[at])
end
return 1
"""
)


class Running:
    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._take = redis.register_script(_TAKE)
        self._take_aside = redis.register_script(_TAKE_ASIDE)
        self._next = redis.register_script(_NEXT)
        self._keep = redis.register_script(_KEEP)
        self._let_go = redis.register_script(_LET_GO)

    # -- for servers ---------------------------------------------------------------------------------------

    async def take(self, tenant: str, sid: str, most: int) -> bool:
        """A place for an external stream, which takes no slot. False: its tenant has as many as it may.

        It lasts EXTERNAL_PLACE_S; from then on the sweepers renew it as long as the stream's own lease is renewed.
        """
        args: list[str | int] = [sid, round(EXTERNAL_PLACE_S * 1000), most]
        return bool(await self._take_aside(keys=self._names(Line(tenant)), args=args))

    async def let_go(self, tenant: str, *sids: str, app: str | None = None) -> None:
        """These have ended: their places are free, and those that were parked are not any more."""
        line = Line(tenant, app)
        await self._let_go(keys=self._names(line), args=[str(line), *sids])

    # -- for workers ---------------------------------------------------------------------------------------

    async def take_slot(self, line: Line, sid: str, places: Places, *, is_owed: bool = False) -> bool | None:
        """A place for a stream that is about to be claimed. False: it is parked, since none is free. None: it is
        parked, and others have their turn before it; they may have to be queued.

        `is_owed`: it has begun, and viewers wait for it. It is counted, and not refused.
        """
        args: list[str | int] = [str(line), sid, round(PLACE_S * 1000), *_or_empty(places), int(is_owed)]
        answer = await self._take(keys=self._names(line), args=args)
        return None if answer == 2 else bool(answer)

    async def next(self, line: Line, places: Places) -> list[str]:
        """The parked streams whose turn it is. Whoever asks queues them: they may be queued already."""
        args: list[str | int] = [str(line), *_or_empty(places), WOKEN_AT_ONCE]
        return [sid.decode() for sid in await self._next(keys=self._names(line), args=args)]

    async def keep(self, tenant: str, with_slot: Iterable[str], aside: Iterable[str] = ()) -> None:
        """Renew these places. One that is gone is put back: Redis has lost it, or was away for long."""
        first, then = list(with_slot), list(aside)
        args: list[str | int] = [round(PLACE_S * 1000), len(first), *first, *then]
        await self._keep(keys=self._names(Line(tenant)), args=args)

    async def keep_external(self, tenant: str, sid: str, until_ms: int) -> None:
        """Its lease runs until then; so does its place, if it has one, and for as long as a look may come late."""
        key = self._keys.aside(tenant)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(key, {sid: until_ms + round((EXTERNAL_PLACE_S - EXTERNAL_LEASE_S) * 1000)}, xx=True)
            pipe.expire(key, round(EXTERNAL_PLACE_S))
            await pipe.execute()

    async def parked(self, line: Line, sids: Sequence[str]) -> set[str]:
        """Which of these wait for a place. Their line is among `lines` then, whatever Redis has lost."""
        since = await self._redis.zmscore(self._keys.parked(str(line)), list(sids)) if sids else []
        found = {sid for sid, at in zip(sids, since, strict=True) if at is not None}
        if found:
            await self._redis.sadd(self._keys.lines, str(line))  # type: ignore[misc]  # of redis-py: it may be sync
            await self._redis.expire(self._keys.lines, KEPT_S)
        return found

    async def lines(self) -> list[Line]:
        """Those in which streams are parked; perhaps some in which none is any more."""
        return [Line.read(line.decode()) for line in await self._redis.smembers(self._keys.lines)]  # type: ignore[misc]

    async def slots_of_all(self, worker: str, slots: int) -> int:
        """Say that this worker has so many slots. To be repeated within PLACE_S. → those of all workers."""
        now_s, _ = await self._redis.time()
        key = self._keys.slots
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(key, {f"{slots} {worker}": now_s + PLACE_S})
            pipe.zremrangebyscore(key, "-inf", now_s)
            pipe.zrange(key, 0, -1)
            pipe.expire(key, KEPT_S)
            _, _, workers, _ = await pipe.execute()
        return sum(int(member.split(b" ")[0]) for member in workers)

    async def leave(self, worker: str, slots: int) -> None:
        """This worker stops."""
        await self._redis.zrem(self._keys.slots, f"{slots} {worker}")

    def _names(self, line: Line) -> list[str]:
        keys = self._keys
        return [keys.running(line.tenant), keys.aside(line.tenant), keys.parked(str(line)), keys.lines]


def share_of(slots: int) -> int:
    """How many of these slots one tenant may hold."""
    return max(1, int(slots * SHARE))


def _or_empty(places: Places) -> list[int | str]:
    return ["" if number is None else number for number in places]
