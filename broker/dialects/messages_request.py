"""A request of Anthropic Messages as POST /v1/streams takes it, which has its form. A pure function.

What would change the answer and cannot be had is refused by name. What cannot hurt is left out, and named in a header
of the answer; so are fields that nobody knows here.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, NamedTuple

from broker.dialects.parts import Json, field, of_type, refused

THEIR_NAMES = {
    "user_id": "metadata.user_id",
    "output_schema": "output_config.format.schema",
    "effort": "output_config.effort",
}
"""What a native field that is refused was called in the request."""

_AS_GIVEN = ("system", "max_tokens", "tool_choice", "thinking", "stop_sequences", "temperature")
_TAKEN = frozenset({"model", "messages", "stream", "tools", "metadata", "output_config", "output_format", *_AS_GIVEN})

_REFUSED = ("mcp_servers", "container", "fallbacks")

_CLIENTS_TOOLS = ("bash_", "text_editor_", "computer_", "memory_")
"""Anthropic's own that the caller runs. Those of any other type Anthropic runs, which has no honest form here."""

_PASSED_ON = frozenset(
    {
        *("text", "image", "document", "tool_use", "tool_result", "thinking", "redacted_thinking", "search_result"),
        *("server_tool_use", "web_search_tool_result", "web_fetch_tool_result"),
    }
)

_SOURCES = ("base64", "url", "text", "content")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
_MOST_NAMED = 32
"""Of what is ignored: a header has bounds."""

_USER = re.compile(r"[^\x00-\x1f\x7f]{1,200}")


class Asked(NamedTuple):
    """`native`: the body of POST /v1/streams. `ignored`: names of what was left out."""

    native: Json
    model: str
    streams: bool
    ignored: list[str]


def read(body: Json, abandon_after_s: int, *, shows_thinking: bool = False) -> Asked:
    """Raises InvalidRequest, which names the field. `abandon_after_s`: 0 for none. `shows_thinking`: also if the body
    does not ask for it.
    """
    model = field(body, "model", str, "")
    field(body, "max_tokens", int, "")
    for name in _REFUSED:
        if body.get(name) not in (None, []):
            raise refused(name, "this cannot be had here")
    ignored = {name for name in body if name not in _TAKEN and name not in _REFUSED and _NAME.fullmatch(name)}
    native = {name: body[name] for name in _AS_GIVEN if body.get(name) is not None}
    native |= {"model": model, "messages": _messages(body), **_tools(body), **_output(body, ignored), **_shown(body)}
    if (user := of_type(body.get("metadata") or {}, dict, "metadata").get("user_id")) is not None:
        if isinstance(user, str) and _USER.fullmatch(user):
            native["user_id"] = user
        else:
            ignored.add("metadata.user_id")
    if shows_thinking:
        native["show"] = ["thinking"]
    if abandon_after_s:
        native["abandon_after_s"] = abandon_after_s
    streams = of_type(body.get("stream") or False, bool, "stream")
    return Asked(native, model, streams, sorted(ignored)[:_MOST_NAMED])


def _shown(body: Json) -> Json:
    thinking = of_type(body.get("thinking") or {}, dict, "thinking")
    is_shown = thinking.get("type") not in (None, "disabled") and thinking.get("display") != "omitted"
    return {"show": ["thinking"]} if is_shown else {}


def _output(body: Json, ignored: set[str]) -> Json:
    """`output_format` is what `output_config.format` was called in its beta."""
    config = of_type(body.get("output_config") or {}, dict, "output_config")
    found: Json = {}
    if config.get("effort") is not None:
        found["effort"] = config["effort"]
    for form, where in ((config.get("format"), "output_config.format"), (body.get("output_format"), "output_format")):
        if form is not None:
            if of_type(form, dict, where).get("type") != "json_schema":
                raise refused(f"{where}.type", "json_schema")
            found["output_schema"] = field(form, "schema", dict, where)
    ignored.update(
        f"output_config.{name}" for name in config if name not in ("effort", "format") and _NAME.fullmatch(name)
    )
    return found


def _tools(body: Json) -> Json:
    tools = of_type(body.get("tools") or [], list, "tools")
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        kind = of_type(tool, dict, where).get("type")
        if kind not in (None, "custom") and not of_type(kind, str, f"{where}.type").startswith(_CLIENTS_TOOLS):
            raise refused(f"{where}.type", "only tools that the caller runs can be had here")
    return {"tools": tools} if tools else {}


# -- messages --------------------------------------------------------------------------------------------------------


def _messages(body: Json) -> list[Json]:
    given = field(body, "messages", list, "")
    messages = [_message(message, f"messages[{index}]") for index, message in enumerate(given)]
    return [message for message in messages if message["content"] != []]


def _message(message: Any, where: str) -> Json:
    role = field(of_type(message, dict, where), "role", str, where)
    content = message.get("content")
    if not isinstance(content, str):
        blocks = of_type(content, list, f"{where}.content")
        content = [
            block
            for index, block in enumerate(blocks)
            if not _is_unsigned(_checked(block, f"{where}.content[{index}]"))
        ]
    return {"role": role, "content": content}


def _is_unsigned(block: Json) -> bool:
    """A thought of an answer of ours: no provider takes it without a signature, and this dialect gives none."""
    return block.get("type") == "thinking" and not block.get("signature")


def _checked(block: Any, where: str) -> Json:
    kind = of_type(block, dict, where).get("type")
    if not _is_one_of(kind, _PASSED_ON):
        raise refused(f"{where}.type", "of a type that cannot be passed on")
    source = block.get("source")
    if kind in ("image", "document") and isinstance(source, dict) and not _is_one_of(source.get("type"), _SOURCES):
        raise refused(f"{where}.source.type", "base64, url or text; there are no files here")
    if kind == "tool_result" and isinstance(block.get("content"), list):
        for index, inner in enumerate(block["content"]):
            _checked(inner, f"{where}.content[{index}]")
    return dict(block)


def _is_one_of(value: Any, words: Collection[str]) -> bool:
    return isinstance(value, str) and value in words
