"""Replay for operators: the log again, at its original pace × speed, as steps for the one viewer path (viewer.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from broker.dialects.format import Batch, Form
from broker.live.tail import Step
from broker.log.event import Event
from broker.log.readable import ReadableLog


class Span(NamedTuple):
    """The events after `after` up to the id `last`, included."""

    after: int
    last: int


async def paced(
    log: ReadableLog, sid: str, span: Span, form: Form, *, speed: float, heartbeat_s: float
) -> AsyncGenerator[Step, None]:
    """Events, each at its own time: t (ms) after the first event's, divided by speed; speed 0 is all at once.

    Those alone that `form` shows: what is hidden takes no time. Against absolute deadlines, so that no error adds up.
    Silence is broken by signs of life.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    first: Event | None = None
    async for page in _pages(log, sid, span, form):
        if not speed:
            yield Batch(page)
            continue
        for event in page:
            first = first or event
            due = began + (event.t - first.t) / 1000 / speed
            while (wait_s := due - clock()) > 0:
                await asyncio.sleep(min(wait_s, heartbeat_s))
                if wait_s > heartbeat_s:
                    yield None
            yield Batch([event])


async def is_empty(log: ReadableLog, sid: str, span: Span, form: Form) -> bool:
    async with aclosing(_pages(log, sid, span, form)) as pages:
        return await anext(pages, None) is None


async def _pages(log: ReadableLog, sid: str, span: Span, form: Form) -> AsyncGenerator[Sequence[Event], None]:
    cursor, more = span.after, True
    while more:
        page = await log.read_page(sid, cursor)
        events = [event for event in page.events if event.id <= span.last]
        if events:
            if shown := form.shown(events):
                yield shown
            cursor = events[-1].id
        more = page.more and len(events) == len(page.events)
