"""Who follows a stream, or a session, now."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response

from broker.log.presence import shown, together
from broker.tenants.scopes import INSPECT, READ
from broker.web.answers import Present
from broker.web.follow import require_session
from broker.web.grants import CheckedRoute, grant_of, needs
from broker.web.openapi import gives
from broker.web.strict_json import json_response
from broker.web.tier import Tier
from broker.web.while_here import while_here

MANY_STREAMS = 8
"""Of a session of more, what is told may be a second old. 200 of them take some 40 ms, which who asks again and again
would have repeated."""

router = APIRouter(route_class=CheckedRoute, tags=["Follow"])


@router.get("/v1/streams/{sid}/viewers", **gives("Who follows the stream now", Present))
@needs(READ, INSPECT, token=READ, cookie=True)
async def viewers(request: Request, sid: str) -> Response:
    """Names take a key that may inspect, or a token's `streams:viewers`. Nobody follows what only the archive has."""
    tier, grant = Tier.of(request), grant_of(request)
    found = await tier.streams.look_up(sid, grant)
    are_there = found.is_in_redis and found.meta.erased is None
    return json_response(await while_here(request, _seen(tier, [sid] if are_there else [], request)))


@router.get("/v1/sessions/{session_id:path}/viewers", **gives("Who follows the session's running streams now", Present))
@needs(READ, INSPECT, token=READ, cookie=True)
async def session_viewers(request: Request, session_id: str) -> Response:
    """Of the streams that the caller may open. Somebody who follows two of them is one of `people`."""
    tier, grant = Tier.of(request), grant_of(request)
    require_session(grant, session_id)
    running = await tier.listing.running(grant.tenant, session_id)
    sids = [sid for sid, meta in running if grant.opens(sid, meta)]
    return json_response(await while_here(request, _seen(tier, sids, request)))


async def _seen(tier: Tier, sids: Sequence[str], request: Request) -> dict[str, object]:
    are_many = len(sids) > MANY_STREAMS
    seen = [await tier.presence.of(sid, is_one_of_many=are_many) for sid in sids]
    return shown(together(seen), grant_of(request).sees_of_viewers)
