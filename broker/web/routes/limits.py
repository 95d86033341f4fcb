"""Tenants' limits, for whoever operates the servers. `lastevent limits set` sets them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from broker.tenants.limits import NAMES, Limits
from broker.tenants.scopes import ADMIN
from broker.web.answers import LimitList
from broker.web.grants import CheckedRoute, needs
from broker.web.openapi import gives
from broker.web.strict_json import json_response
from broker.web.tier import Tier

router = APIRouter(route_class=CheckedRoute, tags=["Operate"])


@router.get("/v1/limits", **gives("Tenants' limits", LimitList))
@needs(ADMIN)
async def limits(request: Request) -> Response:
    """Of the tenants for which some are set. null: as the settings say, which is in `others`."""
    of_tenants = Tier.of(request).limits
    rows = [{"tenant": tenant, **_all_of(own)} for tenant, own in (await of_tenants.all_set()).items()]
    return json_response({"tenants": rows, "others": _all_of(of_tenants.given)})


def _all_of(limits: Limits) -> dict[str, object]:
    return {name: getattr(limits, name) for name in NAMES}
