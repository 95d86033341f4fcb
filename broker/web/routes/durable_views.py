"""Views, /v1/ds/{events,ai-sdk,ag-ui}/<stream id>: any stream, as Durable Streams' clients read.

Their words are in dialects/durable_views.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import Response

from broker.auth import Grant
from broker.dialects.ag_ui import AgUi
from broker.dialects.ai_sdk import AiSdk
from broker.dialects.durable_streams import JSON, LONG_POLL, SSE, cursor_at, etag, parse_offset, whole_number
from broker.dialects.durable_views import AG_UI, AI_SDK, EVENTS, EventsView, View, messages_of, view_offset
from broker.dialects.fold import Dialect
from broker.errors import BadCursor, InvalidRequest
from broker.live.folded import Folded, Lost
from broker.log import access
from broker.log.event import public
from broker.log.readable import ReadableLog
from broker.service.streams import Found
from broker.tenants.scopes import READ
from broker.web.dialect import STREAM_HEADER, find, folded_of
from broker.web.durable import LONG_POLL_S, Poll, ViewReading, lost_place
from broker.web.follow import count_connect, steps_of
from broker.web.grants import grant_of, needs
from broker.web.routes.durable_streams import BASE, PART_BYTES, PART_EVENTS, DurableRoute
from broker.web.tier import Tier
from broker.web.viewer import request_details
from broker.web.while_here import while_here

DIALECTS: Mapping[str, Callable[[], Dialect]] = {EVENTS: EventsView, AI_SDK: AiSdk, AG_UI: AgUi}

router = APIRouter(route_class=DurableRoute, tags=["Durable Streams"])


@router.head(BASE + "events/{sid}", include_in_schema=False)
@router.head(BASE + "ai-sdk/{sid}", include_in_schema=False)
@router.head(BASE + "ag-ui/{sid}", include_in_schema=False)
@needs(READ, token=READ, address=True, cookie=True, client_keys=True)
async def head(request: Request, sid: str) -> Response:
    """Where the stream ends."""
    meta = (await find(request, grant_of(request), sid, at_tail=True)).meta
    headers = _stands(sid, meta.tail, is_last=False, is_closed=meta.has_ended)
    return Response(headers=headers, media_type=JSON)


@router.get(BASE + "events/{sid}", include_in_schema=False)
@router.get(BASE + "ai-sdk/{sid}", include_in_schema=False)
@router.get(BASE + "ag-ui/{sid}", include_in_schema=False)
@needs(READ, token=READ, address=True, cookie=True, client_keys=True)
async def read(request: Request, sid: str) -> Response:
    """What is behind an offset: at once, when there is some (long-poll), or as it comes (sse)."""
    tier, grant, query = Tier.of(request), grant_of(request), request.query_params
    given, live, brought = query.getlist("offset"), query.get("live"), query.get("cursor")
    at = parse_offset(given, zero=0)
    if live not in (None, LONG_POLL, SSE):
        raise InvalidRequest("live: long-poll or sse.")
    within_s = whole_number("timeout", query.get("timeout"), LONG_POLL_S)
    if live and not given:
        raise BadCursor("A live read says where it begins: offset.")
    await tier.require_place(grant, sid)
    now_ms = await tier.log.now_ms()
    cursor = cursor_at(now_ms, brought)
    ahead = cursor if live == SSE and cursor > cursor_at(now_ms) else 0
    name = request.url.path.removeprefix(BASE).partition("/")[0]
    dialect = AgUi(shows_request=not grant.is_viewer) if name == AG_UI else DIALECTS[name]()
    found, log, folded = await folded_of(request, grant, sid, View(dialect, ahead), at_tail=True)
    reader = Reader(request, grant, sid, name, found, log, folded, found.meta.tail if at is None else at, cursor)
    await reader.require_place()
    if live == SSE:
        return reader.follow()
    if live == LONG_POLL:
        return await reader.poll(LONG_POLL_S if within_s is None else within_s)
    return reader.nothing() if at is None else await reader.catch_up()


class Part(NamedTuple):
    """Some messages, the event behind which the next ones are, and whether those are all, or all that there will be."""

    messages: list[bytes]
    end: int
    is_last: bool
    is_closed: bool


class Reader(NamedTuple):
    """One read of a stream in a view's words. `at`: the event behind which it begins. `cursor`: the one to give."""

    request: Request
    grant: Grant
    sid: str
    name: str
    found: Found
    log: ReadableLog
    folded: Folded
    at: int
    cursor: int

    async def require_place(self) -> None:
        """Raises an error with status 410 if the log has lost what is at this offset."""
        try:
            await self.folded.stand(self.log, self.at)
        except Lost:
            raise lost_place() from None

    def nothing(self) -> Response:
        """Where the stream ends now."""
        headers = _stands(self.sid, self.at, is_last=True, is_closed=self.found.meta.has_ended)
        return Response(b"[]", headers={**headers, "Cache-Control": "no-store"}, media_type=JSON)

    async def catch_up(self) -> Response:
        return self._answer(await self._part())

    async def poll(self, within_s: int) -> Response:
        tier, until_s = Tier.of(self.request), time.monotonic() + within_s
        part = await self._part()
        while not part.messages and not part.is_closed and (left_s := until_s - time.monotonic()) > 0:
            waiting = Poll(tier, self.sid, self.grant).next(part.end, public, left_s)
            if not await while_here(self.request, waiting):
                break
            part = await self._replace(at=part.end)._part()
        more = {"Stream-Cursor": str(self.cursor)}
        if part.messages:
            return self._answer(part, more)
        headers = _stands(self.sid, part.end, is_last=True, is_closed=part.is_closed)
        return Response(status_code=204, headers={**headers, **more, "Cache-Control": "no-store"})

    def follow(self) -> Response:
        """As server-sent events."""
        tier = Tier.of(self.request)
        count_connect(tier, self.sid, self.at, is_in_redis=self.found.is_in_redis)
        details = request_details(
            *(self.grant, tier.addresses.of(self.request), self.request.headers, self.folded.access_name, self.at)
        )
        return ViewReading(
            tier.viewers,
            steps_of(tier, self.found, self.grant, self.log, self.sid, self.at, self.folded),
            self.folded,
            {STREAM_HEADER: self.sid, "Cache-Control": "no-cache, no-store, no-transform"},
            at=self.at,
            meta=self.found.meta,
            cursor=self.cursor,
            view=access.View(self.sid, details),
            grant=self.grant,
        )

    async def _part(self) -> Part:
        try:
            await self.folded.stand(self.log, self.at)
            fold = self.folded.state(self.at)
        except Lost:
            raise lost_place() from None
        messages: list[bytes] = []
        end, size, count, more, closed = self.at, 0, 0, True, self.found.meta.has_ended
        while more and count < PART_EVENTS and size < PART_BYTES:
            page = await self.log.read_page(self.sid, end)
            if page.events:
                messages += messages_of(fold, public(page.events))
                end, closed = page.events[-1].id, page.events[-1].is_terminal
                count += len(page.events)
                size += sum(len(event.data) for event in page.events)
            more = page.more
        return Part(messages, end, not more, not more and closed)

    def _answer(self, part: Part, more: Mapping[str, str] | None = None) -> Response:
        tag = etag(f"{self.sid}:{self.name}", self.at, part.end, is_closed=part.is_closed)
        caching = "private, max-age=60, stale-while-revalidate=300" if part.is_closed else "private, no-cache"
        headers = _stands(self.sid, part.end, is_last=part.is_last, is_closed=part.is_closed)
        headers |= {"ETag": tag, "Cache-Control": caching, **(more or {})}
        if tag in (given.strip() for given in self.request.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=headers)
        span = (self.at + 1, part.end) if part.end > self.at else (None, None)
        tier = Tier.of(self.request)
        tier.note_reading(self.request, self.grant, self.folded.access_name, self.sid, span=span)
        return Response(b"[%b]" % b",".join(part.messages), headers=headers, media_type=JSON)


def _stands(sid: str, end: int, *, is_last: bool, is_closed: bool) -> dict[str, str]:
    told = {STREAM_HEADER: sid, "Stream-Next-Offset": view_offset(end)}
    told |= {"Stream-Up-To-Date": "true"} if is_last else {}
    return told | ({"Stream-Closed": "true"} if is_closed else {})
