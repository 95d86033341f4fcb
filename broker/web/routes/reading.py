"""Read a stream as it is now: its record, its text, its whole log."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from broker.dialects.sse import NDJSON_MEDIA_TYPE
from broker.log.event import text_since_restart
from broker.web.openapi import gives
from broker.web.strict_json import json_response
from broker.web.tier import Tier

router = APIRouter()


@router.get("/v1/streams/{sid}", **gives("The stream", "application/json"))
async def stream(request: Request, sid: str) -> Response:
    tier = Tier.of(request)
    grant = tier.stream_grant(request, sid)
    return json_response(tier.stream_json(await tier.streams.look_up_whole(sid, grant), sid, grant))


@router.get("/v1/streams/{sid}/text", **gives("The answer so far; Last-Event-ID says how far", "text/plain"))
async def text(request: Request, sid: str) -> Response:
    tier = Tier.of(request)
    events = await tier.reading.events(sid, tier.stream_grant(request, sid))
    headers = {"Last-Event-ID": str(events[-1].id)}
    return Response(text_since_restart(events), media_type="text/plain; charset=utf-8", headers=headers)


@router.get("/v1/streams/{sid}/export", **gives("The whole log, an event a line", NDJSON_MEDIA_TYPE))
async def export(
    request: Request,
    sid: str,
    redacted: Annotated[Literal["0", "1"], Query(description="1: with masks applied")] = "0",
) -> Response:
    tier = Tier.of(request)
    body = await tier.reading.export(sid, tier.read_all_grant(request), is_redacted=redacted == "1")
    name = {"Content-Disposition": f'attachment; filename="{sid}.ndjson"'}
    return Response(body, media_type=NDJSON_MEDIA_TYPE, headers=name)
