"""Replay, then follow: one loop over one cursor.

Behind the tail the loop reads the log in pages. At the tail it follows the hub. When it lags, it reads the log again.
There is no seam: the cursor is the only state, and every event is taken because its id is the next one after it.
While a viewer with a lane (lane.py) is at the tail, its topic writes to it and the loop sleeps. The loop then resumes
at the cursor that the topic returns.

The races, and why each is closed:
- an event is appended between the read and the subscription: the topic is subscribed first and the log read then; the
  cursor drops what both have
- an event is published but lost (a broken subscription, Redis' output limit): ids are dense, so a later batch shows a
  hole and the log is read; if no batch comes, the broken connection changes the topic's version and the log is read
- a hole that is not one (a new pen's block begins): only the log knows, so the log is read
- Redis rolled back, and the hub is ahead of the log: ring and log are each asked for what lies after *this* cursor
- the cursor's own event was lost with a dead writer: before the loop moves past it, it gives `gap`
- the ending is below the cursor (a cursor from elsewhere): it is sent alone, so that the viewer does not wait for ever
- an event is published between the last look and the lane: there is no such moment, nothing is awaited between the two
- where the ring covers the cursor, the log is not read at all: the ring is dense from there on, and a message lost
  since the subscription was made shows as a hole, or breaks the ring
- the stream vanishes while its viewers wait (evicted, flushed): the hub looks, and has them read the log
- what a batch holds is not for this viewer's audience: its cursor moves, and its silence goes on
- several viewers read the same page at once (a reconnect storm): they share one read that began after each of them had
  looked; a read that began before the topic's last change is not shared
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress

from broker import gauges
from broker.dialects.format import Batch, Form, Format
from broker.dialects.sse import Gap
from broker.errors import RedisUnavailable
from broker.live.folded import Folded, Lost
from broker.live.hub import Hub
from broker.live.lane import Lane
from broker.live.topic import Topic
from broker.log.event import Event, is_terminal
from broker.log.readable import ReadableLog
from broker.log.steps import PAGE_EVENTS, Page
from broker.log.stream_log import StreamLog

logger = logging.getLogger(__name__)

LOG_RETRY_S = 0.5
"""Redis is away while a viewer follows: how often the log is asked again."""

HELD_BYTES = 64 * 1024
"""What a viewer holds of the log while it does not read: events may be large, and a page of 500 of them megabytes."""

LOST_TAIL = "log_lost_tail"

_GAPS = gauges.gaps.labels(LOST_TAIL)  # from the start: Prometheus sees no increase in a series whose first value is 1

Step = Batch | Gap | None
"""What a viewer gets next: events, a notice, or (None) a sign of life."""


async def replay(log: ReadableLog, sid: str, cursor: int) -> AsyncGenerator[Step, None]:
    """The backlog after `cursor` as it is now, then the end (`follow=0`)."""
    more = True
    while more:
        page = await log.read_page(sid, cursor)
        if page.events and not page.present:
            yield _gap(cursor, page.events[0])
        if page.events:
            gauges.replayed_events.inc(len(page.events))
            yield Batch(page.events, cursor)
            cursor = page.events[-1].id
        elif ending := await _ending_below(log, sid, page, cursor):
            yield Batch(ending)
        more = page.more


async def follow(
    log: StreamLog,
    hub: Hub,
    sid: str,
    cursor: int,
    lane: Lane | None = None,
    *,
    form: Form = Format.EXACT,
    heartbeat_s: float | None = None,
) -> AsyncGenerator[Step, None]:
    """Every event after `cursor`, in order, each once; ends when the terminal event has been given.

    With a lane, events are written there as long as the viewer is at the tail and has got a first step, or is a socket.
    `form`: as the viewer is sent them. A batch of which it shows nothing is no sign of life.
    `heartbeat_s`: the longest silence; by default the hub's.
    Raises StreamNotFound if there is no such stream (any more), or, of a dialect, Lost if what it stands on is gone.
    While Redis is away it only gives signs of life.
    """
    read_version = read_changes = -1  # the topic's, when the log was last read to its end
    has_begun = form.is_socket  # whose own `ok` was written before
    folded = form if isinstance(form, Folded) else None
    async with hub.join(sid) as topic:
        pages = _Pages(log, topic)
        silence = _Silence(heartbeat_s or hub.heartbeat_s)
        if lane:
            lane.turns = hub.turns(heartbeat_s or hub.heartbeat_s)
        if topic.version and topic.covers(cursor):
            read_version = topic.version  # a viewer that returns soon finds everything here
        while True:
            if silence.is_over:
                yield None
                has_begun = True
                silence.begins()
            ahead = topic.after(cursor)
            hole = ahead is None and topic.changes != read_changes
            if topic.version and (topic.version != read_version or hole):
                version, changes = topic.version, topic.changes
                try:
                    page, batch = await pages.after(cursor)
                    ending = await _ending_below(log, sid, page, cursor)
                    if folded and page.present:
                        await folded.stand(log, cursor)
                except RedisUnavailable:
                    await silence.broken_by(topic.changed, within_s=LOG_RETRY_S)
                else:
                    if page.events and not page.present:
                        yield _gap(cursor, page.events[0])
                    if folded and not page.present and (page.events or ending):
                        raise Lost
                    if page.events or ending:
                        batch = batch if page.events else Batch(ending)
                        gauges.replayed_events.inc(len(batch))
                        cursor = max(cursor, batch.events[-1].id)
                        yield batch
                        has_begun = True
                        silence.after(batch, form)
                    if is_terminal(page.state) and not page.more:
                        return
                    if not page.more:
                        read_version, read_changes = version, changes
                    del page, batch  # or each viewer at the tail would keep the last page it read
                    continue
            elif ahead:
                if folded and not folded.stands_at(cursor):
                    await _stand(folded, log, cursor, topic, silence)
                    continue
                last = ahead.events[-1]
                cursor = last.id
                yield ahead
                has_begun = True
                silence.after(ahead, form)
                if last.is_terminal:
                    return
                del last, ahead
                continue
            elif topic.ending and topic.ending.id <= cursor:
                if topic.ending.id < cursor:
                    if folded:
                        raise Lost  # what it stands on is not in the log
                    yield Batch([topic.ending])
                return
            elif lane and has_begun and _may_ride(lane, topic, ahead, cursor):
                if folded and not folded.leads_from(cursor):
                    if not folded.stands_at(cursor):
                        await _stand(folded, log, cursor, topic, silence)
                        continue  # with what came meanwhile
                    folded.lead_from(cursor)
                cursor = await topic.carry(lane, cursor)
                silence.begins()
                continue
            else:
                await silence.broken_by(topic.changed)


async def _stand(folded: Folded, log: ReadableLog, cursor: int, topic: Topic, silence: _Silence) -> None:
    """Have the state there, or have waited for Redis. Raises Lost."""
    changed = topic.changed
    try:
        await folded.stand(log, cursor)
    except RedisUnavailable:
        await silence.broken_by(changed, within_s=LOG_RETRY_S)


def _gap(cursor: int, follows: Event) -> Gap:
    _GAPS.inc()
    return Gap(cursor, follows.id, LOST_TAIL)


def _may_ride(lane: Lane, topic: Topic, ahead: Batch | None, cursor: int) -> bool:
    """At the tail, as far as the topic knows, and it knows: it is subscribed, and there is no hole."""
    return (
        bool(topic.version)
        and ahead is not None
        and not lane.is_paused
        and not lane.is_lost
        and topic.can_carry(cursor)
    )


async def _ending_below(log: ReadableLog, sid: str, page: Page, cursor: int) -> list[Event]:
    """The terminal event, for a viewer whose cursor is beyond it."""
    if page.events or not is_terminal(page.state) or page.tail >= cursor:
        return []
    return [await log.read_last(sid)]


class _Pages:
    """The log, in pages that a viewer may hold for as long as it likes: about HELD_BYTES, or one event."""

    def __init__(self, log: StreamLog, topic: Topic) -> None:
        self._log = log
        self._topic = topic
        self._count = PAGE_EVENTS

    async def after(self, cursor: int) -> tuple[Page, Batch]:
        page, batch = await self._read(cursor)
        held = within(page.events, HELD_BYTES)
        fits = len(held) == len(page.events)
        # What is left out is read again, but not as much of it: what follows large events is likely to be large.
        self._count = min(PAGE_EVENTS, 2 * (self._count if fits else len(held)))
        return (page, batch) if fits else (page._replace(events=held, more=True), Batch(held, cursor))

    async def _read(self, cursor: int) -> tuple[Page, Batch]:
        reads, key = self._topic.reads, (self._topic.version, self._topic.changes, cursor, self._count)
        if key not in reads:
            reads[key] = asyncio.create_task(self._read_log(cursor), name="page")
            reads[key].add_done_callback(lambda read: (reads.pop(key), read.cancelled() or read.exception()))
        # A viewer that leaves must not end the read for the others; if all have left, its failure has no reader.
        return await asyncio.shield(reads[key])

    async def _read_log(self, cursor: int) -> tuple[Page, Batch]:
        page = await self._log.read_page(self._topic.sid, cursor, self._count)
        return page, Batch(page.events, cursor)


class _Silence:
    """How long a viewer has been sent nothing."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._clock = asyncio.get_running_loop().time
        self.begins()

    def begins(self) -> None:
        self._until = self._clock() + self._limit_s

    def after(self, batch: Batch, form: Form) -> None:
        """It begins anew after this batch, if the viewer was sent any of it."""
        if batch.span(form):
            self.begins()

    @property
    def is_over(self) -> bool:
        return self._clock() >= self._until

    async def broken_by(self, changed: asyncio.Event, within_s: float | None = None) -> None:
        """Wait for a change, but no longer than the silence may last (or `within_s`)."""
        left_s = max(0.0, self._until - self._clock())
        with suppress(TimeoutError):
            async with asyncio.timeout(left_s if within_s is None else min(left_s, within_s)):
                await changed.wait()


def within(events: list[Event], size: int) -> list[Event]:
    """As many of the first events as have no more data than this; one at least."""
    for n, event in enumerate(events):
        size -= len(event.data)
        if size < 0:
            return events[: max(1, n)]
    return events
