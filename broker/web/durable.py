"""How a reader follows a shared stream: server-sent events, and a long poll (Durable Streams, sections 5.7 and 5.8).

A body of events ends properly, and only behind a `control`: so whatever its end means to a client, the client knows
where it stands, and comes back. That is also how it is said that the server is shutting down.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, suppress

from starlette.types import Send

from broker.auth import Grant
from broker.dialects.durable_streams import StreamForm, control, cursor_at, offset
from broker.dialects.durable_views import caught_up, view_offset
from broker.dialects.format import Batch, Form
from broker.dialects.sse import HEARTBEAT, MEDIA_TYPE
from broker.errors import Draining, LasteventError, StreamExpired
from broker.live.folded import Folded, Lost
from broker.live.lane import Lane
from broker.live.tail import follow
from broker.log.access import View
from broker.log.event import Event
from broker.log.meta import Meta
from broker.service.durable import Open
from broker.web.endings import FAREWELL_S, Ended
from broker.web.follow import Steps
from broker.web.tier import Tier
from broker.web.viewer import Viewers, ViewResponse

ROTATE_S = 60.0
"""A body of events, so that those who come later can share one with those who are here (section 10.2)."""

LONG_POLL_S = 20
"""Unless the reader asks for less (section 5.7)."""


Shown = Callable[[Sequence[Event]], Sequence[Event]]
"""Those of some events that a reader is told of."""


class Reading(ViewResponse, ABC):
    """A body of events. `now_ms`: by Redis' clock."""

    def __init__(
        self, viewers: Viewers, steps: Steps, form: Form, headers: Mapping[str, str], *, view: View, grant: Grant
    ) -> None:
        super().__init__(
            *(viewers, form, MEDIA_TYPE, headers),
            sid=view.sid,
            form_name=form.access_name,
            heartbeat=HEARTBEAT,
            grant=grant,
            refuses_with_status=True,
        )
        self._steps = steps
        self._view = view

    @abstractmethod
    async def _write(self, lane: Lane | None, send: Send) -> None:
        """All there is to say. Raises an error if the stream vanishes, or what this reader had is lost."""

    async def _pump(self, lane: Lane | None, send: Send) -> Ended:
        try:
            async with asyncio.timeout(ROTATE_S) as rotation:
                await self._write(lane, send)
        except TimeoutError:
            if not rotation.expired():
                return Ended.TOO_SLOW
        except (LasteventError, Lost):
            return Ended.VANISHED  # a cut; who comes back is told why, with a status
        with suppress(TimeoutError):
            await self._send(send, b"", more=False)
        return Ended.FINISHED

    async def _say_farewell(self, send: Send, code: str, refused: LasteventError | None = None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await send({"type": "http.response.body", "body": b"", "more_body": False})


class StreamReading(Reading):
    """Of a shared stream. `stands_at`: the event behind which it begins."""

    def __init__(
        self,
        viewers: Viewers,
        steps: Steps,
        stream: Open,
        form: StreamForm,
        headers: Mapping[str, str],
        *,
        stands_at: int,
        now_ms: int,
        view: View,
        grant: Grant,
    ) -> None:
        super().__init__(viewers, steps, form, headers, view=view, grant=grant)
        self._words = form
        self._stream = stream
        self._stands_at = stands_at
        self._now_ms = now_ms

    async def _write(self, lane: Lane | None, send: Send) -> None:
        stream, form = self._stream, self._words
        if self._stands_at >= stream.tail:  # else the last of what it catches up with says so
            cursor = max(cursor_at(self._now_ms), form.ahead)
            first = control(offset(stream.tail), cursor, up_to_date=True, closed=stream.is_closed)
            await self._send(send, first)
            if stream.is_closed:
                return
        async with aclosing(self._steps(lane)) as steps:
            async for step in steps:
                if step is None:
                    await self._send(send, self._heartbeat)
                elif not isinstance(step, Batch):
                    raise lost_place()
                elif said := form.shown(step.events):
                    await self._send(send, self._frames(lane, said))
                    self._note(said)
                del step  # or a viewer at the tail would keep its last page for as long as it is there

    def _frames(self, lane: Lane | None, said: Sequence[Event]) -> bytes:
        if lane and lane.wrote:
            self._stands_at = max(self._stands_at, lane.wrote[1])
        is_last = said[-1].id >= self._stream.tail
        return self._words.frames(said, up_to_date=is_last, stands_at=self._stands_at, since_ms=self._now_ms)

    def _note(self, said: Sequence[Event]) -> None:
        self._view.delivered(said[0].id, said[-1].id)
        self._sent.events += len(said)
        self._stands_at = next((event.id for event in reversed(said) if not event.is_terminal), self._stands_at)


class ViewReading(Reading):
    """Of any stream in a dialect's words. `at`: the event behind which it begins. `meta`: the stream's, then."""

    def __init__(
        self,
        viewers: Viewers,
        steps: Steps,
        folded: Folded,
        headers: Mapping[str, str],
        *,
        at: int,
        meta: Meta,
        cursor: int,
        view: View,
        grant: Grant,
    ) -> None:
        super().__init__(viewers, steps, folded, headers, view=view, grant=grant)
        self._folded = folded
        self._at = at
        self._tail = meta.tail
        self._has_ended = meta.has_ended
        self._cursor = cursor

    async def _write(self, lane: Lane | None, send: Send) -> None:
        if self._at >= self._tail:
            await self._send(send, self._nothing_more(self._at, closed=self._has_ended))
            if self._has_ended:
                return
        async with aclosing(self._steps(lane)) as steps:
            async for step in steps:
                if step is None:
                    await self._send(send, self._heartbeat)
                elif not isinstance(step, Batch):
                    raise lost_place()
                else:
                    written, last = self._folded.written(step), step.events[-1].id
                    if body := self._caught_up(written.body, last):
                        await self._send(send, body)
                    if written.span:
                        self._view.delivered(*written.span)
                        self._sent.events += written.events
                del step

    def _caught_up(self, body: bytes, last: int) -> bytes:
        if last < self._tail:
            return caught_up(body, is_last=False)
        if self._at < self._tail:  # with this batch it has all that there was
            self._at = last
            return caught_up(body, is_last=True) or self._nothing_more(last)
        return body

    def _nothing_more(self, at: int, *, closed: bool = False) -> bytes:
        return control(view_offset(at), self._cursor, up_to_date=True, closed=closed)


def lost_place() -> StreamExpired:
    return StreamExpired("The log has lost what is at this offset. Begin again, at -1 or now.")


class Poll:
    """One reader that waits for what comes next: a viewer until then."""

    form_name = StreamForm.access_name

    def __init__(self, tier: Tier, sid: str, grant: Grant) -> None:
        self._tier = tier
        self._sid = sid
        self.grant = grant
        self._told = asyncio.Event()

    @property
    def sid(self) -> str | None:
        return self._sid

    def leave(self, how: Ended) -> None:
        self._told.set()

    async def next(self, cursor: int, shown: Shown, within_s: float) -> list[Event]:
        """What comes within this time, the ending too; empty if nothing does. Raises Draining, StreamNotFound, or
        an error with status 410 if the log has lost the reader's place.
        """
        viewers = self._tier.viewers
        await viewers.places.require(self.grant, self._sid, again=True)
        viewers.add(self)
        waiting = asyncio.create_task(self._first(cursor, shown), name="long poll")
        told = asyncio.create_task(self._told.wait(), name="long poll ends")
        try:
            await asyncio.wait([waiting, told], timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            if told.done():
                raise Draining("This server is shutting down. Ask again; another server will answer.")
            return []
        finally:
            waiting.cancel()
            told.cancel()
            viewers.remove(self)

    async def _first(self, cursor: int, shown: Shown) -> list[Event]:
        tier = self._tier
        async with aclosing(follow(tier.log, tier.hub, self._sid, cursor)) as steps:
            async for step in steps:
                if isinstance(step, Batch):
                    if said := shown(step.events):
                        return list(said)
                elif step is not None:
                    raise lost_place()
        return []
