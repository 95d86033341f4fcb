"""OpenAI's Responses API as a Provider, over the openai SDK.

The SDK makes the request; its answer is read by openai_answer.py. What becomes what is in docs/PROVIDERS.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import httpx2
import orjson
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, AsyncStream
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from worker.providers.bounds import DEFAULT_BOUNDS, Bounds
from worker.providers.failures import ProviderFailure, bad_key, failed, invalid_input, no_key, refused
from worker.providers.http import KEY_OF_NONE, HttpClient
from worker.providers.openai_answer import ERRORS, MOVE_ON, Answer
from worker.providers.openai_items import CLIENT_CALLS, id_of
from worker.providers.provider import Said
from worker.providers.reading import Reader
from worker.providers.request import (
    Block,
    Source,
    Tool,
    Turn,
    blocks,
    cannot_take,
    field,
    input_of,
    is_own,
    of_type,
    source_of,
    system_text,
    text_of,
    tools,
    turns,
)
from worker.providers.sdk_types import checked_options


class OpenAIProvider:
    name = "openai"

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        silence_s: float,
        idle_s: float | None = None,
        bounds: Bounds = DEFAULT_BOUNDS,
        name: str = "openai",
    ) -> None:
        """Without a `base_url`, what the SDK's variables say: OPENAI_BASE_URL, OPENAI_API_KEY and the others. With one,
        nothing of these is sent there, and a server that wants no key needs none.
        """
        self.name = name
        self._http = HttpClient(bounds, silence_s)
        self._client = AsyncOpenAI(
            api_key=api_key or (KEY_OF_NONE if base_url else None),
            base_url=base_url,
            max_retries=0,
            http_client=self._http,
            _enforce_credentials=False,  # a missing key is what an attempt fails with, not the start of a worker
        )
        if base_url:
            self._client.organization = self._client.project = None
            self._client._custom_headers = {}  # OPENAI_CUSTOM_HEADERS, which may hold a key
        self._reader = Reader(bounds, silence_s, idle_s or 10 * silence_s, _failure)

    async def warm_up(self) -> None:
        """A connection, kept for the first attempt. (What the SDK imports has been imported with this module.)"""
        await self._http.warm_up(self._client.base_url)

    async def check(self) -> None:
        try:
            await self._client.models.list()
        except UnicodeEncodeError:
            raise bad_key() from None
        except Exception as error:
            raise self._reader.failure(error) from None

    async def aclose(self) -> None:
        await self._client.close()

    def stream(self, model: str, request: dict[str, Any]) -> AsyncGenerator[Said, None]:
        return self._reader.read(partial(self._ask, model, request), Answer(self.name))

    async def _ask(self, model: str, request: dict[str, Any]) -> httpx2.Response:
        try:
            answer = await self._client.post(
                "/responses",
                content=orjson.dumps(_body(self.name, model, request)),
                cast_to=Response,
                stream=True,
                stream_cls=AsyncStream[ResponseStreamEvent],
            )
        except UnicodeEncodeError:
            raise bad_key() from None
        return answer.response


# ---- Failing


def _failure(error: Exception) -> ProviderFailure | None:
    """The SDK's own errors."""
    match error:
        case APIStatusError():
            return _refusal(error)
        case TypeError() if "authentication method" in str(error):  # all the SDK has to say about a missing key
            return no_key("OPENAI_API_KEY")
        case APIConnectionError():
            return failed("provider_cut")
    return None


def _refusal(error: APIStatusError) -> ProviderFailure:
    """Its status says enough, but for these."""
    said = error.body.get("message") if isinstance(error.body, dict) else error.body
    moves_on = error.code in MOVE_ON
    code = ERRORS[error.code] if error.code in MOVE_ON else None
    if error.status_code == 503 or ERRORS.get(error.code or "") == "provider_overloaded":
        code = "provider_overloaded"
    return refused(error.status_code, said, error.response.headers, code=code, moves_on=moves_on)


# ---- Asking

ENCRYPTED = "reasoning.encrypted_content"
# They do not reason, and refuse a request that asks for what reasoning leaves behind.
_DO_NOT_REASON = re.compile(r"(ft:)?(gpt-3|gpt-4|chatgpt-)")
_NOT_OPTIONS = frozenset({"model", "input", "stream"})
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def _body(provider: str, model: str, request: dict[str, Any]) -> dict[str, Any]:
    """Raises ProviderFailure (invalid_input)."""
    if request.get("stop_sequences"):
        raise invalid_input("stop_sequences: OpenAI's Responses API has none.")
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "store": False,  # Lastevent's log is the record
        "input": list(_input(provider, model, request)),
    }
    if not _DO_NOT_REASON.match(model):
        body["include"] = [ENCRYPTED]
    asked = {
        "instructions": system_text(request),
        "max_output_tokens": request.get("max_tokens"),
        "temperature": request.get("temperature"),
        "reasoning": _reasoning(request),
        "tools": [_tool(tool) for tool in tools(request)] or None,
        "text": _text_format(request.get("output_schema")),
        **_tool_choice(request),
    }
    body |= {name: value for name, value in asked.items() if value is not None}
    return _merged(body, checked_options(request, provider, ResponseCreateParamsBase, not_here=_NOT_OPTIONS))


def _merged(body: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """`text`, `reasoning` … are merged name by name; `include` and `tools` come to what is there."""
    merged = {**body, **options}
    for name in body.keys() & options.keys():
        ours, theirs = body[name], options[name]
        if isinstance(ours, dict) and isinstance(theirs, dict):
            merged[name] = {**ours, **theirs}
        elif isinstance(ours, list) and isinstance(theirs, list):
            there = set(map(orjson.dumps, ours))  # of 20,000 tools each would be compared with each, for seconds
            merged[name] = [*ours, *(one for one in theirs if orjson.dumps(one) not in there)]
    return merged


def _reasoning(request: dict[str, Any]) -> dict[str, Any] | None:
    """A summary of its thoughts only where thinking was asked for: some organizations are refused it."""
    thinking = of_type(request.get("thinking") or {}, dict, "thinking")
    effort = request.get("effort")
    if thinking.get("type") == "disabled":
        return {"effort": effort or "none"}
    if thinking:
        effort = effort or _effort_of(thinking.get("budget_tokens"))
        return {"summary": "auto", **({"effort": effort} if effort else {})}
    return {"effort": effort} if effort else None


def _effort_of(budget_tokens: Any) -> str | None:
    """OpenAI knows no budgets."""
    if type(budget_tokens) is not int:
        return None
    return "low" if budget_tokens < 4096 else "medium" if budget_tokens < 16384 else "high"


# -- tools


def _tool(tool: Tool | Block) -> dict[str, Any]:
    if isinstance(tool, Block):
        return {name: value for name, value in tool.data.items() if name != "cache_control"}
    described = {} if tool.description is None else {"description": tool.description}
    strict = is_strict(tool.schema)
    return {"type": "function", "name": tool.name, **described, "parameters": tool.schema, "strict": strict}


def _tool_choice(request: dict[str, Any]) -> dict[str, Any]:
    choice = of_type(request.get("tool_choice") or {}, dict, "tool_choice")
    if not choice:
        return {}
    kind = field(choice, "type", str, "tool_choice")
    if kind == "tool":
        said: Any = _named_choice(request, field(choice, "name", str, "tool_choice"))
    elif kind in _CHOICES:
        said = _CHOICES[kind]
    else:
        raise invalid_input("tool_choice.type is none of auto, any, none, tool.")
    return {"tool_choice": said, "parallel_tool_calls": False if choice.get("disable_parallel_tool_use") else None}


def _named_choice(request: dict[str, Any], name: str) -> dict[str, Any]:
    for tool in tools(request):
        if isinstance(tool, Block) and name in (tool.kind, tool.data.get("name")):
            return {"type": tool.kind, **({"name": name} if tool.data.get("name") == name else {})}
    return {"type": "function", "name": name}


def _text_format(schema: Any) -> dict[str, Any] | None:
    if schema is None:
        return None
    named = {"type": "json_schema", "name": "answer", "schema": schema, "strict": is_strict(schema)}
    return {"format": named}


# What OpenAI's strict mode allows in a schema (its guide "Structured Outputs").
_STRICT_WORDS = frozenset(
    {
        *("type", "properties", "required", "additionalProperties", "items", "anyOf", "$ref", "$defs", "definitions"),
        *("enum", "const", "title", "description", "pattern", "format", "multipleOf", "minimum", "maximum"),
        *("exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems"),
    }
)
_STRICT_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")
_STRICT_DEPTH = 10


def is_strict(schema: dict[str, Any]) -> bool:
    """It meets OpenAI's rules for strict. One that does not would be refused, so it is sent as not strict."""
    with suppress(AttributeError, TypeError):  # no JSON Schema at all: OpenAI says what is wrong with it
        return schema.get("type") == "object" and _meets_rules(schema, 0)
    return False


def _meets_rules(schema: Any, depth: int) -> bool:
    if schema.keys() - _STRICT_WORDS or depth > _STRICT_DEPTH:
        return False
    if not schema.keys() & {"type", "anyOf", "$ref", "enum", "const"}:
        return False
    properties = schema.get("properties", {})
    is_object = schema.get("type") == "object" or "properties" in schema
    is_closed = schema.get("additionalProperties") is False and set(schema.get("required", ())) == properties.keys()
    if is_object and not is_closed:
        return False
    if schema.get("type") == "array" and "items" not in schema:
        return False
    if schema.get("format", "uuid") not in _STRICT_FORMATS:
        return False
    inner = [*properties.values(), *schema.get("anyOf", ())]
    inner += [one for name in ("$defs", "definitions") for one in schema.get(name, {}).values()]
    inner += [schema["items"]] if "items" in schema else []
    return all(_meets_rules(one, depth + 1) for one in inner)


# -- messages


def _input(provider: str, model: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The messages as input items."""
    calls: dict[str, str] = {}  # call id → the type of the item that called
    for turn in turns(request):
        if turn.role != "assistant":
            yield from _said_to_it(turn, calls)
            continue
        native = turn.native.get("content") if turn.native and is_own(turn.native, provider, model) else None
        if native is None:
            yield from _said_by_it(turn)
            continue
        place = f"{turn.place}.native.content"
        for index, item in enumerate(of_type(native, list, place)):
            kind = field(of_type(item, dict, f"{place}[{index}]"), "type", str, f"{place}[{index}]")
            if kind in CLIENT_CALLS:
                calls[id_of(item)] = kind
            yield item


def _said_to_it(turn: Turn, calls: dict[str, str]) -> Iterator[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    for block in turn.blocks:
        if block.kind != "tool_result":
            content.append(_content(block))
            continue
        if content:
            yield {"type": "message", "role": turn.role, "content": content}
            content = []
        yield _result(block, calls)
    if content:
        yield {"type": "message", "role": turn.role, "content": content}


def _said_by_it(turn: Turn) -> Iterator[dict[str, Any]]:
    """By another model: its text and calls. Its thoughts are its own, and so is what its provider's tools found."""
    text = ""
    for block in turn.blocks:
        if block.kind == "text":
            text += text_of(block)
        elif block.kind == "tool_use":
            if text:
                yield {"type": "message", "role": "assistant", "content": text}
            text = ""
            yield _call(block)
        elif block.kind not in ("thinking", "redacted_thinking") and turn.native is None:
            raise cannot_take(block)
    if text:
        yield {"type": "message", "role": "assistant", "content": text}


def _call(block: Block) -> dict[str, Any]:
    call_id, name = (field(block.data, key, str, block.place) for key in ("id", "name"))
    arguments = json.dumps(input_of(block), ensure_ascii=False)
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def _content(block: Block) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "input_text", "text": text_of(block)}
    if block.kind == "image":
        return {"type": "input_image", "detail": "auto", "image_url": source_of(block).url}
    if block.kind == "document":
        return _document(source_of(block), block.data.get("title"))
    raise cannot_take(block)


def _document(source: Source, title: Any) -> dict[str, Any]:
    named = title if isinstance(title, str) and title else None
    if source.kind == "text":
        return {"type": "input_text", "text": f"{named}\n\n{source.data}" if named else source.data}
    if source.kind == "url":
        return {"type": "input_file", "file_url": source.data}
    ending = source.media_type.rpartition("/")[2]
    return {"type": "input_file", "filename": named or f"document.{ending}", "file_data": source.url}


def _result(block: Block, calls: dict[str, str]) -> dict[str, Any]:
    """What the caller's tool gave, in the form in which its kind of call is answered."""
    call_id = field(block.data, "tool_use_id", str, block.place)
    content = blocks(block.data.get("content"), f"{block.place}.content")
    is_error = block.data.get("is_error") is True
    kind = calls.get(call_id, "function_call")
    if kind in ("function_call", "custom_tool_call"):
        return {"type": f"{kind}_output", "call_id": call_id, "output": _output(content, is_error)}
    if kind == "computer_call":
        if len(content) != 1 or content[0].kind != "image":
            raise invalid_input(f"{block.place}.content is not one image, which a computer call is answered with.")
        screenshot = {"type": "computer_screenshot", "image_url": source_of(content[0]).url}
        return {"type": "computer_call_output", "call_id": call_id, "output": screenshot}
    text = "".join(map(text_of, content))
    if kind == "mcp_approval_request":  # nothing but the word itself approves
        said = {"approve": True} if text == "approve" and not is_error else {"approve": False, "reason": text}
        return {"type": "mcp_approval_response", "approval_request_id": call_id, **said}
    if kind == "shell_call":
        outcome = {"type": "exit", "exit_code": 1 if is_error else 0}
        output = [{"stdout": "" if is_error else text, "stderr": text if is_error else "", "outcome": outcome}]
        return {"type": "shell_call_output", "call_id": call_id, "output": output}
    if kind == "local_shell_call":
        return {"type": "local_shell_call_output", "id": call_id, "output": text}
    if kind == "apply_patch_call":
        status = "failed" if is_error else "completed"
        return {"type": "apply_patch_call_output", "call_id": call_id, "status": status, "output": text}
    raise invalid_input(f"{block.place} answers a call whose answer has no form here.")


def _output(content: list[Block], is_error: bool) -> str | list[dict[str, Any]]:
    """The API has no mark for a result that is an error, so it is said."""
    if all(block.kind == "text" for block in content):
        text = "\n\n".join(map(text_of, content))
        return f"Error: {text}" if is_error else text
    marked = [{"type": "input_text", "text": "Error:"}] if is_error else []
    return [*marked, *map(_content, content)]
