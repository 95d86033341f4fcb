"""Listen to one channel, on a connection of the pool, and notice when that is dead: silence is broken by pings."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from redis.asyncio import Redis

from broker.errors import RedisUnavailable
from broker.store.errors import translating_redis_errors

PING_S = 2.0
"""After so much silence Redis is asked for a sign of life, and again; a third silence means that nobody is there."""

PINGS = 2


async def messages(redis: Redis, channel: str) -> AsyncGenerator[bytes | None, None]:
    """What is published there, for ever, and None at each subscription: something may have been missed before it.

    Raises RedisUnavailable. Close it (contextlib.aclosing) to give the connection back.
    """
    unanswered = 0
    with translating_redis_errors():
        async with redis.pubsub() as subscribed:
            await subscribed.subscribe(channel)
            while True:
                message = await subscribed.get_message(timeout=PING_S)
                if message is not None:
                    unanswered = 0
                elif unanswered < PINGS:
                    unanswered += 1
                    await subscribed.ping()
                else:
                    raise RedisUnavailable("The subscription is no longer answered. It is made again.")
                if message and message["type"] in ("message", "subscribe"):
                    yield message["data"] if message["type"] == "message" else None
