"""A write that is on Redis' disk before its caller goes on: of what is rare, and must not be forgotten once answered.

WAITAOF speaks of the connection that wrote, so both go in one pipeline. A Redis without append-only file, or older than
7.2, is not asked; there such a write stands as all others do (ARCHITECTURE, Guarantees).
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from broker.errors import RedisUnavailable

DISK_MS = 2000
"""An fsync of `everysec` comes within a second, or two while the disk is busy."""

ASKED_SINCE = (7, 2)


async def write_durably(client: Redis, *command: Any) -> Any:
    """The command's answer, once it is on disk. Raises RedisUnavailable where that takes too long: it may stand."""
    info = await client.info()
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if version < ASKED_SINCE or not info.get("aof_enabled"):
        return await client.execute_command(*command)  # type: ignore[no-untyped-call]
    async with client.pipeline(transaction=False) as pipe:
        pipe.execute_command(*command)
        pipe.execute_command("WAITAOF", 1, 0, DISK_MS)
        answer, confirmed = await pipe.execute()
    if not confirmed[0]:
        raise RedisUnavailable("Redis has not said in time that this is on its disk. It may stand: look, or repeat.")
    return answer
