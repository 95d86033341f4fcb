"""How Gemini fails: its error objects, in a refusal, in the stream, or in place of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2

from worker.providers.failures import ProviderFailure, failed, request_id_of, retry_after_s
from worker.providers.reading import parse

# google.rpc.Code (https://ai.google.dev/gemini-api/docs/troubleshooting), and the statuses that stand for them.
_STATUSES = {
    "RESOURCE_EXHAUSTED": "provider_rate_limited",
    "UNAVAILABLE": "provider_overloaded",
    "UNAUTHENTICATED": "provider_unauthorized",
    "PERMISSION_DENIED": "provider_unauthorized",
    "INVALID_ARGUMENT": "provider_refused",
    "FAILED_PRECONDITION": "provider_refused",
    "OUT_OF_RANGE": "provider_refused",
    "NOT_FOUND": "provider_refused",
    "ALREADY_EXISTS": "provider_refused",
    "UNIMPLEMENTED": "provider_refused",
    "INTERNAL": "provider_error",
    "UNKNOWN": "provider_error",
    "DATA_LOSS": "provider_error",
    "ABORTED": "provider_error",
    "CANCELLED": "provider_error",
    "DEADLINE_EXCEEDED": "provider_error",
}
_NUMBERS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    529: "UNAVAILABLE",
}
_BAD_KEYS = {"API_KEY_INVALID", "API_KEY_SERVICE_BLOCKED", "ACCESS_TOKEN_EXPIRED", "ACCESS_TOKEN_TYPE_UNSUPPORTED"}


def said_failure(error: Any, status: int | None = None, headers: httpx2.Headers | None = None) -> ProviderFailure:
    """Of an error object, in the stream or (`status`, `headers`) in a refusal, whatever it looks like."""
    said: dict[str, Any] = error if isinstance(error, dict) else {}
    number = said.get("code") if isinstance(said.get("code"), int) else status
    word = str(said.get("status"))
    if word not in _STATUSES:
        default = "INTERNAL" if status is None or status >= 500 else "INVALID_ARGUMENT"
        word = _NUMBERS.get(number, default) if isinstance(number, int) else default
    listed = said.get("details")
    details = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    code = "provider_unauthorized" if any(str(one.get("reason")) in _BAD_KEYS for one in details) else _STATUSES[word]
    if isinstance(number, int) and 100 <= number < 400:  # below these are gRPC's own
        code = "provider_bad_answer"
    return failed(
        code,
        said=said.get("message"),
        status=status,
        request_id=request_id_of(headers) if headers is not None else None,
        retry_after_s=_wait_s(details, headers),
        moves_on=word == "NOT_FOUND",
    )


def _wait_s(details: list[dict[str, Any]], headers: httpx2.Headers | None) -> float | None:
    """`retryDelay` is "34s" or "34.07s"."""
    for one in details:
        if isinstance(delay := one.get("retryDelay"), str):
            return retry_after_s(delay.removesuffix("s"))
    return retry_after_s(headers.get("retry-after")) if headers is not None else None


def errors_of(data: bytes) -> Iterator[Any]:
    """The error objects in a body that is no stream of events: alone, or elements of a list."""
    try:
        said = parse(data)
    except ValueError:
        return
    for one in said if isinstance(said, list) else [said]:
        if isinstance(one, dict) and one.get("error"):
            yield one["error"]
