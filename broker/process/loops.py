"""A background task has an owner that notices its death: `for_ever` starts a loop again that ended or failed.

`Loops` owns the loops of a process. If one of them is gone for good all the same (its own task was cancelled, by a
library's mistake), a process that looks alive would not do its work: it ends, and its supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

import redis.exceptions

from broker import gauges
from broker.errors import REDIS_AWAY, StoreUnavailable, WrongType
from broker.store.errors import cause_of

logger = logging.getLogger(__name__)

RESTART_S = (0.1, 0.5, 1.0, 2.0)

STABLE_S = 10.0
"""A loop that ran so long has not failed at starting: its next failure is restarted at once again."""

LOOK_S = 0.5
"""Between two looks at how late the loop comes."""

Run = Callable[[], Awaitable[object]]


class Loops:
    """Starts these loops. `on_death` is called if one is gone for good."""

    def __init__(self, loops: Mapping[str, Run], on_death: Callable[[], object]) -> None:
        self._is_ending = False
        self._on_death = on_death
        self._tasks = [asyncio.create_task(for_ever(name, run), name=name) for name, run in loops.items()]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def end(self) -> None:
        self._is_ending = True
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not self._is_ending:
            logger.critical("the %s loop is gone; this process ends, so that it is started again", task.get_name())
            self._on_death()


async def watch_lag() -> None:
    """Measure for ever how late this loop comes: what every viewer, and every lease, waits for."""
    clock = asyncio.get_running_loop().time
    while True:
        due_s = clock() + LOOK_S
        await asyncio.sleep(LOOK_S)
        gauges.loop_lag_seconds.observe(max(0.0, clock() - due_s))


async def for_ever(name: str, run: Run) -> None:
    """Run a loop that must not end, and start it again when it does. Ends only by cancellation."""
    clock = asyncio.get_running_loop().time
    tries = 0
    while True:
        began = clock()
        try:
            await run()
            logger.error("the %s loop ended; it is started again", name)
        except (redis.exceptions.RedisError, StoreUnavailable, OSError) as error:
            message = "Redis is away (%s): the %s loop is started again until it is back"
            logger.warning(message, cause_of(error), name, extra=REDIS_AWAY)
        except WrongType as error:
            message = "the %s loop met a key that is not ours (%s); it is started again"
            logger.warning(message, name, cause_of(error), extra={"lasting": f"{name}: a key that is not ours"})
        except Exception:
            logger.exception("the %s loop failed; it is started again", name)
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            # arq's own task, perhaps.
            logger.warning("something within the %s loop was cancelled; it is started again", name)
        if is_being_cancelled():
            raise asyncio.CancelledError  # a library has turned our cancellation into an error of its own
        tries = 0 if clock() - began > STABLE_S else tries + 1
        await asyncio.sleep(RESTART_S[min(tries, len(RESTART_S) - 1)])


def is_being_cancelled() -> bool:
    """Whether the current task was cancelled, and not only something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
