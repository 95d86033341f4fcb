"""Who may call a route. Declared beside it, and checked before anything else of the request is looked at.

The order of checks is one for all routes: the door's own rules (door.py), the gate for who has guessed too often, the
credential, its scope, a token's own list of streams, query and body, the look-up of the stream, whose it is. So 401
comes before 422, and what is not the caller's is looked up like what does not exist. A route without a declaration does
not start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote_plus

from fastapi import Depends, Query, Request, Response
from fastapi.routing import APIRoute

from broker.auth import Audience, Grant
from broker.errors import (
    Forbidden,
    InsufficientScope,
    InvalidToken,
    LasteventError,
    RateLimited,
    StoreUnavailable,
    StreamNotFound,
    TokenExpired,
    Unauthorized,
)
from broker.tenants.token import Token
from broker.web.tier import Tier

Route = TypeVar("Route", bound=Callable[..., Any])

COOKIE = "__Host-lastevent"
"""Browsers take a name with this prefix only over TLS, from this very host, for all of its paths (RFC 6265bis)."""

ANY_TOKEN = ""

ANY_CREDENTIAL = "*"
"""What is done with it has scopes of its own."""

_TOKEN = re.compile(rb"(?:^|&)(access_token|token)=([^&]*)")


class Place(Enum):
    """Where a credential was."""

    HEADER = "the header"
    COOKIE = "a cookie"
    ADDRESS = "an address"


Passing = Callable[[Request, LasteventError], Response]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a route takes. `scopes`: of which a key needs one; none: any key opens it. `token`: the scope that a token
    needs; None: no token opens it; ANY_TOKEN: each does, and no key; ANY_CREDENTIAL: each does, and any key. `address`,
    `cookie`: the token may be in the query, in a cookie. `passing`: the answer where who calls cannot be found out for
    the moment, or is not looked at. `client_keys`: the headers of other ecosystems' clients count like Authorization.
    """

    scopes: tuple[str, ...]
    token: str | None = None
    address: bool = False
    cookie: bool = False
    passing: Passing | None = None
    client_keys: bool = False


def needs(
    *scopes: str,
    token: str | None = None,
    address: bool = False,
    cookie: bool = False,
    passing: Passing | None = None,
    client_keys: bool = False,
) -> Callable[[Route], Route]:
    """Declare who may call a route; see Needs."""

    def declare(route: Route) -> Route:
        route.needs = Needs(scopes, token, address, cookie, passing, client_keys)  # type: ignore[attr-defined]
        return route

    return declare


def needs_nothing(route: Route) -> Route:
    """Also a caller without a key."""
    route.needs = None  # type: ignore[attr-defined]
    return route


def grant_of(request: Request) -> Grant:
    found: Grant = request.state.grant
    return found


async def _reader_of(  # async as all dependencies: FastAPI gives others a thread, at a fifth of a start's CPU
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
                request.state.grant = await admit_through_gate(request, declared)
            except (StoreUnavailable, RateLimited) as error:
                if declared.passing is None:
                    raise
                return declared.passing(request, error)
            return await handle(request)

        return checked


async def admit_through_gate(request: Request, needed: Needs) -> Grant:
    """As `admit`. Raises RateLimited for an address whose credentials were refused too often: this one is not checked,
    unless it is known here as a good one. Otherwise any page could shut out all that share an address with its readers.
    Whoever was away for too long has a token that was good: that does not count.
    """
    tier = Tier.of(request)
    address = tier.addresses.counted(tier.addresses.of(request))
    if tier.gate.is_shut(address) and not _is_known(request, needed):
        tier.gate.refuse()
    try:
        return await admit(request, needed)
    except TokenExpired:
        raise
    except Unauthorized:
        tier.gate.count(address)
        raise


def _is_known(request: Request, needed: Needs) -> bool:
    try:
        return Tier.of(request).auth.knows(_credential(request, needed)[0])
    except (Unauthorized, Forbidden, StoreUnavailable):
        return False


async def admit(request: Request, needed: Needs) -> Grant:
    """The caller's grant. Raises Unauthorized, InvalidToken, TokenExpired, TokenRevoked, InsufficientScope, Forbidden,
    StreamNotFound, RedisUnavailable, IssuerUnavailable.
    """
    auth = Tier.of(request).auth
    if everybodys := auth.open_grant():
        return everybodys
    sid: str | None = request.path_params.get("sid")
    credential, place = _credential(request, needed)
    grant = await auth.grant(credential)
    require(grant, needed, sid, place)
    return grant


def require(grant: Grant, needed: Needs, sid: str | None, place: Place = Place.HEADER) -> None:
    """Whether a credential opens this. Raises Unauthorized, InvalidToken, InsufficientScope, StreamNotFound."""
    if grant.token is None:
        _require_for_key(grant, place, needed)
    else:
        _require_for_token(grant.token, place, needed)
        if sid is not None and not grant.token.may_open(sid):
            raise StreamNotFound("There is no stream with this id.")


def _require_for_key(grant: Grant, place: Place, needed: Needs) -> None:
    if place is not Place.HEADER:
        raise Unauthorized(
            f"An API key travels in the header Authorization alone. This one is in {place.value}: revoke it."
        )
    if needed.token == ANY_TOKEN:
        raise InsufficientScope((), "This takes a token. An API key has no business in a browser.")
    if needed.scopes:
        grant.require(*needed.scopes)


def _require_for_token(token: Token, place: Place, needed: Needs) -> None:
    if place is Place.ADDRESS and not token.only_reads_one_stream:
        raise InvalidToken("A token in an address reads one stream, and nothing else. Send this one in the header.")
    if needed.token is None:
        raise InsufficientScope(needed.scopes, "This takes an API key; no token opens it.")
    if needed.token not in (ANY_TOKEN, ANY_CREDENTIAL) and needed.token not in token.scopes:
        raise InsufficientScope((needed.token,))


def _credential(request: Request, needed: Needs) -> tuple[str, Place]:
    """What the caller presents, and where: the header wins over the cookie, and that over the address.

    Raises Unauthorized, Forbidden.
    """
    if needed.client_keys and (key := _client_key(request)):
        return key, Place.HEADER
    if (header := request.headers.get("authorization")) is not None:
        scheme, _, credential = header.partition(" ")
        if scheme.lower() == "bearer" and credential.strip():
            return credential.strip(), Place.HEADER
    elif needed.cookie and (token := _token_in_cookie(request.headers.getlist("cookie"))):
        if request.method not in ("GET", "HEAD"):
            _require_page_of_ours(request)
        return token, Place.COOKIE
    elif needed.address and (token := _token_in(request.scope["query_string"])) is not None:
        return token, Place.ADDRESS
    raise Unauthorized("Send the header Authorization: Bearer <an API key, or a token>.")


CLIENT_KEYS = ("x-api-key", "api-key")
"""Anthropic's and LangGraph's clients send the one, Azure's the other."""


def _client_key(request: Request) -> str | None:
    """Raises Unauthorized for several that differ: which of them is meant, nobody knows."""
    given = {value.strip() for name in CLIENT_KEYS for value in request.headers.getlist(name)}
    bearers = [value.partition(" ") for value in request.headers.getlist("authorization")]
    given |= {value.strip() for scheme, _, value in bearers if scheme.lower() == "bearer"}
    given.discard("")
    if len(given) > 1:
        raise Unauthorized("Authorization, x-api-key and api-key name different keys. Send one.")
    return given.pop() if given else None


def _require_page_of_ours(request: Request) -> None:
    """A browser sends a cookie for whatever page asks. Both headers are its own word about that page (SameSite=Lax
    stops other sites, and not another server of the same one). Raises Forbidden.
    """
    if not is_page_of_ours(request) or request.headers.getlist("sec-fetch-site") not in (
        ["same-origin"],
        ["same-site"],
    ):
        raise Forbidden(
            "With a cookie this takes a page of this server, or one of the same site in LASTEVENT_CORS_ORIGINS."
        )


def is_own_page(request: Request) -> bool:
    """By its Origin, of which there is one: of this server."""
    origins = request.headers.getlist("origin")
    # Not the scheme: what speaks TLS in front of us has one of its own.
    return len(origins) == 1 and origins[0].partition("://")[2] == request.headers.get("host") != ""


def is_page_of_ours(request: Request) -> bool:
    """By its Origin: of this server, or of LASTEVENT_CORS_ORIGINS."""
    origins = request.headers.getlist("origin")
    listed = Tier.of(request).settings.cors_origins
    return is_own_page(request) or (len(origins) == 1 and origins[0] in listed)


def _token_in_cookie(headers: Sequence[str]) -> str | None:
    """Of the cookie of exactly this name. Usual parsers strip more than spaces from a name, so that one of another name
    passes for it, which browsers let other servers of the same site set. Nor is it known which of two is ours: browsers
    keep one.
    """
    pairs = [pair.strip(" \t").partition("=") for header in headers for pair in header.split(";")]
    found = [value for name, _, value in pairs if name == COOKIE]
    return found[0] if len(found) == 1 else None


def _token_in(query: bytes) -> str | None:
    """The last `access_token`, or `token`. The query is not decoded before it is known who calls: that takes long."""
    found = _TOKEN.findall(query)
    names = [name for name, _ in found]
    if not found:
        return None
    at = len(names) - 1 - names[::-1].index(b"access_token" if b"access_token" in names else b"token")
    return unquote_plus(found[at][1].decode("latin-1"))
