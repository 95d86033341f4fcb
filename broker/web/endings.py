"""How a viewer's connection ends (viewer.py says how each looks on the wire)."""

from __future__ import annotations

import random
from enum import Enum

FAREWELL_S = 1.0
"""How long a drain waits for one viewer's last bytes."""

RETRY_MS = 1000
RETRY_JITTER_MS = 1000
"""Viewers that were cut together must not come back together."""


def retry_delay_ms() -> int:
    """After how long a viewer reconnects: each gets another delay."""
    return RETRY_MS + random.randrange(RETRY_JITTER_MS + 1)


class Ended(Enum):
    FINISHED = "finished"
    LEFT = "left"
    DRAINED = "drained"
    TOO_SLOW = "too_slow"
    VANISHED = "vanished"
