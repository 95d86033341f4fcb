"""Errors as Anthropic's API has them: {"type": "error", "error": {"type", "message"}, "request_id"}.

There is no field for a code: it stands in the message, where a person and a program find it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import orjson
from starlette.responses import Response

from broker.errors import LasteventError, UnknownModel

OVERLOADED = 529

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    410: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    OVERLOADED: "overloaded_error",
}

_PLACE = re.compile(r"([a-z_]{1,40})(?=[.\[:])", re.ASCII)
"""What the message of an InvalidRequest begins with, if it is about one field."""


def anthropic_error(request_id: str, error: LasteventError, names: Mapping[str, str]) -> Response:
    """`names`: a field of the native request → what this dialect calls it."""
    message = str(error)
    if found := _PLACE.match(message):
        message = names.get(found[1], found[1]) + message[found.end() :]
    # What passes is `overloaded_error`, of which clients know that it passes.
    status = {422: 400, 503: OVERLOADED}.get(error.status, error.status)
    code = error.code
    if isinstance(error, UnknownModel):
        status, code = 404, "model_not_found"
    response = _response(request_id, status, f"{code}: {message}")
    if status == 409:
        response.headers["x-should-retry"] = "false"  # what is refused so does not pass by itself
    return response


def no_such_call(request_id: str) -> Response:
    return _response(request_id, 404, "not_found: this server has no such call.")


def _response(request_id: str, status: int, message: str) -> Response:
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    told = {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
    return Response(orjson.dumps(told), status, {"request-id": request_id}, "application/json")
