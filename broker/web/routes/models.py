"""The models that there are: in OpenAI's form, or in Anthropic's to whom sends its header `anthropic-version`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from broker.errors import LasteventError, UnknownModel
from broker.service.record import anthropic_model, anthropic_models, models_json
from broker.web import problems
from broker.web.answers import ModelList
from broker.web.anthropic_error import anthropic_error
from broker.web.dialect import dialect_route
from broker.web.grants import needs
from broker.web.openai_error import openai_error
from broker.web.openapi import gives, speaks
from broker.web.strict_json import json_response
from broker.web.tier import Tier


def _list_error(request: Request, error: LasteventError) -> Response:
    if _is_anthropics(request):
        return _anthropic_error(request, error)
    return Response(problems.as_json(_id_of(request), error), error.status, media_type=problems.MEDIA_TYPE)


def _model_error(request: Request, error: LasteventError) -> Response:
    return _anthropic_error(request, error) if _is_anthropics(request) else openai_error(error, {})


def _anthropic_error(request: Request, error: LasteventError) -> Response:
    return anthropic_error(_id_of(request), error, {})


def _id_of(request: Request) -> str:
    return problems.request_id(request)


router = APIRouter(tags=["List"])
of_list = APIRouter(route_class=dialect_route(_list_error), tags=["List"])
of_one = APIRouter(route_class=dialect_route(_model_error), tags=["Dialects"])

AnthropicsLimit = Annotated[int | None, Query(ge=1, le=1000, description="Of Anthropic's form: how many. Default: all")]
Beside = Annotated[str | None, Query(max_length=200, description="Of Anthropic's form: the page behind, or before it")]


@of_list.get("/v1/models", **gives("The models and aliases that workers say they have", ModelList))
@needs(client_keys=True)
async def models(
    request: Request, limit: AnthropicsLimit = None, after_id: Beside = None, before_id: Beside = None
) -> Response:
    """In the form of OpenAI's list. Providers may have other models too."""
    listed = await _listed(request)
    if _is_anthropics(request):
        page = anthropic_models(listed["data"], limit=limit, after=after_id, before=before_id)
        return json_response(page, headers={"request-id": _id_of(request)})
    return json_response(listed)


@of_one.get("/v1/models/{model:path}", **speaks("A model, or an alias"))
@needs(client_keys=True)
async def model(request: Request, model: str) -> Response:
    """One that is in the list. Others may be asked for too, and only their provider knows whether they are there."""
    listed = await _listed(request)
    found = next((one for one in listed["data"] if one["id"] == model), None)
    if found is None:
        raise UnknownModel("model: none of the list. Others that a provider has may be asked for all the same.")
    if _is_anthropics(request):
        return json_response(anthropic_model(found), headers={"request-id": _id_of(request)})
    return json_response(found)


async def _listed(request: Request) -> dict[str, Any]:
    tier = Tier.of(request)
    return models_json(await tier.streams.models.known(), tier.settings.default_model)


def _is_anthropics(request: Request) -> bool:
    return "anthropic-version" in request.headers


for _routes in (of_list, of_one):
    router.routes.extend(_routes.routes)
