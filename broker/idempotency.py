"""Idempotency-Key: the same request again is the same stream.

States of a key: free → reserved (a minute) → created (24 h). It is reserved for a new stream id before the stream
is made; whoever comes second makes the same id (`create` is idempotent), so a first caller that dies between the
two steps leaves nothing behind that a second one does not complete. Only `created` says that the id was once used:
a stream that is then missing has expired, and is never made again under its id (G1).
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple

import orjson
from redis.asyncio import Redis

from broker.errors import InvalidRequest, from_redis
from broker.keys import Keys
from broker.log import new_sid

KEPT_S = 86_400
RESERVED_S = 60

_FORM = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)


class Reservation(NamedTuple):
    """The stream id that belongs to a key. `first`: this caller has reserved it; `created`: the stream was made."""

    key: str
    sid: str
    digest: str
    first: bool
    created: bool


async def reserve(redis: Redis, keys: Keys, tenant: str, key: str, request: Any) -> Reservation:
    """Reserve a stream id for this key. Raises InvalidRequest if the key was used for another request."""
    if not _FORM.fullmatch(key):
        raise InvalidRequest("An Idempotency-Key is 1 to 255 visible ASCII characters.")
    name = keys.idempotency(tenant, key)
    digest = hashlib.sha256(orjson.dumps(request, option=orjson.OPT_SORT_KEYS)).hexdigest()
    sid = new_sid()
    with from_redis():
        found = await redis.set(name, f"{sid} {digest} reserved", nx=True, ex=RESERVED_S, get=True)
    if found is None:
        return Reservation(name, sid, digest, first=True, created=False)
    known_sid, known_digest, state = found.decode().split(" ")
    if known_digest != digest:
        raise InvalidRequest("This Idempotency-Key was used for another request. Use a new key for a new request.")
    return Reservation(name, known_sid, digest, first=False, created=state == "created")


async def reserved_ms(redis: Redis, reservation: Reservation) -> int:
    """When this key was reserved, by Redis' clock: what is left of its minute says so."""
    with from_redis():
        async with redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.pttl(reservation.key)
            (seconds, microseconds), left_ms = await pipe.execute()
    is_reserved = 0 < left_ms <= RESERVED_S * 1000  # else it is gone by now: it was reserved a minute ago
    return int(seconds) * 1000 + int(microseconds) // 1000 - RESERVED_S * 1000 + (left_ms if is_reserved else 0)


async def mark_created(redis: Redis, reservation: Reservation) -> None:
    with from_redis():
        await redis.set(reservation.key, f"{reservation.sid} {reservation.digest} created", ex=KEPT_S)
