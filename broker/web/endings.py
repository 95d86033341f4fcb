"""How a viewer's connection ends (viewer.py says how each looks on the wire)."""

from __future__ import annotations

import random
from enum import Enum

from broker.errors import LasteventError, RateLimited, TooManyViewers

FAREWELL_S = 1.0
"""How long a drain waits for one viewer's last bytes."""

RETRY_MS = 1000
RETRY_JITTER_MS = 1000
"""Viewers that were cut together must not come back together."""


LIMITED_RETRY_MS = 10_000
LIMITED_RETRY_JITTER_MS = 10_000
"""For who has too many connections already, or comes too often."""


ENDED_RETRY_MS = 60_000
ENDED_RETRY_JITTER_MS = 30_000
"""For who comes back though its stream has ended: some clients do so until somebody closes them."""


def ended_delay_ms() -> int:
    return ENDED_RETRY_MS + random.randrange(ENDED_RETRY_JITTER_MS + 1)


def retry_delay_ms(refused: LasteventError | None = None) -> int:
    """After how long a viewer reconnects: each gets another delay."""
    is_its_own = isinstance(refused, TooManyViewers) and refused.limit != "process"
    if is_its_own or isinstance(refused, RateLimited):
        return LIMITED_RETRY_MS + random.randrange(LIMITED_RETRY_JITTER_MS + 1)
    return RETRY_MS + random.randrange(RETRY_JITTER_MS + 1)


class Ended(Enum):
    FINISHED = "finished"
    LEFT = "left"
    EXPIRED = "token_expired"
    REVOKED = "revoked"
    DRAINED = "drained"
    TOO_SLOW = "too_slow"
    VANISHED = "vanished"
