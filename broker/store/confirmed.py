"""Writes that are on disk before anybody is told that they were made: a key that was revoked must not come back with
a Redis that has lost its last second.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from broker.errors import RedisRefuses, RedisUnavailable

CONFIRM_MS = 3000
"""An append-only file is synced once a second; beyond this its disk is in trouble."""


class Kept(Enum):
    """Whether Redis has said that a change is on its disk."""

    ON_DISK = "on disk"
    NO_FILE = "Redis keeps no append-only file: if it ends, this is lost. Set appendonly yes."
    CANNOT_TELL = "This Redis cannot say what is on its disk (7.2 or Valkey can): a crash within a second loses this."
    LATE = "Redis has not said yet that this is on its disk: if it crashes now, this is lost. Look at its disk."


async def write(client: Redis, *commands: Sequence[Any]) -> Kept:
    """Carry out these commands, one after the other, and wait until Redis' own disk has what they wrote.

    Raises RedisUnavailable, after which some of them may have been carried out.
    """
    async with client.client() as one:  # WAITAOF speaks of the writes of its own connection
        for command in commands:
            await one.execute_command(*command)  # type: ignore[no-untyped-call]
        try:
            answer = await one.execute_command("WAITAOF", 1, 0, CONFIRM_MS)  # type: ignore[no-untyped-call]
        except (RedisRefuses, redis_errors.ResponseError):  # no such command (7.0), no file, no permission
            return await _why_not(one)
        return Kept.ON_DISK if answer[0] else Kept.LATE


async def write_confirmed(client: Redis, *commands: Sequence[Any]) -> None:
    """As `write`. Raises RedisUnavailable where that takes too long, too: they are carried out, and may be lost again.

    A Redis without an append-only file has no disk to wait for: whoever runs it so has chosen that.
    """
    if await write(client, *commands) is Kept.LATE:
        raise RedisUnavailable("Redis has not written this to its disk in time. It may be done: ask again.")


async def _why_not(redis: Redis) -> Kept:
    try:
        info = await redis.info("persistence")
    except (RedisRefuses, redis_errors.ResponseError):
        return Kept.CANNOT_TELL
    return Kept.CANNOT_TELL if info.get("aof_enabled") else Kept.NO_FILE
