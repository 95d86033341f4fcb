"""Abandonment: a generation that has had no viewer for `abandon_after_s` is cancelled, reason `abandoned`.

A server is subscribed to a stream while it has a viewer of it, and LINGER_S longer (hub.py); so Redis' own count of
subscribers shows whether a stream has viewers, on any server, and nothing is written or kept for it. A server
that died is not counted. One that lost its connection counts again as soon as it has a new one, within a second or two.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from broker.errors import LasteventError, StoreUnavailable
from broker.log.event import CANCELLED, OURSELVES, encode_data
from broker.log.seizures import Seizures
from broker.log.steps import Claimed
from broker.log.stream_log import StreamLog

logger = logging.getLogger(__name__)

LOOK_S = 1.0
ABANDONED = encode_data({"reason": "abandoned", "by": OURSELVES})


class Abandonment:
    """Watches over the streams that this worker runs. Its clock starts when the worker takes the stream."""

    def __init__(self, log: StreamLog, seizures: Seizures) -> None:
        self._log = log
        self._seizures = seizures
        self._limit_s: dict[str, float] = {}
        self._watched_at_s: dict[str, float] = {}

    def begin(self, claimed: Claimed) -> None:
        if limit_s := claimed.meta.abandon_after_s:
            self._limit_s[claimed.sid] = limit_s
            self._watched_at_s[claimed.sid] = time.monotonic()

    def end(self, sid: str) -> None:
        self._limit_s.pop(sid, None)
        self._watched_at_s.pop(sid, None)

    async def run(self) -> None:
        """Look for ever. Ends only by cancellation."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except StoreUnavailable:
                # Nobody can be seen to watch, nor not to: the clocks start again.
                self._watched_at_s = dict.fromkeys(self._limit_s, time.monotonic())

    async def look(self) -> None:
        if not self._limit_s:
            return
        watched = await self._watched(self._limit_s)
        now_s = time.monotonic()
        for sid, limit_s in list(self._limit_s.items()):
            if sid in watched:
                self._watched_at_s[sid] = now_s
            elif now_s - self._watched_at_s.get(sid, now_s) >= limit_s:
                await self._cancel(sid)

    async def _watched(self, sids: Iterable[str]) -> set[str]:
        channels = {self._log.keys.stream(sid).live.encode(): sid for sid in sids}
        counts = await self._log.redis.pubsub_numsub(*channels)
        return {channels[channel] for channel, count in counts if count and channel in channels}

    async def _cancel(self, sid: str) -> None:
        try:
            await self._seizures.seize(sid, CANCELLED, ABANDONED)
            logger.info("stream %s: cancelled, because it has no viewers", sid)
        except StoreUnavailable:
            raise
        except LasteventError as gone:
            logger.info("stream %s: not cancelled (%s)", sid, gone.code)
        self.end(sid)
