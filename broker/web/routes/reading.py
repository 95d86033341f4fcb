"""Read a stream as it is now: its record, its text, its whole log."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from broker.dialects.sse import NDJSON_MEDIA_TYPE
from broker.tenants.scopes import AUDIT, INSPECT, MASKED, READ
from broker.web.answers import AssistantMessage, Stream, StreamState
from broker.web.grants import CheckedRoute, ReaderGrant, grant_of, needs
from broker.web.openapi import gives
from broker.web.strict_json import json_response
from broker.web.tier import Tier
from broker.web.while_here import while_here

router = APIRouter(route_class=CheckedRoute, tags=["Read"])


@router.get("/v1/streams/{sid}", **gives("The stream", Stream, StreamState))
@needs(INSPECT, READ, MASKED, token=READ, address=True, cookie=True)
async def stream(request: Request, sid: str) -> Response:
    """Who may not inspect sees less of it (StreamState)."""
    tier = Tier.of(request)
    grant = grant_of(request)
    meta = await tier.streams.look_up_whole(sid, grant)
    if meta.erased is None:
        tier.note_reading(request, grant, "record", sid)
    return json_response(await while_here(request, tier.stream_json(meta, sid, grant)))


@router.get("/v1/streams/{sid}/text", **gives("The answer so far; Last-Event-ID says how far", "text/plain"))
@needs(READ, MASKED, token=READ, address=True, cookie=True)
async def text(request: Request, sid: str, grant: ReaderGrant) -> Response:
    """The text since the last restart, and in Last-Event-ID where to continue."""
    tier = Tier.of(request)
    if grant.token:
        tier.connects.require(grant.token.id)
    answer, *span = await while_here(request, tier.reading.text(sid, grant))
    tier.note_reading(request, grant, grant.names("text"), sid, span=(span[0], span[1]))
    return Response(answer, media_type="text/plain; charset=utf-8", headers={"Last-Event-ID": str(span[1])})


@router.get("/v1/streams/{sid}/message", **gives("The assistant's message, for the next request", AssistantMessage))
@needs(INSPECT)
async def message(request: Request, sid: str) -> Response:
    """What `messages` of the next POST takes as it is: for the model that said it in its own form, for any other in
    blocks. 409 while the stream runs.
    """
    tier, grant = Tier.of(request), grant_of(request)
    answer, *span = await while_here(request, tier.reading.message(sid, grant))
    tier.note_reading(request, grant, "text", sid, span=(span[0], span[1]))  # it shows what that shows, and more
    return Response(answer, media_type="application/json")


@router.get("/v1/streams/{sid}/export", **gives("The whole log, an event a line", NDJSON_MEDIA_TYPE))
@needs(AUDIT, MASKED)
async def export(
    request: Request,
    sid: str,
    grant: ReaderGrant,
    redacted: Annotated[Literal["0", "1"], Query(description="1: with masks applied")] = "0",
) -> Response:
    """The last line is its seal, if there is one. A masked export names its masks before that. What users see has no
    seal: that is the whole log's.
    """
    tier = Tier.of(request)
    export = tier.reading.export(sid, grant, is_redacted=redacted == "1")
    body, *span = await while_here(request, export)
    tier.note_reading(request, grant, grant.names("export"), sid, span=(span[0], span[1]))
    name = {"Content-Disposition": f'attachment; filename="{sid}.ndjson"'}
    return Response(body, media_type=NDJSON_MEDIA_TYPE, headers=name)
