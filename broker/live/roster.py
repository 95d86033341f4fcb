"""The roster: which streams a session has, read as often as it may have changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager

from broker.dialects.vector import SLACK_MS
from broker.live.hub import Hub
from broker.live.ledger import Listed
from broker.log.meta import Meta
from broker.log.stream_log import StreamLog

CHUNK_STREAMS = 100
"""Streams in one pipeline, as in listings: 2 ms, for which other viewers wait."""

_FIELDS = [field.name for field in (Meta.tenant, Meta.session, Meta.user, Meta.state)]

Archived = Callable[[int], Awaitable[Sequence[Listed]]]


class Roster:
    """`shows`: whether a stream is this caller's to see. `archived`: the archive's streams of the session that were
    created since then (ms); None: there is no archive, or the viewer comes for the first time.
    """

    def __init__(
        self,
        log: StreamLog,
        hub: Hub,
        tenant: str,
        session: str,
        shows: Callable[[str, Meta], bool],
        archived: Archived | None,
    ) -> None:
        self._log = log
        self._hub = hub
        self._tenant = tenant
        self._session = session
        self._shows = shows
        self._archived = archived
        self._has_asked_archive = False

    def listen(self, on_word: Callable[[], object]) -> AbstractContextManager[None]:
        """`on_word` is called when the listing may have changed, and whenever that could not be known for a while."""
        return self._hub.listen(self._log.keys.session(self._tenant, self._session), lambda _: on_word())

    async def read(self, at_ms: int) -> list[Listed]:
        """The newest streams, and all that may be new to a viewer that stands at `at_ms`. Once also the archive's, if
        what Redis lists does not go back so far: its entries have expired, or it has lost them.

        Raises RedisUnavailable, ArchiveUnavailable.
        """
        since_ms = max(0, at_ms - SLACK_MS)
        found = {Listed(*row) for row in await self._log.index.roster(self._tenant, self._session, since_ms)}
        if self._archived and not self._has_asked_archive:
            kept_ms = await self._log.now_ms() - self._log.retention_s * 1000
            if since_ms < kept_ms or not any(one.created <= at_ms for one in found):
                found |= set(await self._archived(since_ms))
            self._has_asked_archive = True
        return list(found)

    async def running(self, sids: Sequence[str]) -> dict[str, bool]:
        """Whether each runs, of those that Redis has and that are the caller's to see. Raises RedisUnavailable."""
        found: dict[str, bool] = {}
        for start in range(0, len(sids), CHUNK_STREAMS):
            some = sids[start : start + CHUNK_STREAMS]
            for sid, meta in zip(some, await self._log.read_fields(_FIELDS, *some), strict=True):
                if meta and meta.tenant == self._tenant and self._shows(sid, meta):
                    found[sid] = not meta.has_ended
        return found
