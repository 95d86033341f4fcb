"""The neutral request in Gemini's form.

What may be long (the contents, the system prompt) is made in the form of the wire. Through the SDK's types 32 MiB hold
the loop for half a second, a signature would come back in another alphabet of base64, and what a newer model
said, and the SDK does not know, could not be sent back. The rest is the SDK's to check and to convert.
"""

from __future__ import annotations

import math
import mimetypes
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import orjson
from google.genai import types
from pydantic import ValidationError

from worker.providers.failures import invalid_input, shown
from worker.providers.request import (
    Block,
    Tool,
    Turn,
    blocks,
    cannot_take,
    field,
    input_of,
    is_own,
    of_type,
    source_of,
    text_of,
    tools,
    turns,
)

UNSIGNED = "skip_thought_signature_validator"
"""In a signature's place: this call is not the model's. Without one, Gemini 3 refuses it."""

EFFORTS = {"minimal": "MINIMAL", "low": "LOW", "medium": "MEDIUM", "high": "HIGH", "xhigh": "XHIGH", "max": "XHIGH"}
_CHOICES = {"auto": "AUTO", "any": "ANY", "none": "NONE", "tool": "ANY"}
# Ours to decide, or what the SDK would do by itself.
_NOT_HERE = {
    *("model", "contents", "stream", "http_options", "should_return_http_response"),
    *("automatic_function_calling", "automatic_continuation"),
}

Part = dict[str, Any]


class Asked(NamedTuple):
    config: types.GenerateContentConfig
    """For the SDK, which makes the rest of the body of it."""
    body: dict[str, Any]
    """As it goes: contents, systemInstruction."""
    extra: dict[str, Any]
    """`extra_body`, laid over the whole."""


def translated(request: dict[str, Any], name: str, model: str) -> Asked:
    """Raises ProviderFailure (invalid_input)."""
    config = _config(request)
    options, extra = _options(request, name)
    system, contents = _contents(request, name, model)
    body: dict[str, Any] = {"contents": contents}
    if system:
        body["systemInstruction"] = {"parts": system}
    with _checking(""):
        return Asked(types.GenerateContentConfig.model_validate(merged(config, options)), body, extra)


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Objects within objects too; all else of `over` replaces."""
    both = dict(under)
    for key, value in over.items():
        below = both.get(key)
        both[key] = merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return both


# ---- Contents


class _Call(NamedTuple):
    tool: str
    id: str | None
    """As the provider knows it. None: it gave none, and wants none."""
    order: int
    """Among the calls of its turn."""


def _contents(request: dict[str, Any], name: str, model: str) -> tuple[list[Part], list[dict[str, Any]]]:
    """(the system prompt's parts, the contents)"""
    system = [_text(block) for block in blocks(request.get("system"), "system")]
    contents: list[dict[str, Any]] = []
    calls: dict[str, _Call] = {}  # by the id that the caller knows; the latest of that id holds
    for turn in turns(request):
        if turn.role == "system":  # Gemini has one system prompt, and no such role
            system += map(_text, turn.blocks)
        elif turn.role == "assistant":
            parts = _own(turn, calls) if is_own(turn.native, name, model) else _foreign(turn, calls)
            contents.append({"role": "model", "parts": parts})
        else:
            parts = [part for block in _in_order(turn.blocks, calls) for part in _asked(block, calls)]
            if contents and contents[-1]["role"] == "user":  # all results of a turn are in one content
                contents[-1]["parts"] += parts
            else:
                contents.append({"role": "user", "parts": parts})
    return system, [content for content in contents if content["parts"]]


def _in_order(found: list[Block], calls: dict[str, _Call]) -> list[Block]:
    """Results first, in the order of their calls: calls without an id are told apart by nothing else."""

    def place(block: Block) -> float:
        if block.kind != "tool_result":
            return math.inf
        call = calls.get(field(block.data, "tool_use_id", str, block.place))
        return math.inf if call is None else call.order

    return sorted(found, key=place)


def _text(block: Block) -> Part:
    if block.kind != "text":
        raise cannot_take(block)
    return {"text": text_of(block)}


def _own(turn: Turn, calls: dict[str, _Call]) -> list[Part]:
    """What this model said, as it said it. Its calls may have no ids, but have an order."""
    assert turn.native is not None
    parts = field(turn.native, "content", list, f"{turn.place}.native")
    said = [part["functionCall"] for part in parts if isinstance(part, dict) and part.get("functionCall")]
    if not all(isinstance(call, dict) for call in said):
        raise invalid_input(f"{turn.place}.native.content has a call that is not an object.")
    uses = [block for block in turn.blocks if block.kind == "tool_use"]
    for order, (block, call) in enumerate(zip(uses, said, strict=False)):
        calls[field(block.data, "id", str, block.place)] = _Call(call.get("name", ""), call.get("id"), order)
    return parts


def _foreign(turn: Turn, calls: dict[str, _Call]) -> list[Part]:
    """What somebody else said: text and calls. Thoughts, signed or not, mean nothing to this model."""
    parts: list[Part] = []
    order = 0
    for block in turn.blocks:
        if block.kind == "tool_use":
            call_id, tool = field(block.data, "id", str, block.place), field(block.data, "name", str, block.place)
            calls[call_id] = _Call(tool, call_id, order)
            part: Part = {"functionCall": {"id": call_id, "name": tool, "args": input_of(block)}}
            # Of calls at once the first has the signature, and so it stands for all of them.
            parts.append({**part, "thoughtSignature": UNSIGNED} if order == 0 else part)
            order += 1
        elif block.kind in ("text", "image", "document"):
            parts += _shown(block)
        elif block.kind not in ("thinking", "redacted_thinking") and turn.native is None:
            raise cannot_take(block)
    return parts


def _asked(block: Block, calls: dict[str, _Call]) -> list[Part]:
    return [_result(block, calls)] if block.kind == "tool_result" else _shown(block)


def _shown(block: Block) -> list[Part]:
    if block.kind == "text":
        return [{"text": text_of(block)}]
    if block.kind not in ("image", "document"):
        raise cannot_take(block)
    title = of_type(block.data.get("title") or "", str, f"{block.place}.title")
    return [*([{"text": f"Document: {title}"}] if title else []), _sourced(block)]


def _sourced(block: Block) -> Part:
    source = source_of(block)
    if source.kind == "text":
        return {"text": source.data}
    if source.kind == "base64":
        return {"inlineData": {"mimeType": source.media_type, "data": source.data}}
    kind = mimetypes.guess_type(source.data.partition("?")[0])[0]
    kind = kind or ("image/jpeg" if block.kind == "image" else "application/pdf")
    return {"fileData": {"mimeType": kind, "fileUri": source.data}}


def _result(block: Block, calls: dict[str, _Call]) -> Part:
    call = calls.get(field(block.data, "tool_use_id", str, block.place))
    if call is None:
        raise invalid_input(f"{block.place}.tool_use_id is of no call in the messages before it.")
    texts: list[Part] = []
    others: list[Part] = []
    for one in blocks(block.data.get("content"), f"{block.place}.content"):
        for part in _shown(one):
            (texts if "text" in part else others).append(part)
    said = "\n".join(part["text"] for part in texts)
    answer: dict[str, Any] = {
        "name": call.tool,
        "response": {"error" if block.data.get("is_error") is True else "output": said},
    }
    if call.id is not None:
        answer["id"] = call.id
    if others:
        answer["parts"] = others
    return {"functionResponse": answer}


# ---- Config


def _config(request: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {
        theirs: request[ours]
        for ours, theirs in (
            ("max_tokens", "max_output_tokens"),
            ("stop_sequences", "stop_sequences"),
            ("temperature", "temperature"),
        )
        if request.get(ours) not in (None, [])
    }
    if schema := request.get("output_schema"):
        config |= {"response_mime_type": "application/json", "response_json_schema": schema}
    choice = _choice(request["tool_choice"]) if request.get("tool_choice") else None
    if found := _tools(request):
        config["tools"] = found
        if choice:
            config["tool_config"] = {"function_calling_config": choice}
    if thinking := _thinking(request):
        config["thinking_config"] = thinking
    config["automatic_function_calling"] = {"disable": True}  # else it warns of each request with tools
    if "automatic_continuation" in types.GenerateContentConfig.model_fields:
        config["automatic_continuation"] = False
    return config


def _tools(request: dict[str, Any]) -> list[dict[str, Any]]:
    functions, own = [], []
    for tool in tools({"tools": [_typed(tool) for tool in of_type(request.get("tools") or [], list, "tools")]}):
        if isinstance(tool, Tool):
            declared = {"name": tool.name, "parameters_json_schema": tool.schema}
            functions.append(declared if tool.description is None else {**declared, "description": tool.description})
        else:
            own.append(_own_tool(tool))
    return [*([{"function_declarations": functions}] if functions else []), *own]


def _typed(tool: Any) -> Any:
    """Gemini's own tools have no type, but one key: {"google_search": {}}. They may be given as {"type": …} too."""
    return {"type": "", **tool} if isinstance(tool, dict) and not {"type", "name"} & tool.keys() else tool


def _own_tool(tool: Block) -> dict[str, Any]:
    said = {key: value for key, value in tool.data.items() if key not in ("type", "cache_control")}
    said = {tool.kind: said} if tool.kind else said
    with _checking(tool.place):
        types.Tool.model_validate(said)
    return said


def _choice(choice: Any) -> dict[str, Any]:
    kind = field(of_type(choice, dict, "tool_choice"), "type", str, "tool_choice")
    if kind not in _CHOICES:
        raise invalid_input("tool_choice.type is none of auto, any, none, tool.")
    if choice.get("disable_parallel_tool_use"):
        raise invalid_input("tool_choice.disable_parallel_tool_use is nothing that Gemini can be asked.")
    chosen: dict[str, Any] = {"mode": _CHOICES[kind]}
    if kind == "tool":
        chosen["allowed_function_names"] = [field(choice, "name", str, "tool_choice")]
    return chosen


def _thinking(request: dict[str, Any]) -> dict[str, Any]:
    """A budget and a level exclude one another: the budget, which says more, counts."""
    config: dict[str, Any] = {}
    thinking = of_type(request.get("thinking") or {}, dict, "thinking")
    kind = thinking.get("type")
    if kind in ("enabled", "adaptive"):
        config["include_thoughts"] = True
        if thinking.get("budget_tokens") is not None:
            config["thinking_budget"] = thinking["budget_tokens"]
    elif kind == "disabled":
        config["thinking_budget"] = 0
    elif kind is not None:
        raise invalid_input("thinking.type is none of enabled, adaptive, disabled.")
    effort = request.get("effort")
    if effort is None or "thinking_budget" in config:
        return config
    if effort == "none":
        return {**config, "thinking_budget": 0}
    if effort not in EFFORTS:
        raise invalid_input(f"effort is none of none, {', '.join(EFFORTS)}.")
    return {**config, "thinking_level": EFFORTS[effort]}


# ---- Options


def _options(request: dict[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what `provider_options` set of the config, by its names; `extra_body`)"""
    place = f"provider_options.{name}"
    every = of_type(request.get("provider_options") or {}, dict, "provider_options")
    options = dict(of_type(every.get(name) or {}, dict, place))
    extra = of_type(options.pop("extra_body", None) or {}, dict, f"{place}.extra_body")
    set_elsewhere = _SQUEEZED.keys() & {_squeezed(key) for key in (*options, *extra)}
    if set_elsewhere:
        raise invalid_input(f"{place}.{_SQUEEZED[min(set_elsewhere)]} cannot be set there.")
    if not options:
        return {}, extra
    if isinstance(own_tools := options.get("tools"), list):  # the SDK takes anything for one, and then breaks
        for index, tool in enumerate(own_tools):
            of_type(tool, dict, f"{place}.tools[{index}]")
    with _checking(place):  # as JSON: bytes are base64 there
        checked = types.GenerateContentConfig.model_validate_json(orjson.dumps(options))
        return checked.model_dump(exclude_unset=True), extra


def _squeezed(key: str) -> str:
    """The API takes both snake_case and camelCase. (Cheaply: there may be 400,000 keys.)"""
    return key.replace("_", "").lower()


_SQUEEZED = {_squeezed(name): name for name in _NOT_HERE}


@contextmanager
def _checking(place: str) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of words that are newer than the SDK, with the word; they go as they are
        try:
            yield
        except ValidationError as error:
            raise _invalid(place, error) from None
        except (TypeError, AttributeError):  # some of the SDK's own validators expect what they are to check
            raise invalid_input(f"{place} has a value of the wrong type.".lstrip()) from None


def _invalid(place: str, error: ValidationError) -> Exception:
    """The first of what is wrong, in pydantic's words, which repeat no value; a validator's may."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    what = "It is not valid" if first["type"] in ("value_error", "assertion_error") else shown(first["msg"])
    return invalid_input(f"{place}{''.join(_steps(first['loc']))}: {what}.".lstrip("."))


def _steps(location: tuple[int | str, ...]) -> Iterator[str]:
    """Without the names of the types that pydantic tried."""
    for step in location:
        if isinstance(step, int):
            yield f"[{step}]"
        elif re.fullmatch(r"[a-z]\w{0,59}", step):
            yield f".{step}"
