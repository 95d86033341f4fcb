"""Errors over HTTP: application/problem+json (RFC 9457), one form for all of them. No traceback, no echo of input."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from broker import gauges
from broker.errors import (
    AppendGap,
    InsufficientScope,
    InvalidRequest,
    InvalidToken,
    LasteventError,
    RateLimited,
    TokenExpired,
    TooManyStreams,
    TooManyViewers,
    Unauthorized,
    UpgradeRequired,
)
from broker.web.tally import Tally

MEDIA_TYPE = "application/problem+json"

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
        "last_event_id": {"type": "integer", "description": "append_gap only: send again from the one after it"},
        "limit": {
            "type": "string",
            "description": "too_many_viewers, too_many_streams and rate_limited only: which limit",
        },
    },
}


def problem_body(request_id: str, status: int, code: str, title: str, detail: str, **more: Any) -> bytes:
    return orjson.dumps(
        {
            "type": "about:blank",
            "title": title,
            "status": status,
            "code": code,
            "detail": detail,
            "request_id": request_id,
            **more,
        }
    )


def problem(request_id: str, status: int, code: str, title: str, detail: str, **more: Any) -> Response:
    return Response(problem_body(request_id, status, code, title, detail, **more), status, media_type=MEDIA_TYPE)


def count(error: LasteventError) -> None:
    """A refusal, before it is answered."""
    if error.status in (401, 403):
        gauges.auth_failures.labels(error.code).inc()
    note_refusal(error)


def as_json(request_id: str, error: LasteventError, **more: Any) -> bytes:
    if isinstance(error, AppendGap):
        more["last_event_id"] = error.tail
    elif isinstance(error, TooManyViewers | TooManyStreams | RateLimited):
        more["limit"] = error.limit
    return problem_body(request_id, error.status, error.code, error.title, str(error), **more)


def from_error(request_id: str, error: LasteventError) -> Response:
    count(error)
    return with_headers(Response(as_json(request_id, error), error.status, media_type=MEDIA_TYPE), error)


def with_headers(response: Response, error: LasteventError) -> Response:
    """What an answer to this error tells in its headers, in whose words ever its body is."""
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, Unauthorized):
        is_token = isinstance(error, InvalidToken)
        response.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"' if is_token else "Bearer"
    if isinstance(error, InsufficientScope):
        wanted = " ".join(error.scopes)
        response.headers["WWW-Authenticate"] = f'Bearer error="insufficient_scope", scope="{wanted}"'
    if isinstance(error, UpgradeRequired):  # RFC 9110 §15.5.22, RFC 6455 §4.2.2
        response.headers.update({"Upgrade": "websocket", "Sec-WebSocket-Version": "13"})
    if error.status == 413:
        response.headers["Connection"] = "close"  # the rest of the body is not read
    return response


REFUSED: Tally[str] = Tally("requests refused", str)
"""By this process, by their code."""


def note_refusal(error: LasteventError) -> None:
    """For the log, if this is no caller of ours, or one that asks for too much."""
    # A token expires in the course of things; who has it comes back with another.
    if error.status in (401, 403, 429) and not isinstance(error, TokenExpired):
        REFUSED.count(error.code)


def install(app: FastAPI) -> None:
    app.add_exception_handler(LasteventError, _lastevent_error)
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _nobody_there)


def request_id(request: Request) -> str:
    found: str = request.state.request_id
    return found


async def _lastevent_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LasteventError)
    return from_error(request_id(request), error)


async def _invalid_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return from_error(request_id(request), invalid_parameter(error))


def invalid_parameter(error: RequestValidationError) -> InvalidRequest:
    places = ", ".join(sorted({str(part) for problem in error.errors() for part in problem["loc"][1:2]}))
    return InvalidRequest(f"These parameters are not what they must be: {places}.")


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, no such method."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    code = phrase.lower().replace(" ", "_")
    detail = "docs/API.md, and /openapi.json where it is open, tell the paths and methods there are."
    response = problem(request_id(request), error.status_code, code, phrase, detail)
    response.headers.update(error.headers or {})
    return response


async def _nobody_there(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # which nobody gets
