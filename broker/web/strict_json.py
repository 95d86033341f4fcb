"""JSON in: read within a limit, parsed strictly, checked against a model. No input may become a 500 (design §6).

And JSON out.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from itertools import takewhile
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from broker.errors import BodyTooLarge, InvalidJson, InvalidRequest, UnsupportedMediaType
from broker.service.bodies import Body
from broker.web.bare import changing_number, look_outside_of_texts
from broker.web.intake import Place

MAX_DEPTH = 64
"""Nesting that no sane client sends, and that exhausts the stack of what reads it after us."""

MAX_CONTAINERS = 20_000
"""Objects and lists of one body. What reads, copies or masks it pays for each: half a million take a worker seconds."""

MAX_BARE_BYTES = 2 * 2**20
"""Outside of the texts of one body, blanks too: up to a million numbers, which take 30 ms to parse."""

INLINE_BYTES = 64 * 1024
"""A longer body is parsed in a thread: 32 MiB take 0.1 s, half of it at once (orjson), a long number 4 µs."""

EXPLAINED = 5
"""Errors that an answer names: a person corrects one after the other."""

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request, limit: int, place: Place | None = None) -> bytearray:
    """The request's body. Raises BodyTooLarge as soon as the limit is passed, without reading on.

    `place`: what counts it. Raises RateLimited if that has no room.
    """
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit():
        if int(declared) > limit:
            raise _too_large(limit)
        if place:
            place.announce(int(declared))
    body = bytearray()  # and it stays one: to copy 32 MiB takes 12 ms
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise _too_large(limit)
        if place:
            place.take(len(chunk))
        body += chunk
    return body


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"A body may have {limit} bytes.")


async def read_json(
    request: Request,
    limit: int,
    *,
    place: Place | None = None,
    optional: bool = False,
    undeclared: bool = False,
) -> bytearray:
    """A body that says that it is JSON; with `optional`, no body at all counts as {}. `undeclared`: it may say what
    fetch says of any text. Such a request a browser sends for every page without asking, so nothing that a page could
    ask for without a key of its own may take it.

    Raises as `read_body` does, UnsupportedMediaType, or InvalidJson for one that ended early.
    """
    try:
        body = await read_body(request, limit, place)
    except ClientDisconnect:
        raise InvalidJson("The body ended early.") from None
    if optional and not body:
        return bytearray(b"{}")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not (undeclared and media_type in ("", "text/plain")):
        raise UnsupportedMediaType("Send the body as Content-Type: application/json.")
    return body


async def to_model(model: type[Model], body: bytearray) -> Model:
    """Raises InvalidJson or InvalidRequest."""
    return check(model, parse(body) if len(body) <= INLINE_BYTES else await asyncio.to_thread(parse, body))


def parse(body: bytes | bytearray) -> Any:
    """RFC 8259, without NaN, Infinity and lone surrogates.

    Raises InvalidJson, also beyond MAX_DEPTH, MAX_CONTAINERS and MAX_BARE_BYTES, or InvalidRequest, which names the
    field, for a number that could not be kept as it is (bare.py): a log keeps what it was given, or refuses it.
    """
    outside = look_outside_of_texts(body, MAX_BARE_BYTES)
    if outside is None:
        raise InvalidJson(f"The body has more than {MAX_BARE_BYTES} bytes outside of its texts.")
    if outside.brackets.count(b"[") > MAX_CONTAINERS:  # before it is parsed, which takes long too
        raise InvalidJson(f"The body has more than {MAX_CONTAINERS} objects and lists.")
    if len(outside.brackets) > MAX_DEPTH and _is_deeper(outside.brackets, MAX_DEPTH):
        raise InvalidJson(f"The body is nested deeper than {MAX_DEPTH} levels.")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if outside.has_changing_number and "infinity" in str(error):  # as orjson says of 1e400
            raise _changed(body) from None
        raise InvalidJson("The body cannot be read as JSON (UTF-8, no NaN or Infinity, no lone surrogates).") from None
    if outside.has_changing_number:
        raise _changed(body)
    return value


def _changed(body: bytes | bytearray) -> InvalidRequest:
    place = _place_of_number(body)
    return InvalidRequest(
        f"{place}: this number would not be kept as it is: 64 bits do not hold it. Send it as a text."
    )


_NAMES = {name for body in Body.__subclasses__() for name in body.model_fields}
"""What an answer may repeat of a place: names of a caller's own are its input."""


def _place_of_number(body: bytes | bytearray) -> str:
    """The names and positions that lead to it, as far as they are the API's own."""
    start, end = changing_number(body)
    mark = secrets.token_hex(16)
    path = None
    with suppress(orjson.JSONDecodeError):  # of a second such number
        path = _path_to(mark, orjson.loads(body[:start] + b'"' + mark.encode() + b'"' + body[end:]))
    known = takewhile(lambda step: isinstance(step, int) or step in _NAMES, path or [])
    return ".".join(map(str, known)) or "the body"


def _path_to(wanted: str, value: Any) -> list[int | str] | None:
    inner = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for step, one in inner:
        if one == wanted:
            return [step]
        if (path := _path_to(wanted, one)) is not None:
            return [step, *path]
    return None


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
