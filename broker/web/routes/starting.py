"""Start a stream, once more, and stop it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from broker.auth import Grant
from broker.dialects.cursor import parse_cursor
from broker.dialects.format import Format
from broker.dialects.sse import MEDIA_TYPE
from broker.errors import BadCursor
from broker.service.bodies import Cancel, CreateStream, Regenerate
from broker.service.streams import Started
from broker.web.grants import CheckedRoute, full_key, grant_of, needs
from broker.web.inputs import Accept, IdempotencyKey, LastEventId
from broker.web.openapi import takes
from broker.web.routes.following import has_ended_at, steps_of, view_of
from broker.web.strict_json import INLINE_BYTES, json_response, read_json, to_model
from broker.web.tier import Tier
from broker.web.viewer import EventsResponse

router = APIRouter(route_class=CheckedRoute)


@router.post("/v1/streams", **takes(CreateStream, 201, "Started. With Accept: text/event-stream, the stream itself"))
@needs(full_key)
async def create_stream(
    request: Request,
    accept: Accept = "*/*",
    last_event_id: LastEventId = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    tier = Tier.of(request)
    grant = grant_of(request)
    _require_place(tier, accept)
    cursor = _require_key_for_cursor(last_event_id, idempotency_key)
    with tier.intake.place() as place:
        body = await read_json(request, tier.settings.max_request_bytes, place=place)
        async with place.turn():
            new = await to_model(CreateStream, body)
            started = await tier.streams.start(new, grant, idempotency_key, is_large=len(body) > INLINE_BYTES)
    return await _answer(request, grant, started, accept, cursor)


@router.post(
    "/v1/streams/{sid}/regenerate",
    **takes(Regenerate, 201, "A new stream of the same request and session", optional=True),
)
@needs(full_key)
async def regenerate(
    request: Request,
    sid: str,
    accept: Accept = "*/*",
    last_event_id: LastEventId = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    tier = Tier.of(request)
    grant = grant_of(request)
    _require_place(tier, accept)
    cursor = _require_key_for_cursor(last_event_id, idempotency_key)
    await tier.body(request, Regenerate, optional=True)
    started = await tier.streams.regenerate(sid, grant, idempotency_key)
    return await _answer(request, grant, started, accept, cursor)


@router.post("/v1/streams/{sid}/cancel", **takes(Cancel, 200, "How the stream ended", optional=True))
@needs(full_key)
async def cancel(request: Request, sid: str) -> Response:
    tier = Tier.of(request)
    grant = grant_of(request)
    body = await tier.body(request, Cancel, optional=True)
    ended = await tier.streams.cancel(sid, grant, body.reason)
    return json_response(ended._asdict())


def _require_place(tier: Tier, accept: str) -> None:
    # Before anything is started: a refusal must have started nothing.
    if MEDIA_TYPE in accept:
        tier.require_place()
    else:
        tier.require_open()


def _require_key_for_cursor(last_event_id: str | None, key: str | None) -> int | None:
    """A client that POSTs again to reconnect must say which stream it means; without a key it would start another."""
    if last_event_id and key is None:
        raise BadCursor("Last-Event-ID with POST needs the Idempotency-Key the stream was started with.")
    return parse_cursor(last_event_id)


async def _answer(request: Request, grant: Grant, started: Started, accept: str, cursor: int | None) -> Response:
    tier = Tier.of(request)
    location = {"Location": f"/v1/streams/{started.sid}"}
    if MEDIA_TYPE not in accept:
        return json_response(started.record, 201 if started.is_new else 200, location)
    if has_ended_at(cursor, started.record["state"], started.record["last_event_id"]):
        return Response(status_code=204, headers=location)
    cursor = started.record["last_event_id"] if cursor is None else cursor
    found = await tier.streams.look_up_content(started.sid, grant)
    log = await tier.reading.log(started.sid, found, grant)
    steps = steps_of(tier, found, grant, log, started.sid, cursor)
    view = view_of(request, started.sid, grant, Format.EXACT.access_name, cursor)
    return EventsResponse(tier.viewers, steps, Format.EXACT, location, view=view, grant=grant)
