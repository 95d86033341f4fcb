"""The OpenAPI document: what each route takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from broker.dialects.sse import MEDIA_TYPE
from broker.service.bodies import (
    AppendEvents,
    Body,
    Cancel,
    CreateStream,
    Decide,
    ErasePerson,
    GiveInput,
    MintToken,
    ProducerHeartbeat,
    Regenerate,
    RevokeTokens,
)
from broker.web import problems
from broker.web.answers import ANSWERS
from broker.web.grants import ANY_TOKEN, COOKIE, Needs

_PROBLEM = {"description": "A problem (RFC 9457)", "content": {problems.MEDIA_TYPE: {"schema": problems.SCHEMA}}}
_BODIES: tuple[type[Body], ...] = (
    *(CreateStream, Regenerate, Cancel, AppendEvents, ProducerHeartbeat),
    *(GiveInput, Decide, MintToken, RevokeTokens, ErasePerson),
)
_REF = "#/components/schemas/{model}"
_STRING = {"schema": {"type": "string"}}
_SSE = {
    "schema": {
        "description": "Each event; `data` is JSON (docs/API.md, events).",
        "type": "object",
        "properties": {
            "id": {"type": "string", "description": "Absent: a notice, such as `gap`"},
            "event": {"type": "string"},
            "data": {"type": "string", "contentMediaType": "application/json"},
            "retry": {"type": "integer"},
        },
    }
}

_THEIRS = {"description": "As the dialect has it (docs/DIALECTS.md)."}
"""Of no form of ours: its own ecosystem describes it."""

_SCHEMES = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key. A server without keys listens on loopback only and asks for none.",
    },
    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "For phones and browsers"},
    "address": {
        "type": "apiKey",
        "in": "query",
        "name": "access_token",
        "description": "A token of one stream, as in `events_url`, for clients that cannot send headers.",
    },
    "cookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": "A token, as POST /v1/tokens/cookie sets it. For more than reading, from pages of this site.",
    },
}

TAGS = {
    "Start": "Start a generation, once more, and stop it",
    "Follow": "Responses that continue",
    "Read": "A stream as it is now",
    "Agents": "Which there are, what one is told while it runs, and what it may do",
    "Tokens": "For phones and browsers: made, kept in a cookie, and revoked",
    "Produce": "Write a stream from outside",
    "List": "Streams and sessions, in pages, and models",
    "Audit": "Who saw a stream, whether it is as it was, and the end of its content",
    "Keys": "Who is let in",
    "Dialects": "The same streams in the words of other ecosystems' clients",
    "Operate": "What load balancers and Prometheus ask",
}


def _json(*models: type[BaseModel]) -> dict[str, Any]:
    refs = [{"$ref": _REF.format(model=model.__name__)} for model in models]
    return {"application/json": {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}}


def gives(description: str, *forms: str | type[BaseModel]) -> dict[str, Any]:
    """`forms`: media types of text, or the models of a JSON answer."""
    media_types = [form for form in forms if isinstance(form, str)]
    models = [form for form in forms if not isinstance(form, str)]
    content: dict[str, Any] = {form: _SSE if form == MEDIA_TYPE else _STRING for form in media_types} | (
        _json(*models) if models else {}
    )
    responses: dict[int | str, Any] = {200: {"description": description, "content": content}, "default": _PROBLEM}
    if MEDIA_TYPE in media_types:
        responses[204] = {"description": "The viewer has the terminal event already"}
    return {"summary": description, "response_class": Response, "responses": responses}


def speaks(description: str, *forms: str, asked: dict[str, Any] | None = None) -> dict[str, Any]:
    """A route of a dialect, whose answers and errors are in its own words (docs/DIALECTS.md). `forms`: media types.
    `asked`: the schema of its body; what it does not name is taken too.
    """
    content: dict[str, Any] = {form: {"schema": _THEIRS} for form in forms or ("application/json",)}
    wrong = {form: {"schema": _THEIRS} for form in ("application/json", "text/plain", problems.MEDIA_TYPE)}
    error = {"description": "An error, as this dialect has them", "content": wrong}
    said: dict[str, Any] = {"summary": description, "response_class": Response}
    said["responses"] = {200: {"description": description, "content": content}, "default": error}
    if asked is not None:
        said["openapi_extra"] = {"requestBody": {"required": True, "content": {"application/json": {"schema": asked}}}}
    return said


def upgrades() -> dict[str, Any]:
    responses: dict[int | str, Any] = {
        101: {"description": "The connection is a WebSocket from here on (docs/API.md)"},
        426: _PROBLEM,
        501: _PROBLEM,
    }
    summary = "A WebSocket: many streams on one connection"
    return {"summary": summary, "status_code": 101, "response_class": Response, "responses": responses}


def erases() -> dict[str, Any]:
    responses: dict[int | str, Any] = {
        202: {"description": "Nobody sees the content any more; the archive erases it within moments"},
        204: {"description": "The content is gone; a tombstone and its seal stay"},
        "default": _PROBLEM,
    }
    summary = "Erase a finished stream's content, for good"
    return {"summary": summary, "response_class": Response, "responses": responses}


def revokes() -> dict[str, Any]:
    responses: dict[int | str, Any] = {204: {"description": "Nobody is let in by it any more"}, "default": _PROBLEM}
    return {"summary": "Revoke a key, for good", "response_class": Response, "responses": responses}


def gives_nothing(description: str, model: type[Body] | None = None) -> dict[str, Any]:
    """204. `model`: of the body that it takes."""
    schema = {"$ref": _REF.format(model=model.__name__)} if model else {}
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}} if model else {}
    responses: dict[int | str, Any] = {204: {"description": description}, "default": _PROBLEM}
    answer = {"status_code": 204, "response_class": Response, "responses": responses, "openapi_extra": body}
    return {"summary": description, **answer}


def takes(
    model: type[Body],
    status: int,
    description: str,
    answer_model: type[BaseModel],
    *,
    optional: bool = False,
    can_be_followed: bool = True,
) -> dict[str, Any]:
    """Bodies are read by strict_json, not by FastAPI; so they are added to the document here."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    body = {"required": not optional, "content": {"application/json": {"schema": schema}}}
    answer: dict[str, Any] = {"description": description, "content": _json(answer_model)}
    responses: dict[int | str, Any] = {status: answer, "default": _PROBLEM}
    if status == 201 and can_be_followed:
        again = {"description": "The same Idempotency-Key again, or the stream itself as SSE"}
        responses[200] = {**again, "content": {**_json(answer_model), MEDIA_TYPE: _SSE}}
        responses[204] = {"description": "The viewer has the terminal event already"}
    return {
        "status_code": status,
        "response_class": Response,
        "responses": responses,
        "openapi_extra": {"requestBody": body},
    }


def document(app: FastAPI) -> dict[str, Any]:
    if not app.openapi_schema:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description="LLM answers that outlive their connections. docs/API.md tells it all; this is its form.",
            routes=app.routes,
            tags=[{"name": name, "description": tells} for name, tells in TAGS.items()],
        )
        _, models = models_json_schema([(model, "validation") for model in (*_BODIES, *ANSWERS)], ref_template=_REF)
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(models["$defs"])
        components["securitySchemes"] = _SCHEMES
        for route in app.routes:
            if isinstance(route, APIRoute) and route.include_in_schema:
                _name(document["paths"], route)
        app.openapi_schema = document
    return app.openapi_schema


def _name(paths: Mapping[str, Any], route: APIRoute) -> None:
    """What a generated client calls the route, and what opens it."""
    security = _security(route.endpoint.needs)  # type: ignore[attr-defined]  # set by @needs (grants.py)
    for method in route.methods or ():
        operation = paths[route.path_format][method.lower()]
        operation["operationId"] = route.name
        operation["security"] = security


def _security(needed: Needs | None) -> list[dict[str, list[str]]]:
    """What opens a route; of the scopes that a key may have, one is enough."""
    if needed is None:
        return []
    if needed.token == ANY_TOKEN:
        return [{"token": []}]
    opens: list[dict[str, list[str]]] = [{"key": [scope]} for scope in needed.scopes] or [{"key": []}]
    if needed.token:
        opens.append({"token": [needed.token]})
    if needed.token and needed.address:
        opens.append({"address": [needed.token]})
    if needed.token and needed.cookie:
        opens.append({"cookie": [needed.token]})
    return opens
