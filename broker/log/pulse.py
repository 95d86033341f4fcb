"""Pulse: notices that this process stood still for a lease, and so has lost the right to heal."""

from __future__ import annotations

import asyncio
import logging
import time

logger = logging.getLogger(__name__)

PULSE_S = 0.5
"""Far below a lease: a gap of a lease between two beats is then a stop, and not a slow beat."""


def now_s() -> float:
    """A clock that also runs while the machine is suspended, where the system has one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Pulse:
    """Notices that this process has stood still for a lease: a signal stopped it, or its machine was suspended.

    Whether Redis answered does not matter here: while Redis is away for all processes, none can take a stream.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._beat_s = self._stood_still_at_s = now_s()

    async def run(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(PULSE_S)

    def stood_still_since(self, moment_s: float) -> bool:
        self._look()  # the caller may be the first code to run again
        return self._stood_still_at_s > moment_s

    def _look(self) -> None:
        moment_s = now_s()
        if moment_s - self._beat_s > self._lease_s:
            logger.warning("this process stood still for %.0f s; its leases may have run out", moment_s - self._beat_s)
            self._stood_still_at_s = moment_s
        self._beat_s = moment_s
