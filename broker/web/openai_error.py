"""Errors as OpenAI's API has them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import orjson
from starlette.responses import Response

from broker.errors import InsufficientScope, LasteventError, Unauthorized, UnknownModel

INVALID, AUTHENTICATION, RATE, SERVER = (
    *("invalid_request_error", "authentication_error"),
    *("rate_limit_error", "server_error"),
)

_PLACE = re.compile(r"([a-z_]{1,40})((?:[.\[][\w.\[\]]{1,100})?): ", re.ASCII)
"""What the message of an InvalidRequest begins with, if it is about one field."""


def openai_error(error: LasteventError, names: Mapping[str, str]) -> Response:
    """`names`: a field of the native request → what this dialect calls it."""
    status = 400 if error.status == 422 else error.status
    code, message, param = error.code, str(error), None
    if found := _PLACE.match(message):
        param = names.get(found[1], found[1]) + found[2]
        message = f"{param}: {message[found.end() :]}"
    if isinstance(error, UnknownModel):
        status, code, param = 404, "model_not_found", "model"
    response = error_response(status, code, message, param)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if status == 409:
        # OpenAI's clients repeat it by themselves, and nothing that is refused so passes within their two tries.
        response.headers["x-should-retry"] = "false"
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, InsufficientScope):
        wanted = " ".join(error.scopes)
        response.headers["WWW-Authenticate"] = f'Bearer error="insufficient_scope", scope="{wanted}"'
    if status == 413:
        response.headers["Connection"] = "close"  # the rest of the body is not read
    return response


def error_response(status: int, code: str, message: str, param: str | None = None) -> Response:
    told = {"message": message, "type": _type_of(status), "param": param, "code": code}
    return Response(orjson.dumps({"error": told}), status, media_type="application/json")


def _type_of(status: int) -> str:
    if status >= 500:
        return SERVER
    return {401: AUTHENTICATION, 429: RATE}.get(status, INVALID)
