"""The SSE tier: routes. Each says what it takes and gives; the work is in streams.py, tail.py and viewer.py.

A request goes app → tail → hub / log → Redis, and its bytes come back. A server holds no state that matters:
any of them serves any stream.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Literal

import orjson
from fastapi import FastAPI, Header, Query, Request
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from redis.asyncio import Redis
from sse_starlette import EventSourceResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from broker import console, metrics, problems
from broker.auth import Auth, Grant
from broker.connect import connect, connect_queue
from broker.door import Door
from broker.errors import BadCursor, Draining, RedisUnavailable, TooManyViewers, from_redis
from broker.event import text_since_restart, to_ndjson
from broker.hub import Hub
from broker.keys import Keys
from broker.listing import Filter, list_sessions, list_streams
from broker.log import EXTERNAL_LEASE_S, StreamLog, is_terminal
from broker.record import record, rfc3339
from broker.replay import paced
from broker.schema import AppendEvents, Body, Cancel, CreateStream, ProducerHeartbeat, Regenerate
from broker.seizures import Seizures
from broker.settings import Settings
from broker.sse import MEDIA_TYPE, NDJSON_MEDIA_TYPE, Format, parse_cursor
from broker.streams import Started, Streams
from broker.strict_json import Model, read_model
from broker.supervise import Loops
from broker.tail import follow, replay
from broker.viewer import CutResponse, EventsResponse, Viewers

PAGE_LIMIT = 200
State = Literal["queued", "running", "done", "error", "cancelled"]
Accept = Annotated[str, Header()]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", description="The id of the last event received")]
CursorQuery = Annotated[str | None, Query(description="As Last-Event-ID, for clients that can send no header")]
Limit = Annotated[int, Query(ge=1, le=PAGE_LIMIT)]
Next = Annotated[str | None, Query(max_length=600, description="The `next` of the page before")]
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key")]


class Tier:
    """What a web process holds: its connections, its hub, its viewers. All of it can be lost."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        keys = Keys(settings.key_prefix)
        self.redis: Redis = connect(settings.redis_url)
        self.queue = connect_queue(settings.redis_url, keys)
        self.log = StreamLog(
            self.redis,
            keys,
            retention_s=settings.retention_s,
            max_events=settings.max_events,
            max_bytes=settings.max_bytes,
        )
        self.hub = Hub(self.redis, keys, heartbeat_s=settings.heartbeat_s)
        self.auth = Auth(settings.keys, settings.read_token_ttl_s)
        self.viewers = Viewers(limit=settings.max_viewers, stall_s=settings.viewer_stall_s)
        self.seizures = Seizures(self.log)
        self.hub.on_new_server = self.seizures.beat
        self.streams = Streams(self.log, self.hub, self.seizures, self.queue, self.auth, settings)

    def drain(self) -> None:
        """Send every viewer away, between two frames, and take no new ones."""
        self.viewers.drain()

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        loops = Loops(
            {"hub": self.hub.run, "heartbeats": self.hub.keep_alive, "seizures": self.seizures.run}, _end_this_process
        )
        try:
            yield
        finally:
            await loops.end()
            await self.queue.aclose()
            await self.redis.aclose()

    def caller(self, request: Request) -> Grant:
        return self.auth.by_key(request.headers.get("authorization"))

    def reader(self, request: Request, sid: str) -> Grant:
        """Who may read this stream: a key's owner, or whoever was given a token for it."""
        token = request.query_params.get("token")
        if token is not None and not self.auth.is_open and "authorization" not in request.headers:
            return self.auth.by_token(sid, token)
        return self.caller(request)

    def require_open(self) -> None:
        if self.viewers.draining.is_set():
            raise Draining("This server is going away. Try again; another one answers.")

    def require_place(self) -> None:
        self.require_open()
        self.viewers.require_place()

    async def body(self, request: Request, model: type[Model], *, optional: bool = False) -> Model:
        return await read_model(request, model, self.settings.max_body_bytes, optional=optional)


def _end_this_process() -> None:
    signal.raise_signal(signal.SIGTERM)  # it drains, as at any other


def create_app(settings: Settings) -> FastAPI:
    tier = Tier(settings)
    app = FastAPI(title="Lastevent", docs_url=None, redoc_url=None, lifespan=tier.running, redirect_slashes=False)
    app.state.tier = tier
    problems.install(app)
    _streams(app, tier)
    _reading(app, tier)
    _producing(app, tier)
    _listings(app, tier)
    _operating(app, tier)
    console.install(app)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Last-Event-ID", "Idempotency-Key", "Authorization", "Content-Type"],
        expose_headers=["Location", "Last-Event-ID", "Retry-After", "X-Request-Id"],
    )
    app.add_middleware(Door, keyless=tier.auth.is_open, cors_origins=settings.cors_origins)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


# -- starting and stopping -------------------------------------------------------------------------------


def _streams(app: FastAPI, tier: Tier) -> None:
    @app.post("/v1/streams", **_takes(CreateStream, 201, "Started. With Accept: text/event-stream, the stream itself"))
    async def create_stream(
        request: Request,
        accept: Accept = "*/*",
        last_event_id: LastEventId = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        grant = tier.caller(request)
        _require_place(accept)
        cursor = _require_key_for_cursor(last_event_id, idempotency_key)
        body = await tier.body(request, CreateStream)
        started = await tier.streams.start(body, grant, idempotency_key)
        return await _answer(started, accept, cursor)

    @app.post(
        "/v1/streams/{sid}/regenerate",
        **_takes(Regenerate, 201, "A new stream of the same request and session", optional=True),
    )
    async def regenerate(
        request: Request,
        sid: str,
        accept: Accept = "*/*",
        last_event_id: LastEventId = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        grant = tier.caller(request)
        _require_place(accept)
        cursor = _require_key_for_cursor(last_event_id, idempotency_key)
        await tier.body(request, Regenerate, optional=True)
        started = await tier.streams.regenerate(sid, grant, idempotency_key)
        return await _answer(started, accept, cursor)

    def _require_place(accept: str) -> None:
        # Before anything is started: a refusal must have started nothing.
        if MEDIA_TYPE in accept:
            tier.require_place()
        else:
            tier.require_open()

    async def _answer(started: Started, accept: str, cursor: int | None) -> Response:
        location = {"Location": f"/v1/streams/{started.sid}"}
        if MEDIA_TYPE not in accept:
            return _json(started.record, 201 if started.is_new else 200, location)
        if _has_ended_at(cursor, started.record["state"], started.record["last_event_id"]):
            return Response(status_code=204, headers=location)
        cursor = started.record["last_event_id"] if cursor is None else cursor
        steps = partial(follow, tier.log, tier.hub, started.sid, cursor)
        return EventsResponse(tier.viewers, steps, Format.EXACT, location)

    @app.post("/v1/streams/{sid}/cancel", **_takes(Cancel, 200, "How the stream ended", optional=True))
    async def cancel(request: Request, sid: str) -> Response:
        grant = tier.caller(request)
        body = await tier.body(request, Cancel, optional=True)
        ended = await tier.streams.cancel(sid, grant, body.reason)
        return _json(ended._asdict())


def _require_key_for_cursor(last_event_id: str | None, key: str | None) -> int | None:
    """A client that POSTs again to reconnect must say which stream it means; without a key it would start another."""
    if last_event_id and key is None:
        raise BadCursor("Last-Event-ID with POST needs the Idempotency-Key the stream was started with.")
    return parse_cursor(last_event_id)


# -- reading ---------------------------------------------------------------------------------------------


def _reading(app: FastAPI, tier: Tier) -> None:
    @app.head("/v1/streams/{sid}/events", include_in_schema=False)
    @app.get("/v1/streams/{sid}/events", **_gives("The events, as SSE or NDJSON", MEDIA_TYPE, NDJSON_MEDIA_TYPE))
    async def events(
        request: Request,
        sid: str,
        accept: Accept = "*/*",
        last_event_id: LastEventId = None,
        last_event_id_query: Annotated[CursorQuery, Query(alias="last_event_id")] = None,
        last_event_id_camel: Annotated[str | None, Query(alias="lastEventId")] = None,
        compact: Annotated[Literal["0", "1"], Query(description="Merge text that waits")] = "0",
        follows: Annotated[Literal["0", "1"], Query(alias="follow", description="0: the backlog, then the end")] = "1",
    ) -> Response:
        form = _format(accept, compact == "1")
        try:
            grant = tier.reader(request, sid)
            tier.require_place()
            cursor = parse_cursor(last_event_id or last_event_id_query or last_event_id_camel)
            meta = await tier.streams.look_up(sid, grant)
        except (RedisUnavailable, Draining, TooManyViewers) as passing:
            if form.is_ndjson:
                raise
            return CutResponse(passing.code)
        tail = int(meta["tail"])
        if _has_ended_at(cursor, meta["state"], tail):
            return Response(status_code=204)
        cursor = tail if cursor is None else cursor
        if follows == "0":
            return EventsResponse(tier.viewers, lambda _: replay(tier.log, sid, cursor), form)
        return EventsResponse(tier.viewers, partial(follow, tier.log, tier.hub, sid, cursor), form)

    @app.get("/v1/streams/{sid}", **_gives("The stream", "application/json"))
    async def stream(request: Request, sid: str) -> Response:
        meta = await tier.streams.look_up(sid, tier.reader(request, sid))
        return _json(record(meta, sid, tier.auth.token(sid)))

    @app.get("/v1/streams/{sid}/text", **_gives("The answer so far; Last-Event-ID says how far", "text/plain"))
    async def text(request: Request, sid: str) -> Response:
        await tier.streams.look_up(sid, tier.reader(request, sid))
        log = await tier.log.read_all(sid)
        headers = {"Last-Event-ID": str(log[-1].id)}
        return Response(text_since_restart(log), media_type="text/plain; charset=utf-8", headers=headers)

    @app.get("/v1/streams/{sid}/export", **_gives("The whole log, an event a line", NDJSON_MEDIA_TYPE))
    async def export(request: Request, sid: str) -> Response:
        await tier.streams.look_up(sid, tier.caller(request))
        log = await tier.log.read_all(sid)
        name = {"Content-Disposition": f'attachment; filename="{sid}.ndjson"'}
        return Response(b"".join(map(to_ndjson, log)), media_type=NDJSON_MEDIA_TYPE, headers=name)

    @app.get("/v1/streams/{sid}/replay", **_gives("The log again, at its original pace × speed", MEDIA_TYPE))
    async def replay_paced(
        request: Request,
        sid: str,
        last_event_id: LastEventId = None,
        speed: Annotated[float, Query(ge=0, le=10_000, allow_inf_nan=False, description="0: at once")] = 1.0,
        first: Annotated[int, Query(alias="from", ge=1, lt=2**53, description="The first event's id")] = 1,
        last: Annotated[int | None, Query(alias="to", ge=1, lt=2**53, description="The last event's id")] = None,
    ) -> Response:
        await tier.streams.look_up(sid, tier.reader(request, sid))
        tier.require_place()
        cursor = parse_cursor(last_event_id) or 0
        log = await tier.log.read_all(sid)
        chosen = [event for event in log if max(first, cursor + 1) <= event.id and (last is None or event.id <= last)]
        if cursor and not chosen:
            return Response(status_code=204)  # an EventSource that has seen all of it must not start again
        frames = paced(chosen, speed, tier.viewers.draining)
        return EventSourceResponse(frames, sep="\n", ping=15, send_timeout=tier.settings.viewer_stall_s)


def _has_ended_at(cursor: int | None, state: str, tail: int) -> bool:
    """The viewer has the terminal event already: 204 makes a browser's EventSource stop reconnecting."""
    return is_terminal(state) and (cursor is None or cursor == tail)


def _format(accept: str, compact: bool) -> Format:
    if NDJSON_MEDIA_TYPE in accept:
        return Format.COMPACT_NDJSON if compact else Format.NDJSON
    return Format.COMPACT if compact else Format.EXACT


# -- external producers ----------------------------------------------------------------------------------


def _producing(app: FastAPI, tier: Tier) -> None:
    @app.post("/v1/streams/{sid}/events", **_takes(AppendEvents, 200, "The id of the last event"))
    async def append(request: Request, sid: str) -> Response:
        grant = tier.caller(request)
        body = await tier.body(request, AppendEvents)
        return _json({"last_event_id": (await tier.streams.append(sid, grant, body)).tail})

    @app.post("/v1/streams/{sid}/heartbeat", **_takes(ProducerHeartbeat, 200, "The lease is renewed"))
    async def heartbeat(request: Request, sid: str) -> Response:
        grant = tier.caller(request)
        body = await tier.body(request, ProducerHeartbeat)
        renewed = await tier.streams.heartbeat(sid, grant, body.epoch)
        until = rfc3339(str(renewed.now_ms + round(EXTERNAL_LEASE_S * 1000)))
        return _json({"last_event_id": renewed.tail, "lease_until": until})


# -- listings --------------------------------------------------------------------------------------------


def _listings(app: FastAPI, tier: Tier) -> None:
    def _record(meta: dict[str, str], sid: str) -> dict[str, Any]:
        return record(meta, sid, tier.auth.token(sid))

    @app.get("/v1/streams", **_gives("Streams, newest first", "application/json"))
    async def streams(
        request: Request,
        session_id: str | None = None,
        user_id: str | None = None,
        state: State | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        limit: Limit = 50,
        cursor: Next = None,
    ) -> Response:
        grant = tier.caller(request)
        which = Filter(session_id, user_id, state, _ms(created_after), _ms(created_before))
        return _json(await list_streams(tier.log, grant.tenant, which, limit=limit, after=cursor, record=_record))

    @app.get("/v1/sessions", **_gives("Sessions, the one with the newest stream first", "application/json"))
    async def sessions(request: Request, limit: Limit = 50, cursor: Next = None) -> Response:
        grant = tier.caller(request)
        return _json(await list_sessions(tier.redis, tier.log.keys, grant.tenant, limit=limit, after=cursor))

    @app.get("/v1/sessions/{session_id:path}", **_gives("A session's streams, newest first", "application/json"))
    async def session(request: Request, session_id: str, limit: Limit = 50, cursor: Next = None) -> Response:
        grant = tier.caller(request)
        which = Filter(session=session_id)
        page = await list_streams(tier.log, grant.tenant, which, limit=limit, after=cursor, record=_record)
        return _json({"id": session_id, **page})


def _ms(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


# -- operating -------------------------------------------------------------------------------------------


def _operating(app: FastAPI, tier: Tier) -> None:
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", **_gives("The process is alive", "application/json"))
    async def healthz() -> Response:
        return _json({"status": "ok"})

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", **_gives("Redis is reachable, and the server is not draining", "application/json"))
    async def readyz() -> Response:
        tier.require_open()
        with from_redis():
            await tier.redis.ping()
        if not tier.hub.is_connected:
            raise RedisUnavailable("The subscription to Redis is being made.")
        return _json({"status": "ready"})

    @app.get("/metrics", **_gives("Prometheus metrics of this process", "text/plain"))
    async def metrics_(request: Request) -> Response:
        tier.caller(request)
        return Response(metrics.render(tier.hub, tier.viewers), media_type=metrics.CONTENT_TYPE)


# -- JSON out, and the OpenAPI document ------------------------------------------------------------------


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, "application/json")


_PROBLEM = {"description": "A problem (RFC 9457)", "content": {problems.MEDIA_TYPE: {"schema": problems.SCHEMA}}}
_BODIES: tuple[type[Body], ...] = (CreateStream, Regenerate, Cancel, AppendEvents, ProducerHeartbeat)
_REF = "#/components/schemas/{model}"


def _gives(description: str, *media_types: str) -> dict[str, Any]:
    content: dict[str, Any] = {media_type: {} for media_type in media_types}
    responses: dict[int | str, Any] = {200: {"description": description, "content": content}, "default": _PROBLEM}
    if MEDIA_TYPE in media_types:
        responses[204] = {"description": "The viewer has the terminal event already"}
    return {"response_class": Response, "responses": responses}


def _takes(model: type[Body], status: int, description: str, *, optional: bool = False) -> dict[str, Any]:
    """Bodies are read by strict_json, not by FastAPI; so the document is told of them here."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    body = {"required": not optional, "content": {"application/json": {"schema": schema}}}
    answer: dict[str, Any] = {"description": description, "content": {"application/json": {}}}
    responses: dict[int | str, Any] = {status: answer, "default": _PROBLEM}
    if status == 201:
        again = {"description": "The same Idempotency-Key again, or the stream itself as SSE"}
        responses[200] = {**again, "content": {"application/json": {}, MEDIA_TYPE: {}}}
        responses[204] = {"description": "The viewer has the terminal event already"}
    return {
        "status_code": status,
        "response_class": Response,
        "responses": responses,
        "openapi_extra": {"requestBody": body},
    }


def _openapi(app: FastAPI) -> dict[str, Any]:
    if not app.openapi_schema:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, models = models_json_schema([(model, "validation") for model in _BODIES], ref_template=_REF)
        document.setdefault("components", {}).setdefault("schemas", {}).update(models["$defs"])
        app.openapi_schema = document
    return app.openapi_schema


__all__ = ["Tier", "create_app"]
