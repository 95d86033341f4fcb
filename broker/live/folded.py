"""Folded: a stream in a dialect's words (dialects/fold.py): one of these a stream and dialect in a process, shared by
all of its viewers.

The state behind event N follows from the log alone. So it is kept here, and no viewer has one: a viewer has its
cursor. States that are kept are *marks*: one in MARK_EVENTS events, one at each restart, and the last few at which a
viewer stood. Whoever comes back finds the mark before its cursor, and the log's events from there on lead to it. The
first viewer of a long log folds all of it, a page at a time; those that come meanwhile wait for the same walk.

While viewers are live (topic.py), one state goes on with them, and a batch is said once for all.

The races, and why each is closed:
- a viewer joins those that are live: their state stands at the topic's own cursor, and so must the viewer's. If none is
  live, the state is set to where the viewer stands, at once before it rides: nothing is awaited in between
- Redis lost a part of the log, and a mark lies in it: a walk that begins there finds its event absent, and the mark is
  forgotten. Ids name one event for ever, so a mark whose event is there is right
- a viewer's own event is lost: Lost. It is told so, and begins again (web/dialect.py)
- a restart while viewers are live: they are released before it, for some dialects end a connection there
- the state of a place that is no longer kept: it is folded again, from the mark before
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple
from weakref import WeakValueDictionary

from broker.dialects.fold import Dialect, Facts, Fold, step
from broker.dialects.format import Batch, Written
from broker.dialects.sse import Gap
from broker.log.event import PUBLISHED_LINES, RESTART, Event, is_internal, is_terminal, merge_deltas, public
from broker.log.readable import ReadableLog

MARK_EVENTS = 256
"""From one mark to the next: to fold so many takes some 1 ms."""

RECENT = 16
"""Places at which viewers stand, or have stood: those of the ring's readers, who differ by a batch or two."""

ALL_EVENTS = 400_000
"""Folded events of all streams that are kept: a mark has some 200 bytes, a text its parts, 40 MB together."""

EVENT_BYTES = 100
"""Of one of them. A request that a fold keeps, with images perhaps, counts as so many events as it is large."""


class Lost(Exception):
    """There is no such place in the log, or none any more."""


class Place(NamedTuple):
    """Where a viewer begins: behind the event `cursor`, once it was sent `first`."""

    cursor: int
    first: bytes = b""


class Folded:
    """A form (dialects/format.py) of which each word follows from those before."""

    is_socket = False

    def __init__(self, sid: str, dialect: Dialect, facts: Facts) -> None:
        self.sid = sid
        self.dialect = dialect
        self.access_name = dialect.name
        self.events = 0
        """How many it has folded in one go, at most: what it costs to keep."""
        self._facts = facts
        self._first: Fold | None = None
        self._ids: list[int] = []  # of the marks, ascending
        self._marks: dict[int, Fold] = {}
        self._recent: OrderedDict[int, Fold] = OrderedDict()
        self._openings: dict[int, bytes] = {}  # restart → what a viewer that begins there is told first
        self._walking = asyncio.Lock()
        self._live: Fold | None = None
        self._live_at = -1
        self._said: tuple[Sequence[bytes], bytes] = ((), b"")

    @property
    def cost(self) -> int:
        """What it takes to keep, in events."""
        return max(MARK_EVENTS, self.events) + self._facts.request_size // EVENT_BYTES

    # -- where a viewer begins -----------------------------------------------------------------------------------

    async def after(self, log: ReadableLog, event_id: int, index: int) -> Place:
        """Behind this payload of this event. Raises Lost."""
        if event_id == 0:
            return Place(0)
        async with self._walking, aclosing(self._walk(log, lambda at, _: at < event_id)) as walk:
            async for event, payloads, fold in walk:
                if event.id >= event_id:
                    if event.id > event_id or index >= max(1, len(payloads)):
                        break
                    self._keep(event_id, fold)
                    return Place(event_id, self._framed(event_id, payloads, index + 1))
        raise Lost

    async def after_number(self, log: ReadableLog, number: int) -> Place:
        """Behind the payload with this number; beyond the end of a finished stream, at its end. Raises Lost."""
        if number < 0:
            return Place(0)
        async with self._walking:
            at = self._nearest(lambda _, fold: fold.number <= number)
            async with aclosing(self._walk(log, lambda _, fold: fold.number <= number)) as walk:
                async for event, payloads, fold in walk:
                    at = event.id
                    if fold.number > number:
                        self._keep(at, fold)
                        index = number - (fold.number - len(payloads))
                        if index < 0:  # a number that was never given
                            raise Lost
                        return Place(at, self._framed(at, payloads, index + 1))
        page = await log.read_page(self.sid, at)
        if page.events or not is_terminal(page.state):
            raise Lost
        return Place(at)

    async def attempt(self, log: ReadableLog) -> Place:
        """At the beginning of the attempt that there is."""
        await self.stand_at_tail(log)
        for at in sorted(self._openings, reverse=True):
            if (await log.read_page(self.sid, at, 1)).present:
                return Place(at, self._openings[at])
            self._forget_mark(at)  # Redis has lost that restart
        return Place(0)

    # -- states --------------------------------------------------------------------------------------------------

    def stands_at(self, cursor: int) -> bool:
        return cursor == 0 or cursor in self._recent or cursor in self._marks

    async def stand(self, log: ReadableLog, cursor: int) -> None:
        """Have the state behind this event. Raises Lost."""
        if self.stands_at(cursor):
            return
        async with self._walking:
            if not self.stands_at(cursor):
                await self._walk_to(log, cursor)

    async def stand_at_tail(self, log: ReadableLog) -> int:
        """Have the state behind the last event that there is; returns its id."""
        async with self._walking:
            fold = None
            at = self._nearest(_any)
            async with aclosing(self._walk(log, _any)) as walk:
                async for event, _, fold in walk:  # noqa: B007  # the last one is meant
                    at = event.id
            if fold:
                self._keep(at, fold)
            return at

    def state(self, cursor: int) -> Fold:
        """A copy of the state of a place at which it stands. Raises Lost."""
        if cursor == 0:
            # Once: of a dialect that tells the request, it encodes all of it.
            self._first = self._first or self.dialect.begin(self._facts)
            return self._first.copy()
        if (kept := self._recent.get(cursor) or self._marks.get(cursor)) is None:
            raise Lost
        return kept.copy()

    async def _walk_to(self, log: ReadableLog, cursor: int) -> None:
        async with aclosing(self._walk(log, lambda at, _: at <= cursor)) as walk:
            async for event, _, fold in walk:
                if event.id == cursor:
                    self._keep(cursor, fold)
                    return
                if event.id > cursor:
                    break
        raise Lost

    def _nearest(self, is_before: Callable[[int, Fold], bool]) -> int:
        """The last place whose state is kept and of which this holds."""
        end = bisect_left(self._ids, True, key=lambda at: not is_before(at, self._marks[at]))
        mark = self._ids[end - 1] if end else 0
        return max([mark, *(at for at, fold in self._recent.items() if is_before(at, fold))])

    async def _walk(
        self, log: ReadableLog, is_before: Callable[[int, Fold], bool]
    ) -> AsyncGenerator[tuple[Event, list[bytes], Fold], None]:
        """The events behind the nearest such place, what each says, and the state behind it, which goes on with the
        walk. Between two pages others have their turns. Raises Lost if Redis loses a part meanwhile.
        """
        while True:
            start = at = self._nearest(is_before)
            page = await log.read_page(self.sid, at)
            if page.present:  # else Redis has lost it, also if there is nothing behind it
                break
            self._forget_mark(at)
        fold = self.state(at)
        while True:
            for event in page.events:
                payloads = self._step(fold, event)
                yield event, payloads, fold
                at = event.id
            self.events = max(self.events, len(page.events))
            if not page.more:
                return
            await asyncio.sleep(0)
            page = await log.read_page(self.sid, at)
            if page.events and not page.present:
                self._forget_mark(start)
                raise Lost

    def _step(self, fold: Fold, event: Event) -> list[bytes]:
        payloads = [] if is_internal(event.kind) else step(fold, event)
        if event.kind == RESTART:
            self._openings[event.id] = self._framed(event.id, fold.opening(), 0)
            self._mark(event.id, fold)
        elif event.id % MARK_EVENTS == 0:
            self._mark(event.id, fold)
        return payloads

    def _mark(self, at: int, fold: Fold) -> None:
        if at not in self._marks:
            insort(self._ids, at)
            self.events = max(self.events, MARK_EVENTS * len(self._ids))
        self._marks[at] = fold.copy()

    def _forget_mark(self, at: int) -> None:
        self._recent.pop(at, None)
        if self._marks.pop(at, None):
            self._ids.remove(at)
            self._openings.pop(at, None)

    def _keep(self, at: int, fold: Fold) -> None:
        self._recent[at] = fold.copy()
        self._recent.move_to_end(at)
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def _framed(self, event_id: int, payloads: Sequence[bytes], start: int) -> bytes:
        frame = self.dialect.frame
        return b"".join([frame(payloads[index], event_id, index) for index in range(start, len(payloads))])

    # -- what viewers are sent -----------------------------------------------------------------------------------

    def written(self, batch: Batch) -> Written:
        """A batch, for whoever has come to where it begins: there it must stand. The same bytes for all of those."""
        if (known := batch.written(self)) is None:
            known = self._write(batch)
            batch.keep(self, known)
        return known

    def _write(self, batch: Batch) -> Written:
        fold = self.state(batch.after)
        events = merge_deltas(public(batch.events)) if self.dialect.merges else batch.events
        said: list[int] = []
        parts: list[bytes] = []
        is_over = False
        for event in events:
            if payloads := self._step(fold, event):
                said.append(event.id)
                parts.append(self._framed(event.id, payloads, 0))
            if is_over := event.is_terminal or fold.is_over:
                parts.append(self.dialect.end)
                break
        if not is_over:
            self._keep(batch.events[-1].id, fold)
        return Written(b"".join(parts), (said[0], said[-1]) if said else None, len(said), is_over)

    def leads_from(self, cursor: int) -> bool:
        """Whether live viewers go on from here."""
        return self._live is not None and self._live_at == cursor

    def lead_from(self, cursor: int) -> None:
        """Live viewers go on from here, where it stands; there are none elsewhere."""
        self._live, self._live_at = self.state(cursor), cursor

    def say(self, lines: Sequence[bytes]) -> tuple[Sequence[bytes], bytes]:
        """A published batch that follows what live viewers have: the lines that it says something of, and the bytes."""
        last = int(lines[-PUBLISHED_LINES])
        if last != self._live_at:  # else it was for others of them, whose heartbeat is another
            assert self._live
            shown: list[bytes] = []
            parts: list[bytes] = []
            for at in range(0, len(lines), PUBLISHED_LINES):
                event_id, t, kind, data = lines[at : at + PUBLISHED_LINES]
                event = Event(int(event_id), kind.decode(), data, int(t))
                if payloads := self._step(self._live, event):
                    shown += lines[at : at + PUBLISHED_LINES]
                    parts.append(self._framed(event.id, payloads, 0))
            self._live_at = last
            self._said = shown, b"".join(parts)
        return self._said

    def gap(self, gap: Gap) -> Written:
        """What a viewer is told. Its state, if it is known; else that of the log as it is."""
        is_known = gap.requested > 0 and self.stands_at(gap.requested)  # 0: nobody knows what it has had
        at = gap.requested if is_known else self._nearest(_any)
        fold = self.state(at)
        payloads = fold.gap(gap)
        end = self.dialect.end if fold.is_over else b""
        return Written(self._framed(at, payloads, 0) + end, None, 0, fold.is_over)

    # -- what a form is asked besides ------------------------------------------------------------------------------

    def shown(self, events: Sequence[Event]) -> Sequence[Event]:
        return public(events)


def _any(_: int, __: Fold) -> bool:
    return True


class Folds:
    """Those of a process: in use, and for a while after. By their creation too: an id that a client chose may name a
    later stream, of another request (log/given.py).
    """

    def __init__(self) -> None:
        self._used: WeakValueDictionary[tuple[str, Dialect, int], Folded] = WeakValueDictionary()
        self._kept: OrderedDict[tuple[str, Dialect, int], Folded] = OrderedDict()

    def known(self, sid: str, dialect: Dialect, created_ms: int) -> Folded | None:
        key = (sid, dialect, created_ms)
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._used.get(key)

    def of(self, sid: str, dialect: Dialect, facts: Facts) -> Folded:
        """The one that all viewers of this stream in this dialect share."""
        key = (sid, dialect, facts.created_ms)
        folded = self._used.get(key)
        if folded is None:
            folded = self._used[key] = Folded(sid, dialect, facts)
        self._kept[key] = folded
        self._kept.move_to_end(key)
        events = sum(one.cost for one in self._kept.values())
        while events > ALL_EVENTS:
            events -= self._kept.popitem(last=False)[1].cost
        return folded
