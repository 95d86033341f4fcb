"""What several dialects' requests hold, as the native request has it (docs/API.md, "What is asked"). Pure functions.

`where` is a place in the caller's body (`messages[3].content[0]`): a refusal names it, and never repeats what is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeVar

import orjson

from broker.errors import InvalidRequest

Json = dict[str, Any]

_T = TypeVar("_T")
_CALLED: dict[type, str] = {str: "a text", list: "a list", dict: "an object", bool: "true or false", int: "a number"}

_DATA_URL = re.compile(r"data:(?P<type>[a-z0-9.+-]{1,40}/[a-z0-9.+-]{1,80})(?:;[^;,]{1,100}){0,4}?;base64,", re.I)
"""RFC 2397, as far as an image needs it."""

MAX_ARGUMENT_VALUES = 50_000
MAX_ARGUMENT_DEPTH = 40
"""Arguments come as a text, which the limits of a body (web/strict_json.py) leave alone. Beyond these they stay one."""

MAX_VALUES_OF_CALLS = 200_000
"""In the arguments of all calls of a request: to parse them takes 10 ms."""


def refused(where: str, why: str) -> InvalidRequest:
    """To be raised: this cannot be had here."""
    return InvalidRequest(f"{where}: {why}")


def of_type(value: Any, kind: type[_T], where: str) -> _T:
    """The value. Raises InvalidRequest if it is of another type; true is no number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise refused(where, f"it must be {_CALLED[kind]}")
    return value


def field(given: Json, name: str, kind: type[_T], where: str) -> _T:
    """given[name]. `where`: of the object; "" for the body itself. Raises InvalidRequest."""
    at = f"{where}.{name}" if where else name
    if given.get(name) is None:
        raise refused(at, "it is missing")
    return of_type(given[name], kind, at)


# ---- Content


def text_block(text: Any, where: str) -> Json:
    return {"type": "text", "text": of_type(text, str, where)}


def image_block(url: Any, where: str) -> Json:
    """An image by an http(s) URL or a data URL in base64."""
    text = of_type(url, str, where)
    if text[:8].lower().startswith(("https://", "http://")):
        return {"type": "image", "source": {"type": "url", "url": text}}
    found = _DATA_URL.match(text)
    if not found:
        raise refused(where, "an image is an http(s) URL or a data URL in base64")
    return base64_image(found["type"], text[found.end() :], where)


def base64_image(media_type: Any, data: Any, where: str) -> Json:
    """`data` is not looked into: whether it is an image of this type is its provider's to say."""
    kind = of_type(media_type, str, where).lower()
    if not kind.startswith("image/"):
        raise refused(where, "only images can be passed on: no audio, no files")
    source = {"type": "base64", "media_type": kind, "data": of_type(data, str, where)}
    return {"type": "image", "source": source}


def joined_texts(content: Any, where: str, kinds: tuple[str, ...] = ("text",)) -> str:
    """Content that can be text only: a text, or parts of these types, one after the other as they are."""
    if isinstance(content, str):
        return content
    parts = of_type(content, list, where)
    return "".join(_text_of(part, f"{where}[{index}]", kinds) for index, part in enumerate(parts))


def _text_of(part: Any, where: str, kinds: tuple[str, ...]) -> str:
    if of_type(part, dict, where).get("type") not in kinds:
        raise refused(where, "here can only be text")
    return field(part, "text", str, where)


def joined_system(texts: Iterable[str]) -> str | None:
    """What was said in the roles `system` and `developer`, wherever it stood: one text, with blank lines between."""
    return "\n\n".join(text for text in texts if text) or None


# ---- Tools


def function_tool(name: Any, description: Any, parameters: Any, where: str) -> Json:
    """A tool that the caller runs. `parameters`: a JSON Schema, or None."""
    tool: Json = {"name": of_type(name, str, f"{where}.name")}
    if description is not None:
        tool["description"] = of_type(description, str, f"{where}.description")
    schema = {"type": "object", "properties": {}} if parameters is None else parameters
    return {**tool, "input_schema": of_type(schema, dict, f"{where}.parameters")}


def tool_use(call_id: Any, name: Any, arguments: Any, where: str) -> Json:
    """A call that a model made in an earlier answer. `arguments`: JSON as a text, or what it says."""
    given = read_arguments(arguments) if isinstance(arguments, str) else arguments
    named = {"id": of_type(call_id, str, f"{where}.id"), "name": of_type(name, str, f"{where}.name")}
    return {"type": "tool_use", **named, "input": {} if given is None else given}


def read_arguments(text: str) -> Any:
    """What it says. A model may have written what is no JSON, and its history must still go on: then it is a text."""
    if not text.strip():
        return {}
    if values_in(text) > MAX_ARGUMENT_VALUES:
        return text
    try:
        value = orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        return text
    return value if _is_shallow(value, MAX_ARGUMENT_DEPTH) else text


def values_in(arguments: str) -> int:
    """How many there are at most: to count takes a hundredth of parsing."""
    return sum(map(arguments.count, "{[,"))


def _is_shallow(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_shallow(one, levels - 1) for one in inner)


def tool_result(call_id: Any, content: str | list[Json], where: str, *, is_error: bool = False) -> Json:
    """What a call gave. `content`: a text or native blocks."""
    result: Json = {"type": "tool_result", "tool_use_id": of_type(call_id, str, where), "content": content}
    return {**result, "is_error": True} if is_error else result


# ---- Messages


def say(messages: list[Json], role: str, blocks: list[Json]) -> None:
    """Adds what `role` (user, assistant) said to `messages`. What one says after the other is one message: a provider
    wants all results of a message's calls in the one after it. Nothing said adds none.
    """
    if not blocks:
        return
    if not messages or messages[-1]["role"] != role:
        messages.append({"role": role, "content": []})
    messages[-1]["content"].extend(blocks)
