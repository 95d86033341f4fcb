"""A line: a connection to Redis for one caller who sends batch after batch. Made by redis-py, read by hiredis directly.

A pool's connection costs such a caller a pipeline, a checkout, a packing in Python (17 µs for an append of one event,
where hiredis takes 3) and an await for each answer. Here a batch is one write, one future and one timer.

States: no connection → connected → a batch under way → connected. Only one batch is under way at a time; who comes
meanwhile waits for a turn. Failure points:
- the connection breaks, or Redis is silent amid a batch: that batch fails as a whole, although Redis may have carried
  some of it out. Only the caller knows whether it may be sent again, so it is not sent again here
- the caller is cancelled amid a batch: the connection is dropped, or the late answers would be taken for the next one's
- a connection that was silent may have been forgotten by what is between (silence.py). It is not asked first, which
  would cost each batch after a silence a round trip: it must begin to answer soon
- a replica answers (READONLY): the connection is dropped, and the next batch finds the primary
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

import hiredis
import redis.exceptions
from redis._parsers.base import BaseParser
from redis.asyncio.connection import AbstractConnection

from broker.store.silence import ANSWER_S, ASK_AFTER_S

Command = tuple[Any, ...]
"""Its name and its arguments: bytes, str, int or float."""

SILENCE_S = 3.0
"""A Redis that says nothing for so long amid a batch is away. Less than a pool's connections wait: the batch may renew
leases of 6 s, the last renewal was up to 2 s before, and heartbeats wait for the turn of a batch that is stuck."""

CLOSED = "the line has been closed"


class Line:
    """`make`: a new connection that is not yet connected."""

    def __init__(self, make: Callable[[], AbstractConnection]) -> None:
        self._make = make
        self._turn = asyncio.Lock()
        self._wire: _Wire | None = None
        self._is_closed = False

    async def send(self, commands: Callable[[], Sequence[Command]]) -> list[Any]:
        """Their answers, in order. What Redis refused is among them, as the exception that redis-py makes of it.

        `commands`: asked, for one at least, when nothing is waited for any more: neither a turn nor a connection, amid
        which the process may stand still, so that what they would have said holds no more.
        Raises RedisError or OSError if not every answer came.
        """
        async with self._turn:
            if self._wire is None or self._wire.is_lost:
                self._wire = await self._connect()
            batch = commands()
            return await self._wire.exchange(b"".join(map(hiredis.pack_command, batch)), len(batch))

    def close(self) -> None:
        """For good: a batch under way fails."""
        self._is_closed = True
        if self._wire:
            self._wire.drop(redis.exceptions.ConnectionError(CLOSED))

    async def _connect(self) -> _Wire:
        if self._is_closed:
            raise redis.exceptions.ConnectionError(CLOSED)
        connection = self._make()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
            if self._is_closed:  # meanwhile
                raise redis.exceptions.ConnectionError(CLOSED)
            return _Wire(connection)
        except BaseException:
            with suppress(redis.exceptions.RedisError, OSError):
                await connection.disconnect(nowait=True)
            raise


class _Wire(asyncio.Protocol):
    """One connection, from redis-py's greeting to its end."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(
            protocolError=redis.exceptions.InvalidResponse,
            replyError=BaseParser.parse_error,
        )
        self._answers: list[Any] = []
        self._due = 0
        self._done: asyncio.Future[list[Any]] | None = None
        self._unsent_bytes = 0
        self._heard_at_s = self._loop.time()
        self._limit_s = SILENCE_S
        # redis-py has read its last answer to the last byte: from here on, what comes is for this protocol. Its writer
        # is kept, since it closes the transport when it is collected, and its connection complains of one left open.
        self._writer = connection._writer
        connection._writer = connection._reader = None
        self._transport = cast("asyncio.Transport", self._writer.transport)  # type: ignore[union-attr]
        self._transport.set_protocol(self)
        self.is_lost = self._transport.is_closing()

    async def exchange(self, packed: bytes, count: int) -> list[Any]:
        now_s = self._loop.time()
        self._limit_s = ANSWER_S if now_s - self._heard_at_s > ASK_AFTER_S else SILENCE_S
        self._heard_at_s = now_s
        self._answers, self._due = [], count
        done: asyncio.Future[list[Any]] = self._loop.create_future()
        self._done = done
        timer = self._loop.call_later(self._limit_s, self._look, done)
        try:
            self._transport.write(packed)
            self._unsent_bytes = self._transport.get_write_buffer_size()
            return await done
        except asyncio.CancelledError:
            self.drop(redis.exceptions.ConnectionError("a batch was given up"))
            if not done.cancelled():
                done.exception()  # it was just lost, too; asyncio complains of one that nobody has looked at
            raise
        finally:
            timer.cancel()
            self._done = None

    def drop(self, why: Exception) -> None:
        self.is_lost = True
        self._transport.abort()
        if self._done and not self._done.done():
            self._done.set_exception(why)

    def _look(self, done: asyncio.Future[list[Any]]) -> None:
        """Whether Redis has been silent for too long, amid this batch. While it takes in what is sent, it lives."""
        if done is not self._done or done.done():
            return
        before, self._unsent_bytes = self._unsent_bytes, self._transport.get_write_buffer_size()
        if self._unsent_bytes < before:
            self._heard_at_s = self._loop.time()
        left_s = self._heard_at_s + self._limit_s - self._loop.time()
        if left_s > 0:
            self._loop.call_later(left_s, self._look, done)
        else:
            self.drop(redis.exceptions.TimeoutError("Redis does not answer"))

    # -- asyncio.Protocol ------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._done is None or self._done.done():
            self.drop(redis.exceptions.InvalidResponse("an answer to nothing"))
            return
        self._heard_at_s, self._limit_s = self._loop.time(), SILENCE_S
        reader, answers = self._reader, self._answers
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not False:
                answers.append(answer)
        except redis.exceptions.InvalidResponse as error:
            self.drop(error)
            return
        if len(answers) < self._due:
            return
        if len(answers) > self._due:
            self.drop(redis.exceptions.InvalidResponse("more answers than commands"))
        else:
            if any(isinstance(answer, redis.exceptions.ReadOnlyError) for answer in answers):
                self.is_lost = True
                self._transport.abort()
            self._done.set_result(answers)

    def connection_lost(self, error: Exception | None) -> None:
        self.drop(redis.exceptions.ConnectionError(f"the connection was closed ({error or 'by Redis'})"))
