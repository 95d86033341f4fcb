"""How much of a provider's answer a worker takes: one that does not end, or unpacks to gigabytes, would stop them all.

A bound is looked at as the bytes come, before anything joins them: joining a line that does not end, again and again,
held every generation of the process for seconds, longer than a lease.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

MIB = 2**20
EVENTS = "text/event-stream"


class Bounds(NamedTuple):
    event_bytes: int = 4 * MIB
    """One event, and so one line; also an answer that is no stream of events: it is read whole."""
    answer_bytes: int = 64 * MIB
    """One attempt's answer. 128,000 deltas of 130 to 300 bytes are 17 to 38 MB."""


DEFAULT_BOUNDS = Bounds()


class OutOfBounds(Exception):
    """The answer is longer than it may be, or compressed though nobody asked for that. The message says which."""


def bound_of(status: int, headers: Mapping[str, str], bounds: Bounds) -> int:
    """How many bytes of an answer's body are taken. Raises OutOfBounds for a compressed one, except a refusal.

    Of a compressed refusal only the status is taken.
    """
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        if status < 400:
            raise OutOfBounds("It is compressed.")
        return 0
    is_events = 200 <= status < 300 and headers.get("content-type", "").startswith(EVENTS)
    return bounds.answer_bytes if is_events else bounds.event_bytes
