"""How a viewer's connection ends, and a begun answer that must not end properly."""

from __future__ import annotations

from enum import Enum

FAREWELL_S = 1.0
"""How long a drain waits for one viewer's last bytes."""


class Cut(Exception):
    """Ends a begun answer without its proper end; door.py lets it pass quietly."""


class Ended(Enum):
    FINISHED = "finished"
    LEFT = "left"
    DRAINED = "drained"
    TOO_SLOW = "too_slow"
    VANISHED = "vanished"
