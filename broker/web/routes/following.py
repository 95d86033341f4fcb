"""Follow a stream, and replay it at its own pace: responses whose body continues."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from broker import traces
from broker.auth import Grant
from broker.dialects.sse import MEDIA_TYPE, NDJSON_MEDIA_TYPE
from broker.errors import (
    ArchiveUnavailable,
    Draining,
    LasteventError,
    MasksBusy,
    RateLimited,
    StoreUnavailable,
    TooManyViewers,
)
from broker.log.access import View
from broker.log.readable import ReadableLog
from broker.service.streams import Found
from broker.tenants.scopes import AUDIT, MASKED, READ
from broker.web.follow import begin, count_connect, require_time_left, steps_of
from broker.web.grants import CheckedRoute, ReaderGrant, needs
from broker.web.inputs import (
    Accept,
    Cursors,
    Kinds,
    SignsOfLife,
    wanted_format,
)
from broker.web.openapi import gives
from broker.web.problems import note_refusal
from broker.web.replay import Span, is_empty, paced
from broker.web.tier import Tier
from broker.web.viewer import CutResponse, EventsResponse, request_details
from broker.web.while_here import while_here

router = APIRouter(route_class=CheckedRoute, tags=["Follow"])


def cut_or_raise(request: Request, passing: LasteventError) -> Response:
    """What passes: an EventSource gets an answer that it comes back after, others the error."""
    if wanted_format(request.headers.get("accept", "")).is_ndjson:
        raise passing
    note_refusal(passing)
    return CutResponse(passing)


@router.head("/v1/streams/{sid}/events", include_in_schema=False)
@router.get("/v1/streams/{sid}/events", **gives("The events, as SSE or NDJSON", MEDIA_TYPE, NDJSON_MEDIA_TYPE))
@needs(READ, MASKED, token=READ, address=True, cookie=True, passing=cut_or_raise)
async def events(
    request: Request,
    sid: str,
    grant: ReaderGrant,
    cursors: Cursors,
    heartbeat: SignsOfLife,
    kinds: Kinds,
    accept: Accept = "*/*",
    compact: Annotated[Literal["0", "1"], Query(description="Merge text that waits")] = "0",
    follows: Annotated[Literal["0", "1"], Query(alias="follow", description="0: the backlog, then the end")] = "1",
) -> Response:
    """Resumes after Last-Event-ID, and continues until the terminal event. 204: the client has that already."""
    tier = Tier.of(request)
    form = wanted_format(accept, compact=compact == "1", is_public=grant.is_public, kinds=kinds)
    require_time_left(grant)
    try:
        begun = await begin(tier, grant, sid, cursors.resume_at, lambda found: log_of(request, sid, found, grant))
    except (StoreUnavailable, ArchiveUnavailable, MasksBusy, Draining, TooManyViewers, RateLimited) as passing:
        return cut_or_raise(request, passing)
    if begun.has_ended:
        return Response(status_code=204)
    found, log, cursor, is_latest = begun
    source = count_connect(tier, sid, cursor, is_in_redis=found.is_in_redis)
    heartbeat_s = heartbeat.every_s
    steps = steps_of(tier, found, grant, log, sid, cursor, form, follows=follows == "1", heartbeat_s=heartbeat_s)
    return EventsResponse(
        tier.viewers,
        steps,
        form,
        heartbeat=form.render_heartbeat(heartbeat),
        view=view_of(request, sid, grant, form.access_name, cursor),
        grant=grant,
        joins_at=cursor if is_latest else None,
        trace=traces.following(
            *(sid, found.meta.traceparent),
            cursor=cursor,
            tail=found.meta.tail,
            source=source,
            waited_s=time.monotonic() - request.state.asked_at_s,
        ),
    )


@router.get("/v1/streams/{sid}/replay", **gives("The log again, at its original pace × speed", MEDIA_TYPE))
@needs(AUDIT, MASKED, address=True)
async def replay_paced(
    request: Request,
    sid: str,
    grant: ReaderGrant,
    cursors: Cursors,
    heartbeat: SignsOfLife,
    kinds: Kinds,
    speed: Annotated[float, Query(ge=0, le=10_000, allow_inf_nan=False, description="0: at once")] = 1.0,
    first: Annotated[int, Query(alias="from", ge=1, lt=2**53, description="The first event's id")] = 1,
    last: Annotated[int | None, Query(alias="to", ge=1, lt=2**53, description="The last event's id")] = None,
) -> Response:
    """The events that the log has now, with the pauses between them."""
    tier = Tier.of(request)
    form = wanted_format(MEDIA_TYPE, is_public=grant.is_public, kinds=kinds)
    await tier.require_place(grant, sid)
    cursor = cursors.resume_at()
    found = await tier.streams.look_up_content(sid, grant, as_sealed=True, at_tail=True)
    cursor = found.meta.tail if cursor is None else cursor
    log = await log_of(request, sid, found, grant)
    span = Span(max(first - 1, cursor), min(last or found.meta.tail, found.meta.tail))
    if cursor and await is_empty(log, sid, span, form):
        return Response(status_code=204)  # an EventSource that has seen all of it must not start again
    name = grant.names("replay") if kinds is None else f"{grant.names('replay')}-kinds"
    view = view_of(request, sid, grant, name, cursor)
    silence_s = heartbeat.every_s or tier.settings.heartbeat_s
    return EventsResponse(
        tier.viewers,
        lambda _: paced(log, sid, span, form, speed=speed, heartbeat_s=silence_s),
        form,
        heartbeat=form.render_heartbeat(heartbeat),
        view=view,
        grant=grant,
        refuses_with_status=True,
    )


async def log_of(request: Request, sid: str, found: Found, grant: Grant) -> ReadableLog:
    reading = Tier.of(request).reading.log(sid, found, grant)
    return await (while_here(request, reading) if grant.is_masked else reading)


def view_of(request: Request, sid: str, grant: Grant, form: str, cursor: int) -> View:
    address = Tier.of(request).addresses.of(request)
    return View(sid, request_details(grant, address, request.headers, form, cursor))
