"""ReadableLog: what a reader of a stream's events needs of the log, whether it is in Redis or in the archive."""

from __future__ import annotations

from typing import Protocol

from broker.log.event import Event
from broker.log.steps import PAGE_EVENTS, Page


class ReadableLog(Protocol):
    async def read_page(self, sid: str, cursor: int, count: int = PAGE_EVENTS) -> Page:
        """Up to `count` events after `cursor`. Raises StreamNotFound or ArchiveDamaged."""
        ...

    async def read_last(self, sid: str) -> Event:
        """The last event: the terminal one, if the stream has ended."""
        ...

    async def read_all(self, sid: str) -> list[Event]:
        """The whole log as it is now (a stream is bounded: max_events, max_bytes). Raises as read_page does."""
        events: list[Event] = []
        more = True
        while more:
            page = await self.read_page(sid, events[-1].id if events else 0)
            events += page.events
            more = page.more
        return events
