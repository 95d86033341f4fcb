"""How often somebody may come: counted in this process, forgotten each minute."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from broker.errors import RateLimited
from broker.tenants.enforcement import Enforcement

Clock = Callable[[], float]

MOST_NAMES = 100_000
"""Of one minute, some 15 MB. Who comes under more names than that is not held up by counting them."""


class PerMinute:
    """Counts by name, in each minute of the clock (s)."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._minute = 0
        self._counts: Counter[str] = Counter()

    def add(self, name: str) -> int:
        """How many there are now, with this one."""
        counts = self._of_this_minute()
        if name in counts or len(counts) < MOST_NAMES:
            counts[name] += 1
        return counts[name]

    def count(self, name: str) -> int:
        return self._of_this_minute()[name]

    @property
    def left_s(self) -> float:
        """Until the minute is over."""
        return 60 - self._clock() % 60

    def _of_this_minute(self) -> Counter[str]:
        minute = int(self._clock() // 60)
        if minute != self._minute:
            self._minute = minute
            self._counts.clear()
        return self._counts


class ConnectRate:
    """How often a token may connect."""

    def __init__(self, per_minute: int, enforcement: Enforcement, clock: Clock = time.monotonic) -> None:
        self._per_minute = per_minute
        self._enforcement = enforcement
        self._calls = PerMinute(clock)

    def require(self, token: str) -> None:
        """Count a call. Raises RateLimited."""
        if self._calls.add(token) > self._per_minute and self._enforcement.refuses("connects_per_minute"):
            raise RateLimited(
                f"This token has connected more than {self._per_minute} times in a minute. Wait before the next time.",
                "connects_per_minute",
            )


class UnauthorizedGate:
    """Who has presented too many bad credentials is not listened to until the minute is over: guessing is slow, and
    costs us next to nothing. By address, None for those that are not counted (addresses.py).
    """

    def __init__(self, per_minute: int, enforcement: Enforcement, clock: Clock = time.monotonic) -> None:
        self._per_minute = per_minute
        self._enforcement = enforcement
        self._refused = PerMinute(clock)

    def is_shut(self, address: str | None) -> bool:
        return address is not None and self._refused.count(address) >= self._per_minute

    def refuse(self) -> None:
        """Raises RateLimited, unless limits are only counted."""
        if self._enforcement.refuses("unauthorized_per_minute"):
            limited = RateLimited(
                f"This address has sent {self._per_minute} keys or tokens within a minute that are not valid here. "
                "Nothing was done. Mend the credential, and wait until the minute is over.",
                "unauthorized_per_minute",
            )
            limited.retry_after_s = self._refused.left_s
            raise limited

    def count(self, address: str | None) -> None:
        """It was refused just now."""
        if address is not None:
            self._refused.add(address)
