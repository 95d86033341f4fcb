"""One viewer of several streams: their steps → bytes → ASGI, until all have ended or the viewer leaves.

It ends as a viewer of one stream does (viewer.py), and writes through send() alone: no topic has its lane. A stream of
it that vanishes is looked up again: the others go on. Each open stream is recorded, and takes a place, as a viewer;
while none is open the connection takes one by itself, of no stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from starlette.types import Send

from broker.auth import Grant
from broker.dialects.format import Batch, HttpForm
from broker.dialects.several import encode_gap_of, encode_missing, encode_position, encode_stream, personal
from broker.dialects.sse import retry_line, slowed
from broker.dialects.vector import Vector
from broker.errors import TooManyViewers
from broker.live.conversation import Conversation, Missing, Opened
from broker.live.lane import Lane
from broker.live.ledger import Listed
from broker.live.roster import Roster
from broker.live.tail import Step
from broker.live.together import Given, Item, Left, Together
from broker.log.access import FINISHED, View
from broker.log.index import Filter, Place
from broker.log.rfc3339 import rfc3339
from broker.web.endings import Ended, ended_delay_ms, retry_delay_ms
from broker.web.tier import Tier
from broker.web.viewer import NativeResponse, Viewers

ARCHIVED_STREAMS, ARCHIVED_PAGE = 1000, 200
"""Of a session, the newest so many are given to who comes back after a longer absence than Redis keeps anything."""


def roster_of(tier: Tier, grant: Grant, session: str, start: Vector | None) -> Roster:
    """`start`: where the viewer resumes; None: it comes for the first time."""

    async def archived(since_ms: int) -> Sequence[Listed]:
        assert tier.archive
        found: list[Listed] = []
        place: Place | None = None
        while len(found) < ARCHIVED_STREAMS:
            which = Filter(session=session, created_after_ms=since_ms)
            page = await tier.archive.reader.list_streams(grant.tenant, which, ARCHIVED_PAGE, place)
            found += [Listed(at.score, at.member) for at in page.found]
            place = page.end
            if place is None:
                break
        return found

    from_archive = archived if tier.archive and start else None
    return Roster(tier.log, tier.hub, grant.tenant, session, grant.opens, from_archive)


class SeatsOfOne:
    """The places of one connection's streams."""

    def __init__(self, viewers: Viewers, grant: Grant, form_name: str) -> None:
        self._viewers = viewers
        self._grant = grant
        self._form_name = form_name
        self._taken: set[str] = set()

    async def take(self, sid: str) -> bool:
        """Raises RedisUnavailable."""
        try:
            await self._viewers.places.require(self._grant, sid, gives_up=not self._taken)
        except TooManyViewers:
            return False
        if self._taken:
            self._viewers.of_forms[self._form_name] += 1
        else:
            self._viewers.places.free(self._grant, None)
        self._viewers.places.take(self._grant, sid)
        self._taken.add(sid)
        return True

    def free(self, sid: str) -> None:
        self._taken.discard(sid)
        self._viewers.places.free(self._grant, sid)
        if self._taken:
            self._viewers.of_forms[self._form_name] -= 1
        else:
            self._viewers.places.take(self._grant, None)

    def free_all(self) -> None:
        for sid in tuple(self._taken):
            self.free(sid)


class ConversationResponse(NativeResponse):
    """`steps`: of a stream that was opened. `view`: its record, of who follows it from an event on. `joins`: whether
    the viewer comes for the first time, and is told at once where it stands. `silence_s`: the longest.
    """

    def __init__(
        self,
        viewers: Viewers,
        conversation: Conversation,
        seats: SeatsOfOne,
        steps: Callable[[Opened], AsyncGenerator[Step, None]],
        form: HttpForm,
        *,
        form_name: str,
        heartbeat: bytes,
        silence_s: float,
        view: Callable[[str, int], View],
        grant: Grant,
        joins: bool,
    ) -> None:
        super().__init__(viewers, form, {}, sid=None, form_name=form_name, heartbeat=heartbeat, grant=grant)
        self._conversation = conversation
        self._seats = seats
        self._steps = steps
        self._silence_s = silence_s
        self._view = view
        self._joins = joins
        self._views: dict[str, View] = {}

    async def prepare(self) -> None:
        """Find out where who comes for the first time stands: a cut before its first event must lose nothing.

        Raises RedisUnavailable.
        """
        if self._joins:
            await self._conversation.begin()
            self.headers["Last-Event-ID"] = self._conversation.vector.encode()

    def _closes(self, lane: Lane | None, ended: Ended) -> None:
        for sid in tuple(self._views):
            self._close_view(sid, ended.value)

    def _close_view(self, sid: str, how: str) -> None:
        if view := self._views.pop(sid, None):
            self._viewers.access.closed(view, how)

    async def _pump(self, lane: Lane | None, send: Send) -> Ended:
        try:
            return await self._pump_all(send)
        except TimeoutError:
            return Ended.TOO_SLOW
        finally:
            self._seats.free_all()

    async def _pump_all(self, send: Send) -> Ended:
        clock = asyncio.get_running_loop().time
        opening = b"" if self._format.is_ndjson else retry_line(retry_delay_ms())
        if opening and self._joins:
            await self._send(send, opening + encode_position(self._conversation.vector.encode()))
            opening = b""
        sent_at_s = clock()
        async with Together(self._conversation, self._steps) as together:
            while True:
                try:
                    item = await together.next(max(0.0, sent_at_s + self._silence_s - clock()))
                except StopAsyncIteration:
                    break
                body = self._rendered(item)
                del item  # it would be kept for as long as nothing comes
                if body:
                    body = opening + self._untold + body
                    opening = self._untold = b""
                    await self._send(send, body)
                    sent_at_s = clock()
        await self._send(send, opening, more=False)
        return Ended.FINISHED

    def _rendered(self, item: Item | None) -> bytes:
        """Its bytes; from here on the viewer has it."""
        conversation = self._conversation
        match item:
            case None:
                return self._heartbeat
            case Opened(sid, cursor, meta):
                view = self._views[sid] = self._view(sid, cursor)
                self._viewers.access.opened(view)
                return encode_stream(self._format, sid, meta.state, rfc3339(meta.created))
            case Missing(sid, reason):
                conversation.ended(sid)
                self._close_view(sid, Ended.VANISHED.value)
                return encode_missing(self._format, sid, reason) + self._position()
            case Left(sid, broke):
                (conversation.again if broke else conversation.rests)(sid)
                self._close_view(sid, Ended.VANISHED.value if broke else FINISHED)
                return b""
            case Given(sid, step):
                return self._events(sid, step) if isinstance(step, Batch) else encode_gap_of(self._format, sid, step)

    def _events(self, sid: str, batch: Batch) -> bytes:
        conversation, form = self._conversation, self._format
        if body := batch.render(form):
            body = personal(body, form, sid, conversation.vector.prefix(sid))
        conversation.given(sid, batch.events[-1].id)
        if span := batch.span(form):
            self._views[sid].delivered(*span)
            self._sent.events += len(form.shown(batch.events))
        if batch.events[-1].is_terminal:
            conversation.ended(sid)
            self._close_view(sid, FINISHED)
            if conversation.is_over and not form.is_ndjson:
                body = slowed(body, ended_delay_ms())
        return body

    def _position(self) -> bytes:
        """After a notice that will not be repeated to who has it."""
        return b"" if self._format.is_ndjson else encode_position(self._conversation.vector.encode())
