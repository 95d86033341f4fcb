"""A write that is on Redis' disk before its caller goes on: of what is rare, and must not be forgotten once answered.

WAITAOF speaks of the connection that wrote, so both go in one pipeline. A Redis without append-only file, older than
7.2, or one that may not be asked (NOPERM) cannot say; there the write stands as all others do (Guarantees).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis.exceptions
from redis.asyncio import Redis

from broker.errors import RedisUnavailable
from broker.store.errors import translated

DISK_MS = 2000
"""An fsync of `everysec` comes within a second, or two while the disk is busy."""


async def write_durably(client: Redis, *command: Any) -> Any:
    """The command's answer, once it is on disk. Raises RedisUnavailable where that takes too long: it may stand."""
    async with client.pipeline(transaction=False) as pipe:
        pipe.execute_command(*command)
        pipe.execute_command("WAITAOF", 1, 0, DISK_MS)
        answer, confirmed = await pipe.execute(raise_on_error=False)
    if isinstance(answer, Exception):
        raise translated(answer) or answer
    if isinstance(confirmed, Sequence) and not confirmed[0]:
        raise RedisUnavailable("Redis has not said in time that this is on its disk. It may stand: look, or repeat.")
    if isinstance(confirmed, Exception) and not isinstance(confirmed, redis.exceptions.ResponseError):
        raise translated(confirmed) or confirmed
    return answer
