"""Stream ids that follow from a name of the caller's: a run's id in AG-UI. No table of names is needed, or can be lost.

The name's owner may ask for it again at any time: after Redis has lost the stream and all traces of it, or long after
its retention. Then a stream begins under an id that was one before, while somebody may still hold ids of its events. So
each such stream begins as the successor of all that may have been (scripts/create.lua): its blocks of ids are counted
from one fixed time, and its epoch is that clock's. tests/protocol shows what happens otherwise.
"""

from __future__ import annotations

import hashlib

import orjson

COUNTED_FROM_MS = 1_767_225_600_000
"""2026-01-01: ids have 14 digits in the first years, and are below 2^53 for 285."""


def given_sid(dialect: str, tenant: str, name: str) -> str:
    """The stream that this name means. Whoever may use the tenant's keys may compute it; nobody else's is found so."""
    return hashlib.sha256(orjson.dumps([dialect, tenant, name])).hexdigest()[:32]
