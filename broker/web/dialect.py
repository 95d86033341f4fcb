"""What the routes of all dialects have in common: a start, a viewer, the answer as it is now, errors.

A dialect's viewer is one as others are (viewer.py): its places, its record, its stall. It differs in what it reads:
- nothing but what its client knows: no `retry:`, no notice of ours
- a proper end only behind the words that end its stream in that dialect; anything else is a cut
- a gap: either the dialect's error and the end, or what was said is taken back, and the attempt begins anew
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response
from starlette.types import Send

from broker.auth import Grant
from broker.dialects.fold import Dialect, Facts, Fold
from broker.dialects.format import Batch, Format, Written
from broker.dialects.sse import Gap
from broker.errors import ArchiveDamaged, InvalidRequest, LasteventError, OtherRelease, RedisUnavailable
from broker.live.folded import Folded, Lost, Place
from broker.live.lane import Lane
from broker.live.tail import LOST_TAIL
from broker.log.access import View
from broker.log.deeds import CREATED
from broker.log.meta import FOLD, Meta
from broker.log.readable import ReadableLog
from broker.service.bodies import CreateStream
from broker.service.streams import Found, Said, Started
from broker.web import problems
from broker.web.endings import Ended
from broker.web.follow import Steps, count_connect, require_time_left, steps_of
from broker.web.grants import CheckedRoute
from broker.web.strict_json import INLINE_BYTES, check, parse, read_json
from broker.web.tier import Tier
from broker.web.viewer import Viewers, ViewResponse, request_details
from broker.web.while_here import while_here

logger = logging.getLogger(__name__)

STREAM_HEADER, IGNORED_HEADER = "X-Lastevent-Stream", "X-Lastevent-Ignored"

NO_RETRY = {"x-should-retry": "false"}
"""The SDKs obey it. Else they would ask again, twice, after our own attempts: each a new generation."""

Answer = Callable[[Request, LasteventError], Response]


def dialect_route(answer: Answer) -> type[CheckedRoute]:
    """A class of routes whose errors are answered so; what they tell in headers is added."""

    class DialectRoute(CheckedRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def answered(request: Request) -> Response:
                try:
                    return await handle(request)
                except LasteventError as error:
                    problems.count(error)
                    return problems.with_headers(answer(request, error), error)
                except RequestValidationError as error:
                    return answer(request, problems.invalid_parameter(error))

            return answered

    return DialectRoute


# -- a start -------------------------------------------------------------------------------------------------------


async def read_asked(request: Request, *, optional: bool = False, undeclared: bool = False) -> dict[str, Any]:
    """The request's body, a JSON object. `undeclared`: its client does not say that it is JSON.

    Raises BodyTooLarge, UnsupportedMediaType, InvalidJson, InvalidRequest, RateLimited.
    """
    tier = Tier.of(request)
    with tier.intake.place() as place:
        body = await read_json(
            request, tier.settings.max_request_bytes, place=place, optional=optional, undeclared=undeclared
        )
        async with place.turn():
            asked = parse(body) if len(body) <= INLINE_BYTES else await asyncio.to_thread(parse, body)
    request.state.is_large = len(body) > INLINE_BYTES
    if not isinstance(asked, dict):
        raise InvalidRequest("The body is a JSON object.")
    return asked


async def start(
    request: Request, grant: Grant, asked: dict[str, Any], said: Said, *, key: str | None, sid: str | None = None
) -> Started:
    """Create a stream. `asked`: as POST /v1/streams takes it. `key`: the Idempotency-Key. `sid`: the stream's id, which
    follows from the caller's own; then `key` does too.

    Raises as Streams.start does.
    """
    tier = Tier.of(request)
    tier.require_open()
    is_large: bool = request.state.is_large
    started = await tier.streams.start(check(CreateStream, asked), grant, key, is_large=is_large, said=said, sid=sid)
    if started.is_new:
        tier.deeds.note(tier.deed(request, CREATED, started.sid))
    return started


# -- a viewer ------------------------------------------------------------------------------------------------------


class Beginning(NamedTuple):
    """Where a viewer begins: at the first event."""


class Attempt(NamedTuple):
    """At the beginning of the attempt that there is: for a dialect without a cursor."""


class After(NamedTuple):
    """Behind a payload of an event, counted from 0."""

    event_id: int
    payload: int


class AfterNumber(NamedTuple):
    """Behind the payload of this number."""

    number: int


class Latest(NamedTuple):
    """At what comes from now on."""


Where = Beginning | Attempt | After | AfterNumber | Latest


async def find(request: Request, grant: Grant, sid: str, *, at_tail: bool = False) -> Found:
    """A stream with its content. `at_tail`: as `look_up`. Raises StreamNotFound, StreamExpired."""
    return await Tier.of(request).streams.look_up_content(sid, grant, at_tail=at_tail)


async def facts_of(request: Request, sid: str, meta: Meta, dialect: Dialect) -> Facts:
    said: dict[str, Any] = meta.dialect or {}
    asked, size = (await Tier.of(request).streams.sized_request_of(sid, meta)) if dialect.needs_request else ({}, 0)
    return Facts(
        sid=sid,
        session=meta.session or "",
        model=said.get("model") or meta.model or "",
        created_ms=meta.created,
        echo=said["echo"] if said.get("name") == dialect.name else {},
        request=asked,
        request_size=size,
    )


async def folded_of(
    request: Request, grant: Grant, sid: str, dialect: Dialect, *, at_tail: bool = False
) -> tuple[Found, ReadableLog, Folded]:
    """`at_tail`: as `look_up`. Raises StreamNotFound, StreamExpired, OtherRelease."""
    tier = Tier.of(request)
    found = await find(request, grant, sid, at_tail=at_tail)
    if (found.meta.fold or FOLD) > FOLD:
        raise OtherRelease("A newer release started this stream, and counts otherwise in its words. Try again.")
    log = await tier.reading.log(sid, found, grant)
    folded = tier.folds.known(sid, dialect, found.meta.created)
    return found, log, folded or tier.folds.of(sid, dialect, await facts_of(request, sid, found.meta, dialect))


async def follow_in(
    request: Request,
    grant: Grant,
    sid: str,
    dialect: Dialect,
    where: Where,
    headers: Mapping[str, str] | None = None,
    *,
    response: type[DialectResponse] | None = None,
    heartbeat_s: float | None = None,
) -> DialectResponse:
    """The answer that follows a stream in a dialect. A cursor of which its log knows nothing is answered there.

    `response`: where its connections end otherwise than others'. `heartbeat_s`: the longest silence that its client
    bears, if that is less than the setting's.

    Raises Draining, TooManyViewers, RateLimited, TokenExpired, StreamNotFound, StreamExpired, and what passes.
    """
    tier = Tier.of(request)
    require_time_left(grant)
    await tier.require_place(grant, sid)
    found, log, folded = await folded_of(request, grant, sid, dialect)
    place = await _place(folded, log, found.meta, where)
    cursor = place.cursor if place else (await tier.log.at_tail(sid, found.meta)).tail
    count_connect(tier, sid, cursor, is_in_redis=found.is_in_redis)
    address = tier.addresses.of(request)
    view = View(sid, request_details(grant, address, request.headers, dialect.name, cursor))

    def steps(cursor: int) -> Steps:
        return steps_of(tier, found, grant, log, sid, cursor, folded, heartbeat_s=heartbeat_s)

    told = {STREAM_HEADER: sid, **(headers or {})}
    form = response or DialectResponse
    return form(tier.viewers, folded, log, steps, place, told, view=view, grant=grant)


async def _place(folded: Folded, log: ReadableLog, meta: Meta, where: Where) -> Place | None:
    """None: there is no such place in the log."""
    try:
        match where:
            case Beginning():
                return Place(0)
            case Attempt():
                return Place(0) if (meta.attempt or 0) < 2 else await folded.attempt(log)
            case After(event_id, payload):
                return await folded.after(log, event_id, payload)
            case AfterNumber(number):
                return await folded.after_number(log, number)
            case Latest():
                return Place(await folded.stand_at_tail(log))
    except Lost:
        return None


class DialectResponse(ViewResponse):
    """The body of a viewer of a dialect. `steps`: those behind a cursor. `place`: where it begins; None: where it wants
    to is lost.
    """

    def __init__(
        self,
        viewers: Viewers,
        folded: Folded,
        log: ReadableLog,
        steps: Callable[[int], Steps],
        place: Place | None,
        headers: Mapping[str, str],
        *,
        view: View,
        grant: Grant,
    ) -> None:
        dialect = folded.dialect
        super().__init__(
            *(viewers, folded, dialect.content_type, headers),
            sid=view.sid,
            form_name=dialect.name,
            heartbeat=dialect.heartbeat,
            grant=grant,
            refuses_with_status=True,
        )
        self._folded = folded
        self._log = log
        self._steps = steps
        self._place = place
        self._view = view

    async def _pump(self, lane: Lane | None, send: Send) -> Ended:
        try:
            end = await self._pump_all(lane, send)
            await self._send(send, end, more=False)
        except TimeoutError:
            return Ended.TOO_SLOW
        except ArchiveDamaged:
            logger.exception("stream %s: its viewer is cut", self._view.sid)
            return Ended.VANISHED
        except (LasteventError, Lost):
            return Ended.VANISHED
        return Ended.FINISHED

    async def _pump_all(self, lane: Lane | None, send: Send) -> bytes:
        """Returns what is still to be said before the end. Raises Lost if the log loses what it stands on again and
        again.
        """
        place = self._place or await self._told_of_a_gap(Gap(0, 0, LOST_TAIL), send)
        while place:
            if place.first:
                await self._send(send, place.first)
                self._view.delivered(place.cursor, place.cursor)
            gap = None
            try:
                async with aclosing(self._steps(place.cursor)(lane)) as steps:
                    async for step in steps:
                        if isinstance(step, Gap):
                            gap = step
                            break
                        written = self._folded.written(step) if isinstance(step, Batch) else None
                        del step  # or a viewer at the tail would keep its last page for as long as it is there
                        if await self._is_over(written, send):
                            return b""
            except Lost:
                gap = Gap(place.cursor, 0, LOST_TAIL)
            if gap is None:
                return self._folded.dialect.end
            place = await self._told_of_a_gap(gap, send)
        return b""

    async def _is_over(self, written: Written | None, send: Send) -> bool:
        """Send it (None: a sign of life). Whether that was the last of it."""
        if written is None:
            await self._send(send, self._heartbeat)
            return False
        if written.body:
            await self._send(send, written.body)
        if written.span:
            self._view.delivered(*written.span)
            self._sent.events += written.events
        return written.is_over

    async def _told_of_a_gap(self, gap: Gap, send: Send) -> Place | None:
        """Where it goes on: behind what begins the attempt that there is, `queued` at least. None: that was the end."""
        await self._folded.stand_at_tail(self._log)
        told = self._folded.gap(gap)
        if told.is_over:
            await self._send(send, told.body)
            return None
        place = await self._folded.attempt(self._log)
        await self._folded.stand(self._log, at := max(1, place.cursor))
        return Place(at, told.body)


# -- the answer as a whole -----------------------------------------------------------------------------------------


async def fold_now(request: Request, grant: Grant, sid: str, dialect: Dialect) -> tuple[Fold, Meta]:
    """The state behind the last event that there is, and the stream.

    Raises StreamNotFound, StreamExpired; RedisUnavailable if Redis loses a part of the log at that moment.
    """
    tier = Tier.of(request)
    found, log, folded = await folded_of(request, grant, sid, dialect)
    try:
        tail = await folded.stand_at_tail(log)
    except Lost:
        raise RedisUnavailable("Redis has just lost a part of this stream. Try again.") from None
    tier.note_reading(request, grant, dialect.name, sid, span=(1, tail))
    return folded.state(tail), found.meta


async def wait_for_end(request: Request, grant: Grant, sid: str, dialect: Dialect) -> Fold:
    """The state behind the terminal event, once it is there. Takes a viewer's place meanwhile.

    Raises Draining, TooManyViewers, StreamNotFound, and ClientDisconnect when the caller goes.
    """
    tier = Tier.of(request)
    await tier.require_place(grant, sid)
    tier.viewers.places.take(grant, sid)
    try:
        await while_here(request, _end(request, grant, sid))
    finally:
        tier.viewers.places.free(grant, sid)
    fold, _ = await fold_now(request, grant, sid, dialect)
    return fold


async def _end(request: Request, grant: Grant, sid: str) -> None:
    tier = Tier.of(request)
    found = await find(request, grant, sid)
    log = await tier.reading.log(sid, found, grant)
    draining = asyncio.create_task(tier.viewers.draining.wait())

    async def ends() -> None:
        # What meta knows of the tail will do: of a few events more it waits for the end as well.
        steps = steps_of(tier, found, grant, log, sid, found.meta.tail, Format.PUBLIC_EXACT)
        async with aclosing(steps(None)) as all_steps:
            async for _ in all_steps:
                pass

    ending = asyncio.create_task(ends())
    try:
        await asyncio.wait((draining, ending), return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            tier.require_open()
        await ending
    finally:
        for task in (draining, ending):
            task.cancel()
