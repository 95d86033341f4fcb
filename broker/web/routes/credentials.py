"""Who is let in: the API keys of all tenants, for administrators. They are made by `lastevent keys`, not over HTTP."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from broker.errors import InvalidRequest, RedisUnavailable
from broker.log.deeds import KEY_REVOKED
from broker.store.durable import Kept
from broker.tenants.keyring import parsed
from broker.tenants.scopes import ADMIN
from broker.web.answers import KeyList
from broker.web.grants import CheckedRoute, needs
from broker.web.openapi import gives, revokes
from broker.web.strict_json import json_response
from broker.web.tier import Tier

router = APIRouter(route_class=CheckedRoute, tags=["Keys"])


@router.get("/v1/keys", **gives("The API keys of all tenants, the oldest first", KeyList))
@needs(ADMIN)
async def keys(request: Request) -> Response:
    """Those that are revoked, too, and those of the server's settings. No secret: nobody has it but its owner."""
    tier = Tier.of(request)
    stored = sorted(parsed(await tier.keys.read()), key=lambda key: (key.created, key.id))
    return json_response({"keys": [key.shown() for key in (*tier.keyring.given, *stored)]})


@router.delete("/v1/keys/{key}", status_code=204, **revokes())
@needs(ADMIN)
async def revoke_key(request: Request, key: str) -> Response:
    """At once here, within 10 s on every server; open connections too. Repeating it changes nothing."""
    tier = Tier.of(request)
    if tier.keyring.is_given(key):
        raise InvalidRequest("This key is one of the server's settings. Take it out there, and restart the servers.")
    revoked, kept = await tier.keys.revoke(key)
    await tier.keys.tell(tier.keyring.know)
    tier.cut_revoked()
    await tier.deeds.record(tier.deed(request, KEY_REVOKED, key=key)._replace(tenant=revoked.tenant))
    if kept is Kept.LATE:
        raise RedisUnavailable(f"The key is revoked. {kept.value} Ask again, until this is answered with 204.")
    return Response(status_code=204)
