"""RunAgentInput (AG-UI 1.0), as clients send it → a native request (docs/API.md, "What is asked"). Pure functions.

What an app says beside it, in `forwardedProps`, has the names of POST /v1/streams. Everything else there is ignored.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from broker.dialects.parts import (
    Json,
    base64_image,
    field,
    function_tool,
    image_block,
    joined_system,
    joined_texts,
    of_type,
    refused,
    say,
    text_block,
    tool_result,
    tool_use,
)

NATIVE = (
    *("model", "max_tokens", "tool_choice", "thinking", "effort", "stop_sequences", "temperature"),
    *("output_schema", "provider_options", "on_tool_effects", "agent", "show", "transform", "sentences", "language"),
    *("user_id", "metadata", "on_worker_loss", "abandon_after_s", "webhook"),
)
"""Of `forwardedProps`; and `system`, which messages and context add to."""

THINKING = "thinking"

_ID = re.compile(r"[^\x00-\x1f\x7f]{1,200}")

_NOT_TOLD = frozenset({"reasoning", "activity"})
"""Messages that a model need not be told again. (Reasoning without its signature a provider refuses.)"""


class Asked(NamedTuple):
    """`native`: a body for POST /v1/streams. `messages`: as they were sent. `ignored`: fields that count nothing."""

    thread_id: str
    run_id: str
    native: Json
    messages: list[Any]
    ignored: list[str]


def run_id_of(body: Json) -> str:
    return _id(body, "runId")


def asked_of(body: Json) -> Asked:
    """Raises InvalidRequest, which names the field."""
    given = field(body, "messages", list, "")
    props = _object(body, "forwardedProps")
    if _list(body, "resume"):
        raise refused("resume", "runs are not interrupted here, so there is none to go on with")
    messages: list[Json] = []
    systems: list[str] = []
    for index, message in enumerate(given):
        _add(messages, systems, of_type(message, dict, f"messages[{index}]"), f"messages[{index}]")
    contexts = [_context(one, f"context[{index}]") for index, one in enumerate(_list(body, "context"))]
    tools = [_tool(one, f"tools[{index}]") for index, one in enumerate(_list(body, "tools"))]
    native: Json = {name: props[name] for name in NATIVE if name in props}
    native |= {"messages": messages, "session_id": _id(body, "threadId")}
    native |= _system(props.get("system"), joined_system([*systems, *contexts]))
    if tools:
        native["tools"] = tools
    if "show" not in props and "agent" not in props and _thinks(props.get("thinking")):
        native["show"] = [THINKING]
    return Asked(native["session_id"], run_id_of(body), native, given, _ignored(body, props))


def _ignored(body: Json, props: Json) -> list[str]:
    names = ["state"] if body.get("state") not in (None, {}) else []
    return [*names, "forwardedProps"] if props.keys() - {*NATIVE, "system"} else names


def _add(messages: list[Json], systems: list[str], message: Json, where: str) -> None:
    role = field(message, "role", str, where)
    match role:
        case "system" | "developer":
            systems.append(joined_texts(message.get("content"), f"{where}.content"))
        case "user":
            say(messages, "user", _content(message.get("content"), f"{where}.content"))
        case "assistant":
            content = message.get("content")
            text = joined_texts("" if content is None else content, f"{where}.content")
            calls = [_call(one, f"{where}.toolCalls[{n}]") for n, one in enumerate(_list(message, "toolCalls", where))]
            say(messages, "assistant", [*([text_block(text, where)] if text else []), *calls])
        case "tool":
            say(messages, "user", [_result(message, where)])
        case _ if role not in _NOT_TOLD:
            raise refused(f"{where}.role", "it is none of AG-UI")


def _content(content: Any, where: str) -> list[Json]:
    if isinstance(content, str):
        return [text_block(content, where)] if content else []
    parts = of_type(content, list, where)
    return [_part(of_type(part, dict, at), at) for n, part in enumerate(parts) if (at := f"{where}[{n}]")]


def _part(part: Json, where: str) -> Json:
    match part.get("type"):
        case "text":
            return text_block(part.get("text"), f"{where}.text")
        case "image":
            return _image(field(part, "source", dict, where), f"{where}.source")
        case "binary" if isinstance(part.get("url"), str):  # until 0.0.5x
            return image_block(part["url"], f"{where}.url")
        case "binary" if isinstance(part.get("data"), str):
            return base64_image(part.get("mimeType"), part["data"], where)
    raise refused(f"{where}.type", "only text and images can be passed on")


def _image(source: Json, where: str) -> Json:
    match source.get("type"):
        case "url":
            return image_block(source.get("value"), f"{where}.value")
        case "data":
            return base64_image(source.get("mimeType"), source.get("value"), where)
    raise refused(f"{where}.type", "an image is given by its URL or by its data")


def _call(call: Any, where: str) -> Json:
    function = field(of_type(call, dict, where), "function", dict, where)
    return tool_use(call.get("id"), function.get("name"), function.get("arguments"), where)


def _result(message: Json, where: str) -> Json:
    failed = isinstance(message.get("error"), str) and message["error"] != ""
    content = _content(message.get("content"), f"{where}.content")
    if failed and not content:
        content = [text_block(message["error"], where)]
    texts = [block["text"] for block in content if block["type"] == "text"]
    plain: str | list[Json] = "".join(texts) if len(texts) == len(content) else content
    return tool_result(message.get("toolCallId"), plain, where, is_error=failed)


def _tool(tool: Any, where: str) -> Json:
    given = of_type(tool, dict, where)
    return function_tool(given.get("name"), given.get("description"), given.get("parameters"), where)


def _context(context: Any, where: str) -> str:
    given = of_type(context, dict, where)
    description, value = field(given, "description", str, where), field(given, "value", str, where)
    return f"{description}:\n{value}" if description else value


def _system(given: Any, more: str | None) -> Json:
    """An app's own goes before what its page adds."""
    if more is None:
        return {} if given is None else {"system": given}
    if given is None:
        return {"system": more}
    if isinstance(given, list):
        return {"system": [*given, text_block(more, "system")]}
    return {"system": joined_system([of_type(given, str, "forwardedProps.system"), more])}


def _thinks(thinking: Any) -> bool:
    return isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive")


def _id(body: Json, name: str) -> str:
    value = field(body, name, str, "")
    if not _ID.fullmatch(value):
        raise refused(name, "it has 1 to 200 characters, and no control characters")
    return value


def _list(given: Json, name: str, where: str = "") -> list[Any]:
    value = given.get(name)
    return [] if value is None else of_type(value, list, f"{where}.{name}" if where else name)


def _object(given: Json, name: str) -> Json:
    value = given.get(name)
    return {} if value is None else of_type(value, dict, name)
