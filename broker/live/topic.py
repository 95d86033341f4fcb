"""Topic: one followed stream in a process: its *ring* of recent events, and the viewers that it writes to directly.

The ring is dense (ids n, n+1, n+2 …). A viewer that is ready takes from it what lies after its own cursor. A viewer
that falls out of the ring reads the log, which is its queue. So nothing is queued for any viewer.

A *live* viewer is at the tail and has a lane (lane.py). A new batch is encoded once and written to all live viewers in
one loop, without a task of theirs. They share one cursor, `_live_at`: that makes the loop short and the seam simple. A
viewer joins only at that very cursor, and leaves with it. Anything but "the next events, and no ending" releases all
of them, and each continues by itself (tail.py), with the ring and the log:
- a hole, or a new pen's block: only the log knows which
- an overlap: a writer heals its log and publishes again what these viewers have, and more; or they are ahead of the
  hub
- an ending: it closes each viewer in its own way
- the subscription broke
Viewers that are written the same are *riders* together. Of a batch that holds nothing for their audience, they are
written nothing: not even an empty chunk, which would be their body's end. Their silence goes on, until they are due a
sign of life, whatever others are sent.
A viewer whose connection accepts no more (its transport has paused) is released alone; its cursor counts what was
written to it. So is one whose window is full (window.py), before the batch that is beyond it: its own task writes what
of that fits. Windows cost a comparison a batch: riders know the least of their limits, or less, for a limit only grows.

Viewers' cursors decide what is old and what is a hole, never the ring's: after a rollback of Redis the ring may be
ahead of the log. A batch that does not follow the ring's last event starts a new ring; a batch that overlaps replaces
what it overlaps. A terminal event is kept aside as `ending`, whatever its id: no viewer may miss it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import cast

from broker.dialects.format import Batch, Form, Plain
from broker.gauges import Sent
from broker.live.folded import Folded
from broker.live.lane import Lane, chunk
from broker.live.window import Count
from broker.log.event import PUBLISHED_LINES, RESTART, TERMINAL, Event, from_published
from broker.log.steps import Page

logger = logging.getLogger(__name__)

RING_EVENTS = 512
"""Some 5 to 20 s of a model's answer: a viewer that falls behind by more reads the log, until it has caught up."""

RING_BYTES = 256 * 1024
"""Events may be large: a ring must not be."""

_ENDINGS = frozenset(kind.encode() for kind in TERMINAL)
_RESTART = RESTART.encode()


class Topic:
    """`version` is 0 while the stream is not subscribed, and another number after each subscription."""

    __slots__ = (
        *("sid", "version", "changes", "ending", "viewers", "linger", "published", "reads"),
        *("_ring", "_ring_bytes", "_first", "_after", "_changed", "_live", "_live_at", "_windows", "_folds"),
        "_sent",
    )

    def __init__(self, sid: str) -> None:
        self.sid = sid
        self.version = 0
        self.changes = 0
        """Grows with each change: a viewer that found a hole reads the log once for each change, not in a loop."""
        self.ending: Event | None = None
        self.viewers = 0
        self.linger: asyncio.TimerHandle | None = None
        self.published: list[bytes] = []
        """What came and has not had its turn yet (hub.py)."""
        self.reads: dict[tuple[int, int, int, int], asyncio.Task[tuple[Page, Batch]]] = {}
        """Pages of the log that are being read just now (tail.py)."""
        self._ring: list[bytes] = []  # each event as it was published
        self._ring_bytes = 0
        self._first = 0  # the id of the ring's first event
        self._after: tuple[int, Batch] | None = None
        self._changed: asyncio.Event | None = None
        self._live: dict[_Group, _Riders] = {}
        self._live_at = 0
        self._windows = 0  # live viewers that have one
        self._folds = 0  # live viewers of a dialect
        self._sent = Sent()  # its viewers', who are all of one tenant; until one is here, nobody's

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change. Take it before any wait that follows a look."""
        if self._changed is None:
            self._changed = asyncio.Event()
        return self._changed

    def after(self, cursor: int) -> Batch | None:
        """What the ring has after `cursor`; None if there is a hole between them, which the log must fill.

        Viewers at the same cursor get the same batch, and with it its bytes.
        """
        if not self._ring or self._next <= cursor + 1:
            return Batch([])
        if self._first > cursor + 1:
            return None
        if self._after is None or self._after[0] != cursor:
            self._after = cursor, Batch(from_published(b"\n".join(self._ring[cursor + 1 - self._first :])), cursor)
        return self._after[1]

    def covers(self, cursor: int) -> bool:
        """Whether the ring knows what lies after `cursor`: the log need not be asked."""
        return bool(self._ring) and self._first <= cursor + 1 <= self._next

    @property
    def _next(self) -> int:
        """The id that would follow the ring."""
        return self._first + len(self._ring)

    def publish(self, messages: Sequence[bytes], ring_events: int = RING_EVENTS) -> int:
        """Take in published batches, in their order. Returns how many bytes were written to live viewers.

        Raises ValueError for what is no batch.
        """
        lines = (messages[0] if len(messages) == 1 else b"\n".join(messages)).split(b"\n")
        if len(lines) == PUBLISHED_LINES:  # by far the most
            return self._publish(int(lines[0]), messages, lines, ring_events)
        count, torn = divmod(len(lines), PUBLISHED_LINES)
        if torn:
            raise ValueError(f"an event is published in {PUBLISHED_LINES} lines")
        # What waited together goes out together, as far as it is dense.
        written, start = 0, 0
        for end in range(1, count + 1):
            first = int(lines[PUBLISHED_LINES * start])
            if end == count or int(lines[PUBLISHED_LINES * end]) != first + end - start:
                run = lines[PUBLISHED_LINES * start : PUBLISHED_LINES * end]
                events = [b"\n".join(run[at : at + PUBLISHED_LINES]) for at in range(0, len(run), PUBLISHED_LINES)]
                written += self._publish(first, events, run, ring_events)
                start = end
        return written

    def reset(self, version: int) -> None:
        self.version = version
        self.published.clear()
        self._cut(0, len(self._ring))
        self.ending = None
        self._release_all()
        self.wake()

    def wake(self) -> None:
        self.changes += 1
        self._after = None
        if self._changed:
            self._changed.set()
            self._changed = None

    def _publish(self, first: int, events: Sequence[bytes], lines: list[bytes], ring_events: int) -> int:
        """A dense batch. It is the way of every event: few calls, and what is seldom done stands apart."""
        ring = self._ring
        if first != self._next or not ring:
            self._restart_ring(first)
        ring += events
        self._ring_bytes += len(events[0]) if len(events) == 1 else sum(map(len, events))
        if len(ring) > ring_events or self._ring_bytes > RING_BYTES:
            self._trim_ring(ring_events)
        written = 0
        ends = lines[-2] in _ENDINGS
        if ends:
            [self.ending] = from_published(events[-1])
            self._release_all()
        elif self._live:
            last = first + len(events) - 1
            if first == self._live_at + 1:
                if self._windows:
                    self._release_full(lines)
                if self._folds and _RESTART in lines[2::PUBLISHED_LINES]:
                    self._release_folded()
                # Noted before the writes: a connection that pauses leaves with these written to it.
                self._live_at = last
                bodies = []
                for riders in self._live.values():
                    shown, body = riders.say(lines)
                    if body:
                        riders.written(shown)
                        bodies.append((tuple(riders.lanes), _framed(riders.form, body)))
                        self._sent.events += len(shown) // PUBLISHED_LINES * len(riders.lanes)
                written = _write(bodies)
                self._sent.bytes += written
            elif last != self._live_at:  # not what they have just been written, said again
                self._release_all()
        self.wake()
        return written

    def _restart_ring(self, first: int) -> None:
        """These events do not follow: they replace what they overlap, or all there is."""
        if self._ring and self._first <= first < self._next:
            self._cut(first - self._first, len(self._ring))
        else:
            self._cut(0, len(self._ring))
        if not self._ring:
            self._first = first

    def _trim_ring(self, ring_events: int) -> None:
        while len(self._ring) > ring_events or (self._ring_bytes > RING_BYTES and len(self._ring) > 1):
            front = 1 + len(self._ring) // 8  # in steps: a front that moves by one would move the whole list
            self._cut(0, front)
            self._first += front

    def _cut(self, start: int, end: int) -> None:
        if start < end:
            self._ring_bytes -= sum(map(len, self._ring[start:end]))
            del self._ring[start:end]

    # -- live viewers ----------------------------------------------------------------------------------------

    def can_carry(self, cursor: int) -> bool:
        """Whether a viewer that has seen all that the ring and the log had may be written to from here on.

        One that is ahead of the ring waits until that has caught up: alone at its cursor, it would keep all others out.
        """
        is_at_tail = not self._ring or self._next == cursor + 1
        return is_at_tail and (not self._live or self._live_at == cursor)

    async def carry(self, lane: Lane, cursor: int) -> int:
        """Write new events to this viewer until it must continue by itself. Returns its cursor at that point."""
        left = asyncio.get_running_loop().create_future()
        lane.topic, lane.left, self._sent = self, left, lane.sent
        self._live_at = cursor
        group = _group(lane)
        if group not in self._live:
            self._live[group] = _Riders(lane.form)
        self._live[group].add(lane)
        self._windows += lane.window is not None
        self._folds += isinstance(lane.form, Folded)
        try:
            at: int = await left
            return at
        finally:
            self._forget(lane)

    def release_lane(self, lane: Lane) -> None:
        """This viewer's connection takes no more, or is gone. What was written to it is on its way."""
        self._forget(lane)
        lane.leave(self._live_at)

    def turn(self) -> int:
        """A turn of the heartbeats' wheel. Returns how many bytes were written."""
        due = [
            (tuple(riders.lanes), chunk(heartbeat))
            for (_, heartbeat, turns), riders in self._live.items()
            if riders.are_due(turns) and heartbeat
        ]
        written = _write(due) if due else 0
        self._sent.bytes += written
        return written

    def silent_turns(self, lane: Lane) -> int:
        """Of the wheel, since this live viewer was written anything. 0 of one that is about to go on by itself."""
        riders = self._live.get(_group(lane))
        return riders.silent_turns if riders else 0

    def _release_full(self, lines: list[bytes]) -> None:
        """Those live viewers whose windows have no room for this batch."""
        for riders in tuple(self._live.values()):
            for lane in riders.without_room(lines):
                self.release_lane(lane)

    def _release_folded(self) -> None:
        """Viewers of dialects: at a restart, some of them end, and others begin anew."""
        for riders in tuple(self._live.values()):
            if riders.folded:
                for lane in tuple(riders.lanes):
                    self.release_lane(lane)

    def _release_all(self) -> None:
        live, self._live, self._windows, self._folds = self._live, {}, 0, 0
        for riders in live.values():
            for lane in tuple(riders.lanes):
                riders.remove(lane)
                lane.leave(self._live_at)

    def _forget(self, lane: Lane) -> None:
        lane.topic = None
        riders = self._live.get(_group(lane))
        if riders and lane in riders.lanes:
            riders.remove(lane)
            self._windows -= lane.window is not None
            self._folds -= isinstance(lane.form, Folded)
            if not riders.lanes:
                del self._live[_group(lane)]


class _Riders:
    """Live viewers that are written the same at the same time."""

    __slots__ = ("_count", "_ids", "_last", "_least", "_most", "_new", "folded", "form", "lanes", "silent_turns")

    def __init__(self, form: Form) -> None:
        self.form = form
        self.folded = form if isinstance(form, Folded) else None
        self.lanes: set[Lane] = set()
        self.silent_turns = 0
        """Of the hub's wheel, since they were written anything."""
        self._new: set[Lane] = set()  # that have been written no event yet
        self._last = b""  # the id of the last event that was written to them
        self._count: Count | None = None  # of events that were written since one of them has a window
        self._ids: Sequence[int] = ()  # of the events that are about to be written
        self._least = 0  # no window ends before that count
        self._most = 0  # the largest window

    def add(self, lane: Lane) -> None:
        self.lanes.add(lane)
        self._new.add(lane)
        if lane.window:
            self._count = self._count or Count()
            lane.window.rides(self._count)
            self._least = min(self._least, lane.window.limit)
            self._most = max(self._most, lane.window.size)

    def remove(self, lane: Lane) -> None:
        """With it goes what it was written."""
        if lane in self._new:
            self._new.remove(lane)
        elif lane in self.lanes and lane.wrote:
            lane.wrote = lane.wrote[0], int(self._last)
        self.lanes.discard(lane)
        if lane.window:
            lane.window.leaves()

    def without_room(self, lines: list[bytes]) -> list[Lane]:
        """Those whose windows these events, which are about to be written, would be beyond."""
        form = cast("Plain", self.form)  # dialects have no windows
        if self._count is None or not (shown := form.shown_lines(lines)):
            return []
        self._ids = _ids_sent(form, shown)
        total = self._count.total + len(self._ids)
        if total <= self._least:
            return []
        limits = {lane: lane.window.limit for lane in self.lanes if lane.window}
        self._least = min((limit for limit in limits.values() if limit >= total), default=0)
        return [lane for lane, limit in limits.items() if limit < total]

    def say(self, lines: list[bytes]) -> tuple[Sequence[bytes], bytes]:
        """Those events of a batch that they are shown, and the bytes: none, if nothing is to be written."""
        if self.folded:
            return self.folded.say(lines)
        form = cast("Plain", self.form)
        shown = form.shown_lines(lines)
        return shown, form.encode_lines(shown) if shown else b""

    def written(self, lines: Sequence[bytes]) -> None:
        """They are being written these events."""
        self.silent_turns = 0
        self._last = lines[-PUBLISHED_LINES]
        if self._count and self._ids:
            self._count.add(self._ids)
            self._count.forget(self._count.total - self._most)
            self._ids = ()
        if self._new:
            first = int(lines[0])
            for lane in self._new:
                lane.wrote = lane.wrote or (first, first)
            self._new.clear()

    def are_due(self, turns: int) -> bool:
        """Whether a sign of life is, at this turn of the wheel."""
        self.silent_turns += 1
        return self.silent_turns % turns == 0


def _ids_sent(form: Plain, lines: Sequence[bytes]) -> Sequence[int]:
    """Of the events that these become in this form."""
    if len(lines) == PUBLISHED_LINES:
        return (int(lines[0]),)
    return [event.id for event in form.sent(from_published(b"\n".join(lines)))]


def _framed(form: Form, body: bytes) -> bytes:
    return body if form.is_socket else chunk(body)


_Group = tuple[Form, bytes, int]
"""What live viewers have in common that are written the same at the same time: form, heartbeat, turns between two."""


def _group(lane: Lane) -> _Group:
    return lane.form, lane.heartbeat, lane.turns


def _write(bodies: list[tuple[tuple[Lane, ...], bytes]]) -> int:
    written = 0
    for lanes, body in bodies:
        for lane in lanes:
            try:
                lane.write(body)
            except Exception:
                # It ends this viewer, which did not get these events, and no other.
                logger.exception("a viewer could not be written to; its connection is given up")
                lane.lose()
        written += len(body) * len(lanes)
    return written
