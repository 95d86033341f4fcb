"""Several streams' steps, one after the other, as one connection can write them.

Each open stream is read by a task of its own, which holds one step at most: it reads the next when that has been taken.
Steps are taken in the order in which they were ready, so no stream waits for more than one step of each other. A viewer
that does not read holds MOST_OPEN steps: of the log some 64 KiB each (tail.HELD_BYTES, or one larger event), or of
the ring 256 KiB at most, which viewers at the same place share. So 8 MiB at the very most, and mostly far less.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, NamedTuple, Self

from broker.dialects.format import Batch
from broker.dialects.sse import Gap
from broker.errors import ArchiveDamaged, LasteventError
from broker.live.conversation import Conversation, Missing, Opened
from broker.live.tail import Step

logger = logging.getLogger(__name__)


class Given(NamedTuple):
    """A step of a stream that is no sign of life."""

    sid: str
    step: Batch | Gap


class Left(NamedTuple):
    """A stream gives nothing more for now: it broke off, or its backlog was all that was asked for."""

    sid: str
    broke: bool


Item = Opened | Missing | Given | Left


class Together:
    """`steps`: of one stream that was opened. Whoever takes an item says what became of it to the conversation."""

    def __init__(self, conversation: Conversation, steps: Callable[[Opened], AsyncGenerator[Step, None]]) -> None:
        self._conversation = conversation
        self._steps = steps
        self._ready: deque[tuple[Item, asyncio.Event | None]] = deque()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._is_over = False

    async def __aenter__(self) -> Self:
        self._start(self._open())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def next(self, within_s: float) -> Item | None:
        """The next item; None if there was none for so long. Raises StopAsyncIteration when there is no more."""
        try:
            async with asyncio.timeout(within_s):
                while not self._ready:
                    if self._failure:
                        raise self._failure
                    if self._is_over and not self._tasks:
                        raise StopAsyncIteration
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return None
        item, taken = self._ready.popleft()
        if taken:
            taken.set()
        return item

    async def _open(self) -> None:
        async with aclosing(self._conversation.run()) as told:
            async for item in told:
                self._put(item)
                if isinstance(item, Opened):
                    self._start(self._read(item))
        self._is_over = True

    async def _read(self, opened: Opened) -> None:
        sid = opened.sid
        has_ended = broke = False
        try:
            async with aclosing(self._steps(opened)) as steps:
                async for step in steps:
                    if step is None:
                        continue
                    has_ended = isinstance(step, Batch) and step.events[-1].is_terminal
                    taken = asyncio.Event()
                    self._put(Given(sid, step), taken)
                    del step  # or a stream at its tail would keep its last page
                    await taken.wait()
        except ArchiveDamaged as damaged:
            logger.exception("stream %s: it is left out of a conversation", sid)
            self._put(Missing(sid, damaged.code))
            return
        except LasteventError as error:
            logger.info("stream %s: it is looked up again (%s)", sid, error)
            broke = True
        if not has_ended:
            self._put(Left(sid, broke))

    def _put(self, item: Item, taken: asyncio.Event | None = None) -> None:
        self._ready.append((item, taken))
        self._changed.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="stream of several")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._failure = self._failure or error
        self._changed.set()
