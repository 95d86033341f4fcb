"""Writes that are on Redis' own disk before anybody is told that they were made: of what is rare, and must not come
undone with a Redis that has lost its last second.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio.client import Pipeline

from broker.errors import RedisRefuses, RedisUnavailable

ON_DISK_MS = 3000
"""A Redis that syncs once a second takes one, or two while its disk is busy. Beyond this its disk is in trouble."""


class Kept(Enum):
    """Whether Redis has said that a write is on its disk; the value is for whoever made it."""

    ON_DISK = "on disk"
    NO_FILE = "Redis keeps no append-only file: if it ends, this is lost. Set appendonly yes."
    CANNOT_TELL = "This Redis cannot say what is on its disk (7.2 or Valkey can): a crash within a second loses this."
    LATE = "Redis has not said yet that this is on its disk: if it crashes now, this is lost. Look at its disk."


async def write_durably(pipeline: Pipeline) -> Kept:
    """Carry out this pipeline of writes (not a transaction), and ask for its disk. Raises RedisUnavailable: they may
    have been carried out.
    """
    # On the same connection: WAITAOF speaks of the writes of its own.
    pipeline.execute_command("WAITAOF", 1, 0, ON_DISK_MS)
    try:
        *answers, on_disk = await pipeline.execute(raise_on_error=False)
    except RedisRefuses as refused:
        if "WAITAOF" not in str(refused.__cause__).upper():
            raise
        return Kept.CANNOT_TELL  # the others came before it, and a refusal of theirs would have been told
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return _kept(on_disk)


async def require_durable(pipeline: Pipeline) -> None:
    """As write_durably; raises RedisUnavailable if the disk has not confirmed in time. A Redis that keeps no file, or
    cannot be asked, keeps this as it keeps everything: whoever runs it so has chosen that.
    """
    if await write_durably(pipeline) is Kept.LATE:
        raise RedisUnavailable("Redis has not written this to its disk in time. It may be done: look, or ask again.")


def _kept(answer: Any) -> Kept:
    if isinstance(answer, redis_errors.ResponseError):
        if "appendonly" in str(answer):
            return Kept.NO_FILE
        if isinstance(answer, redis_errors.NoPermissionError) or "unknown command" in str(answer):
            return Kept.CANNOT_TELL
    if isinstance(answer, Exception):
        raise answer
    return Kept.ON_DISK if answer[0] else Kept.LATE
