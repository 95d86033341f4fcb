"""Hub: one subscription per stream and process, however many viewers the stream has.

A message from Redis is put aside for its topic. Topics are served in the order in which a message came for them. So
when a process cannot keep up, what waits for a topic grows, and leaves as one batch in one write per viewer: batches
grow instead of queues, and no topic starves. A round ends after SLICE_S, so that new connections, and viewers that
read the log, are served too.

If the subscription breaks, every topic is emptied and its `version` changes: every viewer reads the log again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import redis.exceptions
from redis.asyncio import Redis

from broker import gauges
from broker.errors import REDIS_AWAY, RedisUnavailable
from broker.live.subscription import Subscription, subscription
from broker.live.topic import RING_EVENTS, Topic
from broker.log.event import PUBLISHED_LINES
from broker.log.keys import Keys
from broker.store.errors import cause_of

logger = logging.getLogger(__name__)

LINGER_S = 10.0
"""A topic outlives its last viewer by this: phones come back, and find the ring."""

HEARTBEAT_S = 4.0
"""Silence that clients tolerate: httpx gives up after 5 s without a byte, OkHttp after 10, proxies after 30 to 60."""

TURN_S = 0.5
"""The wheel of the heartbeats: silence is noticed within a turn."""

TURNS = 8
"""In a heartbeat, at least."""

LOOK_S = 4.0
LOOK_STREAMS = 500
"""How often Redis is asked whether the followed streams are still there, and how many in one command: some 0.2 ms of
this process and of Redis. Nobody publishes that a stream was evicted, flushed or deleted."""

SLICE_S = 0.01
"""How long the hub writes before others have a turn."""

MEASURED_BATCH = 100
"""Of so many batches that are written, one is measured: it costs a tenth of writing it."""

ALL_RINGS_EVENTS = 200_000
MIN_RING_EVENTS = 16
"""What the rings of a process hold together, some 60 MB of deltas: with 10,000 streams, 20 events each."""

RECONNECT_S = (0.05, 0.1, 0.2, 0.5, 1.0)

STABLE_S = 1.0
"""A subscription that lasted so long was one. A shorter one may be refused for ever: a channel that is not allowed."""


class Hub:
    def __init__(self, redis: Redis, keys: Keys, *, heartbeat_s: float = HEARTBEAT_S) -> None:
        self.heartbeat_s = heartbeat_s
        self._measures_in = MEASURED_BATCH
        self.on_new_server: Callable[[], object] | None = None
        self.on_connected: Callable[[], object] | None = None
        self._redis = redis
        self._keys = keys
        self._topics: dict[bytes, Topic] = {}
        self._listeners: dict[bytes, dict[object, Callable[[bytes | None], object]]] = {}
        self._subscription: Subscription | None = None
        self._versions = 0
        self._server: str | None = None
        self._turns: deque[Topic] = deque()
        self._is_turning = False

    @asynccontextmanager
    async def join(self, sid: str) -> AsyncIterator[Topic]:
        """The topic of a stream, for as long as the viewer is here."""
        topic = self._enter(sid)
        try:
            yield topic
        finally:
            self._leave(topic)

    @contextmanager
    def listen(self, channel: str, on_word: Callable[[bytes | None], object]) -> Iterator[None]:
        """`on_word` gets each message of a channel that is no stream's, and None when its subscription was made: what
        was said before that may have been missed.
        """
        name, listener = channel.encode(), object()
        listeners = self._listeners.setdefault(name, {})
        if not listeners:
            self._send("SUBSCRIBE", name)
        listeners[listener] = on_word
        try:
            yield
        finally:
            del listeners[listener]
            if not listeners:
                del self._listeners[name]
                self._send("UNSUBSCRIBE", name)

    @property
    def is_connected(self) -> bool:
        return self._subscription is not None

    @property
    def topics(self) -> int:
        return len(self._topics)

    def has(self, sid: str, cursor: int) -> bool:
        """Whether a viewer at this cursor finds what it lacks here, and the log need not be asked."""
        topic = self._topics.get(self._channel(sid))
        return topic is not None and bool(topic.version) and topic.covers(cursor)

    def turns(self, heartbeat_s: float) -> int:
        """Of the wheel, in this time."""
        return max(1, round(heartbeat_s / self.turn_s))

    @property
    def turn_s(self) -> float:
        """Of the wheel."""
        return min(TURN_S, self.heartbeat_s / TURNS)

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

    def _send(self, command: str, channel: bytes) -> None:
        # While there is no connection nothing is sent: the next one subscribes to every topic there is.
        if self._subscription:
            self._subscription.send(command, [channel])

    # -- what comes ------------------------------------------------------------------------------------------

    def take(self, message: list[Any]) -> None:
        """A message of the subscription, as Redis sends it."""
        topic = self._topics.get(message[1])
        if topic is None:
            if message[0] in (b"message", b"subscribe"):
                for on_word in tuple(self._listeners.get(message[1], {}).values()):
                    on_word(message[2] if message[0] == b"message" else None)
            return
        if message[0] == b"message":
            if not topic.published:
                self._turns.append(topic)
                if not self._is_turning:
                    self._is_turning = True
                    asyncio.get_running_loop().call_soon(self._turn)
            topic.published.append(message[2])
        elif message[0] == b"subscribe":
            self._versions += 1
            topic.reset(self._versions)

    def _turn(self) -> None:
        ring_events = max(MIN_RING_EVENTS, min(RING_EVENTS, ALL_RINGS_EVENTS // max(1, len(self._topics))))
        ends_at_s = time.monotonic() + SLICE_S
        while self._turns:
            topic = self._turns.popleft()
            published, topic.published = topic.published, []
            if published:  # none: the subscription was made anew since
                try:
                    if topic.publish(published, ring_events):
                        self._measure(published[-1])
                except Exception as error:
                    # Something published that is no batch, perhaps: it must cost a reconnection, not every viewer.
                    logger.exception("stream %s: something else than events was published", topic.sid)
                    if self._subscription:
                        self._subscription.fail(redis.exceptions.RedisError(str(error)))
            if time.monotonic() > ends_at_s:
                break
        self._is_turning = bool(self._turns)
        if self._is_turning:
            asyncio.get_running_loop().call_soon(self._turn)

    def _measure(self, written: bytes) -> None:
        """How long one batch in MEASURED_BATCH was on its way. Redis' clock may be another machine's, and differ."""
        self._measures_in -= 1
        if not self._measures_in:
            self._measures_in = MEASURED_BATCH
            [t, _, _] = written.rsplit(b"\n", PUBLISHED_LINES - 1)[1:]
            gauges.delivery_seconds.observe(max(0.0, time.time() - int(t) / 1000))

    # -- the loops -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Hold the subscription for ever. Ends only by cancellation."""
        clock = asyncio.get_running_loop().time
        tries = 0
        while True:
            began_s = clock()
            try:
                async with self._subscribed() as connection:
                    await connection.keep()
            except (redis.exceptions.RedisError, OSError) as error:
                if tries == 0 or clock() - began_s > STABLE_S:
                    message = "Redis is away (%s): viewers wait until the subscription is made again"
                    logger.warning(message, cause_of(error), extra=REDIS_AWAY)
            except Exception:
                logger.exception("the subscription failed; it is made again")
            if clock() - began_s > STABLE_S:
                tries = 0
            await asyncio.sleep(RECONNECT_S[min(tries, len(RECONNECT_S) - 1)] * random.uniform(0.8, 1.2))
            tries += 1

    async def keep_alive(self) -> None:
        """One wheel for the heartbeats of all live viewers. Ends only by cancellation."""
        while True:
            await asyncio.sleep(self.turn_s)
            for topic in list(self._topics.values()):
                topic.turn()

    async def look_after(self) -> None:
        """See to it that no viewer waits at a stream that is gone. Ends only by cancellation."""
        while True:
            await asyncio.sleep(LOOK_S)
            with suppress(RedisUnavailable):  # then they wait for Redis
                await self.look()

    async def look(self) -> None:
        """Have the viewers of streams that are gone read the log, which says so. Raises RedisUnavailable."""
        followed = [topic for topic in self._topics.values() if topic.viewers and topic.version]
        for start in range(0, len(followed), LOOK_STREAMS):
            some = followed[start : start + LOOK_STREAMS]
            if await self._redis.exists(*map(self._meta, some)) < len(some):
                await self._wake_where_gone(some)

    async def _wake_where_gone(self, topics: Sequence[Topic]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for topic in topics:
                pipe.exists(self._meta(topic))
            are_there = await pipe.execute()
        for topic, is_there in zip(topics, are_there, strict=True):
            if not is_there and topic.version:
                self._versions += 1
                topic.reset(self._versions)

    def _meta(self, topic: Topic) -> str:
        return self._keys.stream(topic.sid).meta

    @asynccontextmanager
    async def _subscribed(self) -> AsyncIterator[Subscription]:
        async with subscription(self._redis, self.take) as made:
            self._meet(made.server)
            self._subscription = made
            try:
                if channels := [*self._topics, *self._listeners]:
                    made.send("SUBSCRIBE", channels)
                yield made
            finally:
                self._subscription = None
                for topic in self._topics.values():
                    topic.reset(version=0)

    def _meet(self, server: str) -> None:
        if self.on_new_server and self._server not in (None, server):
            self.on_new_server()
        self._server = server
        if self.on_connected:
            self.on_connected()
