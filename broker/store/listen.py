"""Listen to one channel, on a connection of the pool, and notice when that is dead: silence is broken by pings."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from broker.errors import RedisUnavailable
from broker.store.connect import Client

PING_S = 1.5
"""After so much silence Redis is asked for a sign of life, and again; a third silence means that nobody is there."""

PINGS = 2


async def messages(redis: Client, channel: str) -> AsyncGenerator[bytes | None, None]:
    """What is published there, for ever, and None at each subscription: something may have been missed before it.

    Raises RedisUnavailable. Close it (contextlib.aclosing) to give the connection back.
    """
    try:
        async with redis.pubsub() as subscribed:
            await subscribed.subscribe(channel)
            unanswered = 0
            while unanswered <= PINGS:
                message = await subscribed.get_message(timeout=PING_S)
                if message is None:
                    unanswered += 1
                    await subscribed.ping()
                    continue
                unanswered = 0
                if message["type"] in ("message", "subscribe"):
                    yield message["data"] if message["type"] == "message" else None
    except Exception as error:
        if meaning := redis.meaning(error):
            raise meaning from error
        raise
    raise RedisUnavailable("The subscription is no longer answered. It is made again.")
