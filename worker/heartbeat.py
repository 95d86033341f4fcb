"""The heartbeat renews the leases of the streams that this worker writes.

It does so every HEARTBEAT_S; a lease lasts LEASE_S. It also tells meta how far each stream has come: events that go the
short way (log/writer.py) touch neither. What its own short way refuses goes the whole one at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing, suppress

from broker.errors import REDIS_AWAY, RedisUnavailable, StreamClosed
from broker.log.pulse import now_s
from broker.log.script import GoesWholeWay
from broker.log.steps import Writing
from broker.log.stream_log import StreamLog
from broker.log.writer import StreamWriter
from broker.store.connect import Client
from broker.store.listen import messages

logger = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
"""A third of a lease: two heartbeats may be lost before the lease is."""

RETRY_S = 0.3
"""Between two tries while Redis is away: what it lost must be put back soon after it returns."""


MARGINS = 30
"""Of so many renewals, a minute's, the lowest margin is kept: who scrapes twice a minute still sees it."""


class Heartbeat:
    """Renews the lease of every stream this process writes. A writer that lost its pen learns it here at the latest.

    A writer whose stream has ended is kept for another lease: if Redis loses the ending, the writer puts it back.
    """

    def __init__(self, log: StreamLog) -> None:
        self._log = log
        self._writers: dict[str, StreamWriter] = {}
        self.is_listening = asyncio.Event()
        self._may_have_missed = asyncio.Event()
        self._margins_s: deque[float] = deque(maxlen=MARGINS)
        self._renewed_at_s: float | None = None
        """When the last answered renewal began; None: there was nothing to renew."""

    def keep(self, writer: StreamWriter) -> None:
        self._writers[writer.sid] = writer

    def forget(self, writer: StreamWriter) -> None:
        """It writes no more: its lease may expire."""
        if self._writers.get(writer.sid) is writer:
            del self._writers[writer.sid]

    def margin_s(self) -> float | None:
        """The least that a stream's lease had left, of late. Below 0: others may have taken it over."""
        known = [*self._margins_s]
        if (renewed_at_s := self._renewed_at_s) is not None:
            known.append(self._log.lease_s - (now_s() - renewed_at_s))
        return min(known, default=None)

    async def run(self) -> None:
        wait_s = HEARTBEAT_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._may_have_missed.wait()
            self._may_have_missed.clear()
            try:
                await self.renew()
            except RedisUnavailable:
                logger.warning("Redis is away; leases could not be renewed", extra=REDIS_AWAY)
                wait_s = RETRY_S  # a lost ending may have to be put back before another writer may write
            else:
                wait_s = HEARTBEAT_S

    async def listen(self, redis: Client) -> None:
        """Stop a seized stream (a cancel) at once, even while its provider is silent.

        The process that published the seizure holds the pen; should Redis lose that, it puts it back. So the writer
        stops without asking first: a Redis that came back with less would answer that its pen still held. What this
        subscription misses, a heartbeat finds as soon as there is one again.
        """
        async with aclosing(messages(redis, self._log.keys.seized)) as seizures:
            async for sid in seizures:
                self.is_listening.set()
                if sid is None:
                    self._may_have_missed.set()
                elif writer := self._writers.get(sid.decode()):
                    writer.lose(StreamClosed("The stream was ended by seizure."))
                    self.forget(writer)

    async def renew(self) -> None:
        if not self._writers:
            self._renewed_at_s = None
            return
        began_s = now_s()
        writers = list(self._writers.values())
        while writers:
            writers = await self._renew(writers)
        if self._renewed_at_s is not None:
            self._margins_s.append(self._log.lease_s - (now_s() - self._renewed_at_s))
        self._renewed_at_s = began_s

    async def _renew(self, writers: Sequence[StreamWriter]) -> list[StreamWriter]:
        """Returns those that are to be renewed once more, the whole way."""
        renewals = [writer.renewal() for writer in writers]

        def by_their_ways() -> list[Writing]:
            return [writer.renewed(renewal) for writer, renewal in zip(writers, renewals, strict=True)]

        outcomes = await self._log.append_many(by_their_ways)
        again = []
        for writer, sent, outcome in zip(writers, renewals, outcomes, strict=True):
            writer.settle_renewal(sent, outcome)
            if isinstance(outcome, GoesWholeWay):
                again.append(writer)
            elif writer.lost or writer.has_kept_its_ending():
                self.forget(writer)
        return again
