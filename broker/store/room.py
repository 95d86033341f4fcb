"""Room: whether Redis has memory for a new stream.

A full Redis refuses every write, also the endings of what runs. So new streams leave it a reserve. A process asks at
most once a second how much is used, and adds what it stores itself. The bursts of other processes in that second may go
beyond the line, which the reserve is there for.
"""

from __future__ import annotations

import time

from redis.asyncio import Redis

from broker.errors import StoreFull

ASK_S = 1.0


class Room:
    """`reserve`: the part of maxmemory that stays free. A Redis without maxmemory always has room."""

    def __init__(self, redis: Redis, reserve: float) -> None:
        self._redis = redis
        self._reserve = reserve
        self._asked_s = -ASK_S
        self._left_bytes = float("inf")

    async def require(self, size: int = 0) -> None:
        """For a stream whose request has so many bytes. Raises StoreFull, or RedisUnavailable."""
        now_s = time.monotonic()
        if now_s - self._asked_s >= ASK_S:
            self._asked_s = now_s  # before the answer: of those who come meanwhile, none asks too
            memory = await self._redis.info("memory")
            self._left_bytes = (1 - self._reserve) * (memory.get("maxmemory") or float("inf")) - memory["used_memory"]
        if self._left_bytes < size:
            raise StoreFull(
                "Redis is nearly full, and its last memory is kept for the streams that run. Nothing was started. "
                "Try again later."
            )

    def take(self, size: int) -> None:
        """So many bytes have been stored since."""
        self._left_bytes -= size
