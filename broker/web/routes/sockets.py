"""A WebSocket's address, for requests that are no handshake: one is answered before any route (handshake.py)."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from broker.errors import NO_SOCKETS, NoSockets, UpgradeRequired
from broker.live.lane import CONNECTION
from broker.web.grants import CheckedRoute, needs_nothing
from broker.web.openapi import upgrades

router = APIRouter(route_class=CheckedRoute, tags=["Follow"])


@router.get("/v1/socket", **upgrades())
@needs_nothing
async def socket(request: Request) -> Response:
    """A WebSocket (RFC 6455) on which many streams are followed, started and told. 426 for any other request."""
    if CONNECTION not in request.scope.get("extensions", {}) and "upgrade" in request.headers:
        raise NoSockets(NO_SOCKETS)
    raise UpgradeRequired(
        "Send the handshake of a WebSocket: GET over HTTP/1.1 without a body, Connection: Upgrade, Upgrade: websocket. "
        "If you did, a proxy on the way has taken it out."
    )
