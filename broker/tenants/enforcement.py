"""Whether limits of callers refuse, or only count what they would refuse (LASTEVENT_LIMITS=observe).

What protects the process itself is no limit of callers, and is always enforced: all its viewers, all its connections,
sizes, the store's reserve.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextvars import Context

logger = logging.getLogger(__name__)

LOG_EVERY_S = 60.0


class Enforcement:
    """Each limit asks here when it is reached. `counts`: how often, by the limit's name, since this process began.

    `on_limited`: called with that name.
    """

    def __init__(self, *, observes: bool = False, on_limited: Callable[[str], object] = lambda _: None) -> None:
        self.observes = observes
        self._on_limited = on_limited
        self.counts: Counter[str] = Counter()
        self._logged: Counter[str] = Counter()
        self._is_due = False

    def refuses(self, limit: str) -> bool:
        """Count one that is beyond this limit. Whether it is refused."""
        self.counts[limit] += 1
        self._on_limited(limit)
        if self.observes and not self._is_due:
            self._is_due = True
            # In a context of its own: the line is not about the request, or the key, that happens to be the first.
            asyncio.get_running_loop().call_later(LOG_EVERY_S, self.log, context=Context())
        return not self.observes

    def refuses_always(self, limit: str) -> None:
        """Count one that was refused because this limit protects the process."""
        self._on_limited(limit)

    def log(self) -> None:
        """Log what is new, if it was only observed: one line, which names no caller."""
        self._is_due = False
        new = self.counts - self._logged
        self._logged = self.counts.copy()
        if new and self.observes:
            would = ", ".join(f"{n} × {limit}" for limit, n in sorted(new.items()))
            logger.warning("LASTEVENT_LIMITS=observe; enforced, within a minute these would be refused: %s", would)
