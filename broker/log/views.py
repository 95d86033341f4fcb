"""View records in Redis, and their bound: a caller that reconnects without end fills neither Redis nor the archive.

A stream's records are a hash (le:{sid}:views): a view's id → its record, JSON. Once a stream has `limit` of them,
further connections are summed up: in one field for each caller (who, address) and, beyond twice the limit, in one for
all others. A sum is seven numbers, - for none, and its JSON: when it was begun, how many connections it counts, the
first opened, the last closed, the lowest first_id, the greatest last_id, the lowest cursor requested.

The archive cannot change what it has sealed, so the archiver takes a sum when it is SUM_LIFE_MS old, and a new one
begins. It bounds what the archive has of a stream in the same way, so a stream gains at most one record a day there
once it has twice the limit.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

VIEW_RECORDS = 1000
"""Of one stream: some 940 bytes each. A stream that many follow has as many viewers as this at most times."""

SUM_LIFE_MS = 86_400_000
"""So long a sum grows before it is archived: a record for each caller and day, beyond the limit."""

OTHERS = "+others"
MANY = "many"
"""How the connections of a sum ended: each in its own way."""

_FOLD = """
local views = KEYS[1]
local function pick(choose, one, other)
  if one == '-' then return other end
  if other == '-' then return one end
  return string.format('%.0f', choose(tonumber(one), tonumber(other)))
end
local function fold(limit, field, identity, others, since, count, opened, closed, first, last, requested)
  local held = redis.call('HGET', views, field)
  if not held and redis.call('HLEN', views) >= 2 * tonumber(limit) then
    field, identity = '+others', others
    held = redis.call('HGET', views, field)
  end
  if held then
    local s, n, o, c, f, l, r, i = string.match(held, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (.*)$')
    since, identity, count = s, i, string.format('%.0f', tonumber(count) + tonumber(n))
    opened, closed, requested = pick(math.min, opened, o), pick(math.max, closed, c), pick(math.min, requested, r)
    first, last = pick(math.min, first, f), pick(math.max, last, l)
  end
  redis.call('HSET', views, field, table.concat(
    { since, count, opened, closed, first, last, requested, identity }, ' '))
end
"""


class Script(NamedTuple):
    text: str
    sha: str


def _script(text: str) -> Script:
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


ADD = _script("""
-- add(limit, view's id, record) → 1, or 0 if there is no room for another record
if redis.call('HLEN', KEYS[1]) < tonumber(ARGV[1]) or redis.call('HEXISTS', KEYS[1], ARGV[2]) == 1 then
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
  return 1
end
return 0
""")

SUM_UP = _script(
    _FOLD
    + """
-- sum_up(field that is summed up or '', its value, summed's arguments) → 1, or 0 if the field has changed meanwhile
if ARGV[1] ~= '' then
  if redis.call('HGET', views, ARGV[1]) ~= ARGV[2] then return 0 end
  redis.call('HDEL', views, ARGV[1])
end
fold(unpack(ARGV, 3))
return 1
"""
)

SETTLE = _script("""
-- settle(field of a sum, its value, an id, record) → 1 if it is a record like any other now; 0 if it has changed
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[3], ARGV[4])
return 1
""")


class StoredView(NamedTuple):
    """A field of the hash. `record`: with its id. `since_ms`: of a sum, when it was begun; None for one view's."""

    field: str
    value: str
    record: dict[str, Any]
    since_ms: int | None = None


def stored(field: bytes, value: bytes) -> StoredView:
    name, text = field.decode(), value.decode()
    if not name.startswith("+"):
        return StoredView(name, text, {"id": name, **orjson.loads(text)})
    *numbers, identity = text.split(" ", 7)
    since, count, opened, closed, first, last, requested = (None if n == "-" else int(n) for n in numbers)
    unknown: dict[str, Any] = dict.fromkeys(("forwarded_for", "user_agent", "format", "server"))
    span = {"requested": requested, "first_id": first, "last_id": last, "opened": opened, "closed": closed}
    return StoredView(
        name, text, {**orjson.loads(identity), **unknown, **span, "how": MANY, "count": count}, since or 0
    )


def summed(record: Mapping[str, Any], limit: int, now_ms: int, *, count: int, as_others: bool = False) -> Sequence[str]:
    """The arguments with which a record is summed up. `count`: 0 if it is counted already."""
    who, address = record.get("who"), record.get("address")
    identity = {"id": secrets.token_hex(16), "tenant": record.get("tenant"), "who": who, "address": address}
    own, others = (orjson.dumps(one).decode() for one in (identity, {**identity, "who": "others", "address": None}))
    field = OTHERS if as_others else "+" + hashlib.sha256(orjson.dumps([who, address])).hexdigest()[:32]
    numbers = [record.get(name) for name in ("opened", "closed", "first_id", "last_id", "requested")]
    known = ["-" if number is None else str(number) for number in numbers]
    return (str(limit), field, others if as_others else own, others, str(now_ms), str(count), *known)
