"""Who may call a route. Declared beside it, and checked before anything else of the request is looked at.

The order of checks is one for all routes: the door's own rules (door.py), who calls, query and body, the stream.
A route without a declaration does not start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote_plus

from fastapi import Depends, Query, Request, Response
from fastapi.routing import APIRoute

from broker.auth import Audience, Grant
from broker.errors import Forbidden, StoreUnavailable
from broker.web.tier import Tier

Check = Callable[[Tier, Request], Grant | None]
Route = TypeVar("Route", bound=Callable[..., Any])
_TOKEN = re.compile(rb"(?:^|&)(access_token|token)=([^&]*)")

Passing = Callable[[Request, StoreUnavailable], Response]


def anyone(_: Tier, __: Request) -> None:
    """Also a caller without a key."""


def full_key(tier: Tier, request: Request) -> Grant:
    """A caller that may do everything. Raises Unauthorized, or Forbidden for a masked key."""
    grant = any_key(tier, request)
    if grant.is_masked:
        raise Forbidden("This key only reads finished streams, with masks applied. Use another key.")
    return grant


def any_key(tier: Tier, request: Request) -> Grant:
    """A caller that may read all streams, perhaps masked. Raises Unauthorized."""
    return tier.auth.by_key(request.headers.get("authorization"))


def reader(tier: Tier, request: Request) -> Grant:
    """A caller that may read this stream: by a key, perhaps masked, or by a read token.

    Raises Unauthorized, TokenExpired, RedisUnavailable.
    """
    token = _token_in(request.scope["query_string"])
    if token is None or tier.auth.is_open or "authorization" in request.headers:
        return any_key(tier, request)
    return tier.auth.by_token(request.path_params["sid"], token)


def _token_in(query: bytes) -> str | None:
    """The last `access_token`, or `token`. The query is not decoded before it is known who calls: that takes long."""
    found = _TOKEN.findall(query)
    names = [name for name, _ in found]
    if not found:
        return None
    at = len(names) - 1 - names[::-1].index(b"access_token" if b"access_token" in names else b"token")
    return unquote_plus(found[at][1].decode("latin-1"))


def reader_by_key(tier: Tier, request: Request) -> Grant:
    """As `reader`, but not by a read token. Raises Forbidden for one."""
    grant = reader(tier, request)
    if grant.token:
        raise Forbidden("A read token opens a stream's events, its text and its state. This takes an API key.")
    return grant


def needs(check: Check, *, passing: Passing | None = None) -> Callable[[Route], Route]:
    """Declare who may call a route. `passing`: its answer where who calls cannot be found out for the moment."""

    def declare(route: Route) -> Route:
        route.needs = (check, passing)  # type: ignore[attr-defined]
        return route

    return declare


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
        declared: tuple[Check, Passing | None] = self.endpoint.needs  # type: ignore[attr-defined]  # set by @needs
        check, passing = declared
        handle: Callable[[Request], Coroutine[Any, Any, Response]] = super().get_route_handler()
        if check is anyone:
            return handle

        async def checked(request: Request) -> Response:
            try:
                request.state.grant = check(Tier.of(request), request)
            except StoreUnavailable as error:
                if passing is None:
                    raise
                return passing(request, error)
            return await handle(request)

        return checked
