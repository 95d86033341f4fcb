"""Who may call a route. Declared beside it, and checked before anything else of the request is looked at.

The order of checks is one for all routes: the door's own rules (door.py), the credential, its scope, a token's own list
of streams, query and body, the look-up of the stream, whose it is. So 401 comes before 422, and what is not the
caller's is looked up like what does not exist. A route without a declaration does not start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote_plus

from fastapi import Depends, Query, Request, Response
from fastapi.routing import APIRoute

from broker.auth import Audience, Grant
from broker.errors import InsufficientScope, StoreUnavailable, StreamNotFound, Unauthorized
from broker.web.tier import Tier

Route = TypeVar("Route", bound=Callable[..., Any])
_TOKEN = re.compile(rb"(?:^|&)(access_token|token)=([^&]*)")

Passing = Callable[[Request, StoreUnavailable], Response]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a route takes. `scopes`: of which a key needs one; none: any key opens it. `token`: the scope that a token
    needs; None: no token opens it. `address`: the token may be in the query.

    `passing`: the answer where who calls cannot be found out for the moment.
    """

    scopes: tuple[str, ...]
    token: str | None = None
    address: bool = False
    passing: Passing | None = None


def needs(
    *scopes: str, token: str | None = None, address: bool = False, passing: Passing | None = None
) -> Callable[[Route], Route]:
    """Declare who may call a route; see Needs."""

    def declare(route: Route) -> Route:
        route.needs = Needs(scopes, token, address, passing)  # type: ignore[attr-defined]
        return route

    return declare


def needs_nothing(route: Route) -> Route:
    """Also a caller without a key."""
    route.needs = None  # type: ignore[attr-defined]
    return route


def grant_of(request: Request) -> Grant:
    found: Grant = request.state.grant
    return found


def _reader_of(
    request: Request,
    audience: Annotated[
        Audience | None, Query(description="public: what users see. Default: all that the caller may see")
    ] = None,
) -> Grant:
    return grant_of(request).narrowed(audience)


ReaderGrant = Annotated[Grant, Depends(_reader_of)]
"""Of a route that shows events: the caller's grant, or less if it asked for less."""


class CheckedRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        declared: Needs | None = self.endpoint.needs  # type: ignore[attr-defined]  # set by @needs
        handle: Callable[[Request], Coroutine[Any, Any, Response]] = super().get_route_handler()
        if declared is None:
            return handle

        async def checked(request: Request) -> Response:
            try:
                request.state.grant = admit(request, declared)
            except StoreUnavailable as error:
                if declared.passing is None:
                    raise
                return declared.passing(request, error)
            return await handle(request)

        return checked


def admit(request: Request, needed: Needs) -> Grant:
    """The caller's grant. Raises Unauthorized, TokenExpired, InsufficientScope, StreamNotFound, RedisUnavailable."""
    auth = Tier.of(request).auth
    if everybodys := auth.open_grant():
        return everybodys
    sid: str | None = request.path_params.get("sid")
    credential, is_header = _credential(request, needed)
    grant = auth.grant(credential, sid)
    if grant.token is None:
        if not is_header:
            raise Unauthorized(
                "An API key travels in the header Authorization alone. This one is in an address: revoke it."
            )
        if needed.scopes:
            grant.require(*needed.scopes)
        return grant
    if needed.token is None:
        raise InsufficientScope(needed.scopes, "This takes an API key; no token opens it.")
    if needed.token not in grant.scopes:
        raise InsufficientScope((needed.token,))
    if sid is not None and not grant.token.may_open(sid):
        raise StreamNotFound("There is no stream with this id.")
    return grant


def _credential(request: Request, needed: Needs) -> tuple[str, bool]:
    """What the caller presents, and whether in the header, which wins. Raises Unauthorized."""
    if (header := request.headers.get("authorization")) is not None:
        scheme, _, credential = header.partition(" ")
        if scheme.lower() == "bearer" and credential.strip():
            return credential.strip(), True
    elif needed.address and (token := _token_in(request.scope["query_string"])) is not None:
        return token, False
    raise Unauthorized("Send the header Authorization: Bearer <an API key, or a token>.")


def _token_in(query: bytes) -> str | None:
    """The last `access_token`, or `token`. The query is not decoded before it is known who calls: that takes long."""
    found = _TOKEN.findall(query)
    names = [name for name, _ in found]
    if not found:
        return None
    at = len(names) - 1 - names[::-1].index(b"access_token" if b"access_token" in names else b"token")
    return unquote_plus(found[at][1].decode("latin-1"))
