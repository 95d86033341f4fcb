"""The access record: who saw which events of a stream, when, and how each connection ended.

A viewer costs two entries: one when its connection opens and one when it closes. A caller that reads a stream at once
(its text, an export, its record, a listing) costs one, but once an hour at most. A loop writes them to Redis once a
second, many at a time, so that nobody waits for it, and no more than a stream may have (views.py). From there the
worker's archiver moves the records of closed connections to the archive. A server that dies leaves its viewers' records
open, and they are closed for it (`server_lost`). Entries that it had not written yet, at most a second's worth, are
lost, and the archiver logs that. While Redis is away entries wait here; those that do not fit are counted (`lost`).

Each write also announces, a stream, who came and who went since the last one (presence.py). Connections that have no
record of their own, because their stream has too many, are counted a stream (le:{sid}:crowd), so that presence has
their number.

Times are Redis' times, so that they compare with the events' times. The offset of its clock is measured at each write.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

import orjson
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from broker.log.keys import Keys
from broker.log.presence import Announcement, Crowd, Open
from broker.log.views import ADD, SUM_UP, VIEW_RECORDS, StoredView, stored, summed

logger = logging.getLogger(__name__)

FLUSH_S = 1.0
"""A killed server loses at most this much. Viewers come and go in bursts, and one pipeline carries a burst."""

FLUSH_BATCH = 500
"""Entries in one pipeline (500 take 16 ms). A full backlog in one would hold up viewers and Redis for a second."""

CLOCK_MEASUREMENTS = 8
"""Of so many the quickest counts, as in NTP's clock filter (RFC 5905, section 10): what an answer took bounds its
error, and a busy loop may read one tens of milliseconds late. A view would then begin after the end of its stream.
"""

DRIFT_MS = 1.0
"""More than two clocks drift apart meanwhile."""

MAX_WAITING = 50_000
"""Entries that wait while Redis is away: some 50 MB at most."""

SERVER_LIFE_MS = 30_000
"""A server gives a sign of life each second, and with each write. After so long without one the audit calls it dead;
presence sees its viewers no more after a sixth of that (presence.py)."""

LOST_AFTER_MS = 600_000
"""After so long without a sign of life its viewers' records are archived: until then it may only have stood still."""

TIERS_LIFE_S = 86_400
"""Far longer than LOST_AFTER_MS. The list expires after it if all its servers have ended."""

CROWD_LIFE_S, CROWD_RENEWED_S = 86_400, 3600
"""A crowd's number is written when it changes, and each hour besides. That of a server that died is gone in a day."""

READ_AGAIN_S = 3600
"""A caller that reads a stream again and again in the same form leaves one record in each hour."""

MAX_REMEMBERED = 50_000
"""Readings that are remembered for it: some 6 MB. Beyond them the oldest is forgotten, and may be recorded again."""

FINISHED, SERVER_LOST = "finished", "server_lost"

_TIMES = ("opened", "closed")


class View:
    """One viewer's connection while it is open. `details`: see request_details. `at`: when it opened (ms).

    `is_summed`: the stream has so many records that this one is counted in a sum; `is_in_crowd`: and among those that
    are open. `is_announced`: somebody may have heard that it came, and must hear that it went.
    """

    __slots__ = (
        *("at", "details", "first_id", "how", "id", "last_id", "sid"),
        *("is_announced", "is_in_crowd", "is_summed"),
    )

    def __init__(self, sid: str, details: Mapping[str, Any]) -> None:
        self.id = secrets.token_hex(16)
        self.sid = sid
        self.details = details
        self.at: int = _now_ms()
        self.first_id: int | None = None
        self.last_id: int | None = None
        self.how: str | None = None
        self.is_announced = self.is_in_crowd = self.is_summed = False

    def delivered(self, first: int, last: int) -> None:
        """These events were handed to the connection. Only the client's next cursor shows whether they arrived."""
        self.first_id = first if self.first_id is None else min(self.first_id, first)
        self.last_id = last if self.last_id is None else max(self.last_id, last)


class _Entry:
    """A record on its way to Redis. `is_first`: nothing of its view has been written yet."""

    __slots__ = ("is_first", "record", "view")

    def __init__(self, view: View, record: dict[str, Any], *, is_first: bool) -> None:
        self.view = view
        self.record = record
        self.is_first = is_first


class _ClockMeasurement(NamedTuple):
    """What an answer took, and by how much Redis' clock is ahead of ours (if the answer took as long as the way there).

    The least one is the quickest.
    """

    took_ms: float
    ahead_ms: float

    def agrees_with(self, other: _ClockMeasurement) -> bool:
        """Whether both can be right: each is wrong by half of what its answer took, at the most."""
        return abs(self.ahead_ms - other.ahead_ms) <= (self.took_ms + other.took_ms) / 2 + DRIFT_MS


class AccessRecord:
    """The viewers' records of this server process. `lost`: how many entries found no room. `limit`: see views.py."""

    def __init__(
        self, redis: Redis, keys: Keys, *, retention_s: float, is_archived: bool, limit: int = VIEW_RECORDS
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._life_ms = None if is_archived else round(retention_s * 1000)
        self._server = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._limit = limit
        self._waiting: dict[str, _Entry] = {}
        self._read_in: dict[int, int] = {}
        self._crowds: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._untold: defaultdict[str, list[str]] = defaultdict(list)
        self._crowds_told_at_s = time.monotonic()
        self._clock: deque[_ClockMeasurement] = deque(maxlen=CLOCK_MEASUREMENTS)
        self._clock_offset_ms = 0
        self.lost = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def opened(self, view: View) -> None:
        self._add(view, {**view.details, "server": self._server, "opened": view.at}, is_first=True)

    def closed(self, view: View, how: str) -> None:
        """`how`: the way the connection ended (docs/API.md)."""
        view.how = how
        ended = {"first_id": view.first_id, "last_id": view.last_id, "closed": _now_ms(), "how": how}
        before = self._waiting.get(view.id)  # it has come and gone within a second: one entry says both
        is_first = before is not None and before.is_first
        self._add(view, {**view.details, "server": self._server, "opened": view.at, **ended}, is_first=is_first)

    def read(self, sid: str, details: Mapping[str, Any], span: tuple[int | None, int | None] = (None, None)) -> None:
        """A caller has read this stream in an answer that was complete at once. `details`: as View.

        `span`: the first and the last event in it. The first reading of each hour is recorded, by caller (who, address)
        and format.
        """
        hour = int(time.time() // READ_AGAIN_S)
        place = hash((details.get("who"), details.get("address"), details.get("format"), sid))
        if self._read_in.pop(place, None) != hour:
            view = View(sid, details)
            ended = {"first_id": span[0], "last_id": span[1], "closed": view.at, "how": FINISHED}
            record = {**details, "server": self._server, "opened": view.at, **ended}
            self._add(view, record, is_first=True)
        self._read_in[place] = hour  # as the newest
        if len(self._read_in) > MAX_REMEMBERED:
            del self._read_in[next(iter(self._read_in))]

    async def run(self) -> None:
        """Write for ever. Only cancellation ends this, or RedisUnavailable."""
        took_s = 0.0
        while True:
            await asyncio.sleep(max(0.0, FLUSH_S - took_s))
            began_s = time.monotonic()
            await self.flush()
            took_s = time.monotonic() - began_s

    async def close(self) -> None:
        """Write the last records and sign off. Raises RedisUnavailable."""
        await self.flush()
        await self._redis.zrem(self._keys.tiers, self._server)

    async def flush(self) -> None:
        """Give a sign of life, and write all waiting entries. Raises RedisUnavailable; they then keep waiting."""
        await self._measure_clock()
        async with self._redis.pipeline(transaction=False) as pipe:
            self._live(pipe, self._now_ms())
            pipe.expire(self._keys.tiers, TIERS_LIFE_S)
            await pipe.execute()
        while batch := list(islice(self._waiting.values(), FLUSH_BATCH)):
            await self._write(batch)
            for entry in batch:
                if self._waiting[entry.view.id] is entry:
                    del self._waiting[entry.view.id]
                else:  # its view has closed meanwhile
                    self._waiting[entry.view.id].is_first = False
        await self._tell_crowds()

    def _live(self, pipe: Pipeline, now_ms: int) -> None:
        """With each batch of a long backlog, too: this server must not seem dead while it writes."""
        pipe.zadd(self._keys.tiers, {self._server: now_ms})

    async def _write(self, batch: list[_Entry]) -> None:
        now_ms = self._now_ms()
        limit = str(self._limit)
        own = [entry for entry in batch if not entry.view.is_summed]
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.script_load(ADD.text)
            for entry in own:
                record = orjson.dumps(self._in_redis_time(entry.record)).decode()
                pipe.evalsha(ADD.sha, 1, self._keys.views_of(entry.view.sid), limit, entry.view.id, record)
            self._let_live(pipe, own, now_ms)
            self._live(pipe, now_ms)
            self._announce(pipe, own)
            _, *has_room = (await pipe.execute())[: 1 + len(own)]
        for entry, found_room in zip(own, has_room, strict=True):
            entry.view.is_summed = not found_room
        if summed_up := [entry for entry in batch if entry.view.is_summed]:
            await self._sum_up(summed_up, now_ms)

    async def _sum_up(self, batch: list[_Entry], now_ms: int) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.script_load(SUM_UP.text)
            for entry in batch:
                args = summed(self._in_redis_time(entry.record), self._limit, now_ms, count=int(entry.is_first))
                pipe.evalsha(SUM_UP.sha, 1, self._keys.views_of(entry.view.sid), "", "", *args)
            self._let_live(pipe, batch, now_ms)
            self._live(pipe, now_ms)
            await pipe.execute()
        for entry in batch:
            self._count_in_crowd(entry)

    # -- presence ------------------------------------------------------------------------------------------------

    def _announce(self, pipe: Pipeline, batch: list[_Entry]) -> None:
        """After the records: whoever hears of it and reads them finds it there."""
        came: defaultdict[str, dict[str, Open]] = defaultdict(dict)
        went: defaultdict[str, list[str]] = defaultdict(list)
        for entry in batch:
            view = entry.view
            if "how" not in entry.record:
                came[view.sid][view.id] = Open.of(self._in_redis_time(entry.record))
                view.is_announced = True
            elif view.is_announced:
                went[view.sid].append(view.id)
        for sid in came.keys() | went.keys():
            self._publish(pipe, sid, Announcement(self._server, came.get(sid, {}), went.get(sid, ())))

    def _publish(self, pipe: Pipeline, sid: str, said: Announcement) -> None:
        pipe.publish(self._keys.presence_of(sid), said.encode())

    def _count_in_crowd(self, entry: _Entry) -> None:
        """A summed-up one. That it had room was announced before it was known: it goes from there into the crowd."""
        view, crowd = entry.view, self._crowds[entry.view.sid]
        is_open, who = "how" not in entry.record, str(view.details.get("who"))
        if is_open != view.is_in_crowd:
            view.is_in_crowd = is_open
            crowd[who] += 1 if is_open else -1
            if not crowd[who]:
                del crowd[who]
            self._untold[view.sid] += ()
        if view.is_announced:
            view.is_announced = False
            self._untold[view.sid].append(view.id)
        if not crowd and view.sid not in self._untold:
            del self._crowds[view.sid]

    async def _tell_crowds(self) -> None:
        """Write the numbers that have changed. They are whole, so what is written twice is right."""
        now_s = time.monotonic()
        if now_s - self._crowds_told_at_s > CROWD_RENEWED_S:
            self._crowds_told_at_s = now_s
            for sid in self._crowds:
                self._untold[sid] += ()
        while some := list(islice(self._untold, FLUSH_BATCH)):
            async with self._redis.pipeline(transaction=False) as pipe:
                for sid in some:
                    crowd = self._crowds[sid]
                    told = Crowd(crowd.total(), len(crowd))
                    key = self._keys.crowd_of(sid)
                    if crowd:
                        pipe.hset(key, self._server, told.encode())
                        pipe.expire(key, CROWD_LIFE_S)
                    else:
                        pipe.hdel(key, self._server)
                    self._publish(pipe, sid, Announcement(self._server, went=self._untold[sid], crowd=told))
                self._live(pipe, self._now_ms())
                await pipe.execute()
            for sid in some:
                del self._untold[sid]
                if not self._crowds[sid]:
                    del self._crowds[sid]

    def _let_live(self, pipe: Pipeline, batch: list[_Entry], now_ms: int) -> None:
        """After the records: the archiver looks for them before it clears the index."""
        sids = {entry.view.sid for entry in batch}
        if self._life_ms is not None:
            for sid in sids:
                pipe.pexpire(self._keys.views_of(sid), self._life_ms)
        elif sids:
            pipe.zadd(self._keys.views, dict.fromkeys(sids, now_ms))

    def _add(self, view: View, record: dict[str, Any], *, is_first: bool) -> None:
        if len(self._waiting) >= MAX_WAITING and view.id not in self._waiting:
            self.lost += 1
            return
        self._waiting[view.id] = _Entry(view, record, is_first=is_first)

    async def _measure_clock(self) -> None:
        began, before = time.monotonic(), time.time()
        seconds, microseconds = await self._redis.time()
        after, ended = time.time(), time.monotonic()
        measured = _ClockMeasurement(
            (ended - began) * 1000, (seconds + microseconds / 1e6 - (before + after) / 2) * 1000
        )
        if not all(measured.agrees_with(other) for other in self._clock):
            self._clock.clear()  # one of the clocks was set, or another Redis answers
        self._clock.append(measured)
        self._clock_offset_ms = round(min(self._clock).ahead_ms)

    def _now_ms(self) -> int:
        return _now_ms() + self._clock_offset_ms

    def _in_redis_time(self, record: dict[str, Any]) -> dict[str, Any]:
        times: dict[str, Any] = {name: record[name] + self._clock_offset_ms for name in _TIMES if name in record}
        return {**record, **times}


async def read_views(
    redis: Redis, keys: Keys, sid: str, now_ms: int, *, lost_after_ms: int = SERVER_LIFE_MS
) -> list[dict[str, Any]]:
    """The records that Redis still has, each with its `id`. Those of a server silent for `lost_after_ms` are closed."""
    return [view.record for view in await read_stored(redis, keys, sid, now_ms, lost_after_ms=lost_after_ms)]


async def read_stored(
    redis: Redis, keys: Keys, sid: str, now_ms: int, *, lost_after_ms: int = SERVER_LIFE_MS
) -> list[StoredView]:
    """As read_views, with the fields that they are stored in."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hgetall(keys.views_of(sid))
        pipe.zrangebyscore(keys.tiers, now_ms - lost_after_ms, "+inf")
        records, servers = await pipe.execute()
    alive = {server.decode() for server in servers}
    views = [stored(field, value) for field, value in records.items()]
    return [view._replace(record=_closed_if_lost(view.record, alive, now_ms, lost_after_ms)) for view in views]


def _closed_if_lost(record: dict[str, Any], alive: set[str], now_ms: int, lost_after_ms: int) -> dict[str, Any]:
    if "how" in record or record["server"] in alive or record["opened"] > now_ms - lost_after_ms:
        return record
    return {**record, "first_id": None, "last_id": None, "closed": now_ms, "how": SERVER_LOST}


def _now_ms() -> int:
    return round(time.time() * 1000)
