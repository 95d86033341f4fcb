"""What every request passes first: a request id, the rules of a keyless server, headers, and a last net.

Without any key, anything that reaches the port may do everything, and every web page in the user's browser can reach
loopback. So a keyless server answers only what a foreign page cannot send (design §6):
- Host is a loopback name: a page whose own domain was pointed at 127.0.0.1 (DNS rebinding) says its own name
- no Forwarded or X-Forwarded-*: a proxy in front means that others than this machine are let in
- no foreign Origin, and no Sec-Fetch-Site but same-origin and none: the browser's own word about the page,
  on every method, GET too: an EventSource is a GET, and starting one must not tell a foreign page anything
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from broker import gauges
from broker.auth import Grant
from broker.errors import NO_SOCKETS, Draining, Forbidden, NoSockets
from broker.process.logs import ABOUT
from broker.web.problems import from_error, problem

logger = logging.getLogger(__name__)

_LOOPBACK_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.ASCII | re.IGNORECASE)

_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"})
"""Of labels: a client may send any word."""


class Door:
    """ASGI middleware, the outermost. `is_keyless`: asked at each request, for a key may be made at any time."""

    def __init__(self, app: ASGIApp, *, is_keyless: Callable[[], bool], cors_origins: Sequence[str] = ()) -> None:
        self.app = app
        self._is_keyless = is_keyless
        self._cors_origins = frozenset(cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # of another ASGI server: ours asks no application
            await _refuse_socket(WebSocket(scope, receive, send))
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        asked_at_s = time.monotonic()
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, asked_at_s=asked_at_s)
        ABOUT.set(partial(about, state))
        started = False
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"  # an address may have a token in it
                headers.setdefault("Content-Security-Policy", "default-src 'none'")
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            if self._is_keyless():
                require_own_page(Headers(scope=scope), self._cors_origins)
            await self.app(scope, receive, send_with_headers)
        except Forbidden as error:
            await from_error(request_id, error)(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            # uvicorn cancels what a drain has waited for long enough: a client that has not sent its whole request yet.
            if not started:
                late = Draining("This server is shutting down, and the request was not complete. Try again.")
                await from_error(request_id, late)(scope, receive, send_with_headers)
        except Exception:
            # The last net: a bug here. The caller gets an id to report, the log the rest; a begun answer is cut.
            logger.exception("request %s failed", request_id)
            if not started:
                detail = "This is a fault of the server. Report it with the request id."
                response = problem(request_id, 500, "internal_error", "Internal server error", detail)
                await response(scope, receive, send_with_headers)
        finally:
            _count(scope, status, time.monotonic() - asked_at_s)


async def _refuse_socket(socket: WebSocket) -> None:
    """With 501, if that server can answer a handshake with a status."""
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        await socket.send_denial_response(from_error(secrets.token_hex(8), NoSockets(NO_SOCKETS)))
    else:
        await socket.close()


def _count(scope: Scope, status: int, took_s: float) -> None:
    """`status`: 0 if the client had gone before there was an answer."""
    route = getattr(scope.get("route"), "path", gauges.OTHER)
    method = scope["method"] if scope["method"] in _METHODS else gauges.OTHER
    gauges.http_requests.labels(route, method, str(status)).inc()
    if not scope["state"].get("is_stream"):
        gauges.http_request_seconds.observe(took_s, route)


def about(state: Mapping[str, Any]) -> Mapping[str, str]:
    """For the log. Of a key its id; a token's subject is a person."""
    about = {"request": state["request_id"]}
    grant: Grant | None = state.get("grant")
    if grant and grant.who.startswith("key:"):
        about["key"] = grant.who.removeprefix("key:")
    return about


def require_own_page(headers: Headers, cors_origins: frozenset[str]) -> None:
    """Raises Forbidden for what a foreign web page, or a proxy, may have sent to a keyless server."""
    host = headers.getlist("host")
    if len(host) != 1 or not _LOOPBACK_HOST.fullmatch(host[0]):
        raise Forbidden(
            "A server without keys answers to localhost, 127.0.0.1 and [::1] only. Make a key: lastevent keys create"
        )
    if any(name == "forwarded" or name.startswith("x-forwarded-") for name in headers):
        raise Forbidden("A server without keys does not work behind a proxy. Make a key: lastevent keys create")
    origins = headers.getlist("origin")
    if origins and all(origin in cors_origins for origin in origins):
        return
    if any(origin != f"http://{host[0]}" for origin in origins):
        raise Forbidden("A page of another origin may not use this server. Add its origin to LASTEVENT_CORS_ORIGINS.")
    if any(site not in ("same-origin", "none") for site in headers.getlist("sec-fetch-site")):
        raise Forbidden("A page of another site may not use this server.")
