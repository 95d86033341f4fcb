"""Window: how many events a viewer may be sent beyond those that it has acknowledged. No I/O.

Events are counted, never ids: at a takeover a new writer's ids begin far beyond the old one's, and a window of ids
would stand still for ever. What is acknowledged is an id, so what was sent is known as *runs* of ids without a hole:
of most streams that is one run.

While a topic writes to a viewer (topic.py), it counts for all of them together (`Riders`), and the window knows its
place in that count. What the viewer's own task writes, the window counts by itself.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence

KEPT_RUNS = 64
"""Beyond so many, runs that no window needs any more are forgotten now and then."""


class Count:
    """Events in the order of their ids, as far as `upto` is asked."""

    __slots__ = ("_before", "_firsts", "_last", "total")

    def __init__(self) -> None:
        self.total = 0
        self._firsts: list[int] = []  # the first id of each run
        self._before: list[int] = []  # how many events were before that run
        self._last = 0

    @property
    def last(self) -> int:
        """The id of the last event; 0: there was none."""
        return self._last

    def add(self, ids: Sequence[int]) -> None:
        """Ids ascend, from call to call too."""
        at = 0
        while at < len(ids):
            end = len(ids)
            if ids[end - 1] - ids[at] != end - 1 - at:  # seldom: a hole
                end = at + 1
                while end < len(ids) and ids[end] == ids[end - 1] + 1:
                    end += 1
            if not self._firsts or ids[at] != self._last + 1:
                self._firsts.append(ids[at])
                self._before.append(self.total)
            self.total += end - at
            self._last = ids[end - 1]
            at = end

    def upto(self, event_id: int) -> int:
        """How many events there were with this id or a lower one. What was forgotten counts."""
        if event_id >= self._last:
            return self.total
        run = bisect_right(self._firsts, event_id) - 1
        if run < 0:
            return self._before[0] if self._before else 0
        end = self._before[run + 1] if run + 1 < len(self._before) else self.total
        return min(self._before[run] + event_id - self._firsts[run] + 1, end)

    def forget(self, count: int) -> None:
        """The first `count` events: what is asked about them from now on need not be exact."""
        if len(self._firsts) > KEPT_RUNS:
            run = bisect_right(self._before, count) - 1
            if run > 0:
                del self._firsts[:run], self._before[:run]

    def take(self, other: Count, since: int) -> None:
        """All that another has counted, but for its first `since` events."""
        if other.total == since:
            return
        ahead = self.total - since
        for run in range(max(0, bisect_right(other._before, since) - 1), len(other._firsts)):
            skipped = max(0, since - other._before[run])
            self._firsts.append(other._firsts[run] + skipped)
            self._before.append(ahead + other._before[run] + skipped)
        self.total = ahead + other.total
        self._last = other._last


class Window:
    """`size`: how many events may be unacknowledged."""

    __slots__ = ("_acknowledged", "_grew", "_joined", "_ride", "_sent", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._sent = Count()
        self._acknowledged = 0  # events
        self._ride: Count | None = None
        self._joined = 0
        self._grew: asyncio.Event | None = None

    @property
    def room(self) -> int:
        """How many events may be sent now."""
        ridden = self._ride.total - self._joined if self._ride else 0
        return self.size - (self._sent.total + ridden - self._acknowledged)

    def wrote(self, ids: Sequence[int]) -> None:
        """The viewer's own task has sent these."""
        self._sent.add(ids)
        self._sent.forget(self._acknowledged)

    def acknowledge(self, event_id: int) -> None:
        """The viewer has all events up to this one. What it was not sent, it cannot have."""
        if self._ride and self._ride.total > self._joined and event_id > self._sent.last:
            count = self._sent.total + max(0, self._ride.upto(event_id) - self._joined)
        else:
            count = self._sent.upto(event_id)
        if count > self._acknowledged:
            self._acknowledged = count
            if self._grew:
                self._grew.set()

    async def has_room(self) -> None:
        while self.room <= 0:
            self._grew = asyncio.Event()
            await self._grew.wait()
        self._grew = None

    # -- with a topic ----------------------------------------------------------------------------------------

    def rides(self, count: Count) -> None:
        """From here on a topic writes, and counts so."""
        self._ride, self._joined = count, count.total

    @property
    def limit(self) -> int:
        """Up to which total of that count it may write."""
        assert self._ride
        return self._ride.total + self.room

    def leaves(self) -> None:
        """The topic writes no more."""
        if self._ride:
            self._sent.take(self._ride, self._joined)
            self._sent.forget(self._acknowledged)
            self._ride = None
