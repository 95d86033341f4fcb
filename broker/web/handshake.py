"""A WebSocket's handshake (RFC 6455 §4.2): from a request's head to 101 or to a problem, and to who serves the socket.

It is done by hand, and not by the application: what is left of a request after 101 would be most of what an idle socket
costs. So what the door does for requests (door.py) is done here: a request id, the rules of a keyless server, headers,
a count, the last net.

The order, as for routes cheap things first, and nothing told to who may not know it:
1. version and key. (Path, method and `Upgrade` are the protocol's: what is no handshake goes to the route, and is 426.)
2. the rules of a keyless server
3. `Origin`, if there is one: a page of this server, or listed. Others get 403: what is foreign is not talked to
4. a drain, and whether this server is full
5. the credential, if there is one: `Authorization`; a cookie, from a page alone. Without one, `auth` is to come

From 4 on a refusal is a problem for who can see one. A page sees none, and would retry for ever: it gets 101, and
`serve` the error, which tells it and closes. Races:
- the client goes, or a drain begins, while the credential is checked: looked at again before 101
- frames that come with the head: nothing is read until 101, and what had been is given to the socket first
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple, Protocol

from fastapi import FastAPI, Request
from starlette.datastructures import Headers
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from broker import gauges
from broker.auth import Grant
from broker.errors import BadHandshake, Forbidden, LasteventError, TokenExpired, UpgradeRequired
from broker.process.logs import ABOUT
from broker.web import problems
from broker.web.close_codes import CloseCode
from broker.web.door import about, require_own_page
from broker.web.grants import ANY_CREDENTIAL, COOKIE, Needs, admit_through_gate, is_own_page, is_page_of_ours
from broker.web.socket_connection import SocketConnection
from broker.web.tier import Tier
from broker.web.websocket import accept_key, is_key

logger = logging.getLogger(__name__)

PATH = "/v1/socket"
VERSION = "13"
SUBPROTOCOL = "lastevent.v1"
"""Selected if it is offered: Chromium closes (1006) if none of those that a page names is."""

Serve = Callable[[Tier, Request, SocketConnection, Grant | None, LasteventError | None], Coroutine[Any, Any, None]]
"""Serves a socket, from here on by its calls: it sets `on_message` and `on_lost`, and calls `resume_reading`.

The grant: None if there was no credential. The error: what to refuse it with, before it is closed (close_codes.py). The
request is large: who keeps it for longer than it takes to look at it doubles what an idle socket costs.
"""


class Opening(Protocol):
    """The connection whose head was read (protocol.py)."""

    def is_gone(self) -> bool: ...

    def refuse(self, answer: bytes) -> None:
        """Write this, and close."""

    def become_socket(self, head: bytes) -> SocketConnection:
        """Write this, and give the transport away."""


class Accepted(NamedTuple):
    grant: Grant | None
    refusal: LasteventError | None


class Handshake:
    def __init__(self, app: FastAPI, serve: Serve) -> None:
        self._app = app
        self._tier: Tier = app.state.tier
        self._serve = serve
        self._cors_origins = frozenset(self._tier.settings.cors_origins)

    async def open(self, scope: dict[str, Any], opening: Opening, tasks: set[asyncio.Task[None]]) -> None:
        """`tasks`: uvicorn's, for which a drain waits."""
        began_s = time.monotonic()
        request_id = secrets.token_hex(8)
        state: dict[str, Any] = {"request_id": request_id, "asked_at_s": began_s}
        ABOUT.set(partial(about, state))
        scope.update(app=self._app, path_params={}, state=state, path=PATH, raw_path=PATH.encode(), root_path="")
        request = Request(scope)
        answer = await self._answer(request)
        if opening.is_gone():
            _count(0)
        elif isinstance(answer, Response):
            _count(answer.status_code)
            gauges.http_request_seconds.observe(time.monotonic() - began_s, PATH)
            opening.refuse(_written(answer, request_id))
        else:
            _count(101)
            state["grant"] = answer.grant
            connection = opening.become_socket(_switching(request.headers, request_id))
            serving = asyncio.get_running_loop().create_task(
                self._serve(self._tier, request, connection, answer.grant, answer.refusal),
                name="socket",
            )
            tasks.add(serving)
            serving.add_done_callback(tasks.discard)
            serving.add_done_callback(partial(_end_with_its_task, connection))

    async def _answer(self, request: Request) -> Accepted | Response:
        request_id: str = request.state.request_id
        try:
            accepted = await self._accept(request)
            self._require_open(request, accepted)
        except LasteventError as error:
            return problems.from_error(request_id, error)
        except Exception:
            logger.exception("request %s failed", request_id)
            detail = "This is a fault of the server. Report it with the request id."
            return problems.problem(request_id, 500, "internal_error", "Internal server error", detail)
        return accepted

    def _require_open(self, request: Request, accepted: Accepted) -> None:
        """A drain that has begun meanwhile would not know of this socket. Raises Draining."""
        if not accepted.refusal:
            self._tier.require_open()

    async def _accept(self, request: Request) -> Accepted:
        _require_handshake(request.headers)
        if self._tier.auth.is_open:
            require_own_page(request.headers, self._cors_origins)
        is_page = "origin" in request.headers
        if is_page and not is_page_of_ours(request):
            raise Forbidden(
                "A page of another origin may not use this server. Add its origin to LASTEVENT_CORS_ORIGINS."
            )
        try:
            self._tier.require_open()
            self._tier.viewers.places.require_process()
            return Accepted(await self._grant(request, is_page=is_page), None)
        except LasteventError as error:
            if not is_page:
                raise
            problems.note_refusal(error)
            return Accepted(None, error)

    async def _grant(self, request: Request, *, is_page: bool) -> Grant | None:
        # Whom CORS lets read no answer that came with cookies must not read a socket that does.
        takes_cookie = is_page and (is_own_page(request) or self._tier.settings.cors_credentials)
        has_one = "authorization" in request.headers or (takes_cookie and COOKIE in request.headers.get("cookie", ""))
        if not has_one:
            return self._tier.auth.open_grant()
        grant = await admit_through_gate(request, Needs((), token=ANY_CREDENTIAL, cookie=takes_cookie))
        if token := grant.token:
            self._tier.connects.require(token.id)
            if token.cuts_at <= time.time():
                raise TokenExpired("The token expires now. Get a new one.")
        return grant


def _require_handshake(headers: Headers) -> None:
    """§4.2.1. Raises UpgradeRequired, BadHandshake."""
    if headers.getlist("sec-websocket-version") != [VERSION]:
        raise UpgradeRequired("This speaks version 13 of WebSockets (RFC 6455).")
    keys = headers.getlist("sec-websocket-key")
    if len(keys) != 1 or not is_key(keys[0].encode("latin-1")):
        raise BadHandshake("The header Sec-WebSocket-Key must be there once, with 16 bytes in base64.")


def _switching(headers: Headers, request_id: str) -> bytes:
    accept = accept_key(headers["sec-websocket-key"].encode("latin-1")).decode()
    lines = [
        *("upgrade: websocket", "connection: Upgrade", f"sec-websocket-accept: {accept}"),
        f"x-request-id: {request_id}",
    ]
    offered = [name.strip() for value in headers.getlist("sec-websocket-protocol") for name in value.split(",")]
    if SUBPROTOCOL in offered:
        lines.append(f"sec-websocket-protocol: {SUBPROTOCOL}")
    return STATUS_LINE[101] + "\r\n".join([*lines, "", ""]).encode()


def _written(answer: Response, request_id: str) -> bytes:
    """With the headers that the door adds."""
    answer.headers.update(
        {
            "x-request-id": request_id,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-store",
            "connection": "close",
        }
    )
    head = b"".join(b"%b: %b\r\n" % header for header in answer.raw_headers)
    return STATUS_LINE[answer.status_code] + head + b"\r\n" + bytes(answer.body)


def _count(status: int) -> None:
    """`status`: 0 if the client had gone before there was an answer."""
    gauges.http_requests.labels(PATH, "GET", str(status)).inc()


def _end_with_its_task(connection: SocketConnection, serving: asyncio.Task[None]) -> None:
    """A socket that could not be served is closed, whatever ended its task. The last net."""
    if serving.cancelled():
        connection.reset()
    elif error := serving.exception():
        logger.error("a socket failed", exc_info=error)
        connection.close(CloseCode.FAULT)
