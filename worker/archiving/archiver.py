"""The archiver: every worker has one, and one at a time is at work.

Erasures come first, then streams, then viewers' records.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from redis.asyncio import Redis

from broker.archive.writer import ArchiveWriter
from broker.errors import (
    ArchiveUnavailable,
    RedisUnavailable,
)
from broker.log.stream_log import StreamLog
from broker.log.views import VIEW_RECORDS
from worker.archiving.erasures import Erasures
from worker.archiving.figures import LOOK_S, Figures
from worker.archiving.streams import EndedStreams
from worker.archiving.views import Views

logger = logging.getLogger(__name__)

ARCHIVE_S = 1.0
"""Between two looks when the last one left nothing to do."""

TURN_MS = 10_000
"""A worker that has not come back within this has lost its turn."""

RETENTION_S = 60.0
"""Between two looks for content past its retention, and for heads that are behind."""

SWEEP_S = 3600.0
"""A sweep scans every key, and finds a stream only where it had ended before an archive was set up."""


class Archiver:
    """`retention_s(tenant)`: how long the archive keeps content; None for ever. `view_records`: see log/views.py."""

    def __init__(
        self,
        log: StreamLog,
        archive: ArchiveWriter,
        *,
        after_s: float,
        retention_s: Callable[[str], float | None],
        view_records: int = VIEW_RECORDS,
    ) -> None:
        self._log = log
        self._redis: Redis = log.redis
        self._keys = log.keys
        self._archive = archive
        self.erasures = Erasures(log, archive, retention_s=retention_s)
        self.streams = EndedStreams(log, archive, after_s=after_s)
        self.views = Views(log, archive, limit=view_records)
        self.figures = Figures(log, archive, after_s=after_s)
        self._name = secrets.token_hex(8)
        self._is_mine = False

    async def run(self) -> None:
        """Archive for ever. Ends only by cancellation."""
        try:
            await self._run()
        finally:
            with suppress(RedisUnavailable):
                await self._pass_turn_on()

    async def _run(self) -> None:
        chores = _Chores(
            {
                self.streams.sweep: SWEEP_S,
                self._archive.settle_erasures: SWEEP_S,
                self._archive.settle_heads: RETENTION_S,
                self.erasures.expire: RETENTION_S,
            }
        )
        figures = _Chores({self.figures.look: LOOK_S})
        while True:
            is_busy = False
            try:
                if await self._has_turn():
                    await figures.do_what_is_due()  # also while the archive is away: then what waits counts most
                    await chores.do_what_is_due()
                    is_busy = await self.archive_once()
            except ArchiveUnavailable as away:
                logger.warning("the archive is away (%s); Redis keeps what has ended", _cause(away))
                await self._pass_turn_on()
            await asyncio.sleep(0 if is_busy else ARCHIVE_S)

    async def archive_once(self) -> bool:
        """Take one batch of everything. True if there may be more."""
        more = [await self.erasures.carry_out(), await self.streams.take(), await self.views.take()]
        return any(more)

    async def _has_turn(self) -> bool:
        """One worker is enough. Nothing depends on there being only one: it saves the others the work."""
        holder = await self._redis.set(self._keys.archiver, self._name, nx=True, px=TURN_MS, get=True)
        self._is_mine = holder is None or holder.decode() == self._name
        if self._is_mine:
            await self._redis.pexpire(self._keys.archiver, TURN_MS)
        return self._is_mine

    async def _pass_turn_on(self) -> None:
        """This worker stops, or cannot reach the archive: another one takes the turn before it does again."""
        if self._is_mine:
            self._is_mine = False
            await self._redis.delete(self._keys.archiver)


class _Chores:
    """Periodic jobs: run at the start, and again when they are due."""

    def __init__(self, every_s: dict[Callable[[], Awaitable[object]], float]) -> None:
        self._every_s = every_s
        self._due_s = dict.fromkeys(every_s, 0.0)

    async def do_what_is_due(self) -> None:
        for chore, every_s in self._every_s.items():
            if time.monotonic() >= self._due_s[chore]:
                await chore()
                self._due_s[chore] = time.monotonic() + every_s


def _cause(error: BaseException) -> str:
    cause = error.__cause__
    return type(getattr(cause, "orig", cause)).__name__  # the driver's, which tells more than SQLAlchemy's around it
