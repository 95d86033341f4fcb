"""Follow a stream, and watch it again: answers whose body goes on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from sse_starlette import EventSourceResponse
from starlette.responses import Response

from broker.auth import Grant
from broker.dialects.cursor import parse_cursor
from broker.dialects.sse import MEDIA_TYPE, NDJSON_MEDIA_TYPE
from broker.errors import ArchiveUnavailable, Draining, StoreUnavailable, TooManyViewers
from broker.live.lane import Lane
from broker.live.tail import Step, follow, replay
from broker.log.access import View, request_details
from broker.log.event import is_terminal
from broker.log.readable import ReadableLog
from broker.web.inputs import Accept, CursorQuery, LastEventId, wanted_format
from broker.web.openapi import gives
from broker.web.replay import paced, recorded
from broker.web.tier import Tier
from broker.web.viewer import CutResponse, EventsResponse

router = APIRouter()


@router.head("/v1/streams/{sid}/events", include_in_schema=False)
@router.get("/v1/streams/{sid}/events", **gives("The events, as SSE or NDJSON", MEDIA_TYPE, NDJSON_MEDIA_TYPE))
async def events(
    request: Request,
    sid: str,
    accept: Accept = "*/*",
    last_event_id: LastEventId = None,
    last_event_id_query: Annotated[CursorQuery, Query(alias="last_event_id")] = None,
    last_event_id_camel: Annotated[str | None, Query(alias="lastEventId")] = None,
    compact: Annotated[Literal["0", "1"], Query(description="Merge text that waits")] = "0",
    follows: Annotated[Literal["0", "1"], Query(alias="follow", description="0: the backlog, then the end")] = "1",
) -> Response:
    tier = Tier.of(request)
    form = wanted_format(accept, compact == "1")
    try:
        grant = tier.reader(request, sid)
        tier.require_place()
        cursor = parse_cursor(last_event_id or last_event_id_query or last_event_id_camel)
        found = await tier.streams.look_up_content(sid, grant)
        log = await tier.reading.log(sid, found, grant)
    except (StoreUnavailable, ArchiveUnavailable, Draining, TooManyViewers) as passing:
        if form.is_ndjson:
            raise
        return CutResponse(passing.code)
    tail = found.meta.tail
    if has_ended_at(cursor, found.meta.state, tail):
        return Response(status_code=204)
    cursor = tail if cursor is None else cursor
    steps = steps_of(tier, log, sid, cursor, follows=follows == "1")
    return EventsResponse(tier.viewers, steps, form, view=view_of(request, sid, grant, form.shown, cursor))


@router.get("/v1/streams/{sid}/replay", **gives("The log again, at its original pace × speed", MEDIA_TYPE))
async def replay_paced(
    request: Request,
    sid: str,
    last_event_id: LastEventId = None,
    speed: Annotated[float, Query(ge=0, le=10_000, allow_inf_nan=False, description="0: at once")] = 1.0,
    first: Annotated[int, Query(alias="from", ge=1, lt=2**53, description="The first event's id")] = 1,
    last: Annotated[int | None, Query(alias="to", ge=1, lt=2**53, description="The last event's id")] = None,
) -> Response:
    tier = Tier.of(request)
    grant = tier.reader(request, sid)
    events = await tier.reading.events(sid, grant)
    tier.require_place()
    cursor = parse_cursor(last_event_id) or 0
    chosen = [event for event in events if max(first, cursor + 1) <= event.id and (last is None or event.id <= last)]
    if cursor and not chosen:
        return Response(status_code=204)  # an EventSource that has seen all of it must not start again
    view = view_of(request, sid, grant, "replay", cursor)
    frames = recorded(paced(chosen, speed, tier.viewers.draining, view), view, tier.access)
    return EventSourceResponse(frames, sep="\n", ping=15, send_timeout=tier.settings.viewer_stall_s)


def steps_of(
    tier: Tier, log: ReadableLog, sid: str, cursor: int, *, follows: bool = True
) -> Callable[[Lane | None], AsyncGenerator[Step, None]]:
    """A stream that Redis has is followed; one that the archive has is at its end."""
    if follows and log is tier.log:
        return partial(follow, tier.log, tier.hub, sid, cursor)
    return lambda _: replay(log, sid, cursor)


def view_of(request: Request, sid: str, grant: Grant, form: str, cursor: int) -> View:
    address = request.client.host if request.client else None
    return View(sid, request_details(grant, address, request.headers, form, cursor))


def has_ended_at(cursor: int | None, state: str, tail: int) -> bool:
    """The viewer has the terminal event already: 204 makes a browser's EventSource stop reconnecting."""
    return is_terminal(state) and (cursor is None or cursor == tail)
