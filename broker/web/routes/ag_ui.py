"""AG-UI: what HttpAgent posts, and the same with a cursor, a run and a thread as TanStack AI asks for them.

A run's id is its client's. The stream's follows from it (log/given.py), so the same run posted again is the same
stream, and a client that knows its run's id alone finds it.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from broker.auth import Grant
from broker.dialects.ag_ui import NAME, AgUi
from broker.dialects.ag_ui_request import Asked, asked_of, run_id_of
from broker.dialects.ag_ui_thread import AgUiThread, AgUiThreadFold
from broker.dialects.sse import MEDIA_TYPE
from broker.errors import (
    ArchiveUnavailable,
    BadCursor,
    Draining,
    InvalidRequest,
    KeyReused,
    LasteventError,
    LogHealing,
    MasksBusy,
    RateLimited,
    StoreUnavailable,
    StreamExpired,
    StreamNotFound,
    TooManyViewers,
)
from broker.log.given import given_sid
from broker.service.streams import Found, Said
from broker.tenants.scopes import READ, WRITE
from broker.web.dialect import (
    IGNORED_HEADER,
    After,
    Beginning,
    Where,
    dialect_route,
    find,
    fold_now,
    follow_in,
    read_asked,
    start,
)
from broker.web.follow import require_session
from broker.web.grants import grant_of, needs
from broker.web.openapi import speaks
from broker.web.problems import note_refusal
from broker.web.tier import Tier
from broker.web.viewer import CutResponse

CURSOR = re.compile(r"(?P<event>0|[1-9][0-9]{0,14})-(?P<payload>[0-9]{1,4})", re.ASCII)
_SID = re.compile(r"[0-9a-f]{32}", re.ASCII)

PASSING = (StoreUnavailable, ArchiveUnavailable, MasksBusy, Draining, TooManyViewers, RateLimited)

_OURS = f"§{NAME}/"
"""No Idempotency-Key of a caller begins so: those are ASCII."""

_NEVER_MS = 2**53
"""No stream is as new: the newest of a listing will do."""


def _in_words(_: Request, error: LasteventError) -> Response:
    """Clients show the status, and HttpAgent the body: it is as RUN_ERROR has it."""
    status = 409 if isinstance(error, KeyReused) else 400 if isinstance(error, InvalidRequest) else error.status
    body = orjson.dumps({"message": str(error), "code": error.code})
    return Response(body, status, media_type="application/json")


router = APIRouter(route_class=dialect_route(_in_words), tags=["Dialects"])

RunId = Annotated[str | None, Header(alias="X-Run-Id", description="The run to go on with")]
LastEventId = Annotated[str | None, Header(description="Of the last event received: <event>-<payload>")]

_ASKED = {
    "type": "object",
    "required": ["threadId", "runId", "messages"],
    "properties": {
        "threadId": {"type": "string", "description": "A session"},
        "runId": {"type": "string"},
        "messages": {"type": "array", "items": {"type": "object"}},
        "tools": {"type": "array", "items": {"type": "object"}},
        "context": {"type": "array", "items": {"type": "object"}},
        "forwardedProps": {"type": "object", "description": "Fields of POST /v1/streams"},
    },
}


class _Cut(CutResponse):
    """Without a word."""

    def __init__(self, passing: LasteventError) -> None:
        super().__init__(passing)
        self._words = b""


def _cut_or_raise(request: Request, passing: LasteventError) -> Response:
    """What passes: TanStack AI comes back after a cut, and gives up for good at any status but 200."""
    if not _cursor_of(request.headers.get("last-event-id")):
        raise passing
    note_refusal(passing)
    return _Cut(passing)


@router.post("/v1/ag-ui", **speaks("A run, as AG-UI's clients ask for it", MEDIA_TYPE, asked=_ASKED))
@needs(WRITE, client_keys=True, passing=_cut_or_raise)
async def ag_ui(request: Request, run_id: RunId = None, last_event_id: LastEventId = None) -> Response:
    """RunAgentInput. With Last-Event-ID nothing is started: the run goes on behind that event."""
    grant = grant_of(request)
    if where := _cursor_of(last_event_id):
        grant.require(READ)
        return await _go_on(request, grant, run_id or run_id_of(await read_asked(request)), where)
    # Before anything is started: a refusal must have started nothing.
    await Tier.of(request).require_place(grant)
    asked = asked_of(await read_asked(request))
    grant.require(READ)
    sid = given_sid(NAME, grant.tenant, asked.run_id)
    try:
        await start(request, grant, asked.native, _said(asked), key=f"{_OURS}{sid}", sid=sid)
    except KeyReused as error:
        raise KeyReused(
            "runId: it names another run. The same run has the same messages; another has a new id"
        ) from error
    ignored = {IGNORED_HEADER: ", ".join(asked.ignored)} if asked.ignored else {}
    return await follow_in(request, grant, sid, AgUi(), Beginning(), ignored)


@router.get("/v1/ag-ui", **speaks("A run that there is, or what a thread says", MEDIA_TYPE, "application/json"))
@needs(READ, token=READ, address=True, cookie=True, client_keys=True, passing=_cut_or_raise)
async def ag_ui_run(
    request: Request,
    run_id: Annotated[str | None, Query(alias="runId", description="The client's, or a stream's id")] = None,
    offset: Annotated[str | None, Query(description="-1: from the beginning; or as Last-Event-ID")] = None,
    thread_id: Annotated[str | None, Query(alias="threadId", description="A session: what it says")] = None,
    last_event_id: LastEventId = None,
) -> Response:
    """TanStack AI's `joinRun` and `hydrate`."""
    grant = grant_of(request)
    if run_id is None:
        if thread_id is None:
            raise InvalidRequest("runId or threadId: one of them is needed")
        return await _hydrated(request, grant, thread_id)
    where = _cursor_of(last_event_id) or (None if offset == "-1" else _cursor_of(offset))
    return await _go_on(request, grant, run_id, where)


def _said(asked: Asked) -> Said:
    model = asked.native.get("model")
    echo = {"thread_id": asked.thread_id, "run_id": asked.run_id}
    return Said(NAME, model if isinstance(model, str) else "", echo, {"messages": asked.messages})


def _cursor_of(text: str | None) -> Where | None:
    """None: there is none. Raises BadCursor."""
    if not text:
        return None
    if not (found := CURSOR.fullmatch(text)):
        raise BadCursor("A cursor of a run is the id of the last event received: two numbers with a dash between.")
    return After(int(found["event"]), int(found["payload"]))


async def _go_on(request: Request, grant: Grant, run_id: str, where: Where | None) -> Response:
    try:
        sid, _ = await _run(request, grant, run_id)
        return await follow_in(request, grant, sid, AgUi(shows_request=not grant.is_viewer), where or Beginning())
    except PASSING as passing:
        if where is None:
            raise
        note_refusal(passing)
        return _Cut(passing)


async def _run(request: Request, grant: Grant, run_id: str) -> tuple[str, Found]:
    """By its client's id, or the stream's. Raises StreamNotFound, StreamExpired, LogHealing."""
    missing: LasteventError = StreamNotFound("There is no run with this id.")
    for sid in (given_sid(NAME, grant.tenant, run_id), run_id):
        if _SID.fullmatch(sid) and (grant.token is None or grant.token.may_open(sid)):
            try:
                return sid, await find(request, grant, sid)
            except StreamNotFound:
                pass
            except LogHealing as healing:  # it is not there, or not there yet
                missing = healing
    raise missing


# -- a thread as it is -------------------------------------------------------------------------------------------------


async def _hydrated(request: Request, grant: Grant, thread_id: str) -> Response:
    """The messages that its newest run answers, and its answer once that is whole; else which run is under way."""
    require_session(grant, thread_id)
    newest = await _newest(request, grant, thread_id)
    messages: list[Any] = []
    active: dict[str, Any] | None = None
    if newest:
        fold, meta = await fold_now(request, grant, newest, AgUiThread(needs_request=not grant.is_viewer))
        assert isinstance(fold, AgUiThreadFold)
        messages = fold.messages(with_answer=meta.has_ended)
        active = None if meta.has_ended else {"runId": fold.run_id}
    said = {"messages": messages, "activeRun": active, "interrupts": None, "page": {"truncated": False}}
    return Response(orjson.dumps(said), media_type="application/json", headers={"Cache-Control": "no-store"})


async def _newest(request: Request, grant: Grant, thread_id: str) -> str | None:
    rows = await Tier.of(request).log.index.roster(grant.tenant, thread_id, _NEVER_MS)
    for _, sid in sorted(rows, reverse=True):
        with suppress(StreamNotFound, StreamExpired):
            await find(request, grant, sid)
            return sid
    return None
