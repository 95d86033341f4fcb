"""An answer that is told while pages follow it. Its words are numbers: none can be missing or there twice unseen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count

from tests.js.site import Site
from tests.js.tabs import Tab
from tests.rig.deployment import HTTP
from tests.viewers.producer import Producer


class Story:
    def __init__(self, site: Site, producer: Producer) -> None:
        self.url = f"{site.url}/v1/streams/{producer.sid}/events"
        self._producer = producer
        self._words = count(1)
        self._pen = asyncio.Lock()

    @property
    def cursor(self) -> int:
        """The last event's id."""
        return self._producer.last_event_id

    async def say(self, words: int = 5) -> int:
        """The cursor behind them."""
        async with self._pen:
            await self._producer.write(*(f"{next(self._words)} " for _ in range(words)))
            return self.cursor

    @asynccontextmanager
    async def going_on(self, every_s: float = 0.05) -> AsyncIterator[None]:
        is_over = asyncio.Event()

        async def tell() -> None:
            while not is_over.is_set():
                await self.say(2)
                with suppress(TimeoutError):
                    await asyncio.wait_for(is_over.wait(), every_s)

        telling = asyncio.create_task(tell())
        try:
            yield
        finally:
            is_over.set()
            await telling

    async def end(self) -> str:
        """Its text."""
        await self._producer.finish()
        text = HTTP.get(f"http://127.0.0.1:{self._producer.port}/v1/streams/{self._producer.sid}/text").text
        assert len(text.split()) == self.cursor - 2
        return text

    async def expect_whole(self, *tabs: Tab) -> None:
        text = await self.end()
        for tab in tabs:
            await tab.expect(text)
