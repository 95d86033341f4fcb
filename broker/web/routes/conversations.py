"""Follow a session, or several streams on one connection."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from broker.auth import Grant
from broker.dialects.cursor import MAX_CURSOR
from broker.dialects.format import Heartbeat, HttpForm
from broker.dialects.sse import MEDIA_TYPE, NDJSON_MEDIA_TYPE
from broker.dialects.vector import AT_END, Vector
from broker.errors import (
    ArchiveUnavailable,
    BadCursor,
    Draining,
    InvalidRequest,
    LasteventError,
    RateLimited,
    StoreUnavailable,
    StreamExpired,
    StreamNotFound,
    TooManyViewers,
)
from broker.live.conversation import Conversation, Opened
from broker.live.ledger import MOST_OPEN, Ledger
from broker.live.roster import Roster
from broker.live.tail import Step, follow, replay
from broker.log.access import View
from broker.service.streams import Found
from broker.tenants.scopes import READ
from broker.web.conversation import ConversationResponse, SeatsOfOne, roster_of
from broker.web.follow import count_connect, has_ended_at, require_session, require_time_left
from broker.web.grants import CheckedRoute, ReaderGrant, needs
from broker.web.inputs import Accept, Cursors, Kinds, SignsOfLife, wanted_format
from broker.web.openapi import gives
from broker.web.routes.following import cut_or_raise
from broker.web.tier import Tier
from broker.web.viewer import request_details

router = APIRouter(route_class=CheckedRoute, tags=["Follow"])

PASSING = (StoreUnavailable, ArchiveUnavailable, Draining, TooManyViewers, RateLimited)

SILENT_S = 86_400.0
"""Streams of several give no signs of life: their connection does."""

_STREAM = re.compile(r"([0-9A-Za-z_]{1,64})(?::(0|[1-9][0-9]{0,15}))?")

Compact = Annotated[Literal["0", "1"], Query(description="Merge text that waits")]
Follows = Annotated[Literal["0", "1"], Query(alias="follow", description="0: the backlog, then the end")]


@router.head("/v1/sessions/{session_id:path}/events", include_in_schema=False)
@router.get(
    "/v1/sessions/{session_id:path}/events",
    **gives("The events of a session's streams, as SSE or NDJSON", MEDIA_TYPE, NDJSON_MEDIA_TYPE),
)
@needs(READ, token=READ, cookie=True, passing=cut_or_raise)
async def session_events(
    request: Request,
    session_id: str,
    grant: ReaderGrant,
    cursors: Cursors,
    heartbeat: SignsOfLife,
    kinds: Kinds,
    accept: Accept = "*/*",
    compact: Compact = "0",
    follows: Follows = "1",
) -> Response:
    """What runs now, from its beginning, and every answer that starts later. Ends only with follow=0."""
    tier = Tier.of(request)
    require_time_left(grant)
    start = cursors.resume_in_several()
    require_session(grant, session_id)
    try:
        await tier.require_place(grant)
        ledger = Ledger(start, await tier.log.now_ms())
        roster = roster_of(tier, grant, session_id, start)
        form = wanted_format(accept, compact=compact == "1", is_public=grant.is_public, kinds=kinds)
        response = _response(request, grant, ledger, roster, form, heartbeat, follows=follows == "1")
        await response.prepare()
    except PASSING as passing:
        return cut_or_raise(request, passing)
    return response


@router.head("/v1/events", include_in_schema=False)
@router.get("/v1/events", **gives("The events of several streams, as SSE or NDJSON", MEDIA_TYPE, NDJSON_MEDIA_TYPE))
@needs(READ, token=READ, cookie=True, passing=cut_or_raise)
async def events_of_several(
    request: Request,
    grant: ReaderGrant,
    cursors: Cursors,
    heartbeat: SignsOfLife,
    kinds: Kinds,
    stream: Annotated[
        list[str],
        Query(min_length=1, max_length=MOST_OPEN, description="A stream's id, and `:` and the last event received"),
    ],
    accept: Accept = "*/*",
    compact: Compact = "0",
    follows: Follows = "1",
) -> Response:
    """Each stream to its end, then the end. 204: the client has all of them already."""
    tier = Tier.of(request)
    require_time_left(grant)
    start = Vector(0, _further(_asked(stream), cursors.resume_in_several()))
    try:
        await tier.require_place(grant)
        start = await _with_ends(tier, grant, start)
    except PASSING as passing:
        return cut_or_raise(request, passing)
    if all(n is AT_END for n in start.named.values()):
        return Response(status_code=204)
    ledger = Ledger(start, 0, is_fixed=True)
    form = wanted_format(accept, compact=compact == "1", is_public=grant.is_public, kinds=kinds)
    return _response(request, grant, ledger, None, form, heartbeat, follows=follows == "1")


def _response(
    request: Request,
    grant: Grant,
    ledger: Ledger,
    roster: Roster | None,
    form: HttpForm,
    heartbeat: Heartbeat,
    *,
    follows: bool,
) -> ConversationResponse:
    tier = Tier.of(request)
    seats = SeatsOfOne(tier.viewers, grant, form.access_name)
    # What is said of the viewer is read now: the request itself is gone once the answer has begun.
    details = request_details(grant, tier.addresses.of(request), request.headers, form.access_name, 0)

    async def look_up(sid: str) -> Found:
        return await tier.streams.look_up_content(sid, grant)

    async def steps(opened: Opened) -> AsyncGenerator[Step, None]:
        sid, cursor, meta, is_in_redis = opened
        log = await tier.streams.log_of(sid, Found(meta, is_in_redis))
        count_connect(tier, sid, cursor, is_in_redis=is_in_redis)
        if follows and is_in_redis:
            source = follow(tier.log, tier.hub, sid, cursor, form=form, heartbeat_s=SILENT_S)
        else:
            source = replay(log, sid, cursor)
        async with aclosing(source) as given:
            async for step in given:
                yield step

    return ConversationResponse(
        tier.viewers,
        Conversation(roster, ledger, look_up, seats, follows=follows),
        seats,
        steps,
        form,
        form_name=form.access_name,
        heartbeat=form.render_heartbeat(heartbeat),
        silence_s=heartbeat.every_s or tier.settings.heartbeat_s,
        view=lambda sid, cursor: View(sid, {**details, "requested": cursor}),
        grant=grant,
        joins=ledger.is_first,
    )


def _asked(streams: Sequence[str]) -> dict[str, int]:
    """Stream → the last event received. Raises InvalidRequest, BadCursor."""
    asked: dict[str, int] = {}
    for text in streams:
        found = _STREAM.fullmatch(text)
        if not found:
            raise InvalidRequest("`stream` is a stream's id, or the id, `:` and the id of the last event received.")
        sid, n = found[1], int(found[2] or 0)
        if n > MAX_CURSOR:
            raise BadCursor("A cursor is the id of the last event received (0 to 9007199254740991).")
        if sid in asked:
            raise InvalidRequest("Each `stream` may be named once.")
        asked[sid] = n
    return asked


def _further(asked: Mapping[str, int], cursor: Vector | None) -> dict[str, int | None]:
    """Where each stream is resumed: the address may be older than the cursor."""
    known = cursor.named if cursor else {}
    named: dict[str, int | None] = {}
    for sid, n in asked.items():
        last = known.get(sid, n)
        named[sid] = AT_END if last is AT_END else max(n, last)
    return named


async def _with_ends(tier: Tier, grant: Grant, start: Vector) -> Vector:
    """With what has ended where the viewer stands. Raises StreamNotFound or StreamExpired if there is none of them, and
    what passes if one cannot be looked up just now.
    """
    sids = [sid for sid, n in start.named.items() if n is not AT_END]
    looks = (tier.streams.look_up_content(sid, grant) for sid in sids)
    found = dict(zip(sids, await asyncio.gather(*looks, return_exceptions=True), strict=True))
    lost: list[LasteventError] = []
    named = dict(start.named)
    for sid, one in found.items():
        if isinstance(one, StreamNotFound | StreamExpired):
            lost.append(one)
        elif isinstance(one, BaseException):
            raise one
        elif has_ended_at(named[sid], one.meta.state, one.meta.tail):
            named[sid] = AT_END
    if len(lost) == len(named):
        raise lost[0]
    return Vector(start.at, named)
