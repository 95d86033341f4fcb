"""Durable Streams: /v1/ds/<path>. Its words are in dialects/durable_streams.py, what it does in service/durable.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from broker.auth import Grant
from broker.dialects.durable_streams import (
    DEFAULT_TYPE,
    LONG_POLL,
    MAX_TTL_S,
    SSE,
    VIEWS,
    StreamForm,
    body_of,
    closes,
    cursor_at,
    etag,
    events_of,
    is_json,
    is_text,
    moment,
    offset,
    parse_offset,
    path_of,
    require_type,
    session_of,
    whole_number,
)
from broker.errors import (
    BadCursor,
    BodyTooLarge,
    InvalidRequest,
    LasteventError,
    PathTaken,
    ProducerFenced,
    ProducerGap,
    StreamClosed,
)
from broker.live.tail import follow, replay
from broker.log.access import View
from broker.log.deeds import CREATED, ERASED
from broker.log.durable import media_type
from broker.log.event import Event
from broker.log.steps import Producer
from broker.service.durable import QUEUED, Asked, Open, Source
from broker.tenants.scopes import APPEND, ERASE, READ, WRITE
from broker.web import problems
from broker.web.bare import look_outside_of_texts
from broker.web.dialect import STREAM_HEADER, dialect_route
from broker.web.durable import LONG_POLL_S, Poll, StreamReading, lost_place
from broker.web.follow import count_connect
from broker.web.grants import grant_of, needs
from broker.web.strict_json import INLINE_BYTES, MAX_BARE_BYTES, read_body
from broker.web.tier import Tier
from broker.web.viewer import request_details
from broker.web.while_here import while_here

BASE = "/v1/ds/"

PART_EVENTS, PART_BYTES = 5000, 2**20
"""Of a stream in one answer: who wants more asks for it from there on."""

ALLOWED = (
    *("Stream-Seq", "Stream-TTL", "Stream-Expires-At", "Stream-Closed"),
    *("Stream-Forked-From", "Stream-Fork-Offset", "Stream-Fork-Sub-Offset"),
    *("Producer-Id", "Producer-Epoch", "Producer-Seq", "If-None-Match"),
)
"""What a page of another origin may send (CORS)."""

EXPOSED = (
    *("Stream-Next-Offset", "Stream-Cursor", "Stream-Up-To-Date", "Stream-Closed", "Stream-TTL", "Stream-Expires-At"),
    *("Stream-SSE-Data-Encoding", "ETag"),
    *("Producer-Epoch", "Producer-Seq", "Producer-Expected-Seq", "Producer-Received-Seq"),
)
"""And what it may see."""


def answer_error(request: Request, error: LasteventError) -> Response:
    """As natively, with this protocol's statuses and headers."""
    response = problems.from_error(problems.request_id(request), error)
    response.headers.update(_told(error))
    if response.status_code == 422:
        response.status_code = 400
    return response


class DurableRoute(dialect_route(answer_error)):  # type: ignore[misc]  # a class that a function makes
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answered(request: Request) -> Response:
            response: Response = await handle(request)
            response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"  # section 12.7
            return response

        return answered


def _told(error: LasteventError) -> dict[str, str]:
    match error:
        case ProducerFenced():
            return {"Producer-Epoch": str(error.epoch)}
        case ProducerGap():
            return {"Producer-Expected-Seq": str(error.expected)}
        case ClosedHere():
            return {"Stream-Closed": "true", "Stream-Next-Offset": error.next_offset}
    return {}


class ClosedHere(StreamClosed):
    """`next_offset`: of its end."""

    def __init__(self, next_offset: str) -> None:
        super().__init__("The stream is closed. Nothing can follow.")
        self.next_offset = next_offset


router = APIRouter(route_class=DurableRoute, tags=["Durable Streams"])


@router.put(BASE + "{path:path}", include_in_schema=False)
@needs(WRITE, client_keys=True)
async def create(request: Request, path: str) -> Response:
    """Create a stream, or a fork of one; or find that it is there, as it was asked for (section 5.1)."""
    tier, grant, where = Tier.of(request), grant_of(request), _require_no_view(path_of(path))
    tier.require_open()
    with tier.intake.place() as place:
        body = bytes(await read_body(request, tier.settings.max_request_bytes, place))
        async with place.turn():
            created = await tier.durable.create(where, grant, await _asked(request, grant, body))
    stream = created.stream
    if created.is_new:
        tier.deeds.note(tier.deed(request, CREATED, stream.sid))
    headers = _stands(stream, stream.tail, is_closed=stream.is_closed)
    if created.is_new:
        headers["Location"] = _address(request)
    return _typed(Response(status_code=201 if created.is_new else 200, headers=headers), stream)


@router.post(BASE + "{path:path}", include_in_schema=False)
@needs(APPEND, token=APPEND, client_keys=True)
async def append(request: Request, path: str) -> Response:
    """Append, close, or both (sections 5.2 and 5.3)."""
    tier, grant, where = Tier.of(request), grant_of(request), _require_no_view(path_of(path))
    session, is_last = session_of(request.headers), closes(request.headers.get("stream-closed"))
    with tier.intake.place() as place:
        body = bytes(await read_body(request, tier.settings.max_request_bytes, place))
        stream = await tier.durable.find(where, grant)
        async with place.turn():
            events = await _events(request, stream, body, is_last=is_last)
            producer = Producer(*session) if session else None
            seq = request.headers.get("stream-seq", "")
            try:
                produced = await tier.durable.append(stream, events, producer=producer, seq=seq, closes=is_last)
            except StreamClosed:
                closed = await tier.durable.find(where, grant)
                raise ClosedHere(offset(closed.tail)) from None
            except ProducerGap as gap:
                return _gap(request, gap, session.number if session else 0)
    headers = _stands(stream, produced.tail, is_closed=produced.state != "running")
    if session:
        headers |= {"Producer-Epoch": str(session.epoch), "Producer-Seq": str(produced.number)}
    is_new_of_producer = session is not None and not produced.was_there and bool(body)
    return Response(status_code=200 if is_new_of_producer else 204, headers=headers)


@router.delete(BASE + "{path:path}", include_in_schema=False)
@needs(ERASE, client_keys=True)
async def delete(request: Request, path: str) -> Response:
    """Delete a stream and its content. While forks of it live, its path stays blocked (section 5.4)."""
    tier = Tier.of(request)
    sid = await tier.durable.delete(_require_no_view(path_of(path)), grant_of(request))
    await tier.deeds.record(tier.deed(request, ERASED, sid))
    return Response(status_code=204)


@router.head(BASE + "{path:path}", include_in_schema=False)
@needs(READ, token=READ, address=True, cookie=True, client_keys=True)
async def head(request: Request, path: str) -> Response:
    """What the stream is, and where it ends. It prolongs no life (section 5.5)."""
    stream = await Tier.of(request).durable.find(path_of(path), grant_of(request))
    headers = _stands(stream, stream.tail, is_closed=stream.is_closed)
    if stream.ttl_s is not None:
        headers["Stream-TTL"] = str(stream.ttl_s)
    if stream.expires_at is not None:
        headers["Stream-Expires-At"] = stream.expires_at
    return _typed(Response(status_code=200, headers=headers), stream)


@router.get(BASE + "{path:path}", include_in_schema=False)
@needs(READ, token=READ, address=True, cookie=True, client_keys=True)
async def read(request: Request, path: str) -> Response:
    """What is behind an offset: at once, when there is some (long-poll), or as it comes (sse)."""
    tier, grant, query = Tier.of(request), grant_of(request), request.query_params
    where, given, live = path_of(path), query.getlist("offset"), query.get("live")
    at = parse_offset(given)
    if live not in (None, LONG_POLL, SSE):
        raise InvalidRequest("live: long-poll or sse.")
    within_s = whole_number("timeout", query.get("timeout"), LONG_POLL_S)
    if live and not given:
        raise BadCursor("A live read says where it begins: offset.")
    await tier.require_place(grant)
    stream = await tier.durable.find(where, grant, is_used=True)
    reader = Reader(request, tier, grant, stream, stream.tail if at is None else max(QUEUED, at))
    if live == SSE:
        return await reader.follow(query.get("cursor"))
    if live == LONG_POLL:
        return await reader.poll(query.get("cursor"), LONG_POLL_S if within_s is None else within_s)
    return await (reader.nothing() if at is None else reader.catch_up())


class Reader(NamedTuple):
    """One read of a stream. `at`: the event behind which it begins."""

    request: Request
    tier: Tier
    grant: Grant
    stream: Open
    at: int

    async def nothing(self) -> Response:
        """Where the stream ends now (section 8, `now`)."""
        stream = self.stream
        headers = {**self._place(stream.tail, is_last=True, is_closed=stream.is_closed), "Cache-Control": "no-store"}
        return self._answer([], headers)

    async def catch_up(self) -> Response:
        events, is_last = await self._part()
        return self._found(events, is_last=is_last)

    async def poll(self, brought: str | None, within_s: int) -> Response:
        events, is_last = await self._part()
        is_closed = self.stream.is_closed
        if not events and not is_closed:
            poll = Poll(self.tier, self.stream.sid, self.grant)
            events = await while_here(self.request, poll.next(self.at, self._form(0).shown, within_s))
            is_closed = bool(events) and events[-1].is_terminal
            events, is_last = [event for event in events if not event.is_terminal], True
        cursor = {"Stream-Cursor": str(cursor_at(await self.tier.log.now_ms(), brought))}
        if events:
            return self._found(events, is_last=is_last, is_closed=is_closed, more=cursor)
        headers = {**self._place(self.at, is_last=True, is_closed=is_closed), **cursor, "Cache-Control": "no-store"}
        return Response(status_code=204, headers=headers)

    async def follow(self, brought: str | None) -> Response:
        """As server-sent events."""
        tier, stream = self.tier, self.stream
        await self._require_place()
        now_ms = await tier.log.now_ms()
        cursor = cursor_at(now_ms, brought)
        form = self._form(cursor if cursor > cursor_at(now_ms) else 0)
        count_connect(tier, stream.sid, self.at, is_in_redis=stream.found.is_in_redis)
        if stream.found.is_in_redis:
            steps = partial(follow, tier.log, tier.hub, stream.sid, self.at, form=form)
        else:
            steps = partial(_replay, await tier.durable.log_of(stream), stream.sid, self.at)
        headers = {STREAM_HEADER: stream.sid, "Cache-Control": "no-cache, no-store, no-transform"}
        if not is_text(stream.content_type):
            headers["Stream-SSE-Data-Encoding"] = "base64"
        details = request_details(
            *(self.grant, tier.addresses.of(self.request), self.request.headers, form.access_name, self.at)
        )
        return StreamReading(
            *(tier.viewers, steps, stream, form, headers),
            stands_at=self.at,
            now_ms=now_ms,
            view=View(stream.sid, details),
            grant=self.grant,
        )

    async def _require_place(self) -> None:
        """Raises an error with status 410 if the log has lost the event behind which this begins."""
        log = await self.tier.durable.log_of(self.stream)
        page = await log.read_page(self.stream.sid, self.at, 1)
        self._require_present(is_present=page.present)

    def _require_present(self, *, is_present: bool) -> None:
        # Between the last event of a closed stream and its ending there was never anything.
        is_at_end = self.stream.is_closed and self.stream.tail <= self.at < self.stream.meta.tail
        if not is_present and not is_at_end:
            raise lost_place()

    async def _part(self) -> tuple[list[Event], bool]:
        """As much as an answer has, and whether that is all there is."""
        stream, at = self.stream, self.at
        if at > stream.tail and stream.is_closed:
            self._require_present(is_present=False)
            return [], True
        log = await self.tier.durable.log_of(stream)
        events: list[Event] = []
        size, more = 0, True
        while more and len(events) < PART_EVENTS and size < PART_BYTES:
            page = await log.read_page(stream.sid, at)
            self._require_present(is_present=page.present or at != self.at)
            for event in page.events:
                at = event.id
                if not event.is_terminal:
                    events.append(event)
                    size += len(event.data)
            more = page.more
        # What was appended since the look-up is read as well; whether it was closed since is for the next read to say.
        return events, not more and (not stream.is_closed or at >= stream.tail)

    def _found(
        self,
        events: list[Event],
        *,
        is_last: bool,
        is_closed: bool | None = None,
        more: Mapping[str, str] | None = None,
    ) -> Response:
        stream, end = self.stream, events[-1].id if events else max(self.at, QUEUED)
        is_closed = is_last and (stream.is_closed if is_closed is None else is_closed)
        tag = etag(stream.sid, self.at, end, is_closed=is_closed)
        caching = "private, max-age=60, stale-while-revalidate=300" if is_closed else "private, no-cache"
        headers = {**self._place(end, is_last=is_last, is_closed=is_closed), "ETag": tag, "Cache-Control": caching}
        headers |= more or {}
        if tag in (given.strip() for given in self.request.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=headers)
        return self._answer(events, headers)

    def _answer(self, events: list[Event], headers: Mapping[str, str]) -> Response:
        span = (events[0].id, events[-1].id) if events else (None, None)
        self.tier.note_reading(self.request, self.grant, StreamForm.access_name, self.stream.sid, span=span)
        return _typed(Response(body_of(self.stream.content_type, events), headers=dict(headers)), self.stream)

    def _place(self, end: int, *, is_last: bool, is_closed: bool) -> dict[str, str]:
        told = _stands(self.stream, end, is_closed=is_closed)
        return {**told, "Stream-Up-To-Date": "true"} if is_last else told

    def _form(self, ahead: int) -> StreamForm:
        return StreamForm(media_type(self.stream.content_type), ahead)


def _replay(log: Any, sid: str, cursor: int, _: Any) -> Any:
    """Of the archive, whatever lane there is."""
    return replay(log, sid, cursor)


def _typed(response: Response, stream: Open) -> Response:
    response.headers["Content-Type"] = stream.content_type  # as it was given: Starlette adds a charset
    response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"  # it may be anybody's HTML
    return response


def _stands(stream: Open, end: int, *, is_closed: bool) -> dict[str, str]:
    told = {STREAM_HEADER: stream.sid, "Stream-Next-Offset": offset(end)}
    return {**told, "Stream-Closed": "true"} if is_closed else told


def _gap(request: Request, gap: ProducerGap, number: int) -> Response:
    response = answer_error(request, gap)
    response.headers["Producer-Received-Seq"] = str(number)
    return response


def _require_no_view(path: str) -> str:
    """Raises 405 for a path below which views are: nobody appends to them (section 5.2)."""
    if path.partition("/")[0] in VIEWS:
        raise HTTPException(405, headers={"Allow": "GET, HEAD"})
    return path


async def _events(request: Request, stream: Open, body: bytes, *, is_last: bool) -> list[tuple[str, bytes]]:
    """Raises what a body has to be refused for; of a closed stream, that first."""
    if not body and is_last:
        return []
    given = request.headers.get("content-type")
    if not body:
        raise InvalidRequest("An append has a body, unless it closes the stream.")
    if not given:
        raise InvalidRequest("Content-Type: which the stream's is has to be said with each append.")
    if media_type(given) != media_type(stream.content_type):
        if stream.is_closed:
            raise ClosedHere(offset(stream.tail))
        raise PathTaken("The stream's content type is another.")
    return await _unpacked(stream.content_type, body)


async def _unpacked(content_type: str, body: bytes, *, may_be_empty: bool = False) -> list[tuple[str, bytes]]:
    """A large body in a thread: 14 MiB take 0.2 s. Raises as `events_of` does, and BodyTooLarge for more numbers than a
    request may have: those are parsed at once.
    """
    if len(body) <= INLINE_BYTES:
        return events_of(content_type, body, may_be_empty=may_be_empty)
    if is_json(content_type) and look_outside_of_texts(body, MAX_BARE_BYTES) is None:
        raise BodyTooLarge(f"A body may have {MAX_BARE_BYTES} bytes outside of its texts.")
    return await asyncio.to_thread(events_of, content_type, body, may_be_empty=may_be_empty)


async def _asked(request: Request, grant: Grant, body: bytes) -> Asked:
    headers = request.headers
    ttl_s = whole_number("Stream-TTL", headers.get("stream-ttl"), MAX_TTL_S)
    expires_at = headers.get("stream-expires-at")
    if ttl_s is not None and expires_at is not None:
        raise InvalidRequest("Stream-TTL or Stream-Expires-At: not both.")
    source, given = _source(headers), headers.get("content-type")
    content_type = require_type(given) if given else None
    if source is None:
        content_type = content_type or DEFAULT_TYPE
    if content_type is None and body:  # a fork of what it does not say
        tier = Tier.of(request)
        content_type = (await tier.durable.find(source.path, grant)).content_type if source else DEFAULT_TYPE
    return Asked(
        content_type,
        ttl_s,
        expires_at,
        moment("Stream-Expires-At", expires_at),
        source,
        await _unpacked(content_type, body, may_be_empty=True) if content_type else (),
        closes(headers.get("stream-closed")),
    )


def _source(headers: Mapping[str, str]) -> Source | None:
    given, at = headers.get("stream-forked-from"), headers.get("stream-fork-offset")
    further = headers.get("stream-fork-sub-offset")
    if given is None:
        if at is not None or further is not None:
            raise InvalidRequest("Stream-Fork-Offset and Stream-Fork-Sub-Offset belong to Stream-Forked-From.")
        return None
    number = whole_number("Stream-Fork-Sub-Offset", further) or 0
    if number and at is None:
        raise InvalidRequest("Stream-Fork-Sub-Offset belongs to Stream-Fork-Offset.")
    path = unquote(given.partition("?")[0])
    until = None if at is None else parse_offset([at])
    return Source(path_of(path.removeprefix(BASE)), until, number)


def _address(request: Request) -> str:
    """As the client knows it, without the query."""
    path = request.scope.get("raw_path", b"").decode("latin-1").partition("?")[0] or request.url.path
    return f"{request.url.scheme}://{request.headers.get('host', '')}{path}"
