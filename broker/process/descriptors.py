"""How many descriptors this process may have: each connection takes one, each file.

The soft limit is often 1,024 or 256, for programs that cannot count further, and far below the hard one. Where no
descriptor is left a connection is reset by nobody who could say why, and a generation fails at its provider's door: so
a process bounds what it takes.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress

KEPT = 256
"""For Redis, the archive, files. Half of all at most, where a process may have few."""

OPEN_MAX = 10_240
"""What macOS gives, though it names no limit."""

RAISE_IT = "Raise the limit: `ulimit -n`, `LimitNOFILE=` of systemd, or `ulimits` of compose."


def raise_limit() -> int:
    """The soft limit, raised to the hard one, or as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, OPEN_MAX):
        if _number(soft) < _number(wanted):
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return _number(wanted)
    return _number(soft)


def room_of(limit: int) -> int:
    """Of so many descriptors, those for what callers cause."""
    return limit - min(KEPT, limit // 2)


def _number(limit: int) -> int:
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit
