"""A background task has an owner that notices its death: this one starts it again, and says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import redis.exceptions

from broker.errors import RedisUnavailable

logger = logging.getLogger(__name__)

RESTART_S = (0.1, 0.5, 1.0, 2.0)

STABLE_S = 10.0
"""A loop that ran so long has not failed at starting: its next failure is restarted at once again."""


async def for_ever(name: str, run: Callable[[], Awaitable[object]]) -> None:
    """Run a loop that must not end, and start it again when it does. Ends only by cancellation."""
    clock = asyncio.get_running_loop().time
    tries = 0
    while True:
        began = clock()
        try:
            await run()
            logger.error("the %s loop ended; it is started again", name)
        except (redis.exceptions.RedisError, RedisUnavailable, OSError) as error:
            logger.warning("the %s loop lost Redis (%s); it is started again", name, type(error).__name__)
        except Exception:
            logger.exception("the %s loop failed; it is started again", name)
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError  # a library has turned our cancellation into an error of its own
        tries = 0 if clock() - began > STABLE_S else tries + 1
        await asyncio.sleep(RESTART_S[min(tries, len(RESTART_S) - 1)])
