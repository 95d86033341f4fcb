"""Replay for operators: the log again, at its original pace × speed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from broker.dialects.sse import encode, farewell, retry_line
from broker.log.access import AccessRecord, View
from broker.log.event import Event
from broker.web.endings import Cut


async def paced(
    events: Sequence[Event], speed: float, draining: asyncio.Event, view: View
) -> AsyncGenerator[bytes, None]:
    """Frames, each at its own time: t (ms) after the first event's, divided by speed; speed 0 is all at once.

    Against absolute deadlines, so that no error adds up. Ends early, with a farewell, when the server drains.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    yield retry_line()
    for event in events:
        if speed:
            due = began + (event.t - events[0].t) / 1000 / speed
            if await _drains_before(draining, due - clock()):
                yield farewell("draining")
                raise Cut  # not the end: the viewer comes back for the rest
        yield encode(event)
        view.delivered(event.id, event.id)


async def recorded(
    frames: AsyncGenerator[bytes, None], view: View, access: AccessRecord
) -> AsyncGenerator[bytes, None]:
    """The same frames; whoever gets them stands in the access record."""
    access.opened(view)
    how = "left"
    try:
        async with aclosing(frames):
            async for frame in frames:
                yield frame
        how = "finished"
    except Cut:
        how = "drained"
        raise
    finally:
        access.closed(view, how)


async def _drains_before(draining: asyncio.Event, wait_s: float) -> bool:
    if wait_s > 0:
        try:
            async with asyncio.timeout(wait_s):
                await draining.wait()
        except TimeoutError:
            return False
    return draining.is_set()
