"""Intake: what the bodies of starts, which may have 32 MiB each, take of this process: memory and turns.

A body counts while it comes, and until its stream has been created: what is announced and never sent takes nothing from
others. One that would not fit is refused before it is read. Few are unpacked and stored at a time, since each is in
memory several times meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext

from broker.errors import RateLimited

AT_ONCE_BYTES = 256 * 2**20
UNPACKED_AT_ONCE = 2

SMALL_BYTES = 64 * 1024
"""What has no more waits for no turn."""


class Intake:
    """`at_once`: bytes of all bodies together."""

    def __init__(self, at_once: int = AT_ONCE_BYTES) -> None:
        self._at_once = at_once
        self._turns = asyncio.Semaphore(UNPACKED_AT_ONCE)
        self.held = 0

    @contextmanager
    def place(self) -> Iterator[Place]:
        """For one body, for as long as it is needed."""
        place = Place(self)
        try:
            yield place
        finally:
            self.held -= place.size

    def require(self, size: int) -> None:
        """Raises RateLimited if so many bytes more would be too many."""
        if self.held + size > self._at_once:
            raise RateLimited("Too many large requests are being sent to this server. Try again.", "requests_at_once")

    def turn(self, size: int) -> AbstractAsyncContextManager[None]:
        """For a body of this size to be unpacked and stored."""
        return nullcontext() if size <= SMALL_BYTES else self._turns


class Place:
    """`size`: what has come of the body."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.size = 0

    def announce(self, size: int) -> None:
        """The body will have so many bytes. Raises RateLimited if there is no room for it."""
        self._intake.require(size)

    def take(self, size: int) -> None:
        """So many bytes of it have come. Raises RateLimited."""
        self._intake.require(size)
        self._intake.held += size
        self.size += size

    def turn(self) -> AbstractAsyncContextManager[None]:
        """To unpack and store it."""
        return self._intake.turn(self.size)
