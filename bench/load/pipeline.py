"""Commands to Redis packed by hand, one pipeline under way: what is written meanwhile goes with the next.

As our worker's group commit sends them, and as a redis-py pipeline would, at a fifth of the publisher's CPU: on a small
machine that is what the servers under test would lack.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any, cast

import hiredis

Gathered = tuple[list[bytes], int]
"""Packed commands and how many events they write."""


class Pipeline(asyncio.Protocol):
    """`take` gives the commands of what has been gathered; `is_taken`, whether an answer says that it was written."""

    def __init__(self, take: Callable[[], Gathered], is_taken: Callable[[Any], bool]) -> None:
        self.untaken = 0
        self._take = take
        self._is_taken = is_taken
        self._answers = hiredis.Reader()
        self._awaited = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        """Send what has been gathered, now or when the pipeline under way is answered."""
        if not self._awaited:
            commands, self.untaken = self._take()
            self._awaited = len(commands)
            if commands:
                self._idle.clear()
                self._transport.write(b"".join(commands))
            else:
                self._idle.set()

    async def flush(self) -> None:
        await self._idle.wait()

    def data_received(self, data: bytes) -> None:
        self._answers.feed(data)
        while (answer := self._answers.gets()) is not False:
            if not self._is_taken(answer):
                print(f"Redis refused an event: {answer!r}", file=sys.stderr)
                os._exit(1)  # the loop would only log an exception here
            self._awaited -= 1
        self.send()


async def open_pipeline(port: int, take: Callable[[], Gathered], is_taken: Callable[[Any], bool]) -> Pipeline:
    loop = asyncio.get_running_loop()
    _, pipeline = await loop.create_connection(lambda: Pipeline(take, is_taken), "127.0.0.1", port)
    return pipeline


def packed(*arguments: object) -> bytes:
    """Arguments of a command as RESP, without its count."""
    texts = (part if isinstance(part, bytes) else str(part).encode() for part in arguments)
    return b"".join(b"$%d\r\n%b\r\n" % (len(text), text) for text in texts)
