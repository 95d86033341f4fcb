"""OpenAI Responses: start one, and wait for it, follow it or let it run; read it, follow it, stop it, erase it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import Response

from broker.auth import Grant
from broker.dialects.responses import ResponseFold, Responses, response_id
from broker.dialects.responses_request import (
    Asked,
    Former,
    former_of,
    input_items,
    previous,
    referred,
    sid_of,
    to_native,
)
from broker.dialects.sse import MEDIA_TYPE
from broker.errors import BodyTooLarge, InvalidRequest, LasteventError
from broker.log.deeds import CANCELLED, ERASED
from broker.service.streams import Said
from broker.tenants.scopes import CANCEL, ERASE, INSPECT, READ, WRITE, opens
from broker.web.dialect import (
    IGNORED_HEADER,
    STREAM_HEADER,
    AfterNumber,
    Beginning,
    dialect_route,
    find,
    fold_now,
    folded_of,
    follow_in,
    read_asked,
    start,
    wait_for_end,
)
from broker.web.grants import grant_of, needs
from broker.web.inputs import IdempotencyKey
from broker.web.openai_error import error_response, openai_error
from broker.web.openapi import speaks
from broker.web.strict_json import INLINE_BYTES, json_response
from broker.web.tier import Tier

MAX_REFERENCES = 100
"""Earlier answers that one request may refer to: the log of each is read."""

_NAMES = {
    "messages": "input",
    "prompt": "input",
    "system": "instructions",
    "max_tokens": "max_output_tokens",
    "output_schema": "text.format.schema",
    "user_id": "user",
    "effort": "reasoning.effort",
    "thinking": "reasoning",
}


JSON = "application/json"
_ASKED = {
    "type": "object",
    "required": ["model", "input"],
    "properties": {
        "model": {"type": "string"},
        "input": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
        "instructions": {"type": ["string", "null"]},
        "stream": {"type": "boolean"},
        "background": {"type": "boolean"},
        "previous_response_id": {"type": ["string", "null"]},
    },
}


def _refusal(_: Request, error: LasteventError) -> Response:
    return openai_error(error, _NAMES)


class _ResponseId(Convertor[str]):
    """`resp_…` in an address is the stream's id wherever the request is looked at: a token names that."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return sid_of(value)

    def to_string(self, value: str) -> str:
        return response_id(value)


register_url_convertor("response", _ResponseId())

router = APIRouter(route_class=dialect_route(_refusal), tags=["Dialects"])

Show = Annotated[Literal["thinking"] | None, Query(description="thinking: as a request for a summary of the reasoning")]


@router.post("/v1/responses", **speaks("OpenAI Responses: a response", JSON, MEDIA_TYPE, asked=_ASKED))
@needs(WRITE, client_keys=True)
async def create_response(request: Request, idempotency_key: IdempotencyKey = None, show: Show = None) -> Response:
    """`stream`: the events. `background`: the response, queued. Neither: the response, once it is whole."""
    tier, grant = Tier.of(request), grant_of(request)
    asked = await _asked(request, grant, shows_thinking=show is not None)
    grant.require(READ)  # a repeated call may be answered with all of it
    if asked.is_streamed or not asked.is_background:
        await tier.require_place(grant)  # before anything is started
    dialect = _dialect_for(grant)
    said = Said(dialect.name, asked.model, asked.echo, asked.kept)
    started = await start(request, grant, asked.body, said, key=idempotency_key)
    sid = started.sid
    headers = {"Location": f"/v1/responses/{response_id(sid)}"}
    if asked.ignored:
        headers[IGNORED_HEADER] = ", ".join(asked.ignored)
    if asked.is_streamed:
        return await follow_in(request, grant, sid, dialect, Beginning(), headers)
    if asked.is_background:
        return await _now(request, grant, sid, headers)
    fold = await wait_for_end(request, grant, sid, dialect)
    return _whole(sid, grant, fold, headers)


@router.get("/v1/responses/{sid:response}", **speaks("OpenAI Responses: a response, or its events", JSON, MEDIA_TYPE))
@needs(READ, token=READ, address=True, client_keys=True)
async def retrieve_response(
    request: Request,
    sid: str,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0, lt=2**53, description="A sequence_number")] = None,
) -> Response:
    """The response as it is now; with `stream`, its events, after `starting_after`."""
    grant = grant_of(request)
    if not stream:
        return await _now(request, grant, sid)
    where = Beginning() if starting_after is None else await _after(request, grant, sid, starting_after)
    return await follow_in(request, grant, sid, _dialect_for(grant), where)


@router.post("/v1/responses/compact", include_in_schema=False)
@router.post("/v1/responses/input_tokens", include_in_schema=False)
@needs(WRITE, client_keys=True)
async def no_such_call(request: Request) -> Response:
    """Of a provider's own. 405 would say that there is something at this address."""
    return error_response(404, "not_found", "This server has no such call.")


@router.post("/v1/responses/{sid:response}/cancel", **speaks("OpenAI Responses: the response, which ends now"))
@needs(CANCEL, token=CANCEL, client_keys=True)
async def cancel_response(request: Request, sid: str) -> Response:
    """One that has ended stays as it is. Who may not read is answered without its output."""
    tier, grant = Tier.of(request), grant_of(request)
    ended = await tier.streams.cancel(sid, grant, "requested")
    if not ended.already:
        tier.deeds.note(tier.deed(request, CANCELLED, sid))
    return await _now(request, grant, sid)


@router.delete("/v1/responses/{sid:response}", **speaks("OpenAI Responses: erased"))
@needs(ERASE, client_keys=True)
async def delete_response(request: Request, sid: str) -> Response:
    """Its content, everywhere, once it has ended."""
    tier = Tier.of(request)
    await tier.streams.erase(sid, grant_of(request))
    await tier.deeds.record(tier.deed(request, ERASED, sid))
    return json_response({"id": response_id(sid), "object": "response", "deleted": True})


@router.get("/v1/responses/{sid:response}/input_items", **speaks("OpenAI Responses: what was asked"))
@needs(INSPECT, client_keys=True)
async def list_input_items(
    request: Request,
    sid: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """What was asked, with what came before it."""
    tier, grant = Tier.of(request), grant_of(request)
    found = await find(request, grant, sid)
    items = input_items(await tier.streams.request_of(sid, found.meta), sid)
    tier.note_reading(request, grant, "record", sid)
    if order == "desc":
        items.reverse()
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise InvalidRequest("after: there is no such item")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return json_response({"object": "list", "data": page, **ends, "has_more": len(items) > limit})


# ---- A request, and what it refers to


async def _asked(request: Request, grant: Grant, *, shows_thinking: bool) -> Asked:
    """Raises InvalidRequest, and StreamNotFound, StreamExpired or StreamRunning of what it goes on from."""
    asked = await read_asked(request)
    references = referred(asked)
    if len(references) > MAX_REFERENCES:
        raise InvalidRequest(f"input: at most {MAX_REFERENCES} answers can be referred to")
    answers = {sid: await _answer(request, grant, sid) for sid in references}
    sid = previous(asked)
    native = to_native(
        asked,
        answers=answers,
        former=await _former(request, grant, sid) if sid is not None else None,
        shows_thinking=shows_thinking,
        abandon_after_s=Tier.of(request).settings.dialect_abandon_s or None,
    )
    if answers or sid is not None:
        _require_small(request, native.body)
    return native


def _require_small(request: Request, body: dict[str, Any]) -> None:
    """With what it goes on from, or each would be longer than the one before. Raises BodyTooLarge."""
    limit, size = Tier.of(request).settings.max_request_bytes, len(orjson.dumps(body))
    if size > limit:
        raise BodyTooLarge(f"With what it goes on from, the request has more than {limit} bytes.")
    request.state.is_large = request.state.is_large or size > INLINE_BYTES


async def _answer(request: Request, grant: Grant, sid: str) -> dict[str, Any]:
    """As the next request gives it back to a model."""
    tier = Tier.of(request)
    grant.require(INSPECT)
    message, *span = await tier.reading.message(sid, grant)
    tier.note_reading(request, grant, "text", sid, span=(span[0], span[1]))
    answer: dict[str, Any] = orjson.loads(message)
    return answer


async def _former(request: Request, grant: Grant, sid: str) -> Former:
    answer = await _answer(request, grant, sid)
    meta = (await find(request, grant, sid)).meta
    was_asked = await Tier.of(request).streams.request_of(sid, meta)
    is_ours = (meta.dialect or {}).get("name") == Responses.name
    return former_of(was_asked, answer, meta.session or "", is_ours=is_ours)


# ---- A response


def _dialect_for(grant: Grant) -> Responses:
    return Responses(shows_request=not grant.is_viewer)


async def _after(request: Request, grant: Grant, sid: str, number: int) -> AfterNumber:
    """Who is beyond the end has what the log has lost, and still wants to know how it ended."""
    found, log, folded = await folded_of(request, grant, sid, _dialect_for(grant))
    if not found.meta.has_ended:
        return AfterNumber(number)
    last = folded.state(await folded.stand_at_tail(log)).number - 1
    return AfterNumber(number if number <= last else last - 1)


async def _now(request: Request, grant: Grant, sid: str, headers: dict[str, str] | None = None) -> Response:
    fold, _ = await fold_now(request, grant, sid, _dialect_for(grant))
    return _whole(sid, grant, fold, headers)


def _whole(sid: str, grant: Grant, fold: object, headers: dict[str, str] | None = None) -> Response:
    assert isinstance(fold, ResponseFold)
    response = fold.response()
    if not opens(grant.scopes, READ):
        response["output"] = []
    return json_response(response, headers={STREAM_HEADER: sid, **(headers or {})})
