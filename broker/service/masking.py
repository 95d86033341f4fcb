"""Masking: where and when masks are applied. Two threads that do nothing else, a queue before them, and its end.

A reader takes a place first, then reads what is to be masked, and hands it over in jobs. A job is one stream's, or as
many records of a page as fit into a turn. With the next job the reader goes to the end of the queue, so that others do
not wait for a long page. Where nobody waits any more (the caller has gone, this process drains), the work ends before
its next text.

The threads are this process' own: those that asyncio keeps are for /verify, the archive and the look-up of names. They
are daemons, since nobody waits for a pattern while the process ends.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from broker.errors import Draining, MasksBusy
from broker.log.event import Event
from broker.service.masks import LIMIT_S, Redactor, Unwanted, Watch

T = TypeVar("T")

THREADS = 2
"""One pathological stream at a time leaves the other thread to everybody else."""

PLACES = 16
"""Readers at a time. With each at LIMIT_S the last one waits for 40 s, and each holds a log of some MB meanwhile."""

TURN_S = 0.5
"""CPU after which a page of records lets others go first: some MB of metadata. Most pages take less."""

PAGE_LIMIT_S = 20.0
"""CPU for all records of a page together: 200 of 5 s each would hold a thread for a quarter of an hour."""


class Masking:
    """Of one process and one loop."""

    def __init__(self, redactor: Redactor) -> None:
        self.names = redactor.names
        self.redactor = redactor
        self._queue: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._waited_for: set[_Job[Any]] = set()
        self._running: set[_Job[Any]] = set()
        self._places = PLACES
        self._is_closed = False

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Raises MasksBusy."""
        if not self._places:
            raise MasksBusy("Too many masked reads wait for their turn. Try again.")
        self._places -= 1
        try:
            yield Place(self)
        finally:
            self._places += 1

    async def run(self, work: Callable[[Callable[..., Watch]], T]) -> T:
        """What the work returns, in its turn. It gets what makes a Watch (of `limit_s`). Raises Draining."""
        if self._is_closed:
            raise _draining()
        job = _Job(work)
        self._waited_for.add(job)
        self._queue.put(job)
        if len(self._threads) < THREADS:
            self._threads.append(threading.Thread(target=self._serve, name="masks", daemon=True))
            self._threads[-1].start()
        try:
            return await job.done
        finally:
            self._waited_for.discard(job)

    def close(self) -> None:
        """Send everybody away who waits, and end the threads, which nobody waits for."""
        self._is_closed = True
        for job in self._waited_for:
            if not job.done.done():
                job.done.set_exception(_draining())
        for _ in self._threads:
            self._queue.put(None)

    def _serve(self) -> None:
        while job := self._queue.get():
            self._running.add(job)
            job.run()
            self._running.discard(job)
            del job  # or its log would stay until the next one


class _Job(Generic[T]):
    """`done`: its result. If that is there before its time, nobody waits for the work."""

    def __init__(self, work: Callable[[Callable[..., Watch]], T]) -> None:
        self.done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._work = work

    def run(self) -> None:
        """In a thread."""
        if self.done.done():
            return
        try:
            result = self._work(partial(Watch, is_unwanted=self.done.done))
        except Unwanted:
            return
        except Exception as error:  # it is the caller's
            self._settle(self.done.set_exception, error)
        else:
            self._settle(self.done.set_result, result)

    def _settle(self, how: Callable[[Any], None], outcome: Any) -> None:
        def settle() -> None:
            if not self.done.done():
                how(outcome)

        with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            self.done.get_loop().call_soon_threadsafe(settle)


class Place:
    """One reader's. Each call raises MasksTooSlow or Draining."""

    def __init__(self, masking: Masking) -> None:
        self._masking = masking
        self._redactor = masking.redactor

    async def events(self, events: Sequence[Event]) -> list[Event]:
        return await self._masking.run(lambda watch: self._redactor.mask_events(events, watch(LIMIT_S)))

    async def views(self, views: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The views of one stream."""

        def mask(watch_for: Callable[..., Watch]) -> list[dict[str, Any]]:
            watch = watch_for(LIMIT_S)
            return [self._redactor.mask_view(view, watch) for view in views]

        return await self._masking.run(mask)

    async def records(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The records of several streams, in the same order."""
        masked: list[dict[str, Any]] = []
        left_s = PAGE_LIMIT_S
        while len(masked) < len(records):
            more, spent_s = await self._masking.run(partial(self._some, records[len(masked) :], left_s))
            masked += more
            left_s -= spent_s
        return masked

    def _some(
        self, records: Sequence[dict[str, Any]], left_s: float, watch_for: Callable[..., Watch]
    ) -> tuple[list[dict[str, Any]], float]:
        """As many as fit into a turn, one at least, and the CPU that they took."""
        masked: list[dict[str, Any]] = []
        began_s = time.thread_time()
        spent_s = 0.0
        for record in records:
            watch = watch_for(min(LIMIT_S, left_s - spent_s))
            masked.append(self._redactor.mask_record(record, watch))
            spent_s = time.thread_time() - began_s
            if spent_s >= TURN_S:
                break
        return masked, spent_s


def _draining() -> Draining:
    return Draining("This server is shutting down. Try again; another server will answer.")
