"""What load balancers and Prometheus ask."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from broker.tenants.scopes import METRICS
from broker.web import metrics
from broker.web.answers import Status
from broker.web.grants import CheckedRoute, needs, needs_nothing
from broker.web.openapi import gives
from broker.web.strict_json import json_response
from broker.web.tier import Tier

router = APIRouter(route_class=CheckedRoute, tags=["Operate"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", **gives("The process is alive", Status))
@needs_nothing
async def healthz() -> Response:
    """It says nothing about Redis."""
    return json_response({"status": "ok"})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", **gives("A stream would start now", Status))
@needs_nothing
async def readyz(request: Request) -> Response:
    """503 while this server should get no requests, with what is missing."""
    await Tier.of(request).require_ready()
    return json_response({"status": "ready"})


@router.get("/metrics", **gives("Prometheus metrics of this process", "text/plain"))
@needs(METRICS)
async def metrics_(request: Request) -> Response:
    """In the text format of Prometheus."""
    tier = Tier.of(request)
    text = await metrics.render(await tier.unarchived())
    return Response(text, media_type=metrics.CONTENT_TYPE)
