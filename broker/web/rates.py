"""How often a read token may connect: counted in this process, forgotten each minute."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from broker.errors import RateLimited


class ConnectRate:
    """Counts calls in each minute of the clock (s)."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._minute = 0
        self._calls: Counter[str] = Counter()

    def require(self, token: str) -> None:
        """Count a call. Raises RateLimited."""
        minute = int(self._clock() // 60)
        if minute != self._minute:
            self._minute = minute
            self._calls.clear()
        self._calls[token] += 1
        if self._calls[token] > self._per_minute:
            raise RateLimited(
                f"This token has connected more than {self._per_minute} times in a minute. Wait before the next time.",
                "connects_per_minute",
            )
