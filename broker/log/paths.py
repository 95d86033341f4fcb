"""Paths: which shared stream is found where. One hash a path:

    sid           the stream that it names
    from          the path of the stream of which that is a fork; absent: of none
    fork:<sid>    for each fork of the stream → the fork's path
    gone          '1': the stream was deleted, or its life is over, and forks of it live

A path is the last thing that a new stream gets, and the first that a deleted one loses. So a stream that no path names
is nobody's: a crash left it, or somebody was faster. A sweeper erases it (worker/sweeper.py). A path that names a
stream that is gone names none; whoever comes next puts another there.

A fork has copies of all it inherits. Its source's content need not wait for it; what waits is the path, which stays
blocked (protocol, section 4.2). It is free once no fork is found under the path that it had: whoever deletes the last
one frees it, and if that was cut short, whoever asks for the path next.

Each step is one script on one path's key, and may be repeated. All may raise RedisUnavailable.
"""

from __future__ import annotations

from typing import NamedTuple

from redis.asyncio import Redis

from broker.log.keys import Keys

_FORKS = """
local function has_forks()
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(field, 1, 5) == 'fork:' then
      return true
    end
  end
  return false
end
"""

_PUT = """
-- put(sid, the one it may name now or '', path of the source or '') → 1, or 0: it names another by now
local found = redis.call('HMGET', KEYS[1], 'sid', 'gone')
if found[1] == ARGV[1] then
  return 1
end
if found[2] or (found[1] or '') ~= ARGV[2] then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'sid', ARGV[1])
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'from', ARGV[3])
end
return 1
"""

_REMOVE = (
    _FORKS
    + """
-- remove(sid) → 2: it is blocked; 1: it is free, and the path of its source or ''; 0: it names another
local found = redis.call('HMGET', KEYS[1], 'sid', 'from')
if found[1] ~= ARGV[1] then
  return { 0, '' }
end
if has_forks() then
  redis.call('HSET', KEYS[1], 'gone', '1')
  redis.call('PERSIST', KEYS[1])
  return { 2, '' }
end
redis.call('DEL', KEYS[1])
return { 1, found[2] or '' }
"""
)

_FORKED = """
-- forked(sid, the fork's sid, its path) → 1, or 0: it names another by now, or is blocked
local found = redis.call('HMGET', KEYS[1], 'sid', 'gone')
if found[1] ~= ARGV[1] or found[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'fork:' .. ARGV[2], ARGV[3])
return 1
"""

_FORK_GONE = (
    _FORKS
    + """
-- fork gone(the fork's sid) → 1: with the last fork the path is free; the stream that it named, the path of its source
redis.call('HDEL', KEYS[1], 'fork:' .. ARGV[1])
local found = redis.call('HMGET', KEYS[1], 'sid', 'from', 'gone')
if not found[3] or has_forks() then
  return { 0, '', '' }
end
redis.call('DEL', KEYS[1])
return { 1, found[1], found[2] or '' }
"""
)


class Place(NamedTuple):
    """What a path says. `is_gone`: it names no stream, and is blocked. `forks`: sid → path."""

    sid: str
    is_gone: bool
    forks: dict[str, str]


class Paths:
    """The paths of all tenants."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._put = redis.register_script(_PUT)
        self._remove = redis.register_script(_REMOVE)
        self._forked = redis.register_script(_FORKED)
        self._fork_gone = redis.register_script(_FORK_GONE)

    async def find(self, tenant: str, path: str) -> Place | None:
        """What is there. A path whose last fork has gone without saying so is freed first."""
        place = await self._read(tenant, path)
        if place is None or not place.is_gone:
            return place
        for fork, its_path in place.forks.items():
            there = await self._read(tenant, its_path)
            if there is None or there.sid != fork:
                await self.fork_gone(tenant, path, fork)
        return await self._read(tenant, path)

    async def put(self, tenant: str, path: str, sid: str, instead_of: str, source: str = "") -> bool:
        """Have it name this stream. False: somebody was faster. `instead_of`: what it named before; '': nothing."""
        return bool(await self._put(keys=[self._keys.path(tenant, path)], args=[sid, instead_of, source]))

    async def remove(self, tenant: str, path: str, sid: str) -> None:
        """This stream is no longer found there. If forks of it live, the path is blocked."""
        freed, source = await self._remove(keys=[self._keys.path(tenant, path)], args=[sid])
        if freed == 1 and source:
            await self.fork_gone(tenant, source.decode(), sid)

    async def forked(self, tenant: str, path: str, sid: str, fork: str, its_path: str) -> bool:
        """This stream is about to have a fork. False: it is no longer found there."""
        return bool(await self._forked(keys=[self._keys.path(tenant, path)], args=[sid, fork, its_path]))

    async def fork_gone(self, tenant: str, path: str, fork: str) -> None:
        """It never came to be, or is gone. With the last fork a blocked path is free; then its own source is told."""
        while True:
            freed, sid, source = await self._fork_gone(keys=[self._keys.path(tenant, path)], args=[fork])
            if not freed or not source:
                return
            path, fork = source.decode(), sid.decode()

    async def names(self, tenant: str, path: str, sid: str) -> bool:
        """Whether this stream is found there."""
        found, gone = await self._redis.hmget(self._keys.path(tenant, path), ["sid", "gone"])  # type: ignore[misc]
        return found == sid.encode() and gone is None

    async def let_expire(self, tenant: str, path: str, life_ms: int) -> None:
        """Its stream has ended, and its keys live for so long."""
        await self._redis.pexpire(self._keys.path(tenant, path), life_ms, nx=True)

    async def _read(self, tenant: str, path: str) -> Place | None:
        found = await self._redis.hgetall(self._keys.path(tenant, path))  # type: ignore[misc]  # of redis-py
        if not found:
            return None
        fields = {name.decode(): text.decode() for name, text in found.items()}
        forks = {name[5:]: path for name, path in fields.items() if name.startswith("fork:")}
        return Place(fields["sid"], "gone" in fields, forks)
