"""What strangers may cause as often as they like: counted, and one line a minute in the log.

They must not fill the disk with lines, and nobody is named in one: neither an address nor a credential.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextvars import Context
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

LOG_EVERY_S = 60.0

Why = TypeVar("Why")


class Tally(Generic[Why]):
    """How often something happened since this process began, by reason. What is new is logged once a minute.

    `name`: what the log calls a reason.
    """

    def __init__(self, what: str, name: Callable[[Why], str]) -> None:
        self.counts: Counter[Why] = Counter()
        self._what = what
        self._name = name
        self._logged: Counter[Why] = Counter()
        self._is_due = False

    def count(self, why: Why) -> None:
        self.counts[why] += 1
        if not self._is_due:
            self._is_due = True
            # In a context of its own: the line is not about the request that happens to be the first.
            asyncio.get_running_loop().call_later(LOG_EVERY_S, self.log, context=Context())

    def log(self) -> None:
        """Log what is new."""
        self._is_due = False
        new = self.counts - self._logged
        self._logged = self.counts.copy()
        if new:
            said = ", ".join(f"{n} × {self._name(why)}" for why, n in new.items())
            logger.warning("%s within a minute: %s", self._what, said)
