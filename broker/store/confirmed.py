"""Writes that are on disk before anybody is told that they were made: a key that was revoked must not come back with
a Redis that has lost its last second.
"""

from __future__ import annotations

import redis.exceptions
from redis.asyncio.client import Pipeline

from broker.errors import RedisRefuses, RedisUnavailable
from broker.store.connect import Client

CONFIRM_MS = 2000
"""A Redis that syncs once a second takes one, and a slow disk some more."""


async def execute_confirmed(pipeline: Pipeline) -> None:
    """Carry out this pipeline of writes, and return once Redis' own disk has them. `confirming` makes one.

    Raises RedisUnavailable: they may have been carried out, and may be lost again. A Redis without an append-only file
    keeps nothing on disk, and there is nothing to wait for: whoever runs it so has chosen that. One that cannot be
    asked (7.0) has carried them out, and keeps them as it keeps everything.
    """
    # On the same connection: WAITAOF speaks of the writes of its own.
    pipeline.execute_command("WAITAOF", 1, 0, CONFIRM_MS)
    try:
        *answers, on_disk = await pipeline.execute(raise_on_error=False)
    except RedisRefuses as refused:
        if "WAITAOF" not in str(refused.__cause__).upper():
            raise
        return  # the others came before it, and a refusal of theirs would have been told
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    if isinstance(on_disk, redis.exceptions.ResponseError):
        if "appendonly" in str(on_disk) or "unknown command" in str(on_disk):
            return
        raise on_disk
    if isinstance(on_disk, Exception):
        raise on_disk
    if not on_disk[0]:
        raise RedisUnavailable("Redis has not written this to its disk in time. It may be done: ask again.")


def confirming(client: Client) -> Pipeline:
    return client.pipeline(transaction=False)
