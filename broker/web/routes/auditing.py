"""Who saw a stream, whether it is what it was, and the end of its content."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from broker.log.deeds import ERASED, ERASURE_ORDERED, Which
from broker.service.bodies import ErasePerson
from broker.tenants.scopes import AUDIT, ERASE, MASKED
from broker.web.answers import DeedPage, Erasure, Verification, ViewPage
from broker.web.grants import CheckedRoute, grant_of, needs
from broker.web.inputs import PAGE_LIMIT, Limit, Next, What, to_ms
from broker.web.openapi import erases, gives, takes
from broker.web.strict_json import json_response
from broker.web.tier import Tier
from broker.web.while_here import while_here

router = APIRouter(route_class=CheckedRoute, tags=["Audit"])


@router.get("/v1/streams/{sid}/views", **gives("Who saw which events, oldest first", ViewPage))
@needs(AUDIT, MASKED)
async def views(request: Request, sid: str, limit: Limit = PAGE_LIMIT, cursor: Next = None) -> Response:
    """Each connection that followed the stream, and each caller that read it."""
    tier = Tier.of(request)
    page = tier.reading.views(sid, grant_of(request), limit=limit, after=cursor)
    return json_response(await while_here(request, page))


@router.get("/v1/streams/{sid}/verify", **gives("The stream against its seal", Verification))
@needs(AUDIT, MASKED)
async def verify(request: Request, sid: str) -> Response:
    """Recomputed from what is stored now: the log, the record, the seal and its signature."""
    return json_response({"id": sid, **await Tier.of(request).reading.verify(sid, grant_of(request))})


@router.get("/v1/deeds", **gives("Who did what, newest first", DeedPage))
@needs(AUDIT)
async def deeds(
    request: Request,
    what: Annotated[What | None, Query(description="Only such deeds")] = None,
    who: Annotated[str | None, Query(max_length=300, description="As in views: key:…, user:…")] = None,
    stream: Annotated[str | None, Query(max_length=100)] = None,
    after: datetime | None = None,
    before: datetime | None = None,
    limit: Limit = 50,
    cursor: Next = None,
) -> Response:
    """A page may have fewer deeds than its limit, and still a next page."""
    tier = Tier.of(request)
    which = Which(what, who, stream, to_ms(after), to_ms(before))
    page = tier.acts.page(grant_of(request).tenant, which, limit=limit, after=cursor)
    return json_response(await while_here(request, page))


@router.delete("/v1/streams/{sid}", status_code=204, **erases())
@needs(ERASE)
async def erase(request: Request, sid: str) -> Response:
    """A tombstone and the seals stay."""
    tier = Tier.of(request)
    is_done = await tier.streams.erase(sid, grant_of(request))
    await tier.deeds.record(tier.deed(request, ERASED, sid))
    return Response(status_code=204 if is_done else 202)


@router.post("/v1/erasures", **takes(ErasePerson, 202, "The order. A worker carries it out", Erasure))
@needs(ERASE)
async def erase_person(request: Request) -> Response:
    """All streams of a user, or of a session; what runs is cancelled first. What is left holds nothing of them."""
    tier = Tier.of(request)
    body = await tier.body(request, ErasePerson)
    order = await tier.erasing.order(body, grant_of(request))
    await tier.deeds.record(tier.deed(request, ERASURE_ORDERED, erasure=order["id"]))
    return json_response(order, 202, {"Location": f"/v1/erasures/{order['id']}"})


@router.get("/v1/erasures/{erasure_id}", **gives("How far an erasure has come, until a week after its end", Erasure))
@needs(ERASE)
async def erasure(request: Request, erasure_id: str) -> Response:
    """It does not say whom it is about."""
    return json_response(await Tier.of(request).erasing.find(erasure_id, grant_of(request)))
