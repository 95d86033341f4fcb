"""Anthropic Messages: ask for an answer, whole or as it comes; and any stream as such an answer, by its id."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from broker.auth import Grant
from broker.dialects.fold import Fold
from broker.dialects.messages import NAME, Messages, MessagesFold, error_json
from broker.dialects.messages_request import THEIR_NAMES, read
from broker.dialects.sse import MEDIA_TYPE
from broker.errors import LasteventError, StreamRunning
from broker.log.event import CANCELLED
from broker.service.streams import Said
from broker.tenants.scopes import READ, WRITE
from broker.web import problems
from broker.web.anthropic_error import OVERLOADED, anthropic_error, no_such_call
from broker.web.dialect import (
    IGNORED_HEADER,
    NO_RETRY,
    STREAM_HEADER,
    Attempt,
    dialect_route,
    fold_now,
    follow_in,
    read_asked,
    start,
    wait_for_end,
)
from broker.web.grants import grant_of, needs
from broker.web.inputs import IdempotencyKey
from broker.web.openapi import speaks
from broker.web.strict_json import json_response
from broker.web.tier import Tier


def _answer_error(request: Request, error: LasteventError) -> Response:
    return anthropic_error(problems.request_id(request), error, THEIR_NAMES)


router = APIRouter(route_class=dialect_route(_answer_error), tags=["Dialects"])

_DIALECT = Messages()

Show = Annotated[Literal["thinking"] | None, Query(description="thinking: also if the request does not ask for it")]

_ASKED = {
    "type": "object",
    "required": ["model", "messages", "max_tokens"],
    "properties": {
        "model": {"type": "string"},
        "messages": {"type": "array", "items": {"type": "object"}},
        "max_tokens": {"type": "integer"},
        "stream": {"type": "boolean"},
    },
}


@router.post("/v1/messages", **speaks("Messages: the answer", "application/json", MEDIA_TYPE, asked=_ASKED))
@needs(WRITE, client_keys=True)
async def create_message(request: Request, idempotency_key: IdempotencyKey = None, show: Show = None) -> Response:
    """The same Idempotency-Key again gives the same answer, from the beginning of its last attempt."""
    tier, grant = Tier.of(request), grant_of(request)
    body = await read_asked(request)
    asked = read(body, tier.settings.dialect_abandon_s, shows_thinking=show is not None)
    grant.require(READ)
    await tier.require_place(grant)  # before anything is started
    started = await start(request, grant, asked.native, Said(NAME, asked.model, {}), key=idempotency_key)
    headers = {IGNORED_HEADER: ", ".join(asked.ignored)} if asked.ignored else {}
    if asked.streams:
        return await _followed(request, grant, started.sid, headers)
    fold = await wait_for_end(request, grant, started.sid, _DIALECT)
    return _whole(request, fold, started.sid, headers)


@router.post("/v1/messages/count_tokens", **speaks("Not here: 404"))
@needs(WRITE, client_keys=True)
async def count_tokens(request: Request) -> Response:
    """Which tokens a text has only its provider knows."""
    return no_such_call(problems.request_id(request))


@router.get("/v1/messages/msg_{sid}", **speaks("A stream as a message", "application/json", MEDIA_TYPE))
@needs(READ, token=READ, address=True, client_keys=True)
async def retrieve_message(request: Request, sid: str, stream: bool = False) -> Response:
    """Any stream, however it was started: whole once it has ended, or with `stream` from its last attempt on."""
    grant = grant_of(request)
    if stream:
        return await _followed(request, grant, sid, {})
    fold, _ = await fold_now(request, grant, sid, _DIALECT)
    return _whole(request, fold, sid, {}, is_start=False)


async def _followed(request: Request, grant: Grant, sid: str, headers: dict[str, str]) -> Response:
    return await follow_in(request, grant, sid, _DIALECT, Attempt(), {**_named(request), **headers})


def _whole(request: Request, fold: Fold, sid: str, headers: dict[str, str], *, is_start: bool = True) -> Response:
    """A failure is 502 to who started it (529: the provider is overloaded). To others it is 410, and to all a cancel:
    there will be no answer. Raises StreamRunning.
    """
    assert isinstance(fold, MessagesFold)
    headers = {STREAM_HEADER: sid, **_named(request), **headers}
    if not (fold.is_done or fold.failure):
        raise StreamRunning("The answer is not whole yet. Follow it with `stream=true`.")
    if failure := fold.failure:
        error: dict[str, Any] = {**error_json(failure), "request_id": problems.request_id(request)}
        statuses = {CANCELLED: 410, "provider_overloaded": OVERLOADED}
        status = statuses.get(failure.code, 502) if is_start else 410
        return Response(orjson.dumps(error), status, {**headers, **NO_RETRY}, "application/json")
    return json_response(fold.answer(), headers=headers)


def _named(request: Request) -> dict[str, str]:
    return {"request-id": problems.request_id(request)}
