"""The one Redis connection of a hub, in subscriber mode: made and authenticated by redis-py, read by hiredis directly.

redis-py's PubSub reconnects by itself and does not report it: what was published in between would be missed in
silence. And it awaits for every message, where one wake-up here takes in all that the kernel holds: 9 µs of CPU a
message, 5.5 for its connection alone, 0.7 for this (bench/parts.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import hiredis
import redis.exceptions
from redis._parsers.helpers import parse_info
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from broker.log.servers import server_of

PING_S = 2.0
SILENCE_S = 5.0
"""A subscription may be silent for ever and look alive. A ping every 2 s must be answered; two missed: it is dead."""


class Subscription(asyncio.Protocol):
    """`on_message` gets each message as Redis sends it: [b"message", channel, payload], [b"subscribe", …] …"""

    def __init__(self, connection: AbstractConnection, server: str, on_message: Callable[[list[Any]], None]) -> None:
        self.server = server
        self._connection = connection
        self._on_message = on_message
        self._reader = hiredis.Reader()
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[Exception] = self._loop.create_future()
        self._heard_at_s = self._loop.time()
        # redis-py has read the last answer to its last byte: from here on, what comes is for this protocol.
        self._transport = cast("asyncio.Transport", connection._writer.transport)  # type: ignore[union-attr]
        self._transport.set_protocol(self)

    def send(self, command: str, channels: Iterable[bytes] = ()) -> None:
        if self._transport.is_closing():
            return  # `keep` is about to say so; the next connection subscribes to everything there is
        self._transport.write(b"".join(self._connection.pack_command(command, *channels)))

    def fail(self, error: Exception) -> None:
        """Give this connection up; `keep` raises it."""
        if not self._lost.done():
            self._lost.set_result(error)
        self._transport.abort()

    async def keep(self) -> None:
        """Until it is lost: raises why. Silence is broken by pings."""
        while True:
            await asyncio.wait([self._lost], timeout=PING_S)
            if self._lost.done():
                raise self._lost.result()
            if self._loop.time() - self._heard_at_s > SILENCE_S:
                raise redis.exceptions.TimeoutError("it no longer answers pings")
            self.send("PING")

    # -- asyncio.Protocol ------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._heard_at_s = self._loop.time()
        reader, on_message = self._reader, self._on_message
        try:
            reader.feed(data)
            while (message := reader.gets()) is not False:
                if isinstance(message, list):
                    on_message(message)
                # Whatever else is no list answers a ping that was sent before any SUBSCRIBE.
                elif isinstance(message, Exception):
                    raise redis.exceptions.ResponseError(str(message))
        except Exception as error:
            self.fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(redis.exceptions.ConnectionError(f"the connection was closed ({exc or 'by Redis'})"))


@asynccontextmanager
async def subscription(client: Redis, on_message: Callable[[list[Any]], None]) -> AsyncIterator[Subscription]:
    """A connection of its own beside the client's pool. Raises RedisError or OSError."""
    pool = client.connection_pool
    connection: AbstractConnection = pool.connection_class(**pool.connection_kwargs)
    try:
        await connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        await connection.send_command("INFO", "server", "replication")
        info = await connection.read_response(timeout=SILENCE_S)
        if info is None:  # how redis-py says that the time is over
            raise redis.exceptions.TimeoutError("it does not answer")
        server = server_of(parse_info(info))  # type: ignore[no-untyped-call]
        yield Subscription(connection, server, on_message)
    finally:
        with suppress(redis.exceptions.RedisError, OSError):
            await connection.disconnect(nowait=True)
