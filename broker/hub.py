"""Hub: one subscription a stream a process, however many viewers the stream has.

A topic is a followed stream. It keeps a *ring*: the most recent events, dense (ids n, n+1, n+2 …), each encoded
once. Viewers are not pushed to: each takes from the ring what lies after its own cursor, when it is ready for it.
So nothing is queued for anybody, a slow viewer costs nobody anything, and one that falls out of the ring reads
the log, which is its queue.

What is seen already and what is a hole is judged by each viewer's cursor, never here: after a rollback of Redis
the hub may be ahead of the log. The hub's own rules:
- a batch that does not follow the ring's last event starts a new ring (a hole or a new pen: only the log knows);
  one that overlaps replaces what it overlaps (a writer healing its log says the same again)
- the connection broke: every ring is emptied and every `version` changes, so that every viewer reads the log again
- a terminal event is kept aside as `ending`, whatever its id: no viewer may miss it

One Redis connection, read by one loop that owns it; joining and leaving only send commands on it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import redis.exceptions
from redis._parsers.helpers import parse_info
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from broker.event import from_published
from broker.keys import Keys
from broker.log import server_of
from broker.sse import Frame, frames

logger = logging.getLogger(__name__)

RING_EVENTS = 512
"""Some 5 to 20 s of a model's answer: a viewer that falls behind by more reads the log, until it has caught up."""

RING_BYTES = 256 * 1024
"""Events may be large: a ring must not be."""

LINGER_S = 10.0
"""A topic outlives its last viewer by this: phones come back, and find the ring."""

PING_S = 5.0
SILENCE_S = 12.0
"""A subscription may be silent for ever and look alive. A ping every 5 s must be answered; two missed: it is dead."""

RECONNECT_S = (0.05, 0.1, 0.2, 0.5, 1.0)


class Topic:
    """One followed stream. `version` is 0 while it is not subscribed, and another number after each subscription."""

    def __init__(self, sid: str) -> None:
        self.sid = sid
        self.version = 0
        self.mark = 0
        """Grows with whatever happens here: a viewer that found a hole reads the log once a mark, not in a loop."""
        self.ending: Frame | None = None
        self.viewers = 0
        self.linger: asyncio.TimerHandle | None = None
        self._ring: list[Frame] = []
        self._ring_bytes = 0
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change. Take it before looking: then no change falls between the look and the wait."""
        return self._changed

    def after(self, cursor: int) -> list[Frame] | None:
        """What the ring has after `cursor`; None if there is a hole between them, which the log must fill."""
        if not self._ring or self._ring[-1].event.id <= cursor:
            return []
        first = self._ring[0].event.id
        return self._ring[cursor + 1 - first :] if first <= cursor + 1 else None

    def publish(self, batch: list[Frame]) -> None:
        first = batch[0].event.id
        if self._ring and self._ring[0].event.id <= first <= self._ring[-1].event.id + 1:
            self._cut(first - self._ring[0].event.id, len(self._ring))
        else:
            self._cut(0, len(self._ring))
        self._ring += batch
        self._ring_bytes += _size(batch)
        while len(self._ring) > RING_EVENTS or (self._ring_bytes > RING_BYTES and len(self._ring) > 1):
            self._cut(0, 1 + len(self._ring) // 8)  # in steps: a front that moves by one would move the whole list
        if batch[-1].event.is_terminal:
            self.ending = batch[-1]
        self.wake()

    def reset(self, version: int) -> None:
        self.version = version
        self._cut(0, len(self._ring))
        self.ending = None
        self.wake()

    def wake(self) -> None:
        self.mark += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def _cut(self, start: int, end: int) -> None:
        if start < end:
            self._ring_bytes -= _size(self._ring[start:end])
            del self._ring[start:end]


def _size(batch: list[Frame]) -> int:
    return sum(len(frame.sse) for frame in batch)


class Hub:
    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._topics: dict[bytes, Topic] = {}
        self._commands: asyncio.Queue[tuple[str, bytes]] | None = None
        self._versions = 0
        self.on_new_server: Callable[[], object] | None = None
        self._server: str | None = None

    @asynccontextmanager
    async def join(self, sid: str) -> AsyncIterator[Topic]:
        """The topic of a stream, for as long as the viewer is here."""
        topic = self._enter(sid)
        try:
            yield topic
        finally:
            self._leave(topic)

    @property
    def is_connected(self) -> bool:
        return self._commands is not None

    @property
    def topics(self) -> int:
        return len(self._topics)

    def _enter(self, sid: str) -> Topic:
        channel = self._channel(sid)
        topic = self._topics.get(channel)
        if topic is None:
            topic = self._topics[channel] = Topic(sid)
            self._send("SUBSCRIBE", channel)
        if topic.linger:
            topic.linger.cancel()
            topic.linger = None
        topic.viewers += 1
        return topic

    def _leave(self, topic: Topic) -> None:
        topic.viewers -= 1
        if topic.viewers == 0:
            topic.linger = asyncio.get_running_loop().call_later(LINGER_S, self._drop, topic)

    def _drop(self, topic: Topic) -> None:
        channel = self._channel(topic.sid)
        del self._topics[channel]
        self._send("UNSUBSCRIBE", channel)

    def _channel(self, sid: str) -> bytes:
        return self._keys.stream(sid).live.encode()

    # -- the connection ------------------------------------------------------------------------------

    def _send(self, command: str, channel: bytes) -> None:
        # While there is no connection nothing is sent: the next one subscribes to every topic there is.
        if self._commands:
            self._commands.put_nowait((command, channel))

    async def run(self) -> None:
        """Hold the subscription for ever. Ends only by cancellation."""
        tries = 0
        while True:
            try:
                async with self._connected() as connection:
                    tries = 0
                    await self._receive(connection)
            except (redis.exceptions.RedisError, OSError) as error:
                if tries == 0:
                    logger.warning("the subscription broke (%s); viewers wait while it is made again", error)
            except Exception:
                # Something published that is no batch, perhaps: it must cost a reconnection, not every viewer.
                logger.exception("the subscription failed; it is made again")
            await asyncio.sleep(RECONNECT_S[min(tries, len(RECONNECT_S) - 1)] * random.uniform(0.8, 1.2))
            tries += 1

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AbstractConnection]:
        # A connection of its own, not redis-py's PubSub: that one reconnects by itself and tells nobody,
        # and what was published in between would be missed in silence.
        pool = self._redis.connection_pool
        connection: AbstractConnection = pool.connection_class(**pool.connection_kwargs)
        sending: asyncio.Task[None] | None = None
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
            await self._meet_server(connection)
            self._commands = asyncio.Queue()
            for channel in self._topics:
                self._send("SUBSCRIBE", channel)
            sending = asyncio.create_task(_send_commands(connection, self._commands), name="hub commands")
            yield connection
        finally:
            self._commands = None
            for topic in self._topics.values():
                topic.reset(version=0)
            if sending:
                sending.cancel()
                await asyncio.wait([sending], timeout=1)
            with suppress(redis.exceptions.RedisError, OSError):
                await connection.disconnect(nowait=True)

    async def _meet_server(self, connection: AbstractConnection) -> None:
        await connection.send_command("INFO", "server", "replication")
        info = await connection.read_response(timeout=SILENCE_S)
        server = server_of(parse_info(info))  # type: ignore[no-untyped-call]
        if self.on_new_server and self._server not in (None, server):
            self.on_new_server()
        self._server = server

    async def _receive(self, connection: AbstractConnection) -> None:
        while True:
            message: Any = await connection.read_response(timeout=SILENCE_S)
            match message:
                case None:  # how redis-py says that the time is over
                    raise redis.exceptions.TimeoutError("it no longer answers pings")
                case [b"message", channel, payload]:
                    if topic := self._topics.get(channel):
                        topic.publish(frames(from_published(payload)))
                case [b"subscribe", channel, _]:
                    if topic := self._topics.get(channel):
                        self._versions += 1
                        topic.reset(self._versions)


async def _send_commands(connection: AbstractConnection, commands: asyncio.Queue[tuple[str, bytes]]) -> None:
    """Write what join and leave ask for, and a ping into every silence. If it fails, the reader fails with it."""
    try:
        while True:
            command: tuple[str | bytes, ...] = ("PING",)
            with suppress(TimeoutError):
                async with asyncio.timeout(PING_S):
                    command = await commands.get()
            await connection.send_command(*command)
    except (redis.exceptions.RedisError, OSError):
        pass
    finally:
        await connection.disconnect(nowait=True)
