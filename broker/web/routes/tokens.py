"""Tokens for phones and browsers: made for an app's back end, kept in a cookie, revoked."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.responses import Response

from broker.errors import Forbidden
from broker.log.deeds import MINTED, REVOKED
from broker.log.rfc3339 import rfc3339
from broker.service.bodies import MintToken, RevokeTokens
from broker.tenants.scopes import ADMIN, INPUT, INSPECT, MINT, VIEWERS, WRITE
from broker.web.answers import MintedToken
from broker.web.grants import ANY_TOKEN, COOKIE, CheckedRoute, grant_of, needs
from broker.web.openapi import gives_nothing, takes
from broker.web.strict_json import json_response
from broker.web.tier import Tier

router = APIRouter(route_class=CheckedRoute, tags=["Tokens"])

NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
"""RFC 6749 §5.1, of an answer with a token in it."""

_OF_A_KEY = {INPUT: WRITE, VIEWERS: INSPECT}
"""What a key needs to give a scope away, where that has another name."""


@router.post("/v1/tokens", **takes(MintToken, 201, "A token, shown this once", MintedToken, can_be_followed=False))
@needs(MINT)
async def mint(request: Request) -> Response:
    """Of the key's tenant, and with no scope that the key has not."""
    tier, grant = Tier.of(request), grant_of(request)
    body = await tier.body(request, MintToken)
    for scope in sorted(body.scopes):
        grant.require(_OF_A_KEY.get(scope, scope))
    if tier.auth.is_open:
        raise Forbidden("A server without keys asks nobody for a token. Give it a key first: lastevent keys create")
    minted = tier.auth.mint(grant.tenant, body.sub, body.scopes, body.opened, body.ttl_s)
    tier.deeds.note(tier.deed(request, MINTED, user=body.sub))
    answer = {"token": minted.text, "expires_at": rfc3339(minted.expires * 1000)}
    return json_response(answer, 201, NO_STORE)


@router.post("/v1/tokens/cookie", **gives_nothing("The token is in a cookie, until it expires"))
@needs(token=ANY_TOKEN)
async def set_cookie(request: Request) -> Response:
    """The browser sends it from then on, where no script can read it."""
    token = grant_of(request).token
    if token is None:
        raise Forbidden("A server without keys asks nobody for a token.")
    response = Response(status_code=204, headers=NO_STORE)
    response.set_cookie(
        COOKIE,
        request.headers["authorization"].partition(" ")[2].strip(),
        max_age=max(0, int(token.expires - time.time())),
        path="/",
        secure=True,
        httponly=True,
        samesite="lax",
    )
    return response


@router.post("/v1/tokens/revoke", **gives_nothing("Nobody is let in with it any more", RevokeTokens))
@needs(MINT)
async def revoke(request: Request) -> Response:
    """Of the key's tenant. Redis has it on disk by then; every server knows within 10 s, and cuts who is connected."""
    tier, grant = Tier.of(request), grant_of(request)
    body = await tier.body(request, RevokeTokens)
    if body.tenant not in (None, grant.tenant):
        grant.require(ADMIN)
    tenant, now_ms = body.tenant or grant.tenant, int(time.time() * 1000) + 1  # this millisecond's too
    if body.jti is not None:
        await tier.revocations.revoke_token(tenant, body.jti)
    elif body.stream is not None:
        await tier.revocations.revoke_stream(tenant, body.stream, now_ms)
    elif body.sub is not None:
        before_ms = now_ms if body.issued_before is None else round(body.issued_before.timestamp() * 1000)
        await tier.revocations.revoke_subject(tenant, body.sub, before_ms)
    of = {"jti": body.jti, "user": body.sub}
    told = {name: value for name, value in of.items() if value is not None}
    # Among the deeds of the tenant that it concerns: erasing this user there finds it.
    await tier.deeds.record(tier.deed(request, REVOKED, body.stream, **told)._replace(tenant=tenant))
    return Response(status_code=204)
