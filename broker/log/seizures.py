"""Kept seizures: an ending that was acknowledged stays the ending, also if Redis loses its last second.

A process that ends a stream by taking its pen (a cancel, a sweeper, a limit) keeps that ending for one lease and puts
it back if it is gone. Writers do the same for their own endings (writer.py).

Failure points:
- Redis is away: the ending is kept and tried again, until Redis answers a look that came a lease after the seizure
- this process dies together with the log's tail: the ending is lost (ARCHITECTURE says so)
- the whole stream vanished: its writer may restore it within that time, and then it ends again
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import NamedTuple

from broker.errors import LasteventError, RedisUnavailable, StoreUnavailable, StreamNotFound
from broker.log.meta import new_claim_id
from broker.log.steps import Seized, Seizure
from broker.log.stream_log import StreamLog

logger = logging.getLogger(__name__)

LOOK_S = 2.0
"""As often as a writer's heartbeat."""

RETRY_S = 0.3
"""Between looks while Redis is away: once it is back, a lost ending must be put back within ENDINGS_WAIT (4 s)."""


class _Kept(NamedTuple):
    seizure: Seizure
    at_s: float


class Seizures:
    """The seizures of this process, and the loop that keeps them."""

    def __init__(self, log: StreamLog) -> None:
        self._log = log
        self._kept: list[_Kept] = []
        self._is_due = asyncio.Event()

    async def seize(self, sid: str, kind: str, data: bytes, *, only_expired: bool = False) -> Seized:
        """Take the pen, write the terminal event `kind`, and keep it. The writer, if there is one, is fenced.

        With `only_expired`, raises LeaseHeld while a writer's lease runs. Raises StreamNotFound, LogHealing or
        RedisUnavailable. If Redis does not answer, the same claim is tried once more: the first may have succeeded.
        """
        seizure = Seizure(sid, new_claim_id(), kind, data)
        try:
            seized = await self._log.seize_or_put_back(seizure, only_expired=only_expired)
        except RedisUnavailable:
            seized = await self._log.seize_or_put_back(seizure, only_expired=only_expired)
        if not seized.already:
            done = seizure._replace(data=seized.data, id=seized.last_event_id, epoch=seized.epoch, t=seized.t)
            self._kept.append(_Kept(done, time.monotonic()))
        return seized

    async def run(self) -> None:
        """Look after the kept seizures, for ever. Only cancellation ends this."""
        wait_s = 0.0  # the server is noted from the start, so that a change of servers is noticed
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._is_due.wait()
            self._is_due.clear()
            try:
                await self._log.servers.note()
                await self.look()
            except StoreUnavailable:
                if self._kept and wait_s != RETRY_S:
                    logger.warning("Redis is away; %d endings are kept until it is back", len(self._kept))
                wait_s = RETRY_S
            else:
                wait_s = LOOK_S

    def beat(self) -> None:
        """Look now: Redis runs on another server and may have lost something."""
        self._is_due.set()

    async def look(self) -> None:
        """Look once at every kept seizure: put it back if it is gone; stop keeping it after a lease.

        Raises StoreUnavailable.
        """
        for kept in list(self._kept):
            looked_at_s = time.monotonic()
            await self._put_back(kept.seizure)
            if looked_at_s - kept.at_s >= self._log.lease_s:
                self._kept.remove(kept)

    async def _put_back(self, seizure: Seizure) -> None:
        try:
            seized = await self._log.seize_or_put_back(seizure)
        except StreamNotFound:
            return
        except StoreUnavailable:
            raise
        except LasteventError:
            logger.exception("stream %s: its ending could not be looked at", seizure.sid)
            return
        if not seized.already and seized.last_event_id != seizure.id:
            logger.warning("stream %s: its ending was lost and is put back as %d", seizure.sid, seized.last_event_id)
