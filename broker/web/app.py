"""The SSE tier: routes. Each says what it takes and gives; the work is in streams.py, tail.py and viewer.py.

A request goes app → tail → hub / log → Redis, and its bytes come back. A server holds no state that matters:
any of them serves any stream.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
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

from broker import console
from broker.archive.setup import open_archive
from broker.auth import Auth, Grant
from broker.dialects.cursor import parse_cursor
from broker.dialects.format import Format
from broker.dialects.sse import MEDIA_TYPE, NDJSON_MEDIA_TYPE
from broker.errors import (
    ArchiveDamaged,
    ArchiveUnavailable,
    BadCursor,
    Draining,
    Forbidden,
    RedisUnavailable,
    StoreUnavailable,
    TooManyViewers,
)
from broker.live.hub import Hub
from broker.live.lane import Lane
from broker.live.tail import Step, follow, replay
from broker.log.access import AccessRecord, View, request_details
from broker.log.event import is_terminal, text_since_restart
from broker.log.index import Filter
from broker.log.keys import Keys
from broker.log.meta import Meta
from broker.log.queue import connect_queue
from broker.log.readable import ReadableLog
from broker.log.seizures import Seizures
from broker.log.steps import EXTERNAL_LEASE_S
from broker.log.stream_log import StreamLog
from broker.process.loops import Loops
from broker.service.bodies import AppendEvents, Body, Cancel, CreateStream, ProducerHeartbeat, Regenerate
from broker.service.listing import Listing
from broker.service.reading import Reading, load_masks_of
from broker.service.record import rfc3339, stream_record
from broker.service.streams import Started, Streams
from broker.settings import Settings
from broker.store.connect import connect
from broker.store.errors import translating_redis_errors as from_redis
from broker.web import metrics, problems
from broker.web.door import Door
from broker.web.replay import paced, recorded
from broker.web.strict_json import Model, read_model
from broker.web.viewer import CutResponse, EventsResponse, Viewers

logger = logging.getLogger(__name__)

PAGE_LIMIT = 200
State = Literal["queued", "running", "done", "error", "cancelled"]
Accept = Annotated[str, Header()]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", description="The id of the last event received")]
CursorQuery = Annotated[str | None, Query(description="As Last-Event-ID, for clients that can send no header")]
Limit = Annotated[int, Query(ge=1, le=PAGE_LIMIT)]
Next = Annotated[str | None, Query(max_length=1200, description="The `next` of the page before")]
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
            is_archived=bool(settings.archive_url),
        )
        self.archive = open_archive(settings)
        self.hub = Hub(self.redis, keys, heartbeat_s=settings.heartbeat_s)
        self.auth = Auth(settings.keys, settings.read_token_ttl_s, settings.masked)
        self.access = AccessRecord(
            self.redis, keys, retention_s=settings.retention_s, is_archived=self.archive is not None
        )
        self.viewers = Viewers(self.access, limit=settings.max_viewers, stall_s=settings.viewer_stall_s)
        self.seizures = Seizures(self.log)
        self.hub.on_new_server = self.seizures.beat
        reader = self.archive.reader if self.archive else None
        self.streams = Streams(self.log, reader, self.seizures, self.queue, self.auth, settings)
        self.listing = Listing(self.log, reader)
        self.reading = Reading(self.streams, self.archive, load_masks_of(settings))

    def drain(self) -> None:
        """Send every viewer away, between two frames, and take no new ones."""
        self.viewers.drain()

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        loops = Loops(
            {
                "hub": self.hub.run,
                "heartbeats": self.hub.keep_alive,
                "seizures": self.seizures.run,
                "access record": self.access.run,
            },
            _end_this_process,
        )
        try:
            yield
        finally:
            await loops.end()
            await self._write_last_records()
            if self.archive:
                await self.archive.aclose()
            await self.queue.aclose()
            await self.redis.aclose()

    async def unarchived(self) -> int:
        """Finished streams that only Redis has, as far as it can be asked."""
        try:
            with from_redis():
                return int(await self.redis.zcard(self.log.keys.unarchived))
        except RedisUnavailable:
            return 0

    async def _write_last_records(self) -> None:
        try:
            await self.access.close()
        except RedisUnavailable:
            logger.warning("Redis is away; the last viewers' records (%d) are lost", self.access.waiting)

    def caller(self, request: Request) -> Grant:
        """Whoever may do everything. Raises Unauthorized, or Forbidden for a key that may only read, masked."""
        grant = self.auditor(request)
        if grant.is_masked:
            raise Forbidden("This key reads finished streams, with masks laid over them; it may do nothing else.")
        return grant

    def auditor(self, request: Request) -> Grant:
        """Whoever may read all streams, perhaps with masks. Raises Unauthorized."""
        return self.auth.by_key(request.headers.get("authorization"))

    def reader(self, request: Request, sid: str) -> Grant:
        """Who may read this stream: a key's owner (perhaps with masks), or whoever was given a token for it."""
        token = request.query_params.get("token")
        if token is not None and not self.auth.is_open and "authorization" not in request.headers:
            return self.auth.by_token(sid, token)
        return self.auditor(request)

    def require_open(self) -> None:
        if self.viewers.draining.is_set():
            raise Draining("This server is going away. Try again; another one answers.")

    def require_place(self) -> None:
        self.require_open()
        self.viewers.require_place()

    def shown(self, meta: Meta, sid: str, grant: Grant) -> dict[str, Any]:
        return self.reading.shown(stream_record(meta, sid, None if grant.is_masked else self.auth.token(sid)), grant)

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
    _auditing(app, tier)
    _operating(app, tier)
    console.install(app)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST", "DELETE"],
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
        return await _answer(request, grant, started, accept, cursor)

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
        return await _answer(request, grant, started, accept, cursor)

    def _require_place(accept: str) -> None:
        # Before anything is started: a refusal must have started nothing.
        if MEDIA_TYPE in accept:
            tier.require_place()
        else:
            tier.require_open()

    async def _answer(request: Request, grant: Grant, started: Started, accept: str, cursor: int | None) -> Response:
        location = {"Location": f"/v1/streams/{started.sid}"}
        if MEDIA_TYPE not in accept:
            return _json(started.record, 201 if started.is_new else 200, location)
        if _has_ended_at(cursor, started.record["state"], started.record["last_event_id"]):
            return Response(status_code=204, headers=location)
        cursor = started.record["last_event_id"] if cursor is None else cursor
        log = await tier.reading.log(started.sid, await tier.streams.look_up_content(started.sid, grant), grant)
        steps = _steps(tier, log, started.sid, cursor)
        view = _view(request, started.sid, grant, Format.EXACT.shown, cursor)
        return EventsResponse(tier.viewers, steps, Format.EXACT, location, view=view)

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
            found = await tier.streams.look_up_content(sid, grant)
            log = await tier.reading.log(sid, found, grant)
        except (StoreUnavailable, ArchiveUnavailable, Draining, TooManyViewers) as passing:
            if form.is_ndjson:
                raise
            return CutResponse(passing.code)
        tail = found.meta.tail
        if _has_ended_at(cursor, found.meta.state, tail):
            return Response(status_code=204)
        cursor = tail if cursor is None else cursor
        steps = _steps(tier, log, sid, cursor, follows=follows == "1")
        return EventsResponse(tier.viewers, steps, form, view=_view(request, sid, grant, form.shown, cursor))

    @app.get("/v1/streams/{sid}", **_gives("The stream", "application/json"))
    async def stream(request: Request, sid: str) -> Response:
        grant = tier.reader(request, sid)
        return _json(tier.shown((await tier.streams.look_up(sid, grant)).meta, sid, grant))

    @app.get("/v1/streams/{sid}/text", **_gives("The answer so far; Last-Event-ID says how far", "text/plain"))
    async def text(request: Request, sid: str) -> Response:
        events = await tier.reading.events(sid, tier.reader(request, sid))
        headers = {"Last-Event-ID": str(events[-1].id)}
        return Response(text_since_restart(events), media_type="text/plain; charset=utf-8", headers=headers)

    @app.get("/v1/streams/{sid}/export", **_gives("The whole log, an event a line", NDJSON_MEDIA_TYPE))
    async def export(
        request: Request,
        sid: str,
        redacted: Annotated[Literal["0", "1"], Query(description="1: with the masks laid over it")] = "0",
    ) -> Response:
        body = await tier.reading.export(sid, tier.auditor(request), is_redacted=redacted == "1")
        name = {"Content-Disposition": f'attachment; filename="{sid}.ndjson"'}
        return Response(body, media_type=NDJSON_MEDIA_TYPE, headers=name)

    @app.get("/v1/streams/{sid}/replay", **_gives("The log again, at its original pace × speed", MEDIA_TYPE))
    async def replay_paced(
        request: Request,
        sid: str,
        last_event_id: LastEventId = None,
        speed: Annotated[float, Query(ge=0, le=10_000, allow_inf_nan=False, description="0: at once")] = 1.0,
        first: Annotated[int, Query(alias="from", ge=1, lt=2**53, description="The first event's id")] = 1,
        last: Annotated[int | None, Query(alias="to", ge=1, lt=2**53, description="The last event's id")] = None,
    ) -> Response:
        grant = tier.reader(request, sid)
        events = await tier.reading.events(sid, grant)
        tier.require_place()
        cursor = parse_cursor(last_event_id) or 0
        chosen = [
            event for event in events if max(first, cursor + 1) <= event.id and (last is None or event.id <= last)
        ]
        if cursor and not chosen:
            return Response(status_code=204)  # an EventSource that has seen all of it must not start again
        view = _view(request, sid, grant, "replay", cursor)
        frames = recorded(paced(chosen, speed, tier.viewers.draining, view), view, tier.access)
        return EventSourceResponse(frames, sep="\n", ping=15, send_timeout=tier.settings.viewer_stall_s)


def _steps(
    tier: Tier, log: ReadableLog, sid: str, cursor: int, *, follows: bool = True
) -> Callable[[Lane | None], AsyncGenerator[Step, None]]:
    """A stream that Redis has is followed; one that the archive has is at its end."""
    if follows and log is tier.log:
        return partial(follow, tier.log, tier.hub, sid, cursor)
    return lambda _: replay(log, sid, cursor)


def _view(request: Request, sid: str, grant: Grant, form: str, cursor: int) -> View:
    address = request.client.host if request.client else None
    return View(sid, request_details(grant, address, request.headers, form, cursor))


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
        until = rfc3339(renewed.now_ms + round(EXTERNAL_LEASE_S * 1000))
        return _json({"last_event_id": renewed.tail, "lease_until": until})


# -- listings --------------------------------------------------------------------------------------------


def _listings(app: FastAPI, tier: Tier) -> None:
    @app.get("/v1/streams", **_gives("Streams, newest first", "application/json"))
    async def streams(
        request: Request,
        session_id: str | None = None,
        user_id: str | None = None,
        model: str | None = None,
        state: State | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        limit: Limit = 50,
        cursor: Next = None,
    ) -> Response:
        grant = tier.auditor(request)
        which = Filter(session_id, user_id, model, state, _ms(created_after), _ms(created_before))
        shown = partial(tier.shown, grant=grant)
        return _json(await tier.listing.streams(grant.tenant, which, limit=limit, after=cursor, record=shown))

    @app.get("/v1/sessions", **_gives("Sessions, the one with the newest stream first", "application/json"))
    async def sessions(request: Request, limit: Limit = 50, cursor: Next = None) -> Response:
        grant = tier.caller(request)  # names of sessions are the callers' own
        return _json(await tier.listing.sessions(grant.tenant, limit=limit, after=cursor))

    @app.get("/v1/sessions/{session_id:path}", **_gives("A session's streams, newest first", "application/json"))
    async def session(request: Request, session_id: str, limit: Limit = 50, cursor: Next = None) -> Response:
        grant = tier.caller(request)  # names of sessions are the callers' own
        which, shown = Filter(session=session_id), partial(tier.shown, grant=grant)
        page = await tier.listing.streams(grant.tenant, which, limit=limit, after=cursor, record=shown)
        return _json({"id": session_id, **page})


def _ms(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


# -- auditing --------------------------------------------------------------------------------------------


def _auditing(app: FastAPI, tier: Tier) -> None:
    @app.get("/v1/streams/{sid}/views", **_gives("Who saw which events, oldest first", "application/json"))
    async def views(request: Request, sid: str) -> Response:
        return _json({"views": await tier.reading.views(sid, tier.auditor(request)), "next": None})

    @app.get("/v1/streams/{sid}/verify", **_gives("The stream against its seal", "application/json"))
    async def verify(request: Request, sid: str) -> Response:
        grant = tier.auditor(request)
        with suppress(ArchiveDamaged):  # which is what verifying is for
            await tier.streams.look_up(sid, grant)
        return _json({"id": sid, **await tier.reading.verify(sid)})

    @app.delete("/v1/streams/{sid}", status_code=204, **_erases())
    async def erase(request: Request, sid: str) -> Response:
        is_done = await tier.streams.erase(sid, tier.caller(request))
        return Response(status_code=204 if is_done else 202)


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
        text = metrics.render(tier.hub, tier.viewers, await tier.unarchived())
        return Response(text, media_type=metrics.CONTENT_TYPE)


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


def _erases() -> dict[str, Any]:
    responses: dict[int | str, Any] = {
        202: {"description": "Nobody sees the content any more; the archive erases it within moments"},
        204: {"description": "The content is gone; a tombstone and its seal stay"},
        "default": _PROBLEM,
    }
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
