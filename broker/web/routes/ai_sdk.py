"""AI SDK: what useChat (DefaultChatTransport) and WorkflowChatTransport call.

A chat is a session. useChat asks for what its newest answer says now, from its beginning; WorkflowChatTransport for a
run's chunks from a number on, again and again, until it has a `finish`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from broker.auth import Grant
from broker.dialects.ai_sdk import FINISHED, AiSdk, Version
from broker.dialects.ai_sdk_request import Asked, asked_of
from broker.dialects.sse import CONTENT_TYPE, MEDIA_TYPE
from broker.errors import (
    ArchiveUnavailable,
    Draining,
    InvalidRequest,
    LasteventError,
    MasksBusy,
    RateLimited,
    StoreUnavailable,
    StreamExpired,
    StreamNotFound,
    TooManyViewers,
)
from broker.live.folded import Lost
from broker.log.deeds import CANCELLED
from broker.log.event import is_terminal
from broker.service.streams import Found, Said
from broker.tenants.scopes import CANCEL, READ, WRITE
from broker.web import problems
from broker.web.dialect import (
    IGNORED_HEADER,
    STREAM_HEADER,
    AfterNumber,
    Attempt,
    Beginning,
    DialectResponse,
    dialect_route,
    find,
    folded_of,
    follow_in,
    read_asked,
    start,
)
from broker.web.endings import FAREWELL_S
from broker.web.follow import require_session
from broker.web.grants import grant_of, needs
from broker.web.inputs import IdempotencyKey
from broker.web.tier import Tier

UI_HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}
RUN_HEADER, TAIL_HEADER = "x-workflow-run-id", "x-workflow-stream-tail-index"

HELD_S = 1.0
"""WorkflowChatTransport comes back at once behind a proper end, however often that happens."""

MAX_INDEX = 10_000_000

_VERSIONS: dict[str, Version] = {"5": 5, "6": 6, "7": 7}

MAX_IGNORED = 16
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_SID = re.compile(r"[0-9A-Za-z_]{1,64}", re.ASCII)
_NEVER_MS = 2**53
"""No stream is as new: the newest of a listing will do."""

PASSING = (StoreUnavailable, ArchiveUnavailable, MasksBusy, Draining, TooManyViewers, RateLimited)


def _in_words(_: Request, error: LasteventError) -> Response:
    """The client makes an Error of the text."""
    status = 400 if isinstance(error, InvalidRequest) else error.status
    return Response(f"{error.code}: {error}", status, media_type="text/plain")


router = APIRouter(route_class=dialect_route(_in_words), tags=["Dialects"])

Ui = Annotated[Literal["5", "6", "7"] | None, Query(description="Which version of `ai` reads it. Default: 7")]
Show = Annotated[Literal["thinking"] | None, Query(description="What is shown besides the answer")]

_WORDS = {
    "description": "What is wrong, in words; of a path that there is not, a problem",
    "content": {
        "text/plain": {"schema": {"type": "string"}},
        problems.MEDIA_TYPE: {"schema": problems.SCHEMA},
    },
}
_CHUNKS = {
    "description": "Chunks of a UI message stream, and at the end [DONE]",
    "content": {
        MEDIA_TYPE: {"schema": {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}}
    },
}
_NOTHING = {"description": "Nothing is active"}
_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["messages"],
                "properties": {
                    "id": {"type": "string", "description": "The chat: a session"},
                    "messages": {"type": "array", "items": {"type": "object"}, "description": "UIMessage[]"},
                    "trigger": {"type": "string"},
                    "messageId": {"type": "string"},
                },
                "additionalProperties": True,
            }
        }
    },
}


def _tells(summary: str, *, has_nothing: bool = False, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    responses: dict[int | str, Any] = {200: _CHUNKS, "default": _WORDS}
    if has_nothing:
        responses[204] = _NOTHING
    extra = {"requestBody": body} if body else {}
    return {"summary": summary, "response_class": Response, "responses": responses, "openapi_extra": extra}


# -- useChat -------------------------------------------------------------------------------------------------------


@router.post("/v1/ai-sdk/chat", **_tells("An answer, for useChat", body=_BODY))
@needs(WRITE, client_keys=True)
async def ai_sdk_chat(
    request: Request, ui: Ui = None, show: Show = None, idempotency_key: IdempotencyKey = None
) -> Response:
    """What DefaultChatTransport posts. Fields of POST /v1/streams may stand beside its own."""
    grant = grant_of(request)
    asked = await _asked(request, grant, show)
    sid = await start_chat(request, grant, asked, ui, idempotency_key)
    return await _chat(request, grant, sid, _version(ui), ignoring(asked))


@router.get("/v1/ai-sdk/chat/{chat_id:path}/stream", **_tells("The answer that a chat waits for", has_nothing=True))
@needs(READ, token=READ, address=True, cookie=True, client_keys=True)
async def ai_sdk_chat_stream(request: Request, chat_id: str, ui: Ui = None) -> Response:
    """The chat's newest answer, from the beginning of its attempt, if it is queued or running. Else 204."""
    grant = grant_of(request)
    require_session(grant, chat_id)
    newest = await newest_of_chat(request, grant, chat_id)
    if newest is None or is_terminal(newest[1].meta.state):
        return Response(status_code=204)
    sid, found = newest
    return await _chat(request, grant, sid, _version(ui, found), {})


@router.post(
    "/v1/ai-sdk/chat/{chat_id:path}/stop",
    status_code=204,
    summary="Cancel the answer that a chat waits for",
    response_class=Response,
    responses={204: {"description": "No answer is active any more"}, "default": _WORDS},
)
@needs(CANCEL, token=CANCEL, cookie=True, client_keys=True)
async def ai_sdk_chat_stop(request: Request, chat_id: str) -> Response:
    """What `stop()` of useChat does not: that closes the connection alone, and the answer goes on."""
    tier, grant = Tier.of(request), grant_of(request)
    require_session(grant, chat_id)
    newest = await newest_of_chat(request, grant, chat_id)
    if newest is None or is_terminal(newest[1].meta.state):
        return Response(status_code=204)
    sid, _ = newest
    ended = await tier.streams.cancel(sid, grant, "stopped")
    if not ended.already:
        tier.deeds.note(tier.deed(request, CANCELLED, sid))
    return Response(status_code=204, headers={STREAM_HEADER: sid})


async def _chat(request: Request, grant: Grant, sid: str, ui: Version, headers: Mapping[str, str]) -> Response:
    return await follow_in(request, grant, sid, AiSdk(ui=ui), Attempt(), {**UI_HEADERS, **headers})


# -- WorkflowChatTransport -----------------------------------------------------------------------------------------


@router.post("/v1/ai-sdk/workflow", **_tells("A run, for WorkflowChatTransport", body=_BODY))
@needs(WRITE, client_keys=True)
async def ai_sdk_workflow(
    request: Request, ui: Ui = None, show: Show = None, idempotency_key: IdempotencyKey = None
) -> Response:
    """What WorkflowChatTransport posts. Fields of POST /v1/streams may stand beside its own."""
    grant = grant_of(request)
    asked = await _asked(request, grant, show, undeclared=True)
    sid = await start_chat(request, grant, asked, ui, idempotency_key)
    return await _run(request, grant, sid, _version(ui), {**_of_run(sid), **ignoring(asked)})


def _later(request: Request, passing: LasteventError) -> Response:
    """What passes: any status but 200 ends this client for good, and so does its third cut."""
    problems.note_refusal(passing)
    return HeldResponse()


@router.get("/v1/ai-sdk/workflow/{sid:path}/stream", **_tells("A run's chunks, from a number on"))
@needs(READ, token=READ, address=True, cookie=True, client_keys=True, passing=_later)
async def ai_sdk_workflow_stream(
    request: Request,
    sid: str,
    index: Annotated[
        int,
        Query(alias="startIndex", ge=-MAX_INDEX, le=MAX_INDEX, description="Chunks to skip; negative: from the end"),
    ] = 0,
    ui: Ui = None,
) -> Response:
    """A run's id, or a chat's: then its newest run. `x-workflow-stream-tail-index`: the last chunk that there is."""
    grant = grant_of(request)
    try:
        sid, found = await _run_or_newest(request, grant, sid)
        version = _version(ui, found)
        _, log, folded = await folded_of(request, grant, sid, AiSdk(merges=False, ui=version))
        count = folded.state(await folded.stand_at_tail(log)).number
        headers = {**_of_run(sid), TAIL_HEADER: str(count - 1)}
        first = index if index >= 0 else max(0, count + index)
        if is_terminal(found.meta.state) and first >= count:
            # It has as many as there are, and asks: if the log has lost some, it lacks what ends it, and asks for ever.
            return Response(FINISHED, headers={**headers, STREAM_HEADER: sid}, media_type=CONTENT_TYPE)
        if first > count:  # Redis has lost what it had, and the stream's writer is about to put it back
            return HeldResponse()
        return await _run(request, grant, sid, version, headers, first)
    except PASSING as passing:
        return _later(request, passing)
    except Lost:  # Redis has just lost a part of it
        return HeldResponse()


def _of_run(sid: str) -> dict[str, str]:
    return {**UI_HEADERS, RUN_HEADER: sid}


async def _run(
    request: Request, grant: Grant, sid: str, ui: Version, headers: Mapping[str, str], first: int = 0
) -> Response:
    """`first`: the number of the chunk that comes first."""
    where = AfterNumber(first - 1) if first else Beginning()
    return await follow_in(request, grant, sid, AiSdk(merges=False, ui=ui), where, headers, response=RunResponse)


class RunResponse(DialectResponse):
    """A connection that this server ends, it ends properly: its client takes that for a reason to come back, of which
    it bears any number, and a cut for an error, of which it bears two.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._began_s = time.monotonic()

    async def _say_farewell(self, send: Send, code: str, refused: LasteventError | None = None) -> None:
        await asyncio.sleep(HELD_S - (time.monotonic() - self._began_s))
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await send({"type": "http.response.body", "body": b"", "more_body": False})


class HeldResponse(Response):
    """Nothing, for a while."""

    def __init__(self) -> None:
        super().__init__(headers={**UI_HEADERS, "Cache-Control": "no-store"}, media_type=CONTENT_TYPE)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await asyncio.sleep(HELD_S)
        await send({"type": "http.response.body"})


# -- both ----------------------------------------------------------------------------------------------------------


async def _asked(request: Request, grant: Grant, show: str | None, *, undeclared: bool = False) -> Asked:
    # Before anything is started: a refusal must have started nothing.
    await Tier.of(request).require_place(grant)
    asked = asked_of(await read_asked(request, undeclared=undeclared), show=show)
    grant.require(READ)
    return asked


async def start_chat(request: Request, grant: Grant, asked: Asked, ui: str | None, key: str | None) -> str:
    model = asked.native.get("model")
    echo: dict[str, Any] = {"ui": int(ui)} if ui else {}
    if asked.message_id is not None:
        echo["message_id"] = asked.message_id
    said = Said(AiSdk.name, model if isinstance(model, str) else "", echo)
    return (await start(request, grant, asked.native, said, key=key)).sid


def _version(ui: str | None, found: Found | None = None) -> Version:
    """As the address says, or else the start did: of an address that its client makes longer, the query is gone."""
    said: dict[str, Any] = (found.meta.dialect or {}) if found else {}
    started = said["echo"].get("ui") if said.get("name") == AiSdk.name else None
    return _VERSIONS.get(ui or str(started), 7)


def ignoring(asked: Asked) -> dict[str, str]:
    names = [name for name in asked.ignored if _NAME.fullmatch(name)]
    return {IGNORED_HEADER: ", ".join(names[:MAX_IGNORED])} if names else {}


async def newest_of_chat(request: Request, grant: Grant, chat_id: str) -> tuple[str, Found] | None:
    """The session's newest stream that this caller may see, and whose content is there."""
    rows = await Tier.of(request).log.index.roster(grant.tenant, chat_id, _NEVER_MS)
    for _, sid in sorted(rows, reverse=True):
        with suppress(StreamNotFound, StreamExpired):
            return sid, await find(request, grant, sid)
    return None


async def _run_or_newest(request: Request, grant: Grant, run_id: str) -> tuple[str, Found]:
    """Raises StreamNotFound, StreamExpired."""
    if _SID.fullmatch(run_id):
        with suppress(StreamNotFound):
            return run_id, await find(request, grant, run_id)
    newest = await newest_of_chat(request, grant, run_id)
    if newest is None:
        raise StreamNotFound("There is no run, and no chat, with this id.")
    return newest
