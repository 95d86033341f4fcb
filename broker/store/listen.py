"""Listen to one channel, on a connection of the pool, and notice when that is dead: silence is broken by pings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from broker.errors import RedisUnavailable
from broker.store.connect import Client

PING_S = 1.5
"""After so much silence Redis is asked for a sign of life, and again; a third silence means that nobody is there."""

PINGS = 2

AGAIN_S = 0.05
"""Before a subscription that broke is made again: what is published meanwhile is missed."""


async def messages(redis: Client, channel: str) -> AsyncGenerator[bytes | None, None]:
    """What is published there, for ever, and None at each subscription: something may have been missed before it.

    A subscription that breaks is made again at once. Raises RedisUnavailable if it cannot be made.
    Close it (contextlib.aclosing) to give the connection back.
    """
    while True:
        was_made = False
        try:
            async with aclosing(_until_it_breaks(redis, channel)) as heard:
                async for message in heard:
                    was_made = True
                    yield message
        except Exception as error:
            meaning = redis.meaning(error)
            if was_made and isinstance(meaning, RedisUnavailable):
                await asyncio.sleep(AGAIN_S)
            elif meaning:
                raise meaning from error
            else:
                raise


async def _until_it_breaks(redis: Client, channel: str) -> AsyncGenerator[bytes | None, None]:
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
    raise RedisUnavailable("The subscription is no longer answered.")
