"""JSON in: read within a limit, parsed strictly, checked against a model. No input may become a 500 (design §6).

And JSON out.
"""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from broker.errors import BodyTooLarge, InvalidJson, InvalidRequest, UnsupportedMediaType

MAX_DEPTH = 64
"""Nesting that no sane client sends, and that exhausts the stack of what reads it after us."""

MAX_CONTAINERS = 20_000
"""Objects and lists of one body. What reads, copies or masks it pays for each: half a million take a worker seconds."""

EXPLAINED = 5
"""Errors that an answer names: a person corrects one after the other."""

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body. Raises BodyTooLarge as soon as the limit is passed, without reading on."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > limit:
        raise BodyTooLarge(f"A body may have {limit} bytes.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise BodyTooLarge(f"A body may have {limit} bytes.")
    return bytes(body)


async def read_model(request: Request, model: type[Model], limit: int, *, optional: bool = False) -> Model:
    """The body as a model. Raises BodyTooLarge, UnsupportedMediaType, InvalidJson or InvalidRequest.

    With `optional`, no body at all counts as {}.
    """
    try:
        body = await read_body(request, limit)
    except ClientDisconnect:
        raise InvalidJson("The body ended early.") from None
    if optional and not body:
        return check(model, {})
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("Send the body as Content-Type: application/json.")
    return check(model, parse(body))


def parse(body: bytes) -> Any:
    """RFC 8259, without NaN, Infinity and lone surrogates. Raises InvalidJson, also beyond MAX_DEPTH, MAX_CONTAINERS.

    Numbers are those of RFC 8259, section 6: beyond 64 bits an integer becomes the nearest double.
    """
    brackets = _brackets(body)
    if brackets.count(b"[") > MAX_CONTAINERS:  # before it is parsed, which takes long too
        raise InvalidJson(f"The body has more than {MAX_CONTAINERS} objects and lists.")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidJson("The body cannot be read as JSON (UTF-8, no NaN or Infinity, no lone surrogates).") from None
    if _is_deeper(brackets, MAX_DEPTH):
        raise InvalidJson(f"The body is nested deeper than {MAX_DEPTH} levels.")
    return value


_ONE_KIND, _NO_BRACKET = bytes.maketrans(b"{}", b"[]"), bytes(set(range(256)) - set(b"[]{}"))


def _brackets(body: bytes) -> bytes:
    """Those of valid JSON outside of its strings; none if they are too few to matter. Found as text: some ms a MiB."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return b""
    quoted = body.replace(rb"\\", b"").replace(rb"\"", b"")  # every quote that is left begins or ends a string
    return b"".join(quoted.split(b'"')[::2]).translate(_ONE_KIND, _NO_BRACKET)


def _is_deeper(brackets: bytes, limit: int) -> bool:
    """Where a walk through what was read takes 80 ms a MiB."""
    for _ in range(limit):
        brackets = brackets.replace(b"[]", b"")  # the innermost level
    return bool(brackets)


def check(model: type[Model], value: Any) -> Model:
    """Raises InvalidRequest, which names the fields and what is wrong, and never repeats what was sent."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidRequest("; ".join(map(_explain, _first_errors(error)))) from None


def _first_errors(error: ValidationError) -> list[ErrorDetails]:
    # The models stop at the first wrong item of a list, so there are few to build (service/bodies.py).
    return error.errors(include_url=False, include_input=False)[:EXPLAINED]


def _explain(problem: Any) -> str:
    # Names of unknown fields are the caller's input too: only positions, and names that the model knows, are reported.
    if problem["type"] == "model_type" and not problem["loc"]:
        return "the body must be a JSON object"
    place = ".".join(str(part) for part in problem["loc"] if isinstance(part, int) or str(part).isidentifier())
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, "application/json")
