"""Start a stream, once more, and stop it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from broker import traces
from broker.auth import Grant
from broker.dialects.format import Heartbeat
from broker.dialects.sse import MEDIA_TYPE
from broker.errors import BadCursor
from broker.log.deeds import CANCELLED, CREATED, REGENERATED
from broker.service.bodies import Cancel, CreateStream, Regenerate
from broker.service.streams import Started
from broker.tenants.scopes import CANCEL, READ, WRITE
from broker.traces import Span
from broker.web.answers import Ended, StartedStream, Stream
from broker.web.follow import has_ended_at, steps_of
from broker.web.grants import CheckedRoute, ReaderGrant, grant_of, needs
from broker.web.inputs import (
    Accept,
    Cursors,
    IdempotencyKey,
    Kinds,
    SignsOfLife,
    wanted_format,
)
from broker.web.openapi import takes
from broker.web.routes.following import view_of
from broker.web.strict_json import INLINE_BYTES, json_response, read_json, to_model
from broker.web.tier import Tier
from broker.web.viewer import EventsResponse

router = APIRouter(route_class=CheckedRoute, tags=["Start"])


@router.post(
    "/v1/streams",
    **takes(CreateStream, 201, "Started. With Accept: text/event-stream, the stream itself", StartedStream),
)
@needs(WRITE)
async def create_stream(
    request: Request,
    grant: ReaderGrant,
    cursors: Cursors,
    heartbeat: SignsOfLife,
    kinds: Kinds,
    accept: Accept = "*/*",
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """The same Idempotency-Key again returns the same stream. An external stream starts with its epoch."""
    tier = Tier.of(request)
    with _traced(request) as span:
        await _require_place(tier, grant, accept)
        cursor = _require_key_for_cursor(cursors, idempotency_key)
        with tier.intake.place() as place:
            body = await read_json(request, tier.settings.max_request_bytes, place=place)
            async with place.turn():
                new = await to_model(CreateStream, body)
                started = await tier.streams.start(new, grant, idempotency_key, is_large=len(body) > INLINE_BYTES)
        if started.is_new:
            tier.deeds.note(tier.deed(request, CREATED, started.sid))
        return await _answer(request, grant, started, accept, cursor, heartbeat, kinds, span)


@router.post(
    "/v1/streams/{sid}/regenerate",
    **takes(Regenerate, 201, "A new stream of the same request and session", Stream, optional=True),
)
@needs(WRITE)
async def regenerate(
    request: Request,
    sid: str,
    grant: ReaderGrant,
    cursors: Cursors,
    heartbeat: SignsOfLife,
    kinds: Kinds,
    accept: Accept = "*/*",
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """The new stream names the old one in `regenerates`, and shares its request."""
    tier = Tier.of(request)
    with _traced(request) as span:
        await _require_place(tier, grant, accept)
        cursor = _require_key_for_cursor(cursors, idempotency_key)
        await tier.body(request, Regenerate, optional=True)
        started = await tier.streams.regenerate(sid, grant, idempotency_key)
        if started.is_new:
            tier.deeds.note(tier.deed(request, REGENERATED, started.sid, regenerates=sid))
        return await _answer(request, grant, started, accept, cursor, heartbeat, kinds, span)


@router.post("/v1/streams/{sid}/cancel", **takes(Cancel, 200, "How the stream ended", Ended, optional=True))
@needs(CANCEL, token=CANCEL, cookie=True)
async def cancel(request: Request, sid: str) -> Response:
    """Whether it is queued, running, or has lost its worker. A stream that has ended stays as it is (`already`)."""
    tier = Tier.of(request)
    grant = grant_of(request)
    body = await tier.body(request, Cancel, optional=True)
    ended = await tier.streams.cancel(sid, grant, body.reason)
    if not ended.already:
        tier.deeds.note(tier.deed(request, CANCELLED, sid))
    return json_response(ended._asdict())


def _traced(request: Request) -> Span:
    return traces.posting(request.scope["route"].path, request.headers.getlist("traceparent"))


async def _require_place(tier: Tier, grant: Grant, accept: str) -> None:
    # Before anything is started: a refusal must have started nothing.
    if MEDIA_TYPE in accept:
        grant.require(READ)
        await tier.require_place(grant)
    else:
        tier.require_open()


def _require_key_for_cursor(cursors: Cursors, key: str | None) -> int | None:
    """A client that POSTs again to reconnect must say which stream it means; without a key it would start another."""
    if cursors and key is None:
        raise BadCursor("Last-Event-ID with POST needs the Idempotency-Key the stream was started with.")
    return cursors.resume_at()


async def _answer(
    request: Request,
    grant: Grant,
    started: Started,
    accept: str,
    cursor: int | None,
    heartbeat: Heartbeat,
    kinds: frozenset[str] | None,
    span: Span,
) -> Response:
    tier, sid, record = Tier.of(request), started.sid, started.record
    span.about(sid)
    span.answered(201 if started.is_new else 200)
    location = {"Location": f"/v1/streams/{sid}"}
    if MEDIA_TYPE not in accept:
        return json_response(record, 201 if started.is_new else 200, location)
    if has_ended_at(cursor, record["state"], record["last_event_id"]):
        return Response(status_code=204, headers=location)
    joins_at = record["last_event_id"] if cursor is None else None
    cursor = record["last_event_id"] if cursor is None else cursor
    found = await tier.streams.look_up_content(sid, grant)
    log = await tier.reading.log(sid, found, grant)
    form = wanted_format(MEDIA_TYPE, is_public=grant.is_public, kinds=kinds)
    return EventsResponse(
        tier.viewers,
        steps_of(tier, found, grant, log, sid, cursor, form, heartbeat_s=heartbeat.every_s),
        form,
        location,
        heartbeat=form.render_heartbeat(heartbeat),
        view=view_of(request, sid, grant, form.access_name, cursor),
        grant=grant,
        joins_at=joins_at,
    )
