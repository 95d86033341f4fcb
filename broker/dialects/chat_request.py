"""A request of Chat Completions as POST /v1/streams takes it. A pure function.

What would change the answer and cannot be had is refused by name. What cannot hurt is left out, and named in a header
of the answer; so are fields that nobody knows here: these clients send new ones every month.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from broker.dialects.parts import (
    MAX_VALUES_OF_CALLS,
    Json,
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
    values_in,
)

THEIR_NAMES = {
    "user_id": "user",
    "stop_sequences": "stop",
    "output_schema": "response_format.json_schema.schema",
    "effort": "reasoning_effort",
}
"""What a native field that is refused was called in the request."""

_TAKEN = frozenset(
    {
        *(
            "model",
            "messages",
            "stream",
            "stream_options",
            "max_tokens",
            "max_completion_tokens",
            "temperature",
            "stop",
        ),
        *("tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort", "metadata", "user"),
    }
)

_REFUSED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    **dict.fromkeys(("audio", "seed", "web_search_options", "functions", "function_call"), ()),
}
"""Each with the values besides null that ask for nothing."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
_MOST_NAMED = 32
"""Of what is ignored: a header has bounds."""

_SYSTEM = ("system", "developer")


class Asked(NamedTuple):
    """`native`: the body of POST /v1/streams. `ignored`: names of what was left out."""

    native: Json
    model: str
    streams: bool
    include_usage: bool
    ignored: list[str]


def read(body: Json, abandon_after_s: int, *, shows_thinking: bool = False) -> Asked:
    """Raises InvalidRequest, which names the field. `abandon_after_s`: 0 for none. `shows_thinking`: also if the body
    does not ask for it.
    """
    model = field(body, "model", str, "")
    _require_nothing_else(body)
    ignored: set[str] = {name for name in body if name not in _TAKEN and name not in _REFUSED and _NAME.fullmatch(name)}
    native: Json = {"model": model, **_messages(body, ignored), **_parameters(body, ignored), **_tools(body, ignored)}
    native |= _thinking(body) | _format(body)
    if shows_thinking:
        native["show"] = ["thinking"]
    if abandon_after_s:
        native["abandon_after_s"] = abandon_after_s
    options = of_type(body.get("stream_options") or {}, dict, "stream_options")
    return Asked(
        native,
        model,
        streams=_flag(body, "stream", ""),
        include_usage=_flag(options, "include_usage", "stream_options"),
        ignored=sorted(ignored)[:_MOST_NAMED],
    )


def _require_nothing_else(body: Json) -> None:
    for name, harmless in _REFUSED.items():
        value = body.get(name)
        if value is not None and not any(value == one and type(value) is type(one) for one in harmless):
            raise refused(name, "this cannot be had here" if name != "n" else "there is one answer, so n is 1")


def _flag(given: Json, name: str, where: str) -> bool:
    return of_type(given.get(name) or False, bool, f"{where}.{name}" if where else name)


# -- parameters ----------------------------------------------------------------------------------------------------


def _parameters(body: Json, ignored: set[str]) -> Json:
    limit = next((body[name] for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None), None)
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        ignored.add("max_tokens")
    stop = body.get("stop")
    found = {
        "max_tokens": limit,
        "temperature": body.get("temperature"),
        "stop_sequences": [stop] if isinstance(stop, str) else stop,
        "metadata": body.get("metadata"),
        "user_id": body.get("user"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _thinking(body: Json) -> Json:
    effort = body.get("reasoning_effort")
    if effort is None:
        return {}
    return {"effort": effort, **({} if effort == "none" else {"show": ["thinking"]})}


def _format(body: Json) -> Json:
    form = of_type(body.get("response_format") or {}, dict, "response_format")
    kind = form.get("type", "text")
    if kind == "text":
        return {}
    if kind != "json_schema":
        raise refused("response_format.type", "text or json_schema; without a schema, JSON is not promised here")
    within = field(form, "json_schema", dict, "response_format")
    return {"output_schema": field(within, "schema", dict, "response_format.json_schema")}


# -- tools -----------------------------------------------------------------------------------------------------------


def _tools(body: Json, ignored: set[str]) -> Json:
    given = of_type(body.get("tools") or [], list, "tools")
    tools = [_tool(tool, f"tools[{index}]", ignored) for index, tool in enumerate(given)]
    choice = _choice(body.get("tool_choice"))
    if not tools:
        if choice and choice["type"] not in ("auto", "none"):
            raise refused("tool_choice", "there are no tools")
        return {}
    if body.get("parallel_tool_calls") is not None and not _flag(body, "parallel_tool_calls", ""):
        choice = choice or {"type": "auto"}
        if choice["type"] != "none":
            choice["disable_parallel_tool_use"] = True
    return {"tools": tools, **({"tool_choice": choice} if choice else {})}


def _tool(tool: Any, where: str, ignored: set[str]) -> Json:
    if of_type(tool, dict, where).get("type") != "function":
        raise refused(f"{where}.type", "only functions can be called here")
    function = field(tool, "function", dict, where)
    if function.get("strict"):
        ignored.add("tools.function.strict")
    parameters = function.get("parameters")
    return function_tool(function.get("name"), function.get("description"), parameters, f"{where}.function")


_CHOICES = {"auto": "auto", "none": "none", "required": "any"}


def _choice(choice: Any) -> Json | None:
    if choice is None:
        return None
    if isinstance(choice, str) and choice in _CHOICES:
        return {"type": _CHOICES[choice]}
    if not isinstance(choice, dict) or choice.get("type") != "function":
        raise refused("tool_choice", "auto, none, required, or one function")
    return {"type": "tool", "name": field(field(choice, "function", dict, "tool_choice"), "name", str, "tool_choice")}


# -- messages --------------------------------------------------------------------------------------------------------


def _messages(body: Json, ignored: set[str]) -> Json:
    systems: list[str] = []
    messages: list[Json] = []
    _require_few_values(body["messages"] if isinstance(body.get("messages"), list) else [])
    for index, message in enumerate(field(body, "messages", list, "")):
        where = f"messages[{index}]"
        role = field(of_type(message, dict, where), "role", str, where)
        if message.get("name") is not None:
            ignored.add("messages.name")
        if role in _SYSTEM:
            systems.append(joined_texts(message.get("content"), f"{where}.content"))
        elif role == "user":
            say(messages, "user", _content(message.get("content"), f"{where}.content"))
        elif role == "assistant":
            say(messages, "assistant", _said(message, where))
        elif role == "tool":
            content = message.get("content") or ""
            given = content if isinstance(content, str) else _content(content, f"{where}.content")
            say(messages, "user", [tool_result(message.get("tool_call_id"), given, f"{where}.tool_call_id")])
        else:
            raise refused(f"{where}.role", "system, developer, user, assistant or tool")
    if not messages:
        raise refused("messages", "somebody must have said something, besides the system")
    system = joined_system(systems)
    return {"messages": messages} if system is None else {"messages": messages, "system": system}


def _require_few_values(messages: list[Any]) -> None:
    calls = [message["tool_calls"] for message in messages if isinstance(message, dict) and "tool_calls" in message]
    functions = [
        call.get("function") for some in calls if isinstance(some, list) for call in some if isinstance(call, dict)
    ]
    given = [function.get("arguments") for function in functions if isinstance(function, dict)]
    if sum(values_in(arguments) for arguments in given if isinstance(arguments, str)) > MAX_VALUES_OF_CALLS:
        raise refused("messages", f"the arguments of all calls together have more than {MAX_VALUES_OF_CALLS} values")


def _content(content: Any, where: str) -> list[Json]:
    if isinstance(content, str):
        return [text_block(content, where)]
    return [_part(part, f"{where}[{index}]") for index, part in enumerate(of_type(content, list, where))]


def _part(part: Any, where: str) -> Json:
    match of_type(part, dict, where).get("type"):
        case "text":
            return text_block(part.get("text"), f"{where}.text")
        case "image_url":
            image = field(part, "image_url", dict, where)
            return image_block(image.get("url"), f"{where}.image_url.url")
    raise refused(f"{where}.type", "text or image_url; audio and files cannot be passed on")


def _said(message: Json, where: str) -> list[Json]:
    """Of an assistant: its text and its calls. Thoughts are left out: no provider takes them without a signature."""
    for name in ("audio", "function_call"):
        if message.get(name) is not None:
            raise refused(f"{where}.{name}", "this cannot be passed on")
    texts = _texts(message.get("content"), f"{where}.content") or _texts(message.get("refusal"), f"{where}.refusal")
    blocks = [text_block(texts, where)] if texts else []
    calls = of_type(message.get("tool_calls") or [], list, f"{where}.tool_calls")
    return [*blocks, *(_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls))]


def _texts(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = of_type(content, list, where)
    plain = [
        {"type": "text", "text": part.get("refusal")}
        if isinstance(part, dict) and part.get("type") == "refusal"
        else part
        for part in parts
    ]
    return joined_texts(plain, where)


def _call(call: Any, where: str) -> Json:
    if of_type(call, dict, where).get("type", "function") != "function":
        raise refused(f"{where}.type", "only functions can be called here")
    function = field(call, "function", dict, where)
    arguments = of_type(function.get("arguments") or "", str, f"{where}.function.arguments")
    return tool_use(call.get("id"), function.get("name"), arguments, where)
