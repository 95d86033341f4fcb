"""What a process has cost: CPU time and memory, from /proc, its threads and descendants included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path


def tree(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    with suppress(FileNotFoundError):  # it may end while it is looked at
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree(int(child))


def cpu_ns(pid: int) -> int:
    """On a CPU so far, to the ns: the first field of schedstat, of every thread."""
    total = 0
    for process in tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{process}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0])
    return total


class CpuMeter:
    """CPU time of each part of a side since the meter was made."""

    def __init__(self, parts: Mapping[str, int]) -> None:
        self._parts = parts
        self._before = {name: cpu_ns(pid) for name, pid in parts.items()}

    def spent_us(self) -> dict[str, float]:
        return {name: (cpu_ns(pid) - self._before[name]) / 1000 for name, pid in self._parts.items()}


def memory_bytes(pid: int) -> tuple[int, int]:
    """(RSS, PSS) of a process with its descendants."""
    totals = {"Rss": 0, "Pss": 0}
    for process in tree(pid):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in totals:
                totals[name] += int(value.split()[0]) * 1024
    return totals["Rss"], totals["Pss"]
