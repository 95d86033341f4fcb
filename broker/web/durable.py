"""How a reader follows a shared stream: server-sent events, and a long poll (Durable Streams, sections 5.7 and 5.8).

A body of events ends properly, and only behind a `control`: so whatever its end means to a client, the client knows
where it stands, and comes back. That is also how it is said that the server is shutting down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing, suppress

from starlette.types import Send

from broker.auth import Grant
from broker.dialects.durable_streams import StreamForm, control, cursor_at, offset
from broker.dialects.format import Batch
from broker.dialects.sse import HEARTBEAT, MEDIA_TYPE
from broker.errors import ArchiveDamaged, Draining, LasteventError, StreamExpired
from broker.live.lane import Lane
from broker.live.tail import follow
from broker.log.access import View
from broker.log.event import Event
from broker.service.durable import Open
from broker.web.endings import FAREWELL_S, Ended
from broker.web.follow import Steps
from broker.web.tier import Tier
from broker.web.viewer import FollowResponse, Viewers

ROTATE_S = 60.0
"""A body of events, so that those who come later can share one with those who are here (section 10.2)."""

LONG_POLL_S = 20
"""Unless the reader asks for less (section 5.7)."""


class ReaderResponse(FollowResponse):
    """`stands_at`: the event behind which it begins. `now_ms`: by Redis' clock."""

    def __init__(
        self,
        viewers: Viewers,
        steps: Steps,
        stream: Open,
        form: StreamForm,
        headers: dict[str, str],
        *,
        stands_at: int,
        now_ms: int,
        view: View,
        grant: Grant,
    ) -> None:
        super().__init__(
            *(viewers, form, MEDIA_TYPE, headers),
            sid=view.sid,
            form_name=form.access_name,
            heartbeat=HEARTBEAT,
            grant=grant,
            refuses_with_status=True,
        )
        self._words = form
        self._steps = steps
        self._view = view
        self._stream = stream
        self._stands_at = stands_at
        self._now_ms = now_ms

    def _opens(self) -> None:
        self._viewers.access.opened(self._view)

    def _closes(self, lane: Lane | None, ended: Ended) -> None:
        if lane and lane.wrote:
            self._view.delivered(*lane.wrote)
        self._viewers.access.closed(self._view, ended.value)

    async def _pump(self, lane: Lane | None, send: Send) -> Ended:
        try:
            async with asyncio.timeout(ROTATE_S) as rotation:
                await self._write(lane, send)
        except TimeoutError:
            if not rotation.expired():
                return Ended.TOO_SLOW
        except ArchiveDamaged:
            return Ended.VANISHED
        except LasteventError:
            return Ended.VANISHED
        with suppress(TimeoutError):
            await self._send(send, b"", more=False)
        return Ended.FINISHED

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
                elif isinstance(step, Batch):
                    if said := form.shown(step.events):
                        await self._send(send, self._frames(lane, said))
                        self._note(said)
                else:
                    raise lost_place()  # a cut; who comes back is told so with a status
                del step

    def _frames(self, lane: Lane | None, said: Sequence[Event]) -> bytes:
        if lane and lane.wrote:
            self._stands_at = max(self._stands_at, lane.wrote[1])
        is_last = said[-1].id >= self._stream.tail
        return self._words.frames(said, up_to_date=is_last, stands_at=self._stands_at, since_ms=self._now_ms)

    def _note(self, said: Sequence[Event]) -> None:
        self._view.delivered(said[0].id, said[-1].id)
        self._sent.events += len(said)
        self._stands_at = next((event.id for event in reversed(said) if not event.is_terminal), self._stands_at)

    async def _say_farewell(self, send: Send, code: str, refused: LasteventError | None = None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await send({"type": "http.response.body", "body": b"", "more_body": False})


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

    async def next(self, cursor: int, form: StreamForm, within_s: int) -> list[Event]:
        """What comes within this time, the ending too; empty if nothing does. Raises Draining, StreamNotFound, or
        an error with status 410 if the log has lost the reader's place.
        """
        viewers = self._tier.viewers
        await viewers.places.require(self.grant, self._sid, again=True)
        viewers.add(self)
        waiting = asyncio.create_task(self._first(cursor, form), name="long poll")
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

    async def _first(self, cursor: int, form: StreamForm) -> list[Event]:
        tier = self._tier
        async with aclosing(follow(tier.log, tier.hub, self._sid, cursor)) as steps:
            async for step in steps:
                if isinstance(step, Batch):
                    if said := form.shown(step.events):
                        return list(said)
                elif step is not None:
                    raise lost_place()
        return []
