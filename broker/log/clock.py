"""RedisClock: Redis' time as this process knows it, for stamps of events whose step asks Redis for no time."""

from __future__ import annotations

from broker.log.pulse import now_s


class RedisClock:
    """How far Redis' clock is ahead of this process' own, from the answers that say what time it was there.

    It was that time at some moment between sending and receiving. So an answer gives a least and a greatest offset; the
    least one is taken, which is never ahead of Redis. A later answer replaces it if it is closer (its least one is
    greater), or if the clocks have moved against each other (it is beyond the greatest).
    """

    def __init__(self) -> None:
        self._offset_ms: float | None = None

    def hear(self, now_ms: int, sent_at_s: float) -> None:
        """An answer, received now, of what was sent at that moment (`pulse.now_s`)."""
        least_ms, greatest_ms = now_ms - now_s() * 1000, now_ms - sent_at_s * 1000
        if self._offset_ms is None or not least_ms < self._offset_ms <= greatest_ms + 1:  # Redis' ms are whole
            self._offset_ms = least_ms

    def now_ms(self) -> int | None:
        """None: no answer has said so yet."""
        return None if self._offset_ms is None else int(self._offset_ms + now_s() * 1000)
