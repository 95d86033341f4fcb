"""The archiver: every worker has one, and one at a time is at work.

Erasures come first, then streams, viewers' records and deeds, then whole persons.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from broker.archive.writer import ArchiveWriter
from broker.errors import (
    ArchiveUnavailable,
    RedisUnavailable,
)
from broker.log.seizures import Seizures
from broker.log.stream_log import StreamLog
from broker.log.views import VIEW_RECORDS
from worker.archiving.deeds import MovedDeeds
from worker.archiving.erasures import Erasures
from worker.archiving.figures import LOOK_S, Figures
from worker.archiving.people import People
from worker.archiving.streams import EndedStreams
from worker.archiving.turn import Turn
from worker.archiving.views import Views

logger = logging.getLogger(__name__)

ARCHIVE_S = 1.0
"""Between two looks when the last one left nothing to do."""

RETENTION_S = 60.0
"""Between two looks for content past its retention, and for heads that are behind."""

STAMP_S = 600.0
"""Between two looks whether the day of the last time stamp is over, or the authority answers again."""

SWEEP_S = 3600.0
"""A sweep scans every key, and finds a stream only where it had ended before an archive was set up."""


class Archiver:
    """`retention_s(tenant)`: how long the archive keeps content; None for ever. `view_records`: see log/views.py.

    `seizures`: of this process, which keeps the endings of streams that are cancelled to be erased.
    """

    def __init__(
        self,
        log: StreamLog,
        archive: ArchiveWriter,
        *,
        after_s: float,
        retention_s: Callable[[str], float | None],
        view_records: int = VIEW_RECORDS,
        seizures: Seizures | None = None,
        settle_s: float | None = None,
    ) -> None:
        self._archive = archive
        self.erasures = Erasures(log, archive, retention_s=retention_s)
        self.streams = EndedStreams(log, archive, after_s=after_s)
        self.views = Views(log, archive, limit=view_records)
        self.deeds = MovedDeeds(log, archive)
        self.turn = Turn(log.redis, log.keys.archiver)
        self.people = People(
            log,
            seizures or Seizures(log),
            self.turn,
            archive=archive,
            erasures=self.erasures,
            deeds=self.deeds,
            settle_s=settle_s,
        )
        self.figures = Figures(log, archive, after_s=after_s)

    async def run(self) -> None:
        """Archive for ever. Ends only by cancellation."""
        try:
            await self._run()
        finally:
            with suppress(RedisUnavailable):
                await self.turn.pass_on()

    async def _run(self) -> None:
        chores = _Chores(
            {
                self.streams.sweep: SWEEP_S,
                self._archive.settle_erasures: SWEEP_S,
                self._archive.settle_heads: RETENTION_S,
                self._archive.stamp_heads: STAMP_S,
                self.erasures.expire: RETENTION_S,
            }
        )
        figures = _Chores({self.figures.look: LOOK_S})
        while True:
            is_busy = False
            try:
                if await self.turn.take():
                    await figures.do_what_is_due()  # also while the archive is away: then what waits counts most
                    await chores.do_what_is_due()
                    is_busy = await self.archive_once()
            except ArchiveUnavailable as away:
                logger.warning("the archive is away (%s); Redis keeps what has ended", _cause(away))
                await self.turn.pass_on()
            await asyncio.sleep(0 if is_busy else ARCHIVE_S)

    async def archive_once(self) -> bool:
        """Take one batch of everything. True if there may be more."""
        more = [await self.erasures.carry_out(), await self.streams.take(), await self.views.take()]
        more += [await self.deeds.take(), await self.people.carry_out()]
        return any(more)


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
