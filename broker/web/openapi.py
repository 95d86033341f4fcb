"""The OpenAPI document: what each route takes and gives."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from broker.dialects.sse import MEDIA_TYPE
from broker.service.bodies import AppendEvents, Body, Cancel, CreateStream, ProducerHeartbeat, Regenerate
from broker.web import problems

_PROBLEM = {"description": "A problem (RFC 9457)", "content": {problems.MEDIA_TYPE: {"schema": problems.SCHEMA}}}
_BODIES: tuple[type[Body], ...] = (CreateStream, Regenerate, Cancel, AppendEvents, ProducerHeartbeat)
_REF = "#/components/schemas/{model}"


def gives(description: str, *media_types: str) -> dict[str, Any]:
    content: dict[str, Any] = {media_type: {} for media_type in media_types}
    responses: dict[int | str, Any] = {200: {"description": description, "content": content}, "default": _PROBLEM}
    if MEDIA_TYPE in media_types:
        responses[204] = {"description": "The viewer has the terminal event already"}
    return {"response_class": Response, "responses": responses}


def erases() -> dict[str, Any]:
    responses: dict[int | str, Any] = {
        202: {"description": "Nobody sees the content any more; the archive erases it within moments"},
        204: {"description": "The content is gone; a tombstone and its seal stay"},
        "default": _PROBLEM,
    }
    return {"response_class": Response, "responses": responses}


def takes(model: type[Body], status: int, description: str, *, optional: bool = False) -> dict[str, Any]:
    """Bodies are read by strict_json, not by FastAPI; so they are added to the document here."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    body = {"required": not optional, "content": {"application/json": {"schema": schema}}}
    answer: dict[str, Any] = {"description": description, "content": {"application/json": {}}}
    responses: dict[int | str, Any] = {status: answer, "default": _PROBLEM}
    if status == 201:
        again = {"description": "The same Idempotency-Key again, or the stream itself as SSE"}
        responses[200] = {**again, "content": {"application/json": {}, MEDIA_TYPE: {}}}
        responses[204] = {"description": "The viewer has the terminal event already"}
    return {
        "status_code": status,
        "response_class": Response,
        "responses": responses,
        "openapi_extra": {"requestBody": body},
    }


def document(app: FastAPI) -> dict[str, Any]:
    if not app.openapi_schema:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, models = models_json_schema([(model, "validation") for model in _BODIES], ref_template=_REF)
        document.setdefault("components", {}).setdefault("schemas", {}).update(models["$defs"])
        app.openapi_schema = document
    return app.openapi_schema
