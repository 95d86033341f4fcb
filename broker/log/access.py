"""The access record: who saw which events of a stream, when, and how each connection ended.

A viewer costs two entries, one when it comes and one when it goes; a loop writes them to Redis once a second, many at
a time, so that no viewer waits for it. From there the worker's archiver takes those that have gone into the archive.
A server that dies leaves its viewers' records open, and they are closed for it (`server_lost`); what it had not
written yet, at most a second's, is lost, and the archiver says so. While Redis is away entries wait here; what does not
fit is counted (`lost`).

Times are Redis' (its clock's distance is taken at each write), so that they can be laid beside the events'.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Any

import orjson
from redis.asyncio import Redis

from broker.auth import Grant
from broker.log.keys import Keys

logger = logging.getLogger(__name__)

FLUSH_S = 1.0
FLUSH_BATCH = 500
MAX_WAITING = 50_000
"""Entries that wait while Redis is away: some 50 MB at the most."""

SERVER_LIFE_MS = 30_000
"""A server gives a sign of life with each write. Missed for so long, it looks dead."""

LOST_AFTER_MS = 600_000
"""Missed for so long, its viewers' records are archived as they are: it may only have stood still before."""

TIERS_LIFE_S = 86_400
HEADER_CHARACTERS = 300

SERVER_LOST = "server_lost"

_TIMES = ("opened", "closed")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class View:
    """One viewer's connection, as it goes on."""

    __slots__ = ("at", "details", "first_id", "how", "id", "last_id", "sid")

    def __init__(self, sid: str, details: Mapping[str, Any]) -> None:
        self.id = secrets.token_hex(16)
        self.sid = sid
        self.details = details
        self.at: int = _now_ms()
        self.first_id: int | None = None
        self.last_id: int | None = None
        self.how: str | None = None

    def delivered(self, first: int, last: int) -> None:
        """Handed to the connection. Whether it got there, only the client's next cursor tells."""
        self.first_id = first if self.first_id is None else min(self.first_id, first)
        self.last_id = last if self.last_id is None else max(self.last_id, last)


class AccessRecord:
    """The records of this server process."""

    def __init__(self, redis: Redis, keys: Keys, *, retention_s: float, is_archived: bool) -> None:
        self._redis = redis
        self._keys = keys
        self._life_ms = None if is_archived else round(retention_s * 1000)
        self._server = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._waiting: list[tuple[str, str, dict[str, Any]]] = []
        self._clock_offset_ms = 0
        self.lost = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def opened(self, view: View) -> None:
        self._add(view, {**view.details, "server": self._server, "opened": view.at})

    def closed(self, view: View, how: str) -> None:
        view.how = how
        ended = {"first_id": view.first_id, "last_id": view.last_id, "closed": _now_ms(), "how": how}
        self._add(view, {**view.details, "server": self._server, "opened": view.at, **ended})

    async def run(self) -> None:
        """Write for ever. Ends only by cancellation."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()

    async def close(self) -> None:
        """The last records, and a word of farewell. Raises RedisUnavailable."""
        await self.flush()
        await self._redis.zrem(self._keys.tiers, self._server)

    async def flush(self) -> None:
        """Raises RedisUnavailable; what waits is kept then."""
        await self._measure_clock()
        await self._redis.zadd(self._keys.tiers, {self._server: self._now_ms()})
        await self._redis.expire(self._keys.tiers, TIERS_LIFE_S)
        while batch := self._waiting[:FLUSH_BATCH]:
            await self._write(batch)
            del self._waiting[: len(batch)]

    async def _write(self, batch: list[tuple[str, str, dict[str, Any]]]) -> None:
        now_ms = self._now_ms()
        async with self._redis.pipeline(transaction=False) as pipe:
            for sid, view, record in batch:
                key = self._keys.views_of(sid)
                pipe.hset(key, view, orjson.dumps(self._in_redis_time(record)).decode())
                if self._life_ms is not None:
                    pipe.pexpire(key, self._life_ms)
            if self._life_ms is None:  # after the records: whoever takes one out of the index looks for them first
                pipe.zadd(self._keys.views, {sid: now_ms for sid, _, _ in batch})
            await pipe.execute()

    def _add(self, view: View, record: dict[str, Any]) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self.lost += 1
            return
        self._waiting.append((view.sid, view.id, record))

    async def _measure_clock(self) -> None:
        before = time.time()
        seconds, microseconds = await self._redis.time()
        middle = (before + time.time()) / 2
        self._clock_offset_ms = round((seconds + microseconds / 1e6 - middle) * 1000)

    def _now_ms(self) -> int:
        return _now_ms() + self._clock_offset_ms

    def _in_redis_time(self, record: dict[str, Any]) -> dict[str, Any]:
        times: dict[str, Any] = {name: record[name] + self._clock_offset_ms for name in _TIMES if name in record}
        return {**record, **times}


def request_details(
    grant: Grant, address: str | None, headers: Mapping[str, str], form: str, cursor: int
) -> dict[str, Any]:
    """What a viewer's request says of it. `forwarded_for` is a header, and so the client's word or a proxy's."""
    return {
        "tenant": grant.tenant,
        "who": grant.who,
        "address": address,
        "forwarded_for": _clean(headers.get("x-forwarded-for")),
        "user_agent": _clean(headers.get("user-agent")),
        "format": form,
        "requested": cursor,
    }


async def read_views(
    redis: Redis, keys: Keys, sid: str, now_ms: int, *, lost_after_ms: int = SERVER_LIFE_MS
) -> list[dict[str, Any]]:
    """The records that Redis still has, each with its `id`; those of a server that is silent for so long are closed."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hgetall(keys.views_of(sid))
        pipe.zrangebyscore(keys.tiers, now_ms - lost_after_ms, "+inf")
        records, servers = await pipe.execute()
    alive = {server.decode() for server in servers}
    return [
        {"id": view.decode(), **_closed_if_lost(orjson.loads(record), alive, now_ms, lost_after_ms)}
        for view, record in records.items()
    ]


def _closed_if_lost(record: dict[str, Any], alive: set[str], now_ms: int, lost_after_ms: int) -> dict[str, Any]:
    if "how" in record or record["server"] in alive or record["opened"] > now_ms - lost_after_ms:
        return record
    return {**record, "first_id": None, "last_id": None, "closed": now_ms, "how": SERVER_LOST}


def _clean(text: str | None) -> str | None:
    return None if text is None else _CONTROLS.sub("", text)[:HEADER_CHARACTERS]


def _now_ms() -> int:
    return round(time.time() * 1000)
