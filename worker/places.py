"""The places of this worker's streams: taken before a claim, renewed while they run, given back at their ending.

The steps are running.py's. A stream of the tenant `default` needs no place unless a limit is set for it: for such a
deployment this costs a look at the limits every few seconds, and no command for an answer.

Failure points:
- A claim that finds the stream ended gives its place back; one that finds another's lease leaves it to that worker.
- This worker dies: its places expire, and any worker's look queues those whose turn it is then.
- It dies after it gave a place back, and before it queued the next: the same look finds that.
- Redis is away: nothing is given back; what is not renewed expires. Those that run on are put back afterwards.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Container, Iterable
from contextlib import suppress

from redis.asyncio import Redis

from broker.errors import REDIS_AWAY, RedisUnavailable
from broker.log.keys import Keys
from broker.log.queue import enqueue
from broker.log.running import Line, Places, Running, share_of
from broker.tenants.keyring import DEFAULT_TENANT
from broker.tenants.limits import TenantLimits

logger = logging.getLogger(__name__)

RENEW_S = 2.0
"""Of PLACE_S: four may be lost."""


class WorkersPlaces:
    """`slots`: this worker's. `waiting()`: its streams that wait for a person, and take none of them.
    `is_observed`: limits are counted, and nobody waits for them (LASTEVENT_LIMITS=observe)."""

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        limits: TenantLimits,
        *,
        name: str,
        slots: int,
        waiting: Callable[[], Container[str]] = frozenset,
        is_observed: bool = False,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._running = Running(redis, keys)
        self._limits = limits
        self._name = name
        self._slots = self._slots_of_all = slots
        self._waiting = waiting
        self._is_observed = is_observed
        self._held: dict[str, Line] = {}
        self._ended: defaultdict[Line, list[str]] = defaultdict(list)
        self._refused: set[Line] = set()  # others have their turn before what was refused
        self._is_due = asyncio.Event()

    async def take(self, sid: str, tenant: str, app: str | None, *, is_owed: bool = False) -> bool:
        """Whether this stream may run now. If not, it is parked, and is queued again when it has its turn.

        `is_owed`: it has begun, and its viewers wait; it is counted, and not refused. Raises RedisUnavailable.
        """
        line, places = Line(tenant, app), await self._places_of(tenant)
        if places is None or sid in self._held:
            return True
        taken = await self._running.take_slot(line, sid, places, is_owed=is_owed)
        if taken:
            self._held[sid] = line
        elif taken is None:
            self._refused.add(line)
            self._is_due.set()
        return bool(taken)

    def holds(self, sid: str) -> bool:
        """It runs here already, or is about to: found twice, it keeps its place whatever the second finds."""
        return sid in self._held

    def give_back(self, sid: str) -> None:
        """It has ended."""
        if line := self._held.pop(sid, None):
            self._ended[line].append(sid)
            self._is_due.set()

    def leave(self, sid: str) -> None:
        """Another worker has it, or will: its place is kept for that one until it expires."""
        self._held.pop(sid, None)

    async def run(self) -> None:
        """Renew, give back and queue what has its turn, for ever. Only cancellation ends this."""
        clock = asyncio.get_running_loop().time
        renew_at = clock()
        while True:
            try:
                if clock() >= renew_at:
                    renew_at = clock() + RENEW_S
                    await self._renew()
                    await self._queue_next(await self._running.lines())
                await self._give_back()
            except RedisUnavailable:
                logger.warning("Redis is away; the places of streams could not be renewed", extra=REDIS_AWAY)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(renew_at):
                    await self._is_due.wait()
            self._is_due.clear()

    async def stop(self) -> None:
        """What has ended is given back, and this worker's slots count no more."""
        with suppress(RedisUnavailable):
            await self._give_back()
            await self._running.leave(self._name, self._slots)

    async def _renew(self) -> None:
        self._slots_of_all = await self._running.slots_of_all(self._name, self._slots)
        of_tenants: defaultdict[str, list[str]] = defaultdict(list)
        for sid, line in self._held.items():
            of_tenants[line.tenant].append(sid)
        for tenant, sids in of_tenants.items():
            waiting = self._waiting()
            with_slot = [sid for sid in sids if sid not in waiting]
            await self._running.keep(tenant, with_slot, [sid for sid in sids if sid in waiting])

    async def _give_back(self) -> None:
        ended, self._ended = self._ended, defaultdict(list)
        refused, self._refused = self._refused, set()
        for line, sids in ended.items():
            await self._running.let_go(line.tenant, *sids, app=line.app)
        tenants = {line.tenant for line in ended}
        parked = [line for line in await self._running.lines() if line.tenant in tenants] if tenants else []
        await self._queue_next({*parked, *refused})

    async def _queue_next(self, lines: Iterable[Line]) -> None:
        for line in lines:
            places, limits = await self._places_of(line.tenant), await self._limits.of(line.tenant)
            sids = await self._running.next(line, places or Places())
            for sid in sids:
                weight = limits.weight or 1
                await enqueue(self._redis, self._keys, sid, line.app, tenant=line.tenant, weight=weight, has_turn=True)
            if sids and places is None:  # its limit was taken away: who takes them from the queue asks for no place
                await self._running.let_go(line.tenant, *sids, app=line.app)

    async def _places_of(self, tenant: str) -> Places | None:
        """None: this tenant's streams need none."""
        most = (await self._limits.of(tenant)).streams_running
        if tenant == DEFAULT_TENANT and most is None:
            return None
        if self._is_observed:
            return Places()
        return Places(most, None if tenant == DEFAULT_TENANT else share_of(max(self._slots, self._slots_of_all)))
