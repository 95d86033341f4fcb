"""The SSE tier as one ASGI application: the tier, its routes, and what every request passes first.

A server holds no state that matters: any of them serves any stream.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from broker import console
from broker.settings import Settings
from broker.web import openapi, problems
from broker.web.door import Door
from broker.web.routes import (
    ag_ui,
    ai_sdk,
    auditing,
    chat,
    conversations,
    credentials,
    durable_chat,
    durable_streams,
    durable_views,
    following,
    langgraph,
    limits,
    listings,
    messages,
    models,
    operating,
    producing,
    reading,
    responses,
    sockets,
    starting,
    telling,
    tokens,
    viewers,
)
from broker.web.tier import Tier

_HEADERS = (
    *("Last-Event-ID", "Idempotency-Key", "Authorization", "Content-Type"),
    # Clients and what watches them send these by themselves (react-native-sse, OpenTelemetry, Sentry); a page would see
    # its request fail for them.
    *("Cache-Control", "Pragma", "X-Requested-With", "X-Request-Id"),
    *("traceparent", "tracestate", "baggage", "sentry-trace"),
    # Clients of dialects.
    *("x-api-key", "api-key", "x-run-id"),
    *durable_streams.ALLOWED,
)
"""What a page of another origin may send (CORS)."""

_SHOWN_HEADERS = (
    *("Location", "Last-Event-ID", "Retry-After", "X-Request-Id"),
    # To clients of dialects.
    *("X-Lastevent-Stream", "X-Lastevent-Ignored", "x-workflow-run-id", "x-workflow-stream-tail-index"),
    "Content-Location",
    *durable_streams.EXPOSED,
)
"""What it may see of an answer."""


def create_app(settings: Settings, *, may_open: bool = True) -> FastAPI:
    """`may_open`: whether callers may do everything while there are no keys, which is for loopback alone."""
    tier = Tier(settings, may_open=may_open)
    shows_itself = settings.console == "on"
    app = FastAPI(
        title="Lastevent",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if shows_itself else None,
        lifespan=tier.running,
        redirect_slashes=False,
    )
    app.state.tier = tier
    problems.install(app)
    # A session's name may have slashes: what there is of it comes before the session itself.
    follow = (following, conversations, sockets, viewers)
    of_streams = (starting, *follow, reading, producing, telling, listings, auditing)
    dialects = (
        models,
        chat,
        messages,
        responses,
        ai_sdk,
        ag_ui,
        langgraph,
        durable_chat,
        durable_views,  # before streams at any path
        durable_streams,
    )
    for routes in (*of_streams, tokens, credentials, limits, operating, *dialects):
        app.router.routes.extend(routes.router.routes)
    if shows_itself:
        console.install(app)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_credentials=settings.cors_credentials,
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=_HEADERS,
        expose_headers=_SHOWN_HEADERS,
    )
    app.add_middleware(Door, is_keyless=lambda: tier.auth.is_open, cors_origins=settings.cors_origins)
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app
