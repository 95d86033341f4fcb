"""What a part of a test takes of Python's memory at its peak, beyond what was there before."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


class Peak:
    bytes = 0


@contextmanager
def peak_of() -> Iterator[Peak]:
    """`bytes` is known when it ends. Allocations cost several times as much CPU meanwhile."""
    peak = Peak()
    tracemalloc.start()
    try:
        yield peak
        peak.bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
