"""OpenAI's errors and models, the same on both of its wires."""

from __future__ import annotations

from typing import Any

from worker.standin.wire import Refused

_INVALID = ("invalid_request_error", None, "Invalid request")
_BY_STATUS: dict[int, tuple[str, str | None, str]] = {
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided: stand-in."),
    403: ("invalid_request_error", None, "You are not allowed to use this model"),
    404: ("invalid_request_error", None, "Invalid URL"),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests"),
    503: ("server_error", "server_is_overloaded", "Our servers are currently overloaded. Please try again later."),
}
_SERVER = ("server_error", "server_error", "The server had an error while processing your request")
_STATUS_OF = {
    "overloaded_error": 503,
    "rate_limit_error": 429,
    "api_error": 500,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "invalid_request_error": 400,
}

MODELS = {
    "object": "list",
    "data": [{"id": "gpt-stand-in", "object": "model", "created": 0, "owned_by": "stand-in"}],
}


def error_of(kind: str) -> dict[str, Any]:
    """The error of an answer that had begun; a kind that Anthropic does not know is a code of OpenAI's own."""
    status = _STATUS_OF.get(kind)
    error = _error(status or 500)
    return error if status else {**error, "code": kind}


def refusal(refused: Refused, model: str) -> dict[str, Any]:
    error = _error(refused.status)
    if refused.status == 404 and model:
        error["code"] = "model_not_found"
        error["message"] = f"The model `{model}` does not exist or you do not have access to it."
    if refused.kind:
        error["code"] = refused.kind
    return {"error": {**error, "message": refused.message or error["message"]}}


def _error(status: int) -> dict[str, Any]:
    kind, code, message = _BY_STATUS.get(status, _INVALID if status < 500 else _SERVER)
    return {"message": message, "type": kind, "param": None, "code": code}
