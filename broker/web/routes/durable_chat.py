"""A chat of the AI SDK whose answer is read as a durable stream: what @durable-streams/aisdk-transport calls."""

from __future__ import annotations

from urllib.parse import quote

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from broker.auth import Grant
from broker.dialects.ai_sdk_request import asked_of
from broker.dialects.durable_views import AI_SDK
from broker.log.event import is_terminal
from broker.log.meta import Meta
from broker.tenants.scopes import READ, WRITE
from broker.web.dialect import STREAM_HEADER, find, read_asked
from broker.web.follow import require_session
from broker.web.grants import grant_of, needs
from broker.web.inputs import IdempotencyKey
from broker.web.routes.ai_sdk import ignoring, newest_of_chat, start_chat
from broker.web.routes.durable_streams import BASE, DurableRoute
from broker.web.tier import Tier

CHAT = f"{BASE}{AI_SDK}"

router = APIRouter(route_class=DurableRoute, tags=["Durable Streams"])


@router.post(CHAT, include_in_schema=False)
@needs(WRITE, client_keys=True)
async def start(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Start an answer. Location: where it is read, which is all that its client is told of."""
    grant = grant_of(request)
    asked = asked_of(await read_asked(request), show=None)
    sid = await start_chat(request, grant, asked, None, idempotency_key)
    meta = (await find(request, grant, sid)).meta
    return _told(request, grant, sid, meta, 201, ignoring(asked))


@router.get(CHAT + "/{chat_id:path}/stream", include_in_schema=False)
@needs(READ, token=READ, address=True, cookie=True, client_keys=True)
async def active(request: Request, chat_id: str) -> Response:
    """Where the chat's newest answer is read, if it is queued or running. Else 204."""
    grant = grant_of(request)
    require_session(grant, chat_id)
    newest = await newest_of_chat(request, grant, chat_id)
    if newest is None or is_terminal(newest[1].meta.state):
        return Response(status_code=204)
    return _told(request, grant, newest[0], newest[1].meta, 200, {})


def _told(request: Request, grant: Grant, sid: str, meta: Meta, status: int, more: dict[str, str]) -> Response:
    # Its client sends no key to this address: so it has a token, as `events_url` has.
    token = Tier.of(request).auth.token(sid, meta) if grant.gives_reading else None
    url = f"{CHAT}/{sid}" + (f"?access_token={quote(token)}" if token else "")
    headers = {STREAM_HEADER: sid, **more, **({"Location": url} if status == 201 else {})}
    return Response(orjson.dumps({"streamUrl": url}), status, headers, "application/json")
