"""Streams and sessions, in pages."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from broker.auth import Grant
from broker.log.index import Filter
from broker.tenants.scopes import INSPECT, MASKED
from broker.web.answers import SessionPage, SessionStreams, StreamPage
from broker.web.grants import CheckedRoute, grant_of, needs
from broker.web.inputs import Include, Limit, Next, State, to_ms
from broker.web.openapi import gives
from broker.web.strict_json import json_response
from broker.web.tier import Tier
from broker.web.while_here import while_here

router = APIRouter(route_class=CheckedRoute, tags=["List"])


@router.get("/v1/streams", **gives("Streams, newest first", StreamPage))
@needs(INSPECT, MASKED)
async def streams(
    request: Request,
    session_id: str | None = None,
    user_id: str | None = None,
    model: str | None = None,
    state: State | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    limit: Limit = 50,
    cursor: Next = None,
    include: Include = None,
) -> Response:
    """A page may have fewer streams than its limit, and still a next page."""
    tier = Tier.of(request)
    grant = grant_of(request)
    which = Filter(session_id, user_id, model, state, to_ms(created_after), to_ms(created_before))
    to_json, with_requests = partial(tier.listed_json, grant=grant), include == "request"
    reading = tier.listing.streams(
        grant.tenant, which, limit=limit, after=cursor, records=to_json, with_requests=with_requests
    )
    page = await while_here(request, reading)
    _note_listed(request, grant, page)
    return json_response(page)


@router.get("/v1/sessions", **gives("Sessions, the one with the newest stream first", SessionPage))
@needs(INSPECT)
async def sessions(request: Request, limit: Limit = 50, cursor: Next = None) -> Response:
    """A session is the streams that were started with the same `session_id`."""
    tier = Tier.of(request)
    grant = grant_of(request)  # names of sessions are the callers' own
    return json_response(await tier.listing.sessions(grant.tenant, limit=limit, after=cursor))


@router.get("/v1/sessions/{session_id:path}", **gives("A session's streams, newest first", SessionStreams))
@needs(INSPECT)
async def session(
    request: Request, session_id: str, limit: Limit = 50, cursor: Next = None, include: Include = None
) -> Response:
    """A page may have fewer streams than its limit, and still a next page. The first one has sums of the session."""
    tier = Tier.of(request)
    grant = grant_of(request)  # names of sessions are the callers' own
    which, to_json = Filter(session=session_id), partial(tier.listed_json, grant=grant)
    reading = tier.listing.streams(
        grant.tenant, which, limit=limit, after=cursor, records=to_json, with_requests=include == "request"
    )
    page = await while_here(request, reading)
    _note_listed(request, grant, page)
    if cursor is None:
        summing = tier.listing.session_totals(grant.tenant, session_id, page)
        page = {**page, "session_totals": await while_here(request, summing)}
    return json_response({"id": session_id, **page})


def _note_listed(request: Request, grant: Grant, page: dict[str, Any]) -> None:
    shown = [stream["id"] for stream in page["streams"] if stream["erased_at"] is None]
    Tier.of(request).note_reading(request, grant, "listing", *shown)
