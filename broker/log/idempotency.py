"""Idempotency-Key: a repeated request leads to the same stream.

States of a key: free → reserved → created, 24 h in all. A key is reserved for a new stream id before the stream is
created. A second caller creates the same id (`create` is idempotent), so it completes what a first caller that died
between the two steps left behind. Only `created` says that the id was once used: a stream that is missing then has
expired, and is never created again under its id (G1).

Redis may lose a key together with its stream. The writer that puts the stream back also puts the key back, from the
stream's meta. Until there has been time for that, a missing key does not count as free (service/streams.py).
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple

import orjson
from redis.asyncio import Redis

from broker.errors import InvalidRequest, KeyReused

KEPT_S = 86_400
"""A day, as docs/API.md promises: clients retry for far less."""

_FORM = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)


class Reservation(NamedTuple):
    """The stream id that belongs to a key. `first`: this caller reserved it. `created`: the stream was created."""

    key: str
    sid: str
    digest: str
    first: bool
    created: bool


def require_key(key: str) -> None:
    """Raises InvalidRequest for a text that cannot be an Idempotency-Key."""
    if not _FORM.fullmatch(key):
        raise InvalidRequest("An Idempotency-Key must be 1 to 255 visible ASCII characters.")


def digest_of(request: Any) -> str:
    """Of any JSON value."""
    return hashlib.sha256(orjson.dumps(request, option=orjson.OPT_SORT_KEYS)).hexdigest()


async def reserve(redis: Redis, name: str, sid: str, digest: str) -> Reservation:
    """Reserve a stream id for a key. `name`: the key's name in Redis. `digest`: of the request.

    Raises KeyReused if the key was used for another request.
    """
    found = await redis.set(name, f"{sid} {digest} reserved", nx=True, ex=KEPT_S, get=True)
    if found is None:
        return Reservation(name, sid, digest, first=True, created=False)
    known_sid, known_digest, state = found.decode().split(" ")
    if known_digest != digest:
        raise KeyReused("This Idempotency-Key was used for another request. Use a new key for a new request.")
    return Reservation(name, known_sid, digest, first=False, created=state == "created")


async def reserved_ms(redis: Redis, reservation: Reservation, now_ms: int) -> int:
    """When this key was reserved, or a moment before (ms), from its remaining life. `now_ms`: by Redis' clock."""
    left_ms: int = await redis.pttl(reservation.key)
    return now_ms - KEPT_S * 1000 + max(0, left_ms)


async def mark_created(redis: Redis, key: str, sid: str, digest: str) -> None:
    """The stream now exists: the key is kept for KEPT_S from here on."""
    await redis.set(key, f"{sid} {digest} created", ex=KEPT_S)
