"""OpenAI Chat Completions: ask for an answer, whole or in chunks; and any stream as such an answer, by its id."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from broker.dialects.chat import NAME, Chat, ChatFold, error_json
from broker.dialects.chat_request import THEIR_NAMES, read
from broker.dialects.fold import Fold
from broker.dialects.sse import MEDIA_TYPE
from broker.errors import LasteventError, StreamRunning
from broker.log.event import CANCELLED
from broker.service.streams import Said
from broker.tenants.scopes import READ, WRITE
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
from broker.web.openai_error import openai_error
from broker.web.openapi import speaks
from broker.web.strict_json import json_response
from broker.web.tier import Tier


def _answer_error(_: Request, error: LasteventError) -> Response:
    return openai_error(error, THEIR_NAMES)


router = APIRouter(route_class=dialect_route(_answer_error), tags=["Dialects"])

Show = Annotated[Literal["thinking"] | None, Query(description="thinking: also if the request does not ask for it")]

_ASKED = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {
        "model": {"type": "string"},
        "messages": {"type": "array", "items": {"type": "object"}},
        "stream": {"type": "boolean"},
    },
}


@router.post(
    "/v1/chat/completions", **speaks("Chat Completions: the answer", "application/json", MEDIA_TYPE, asked=_ASKED)
)
@needs(WRITE, client_keys=True)
async def create_chat_completion(
    request: Request, idempotency_key: IdempotencyKey = None, show: Show = None
) -> Response:
    """The same Idempotency-Key again gives the same answer, from the beginning of its last attempt."""
    tier, grant = Tier.of(request), grant_of(request)
    body = await read_asked(request)
    asked = read(body, tier.settings.dialect_abandon_s, shows_thinking=show is not None)
    grant.require(READ)
    await tier.require_place(grant)  # before anything is started
    started = await start(request, grant, asked.native, Said(NAME, asked.model, {}), key=idempotency_key)
    headers = {IGNORED_HEADER: ", ".join(asked.ignored)} if asked.ignored else {}
    if asked.streams:
        return await follow_in(request, grant, started.sid, Chat(asked.include_usage), Attempt(), headers)
    fold = await wait_for_end(request, grant, started.sid, Chat())
    return _whole(fold, started.sid, headers)


@router.get(
    "/v1/chat/completions/chatcmpl-{sid}",
    **speaks("A stream as a chat completion", "application/json", MEDIA_TYPE),
)
@needs(READ, token=READ, address=True, client_keys=True)
async def retrieve_chat_completion(
    request: Request, sid: str, stream: bool = False, include_usage: bool = False
) -> Response:
    """Any stream, however it was started: whole once it has ended, or with `stream` from its last attempt on."""
    grant = grant_of(request)
    if stream:
        return await follow_in(request, grant, sid, Chat(include_usage), Attempt())
    fold, _ = await fold_now(request, grant, sid, Chat())
    return _whole(fold, sid, {}, is_start=False)


def _whole(fold: Fold, sid: str, headers: dict[str, str], *, is_start: bool = True) -> Response:
    """A failure is 502 to who started it. To others it is 410, and to all a cancel: there will be no answer.

    Raises StreamRunning.
    """
    assert isinstance(fold, ChatFold)
    headers = {STREAM_HEADER: sid, **headers}
    if not (fold.is_done or fold.failure):
        raise StreamRunning("The answer is not whole yet. Follow it with `stream=true`.")
    if failure := fold.failure:
        status = 502 if is_start and failure.code != CANCELLED else 410
        return Response(error_json(failure), status, {**headers, **NO_RETRY}, "application/json")
    return json_response(fold.answer(), headers=headers)
