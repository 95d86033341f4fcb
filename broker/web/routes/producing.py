"""External producers: what writes a stream from outside."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from broker.log.rfc3339 import rfc3339
from broker.log.steps import EXTERNAL_LEASE_S
from broker.service.bodies import AppendEvents, ProducerHeartbeat
from broker.tenants.scopes import APPEND
from broker.web.answers import Appended, Renewed
from broker.web.grants import CheckedRoute, grant_of, needs
from broker.web.openapi import takes
from broker.web.strict_json import json_response
from broker.web.tier import Tier

router = APIRouter(route_class=CheckedRoute, tags=["Produce"])


@router.post("/v1/streams/{sid}/events", **takes(AppendEvents, 200, "The id of the last event", Appended))
@needs(APPEND, token=APPEND)
async def append(request: Request, sid: str) -> Response:
    """All events of a batch, or none. With `first`, sending a batch again adds nothing."""
    tier = Tier.of(request)
    grant = grant_of(request)
    body = await tier.body(request, AppendEvents)
    return json_response({"last_event_id": (await tier.streams.append(sid, grant, body)).tail})


@router.post("/v1/streams/{sid}/heartbeat", **takes(ProducerHeartbeat, 200, "The lease is renewed", Renewed))
@needs(APPEND, token=APPEND)
async def heartbeat(request: Request, sid: str) -> Response:
    """An append renews the lease, too. When it runs out, the stream ends with an error."""
    tier = Tier.of(request)
    grant = grant_of(request)
    body = await tier.body(request, ProducerHeartbeat)
    renewed = await tier.streams.heartbeat(sid, grant, body.epoch)
    until = rfc3339(renewed.now_ms + round(EXTERNAL_LEASE_S * 1000))
    return json_response({"last_event_id": renewed.tail, "lease_until": until})
