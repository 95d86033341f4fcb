"""Chat Completions as a Provider, over the openai SDK: OpenAI's, and any compatible server's by its base URL.

The SDK makes the request; its answer is read by reading.py and chat_answer.py. The SDK's typed events cost six times
as much, and stop at what their types do not know.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from functools import partial
from typing import Any

import httpx2
import orjson
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from worker.providers.bounds import DEFAULT_BOUNDS, Bounds
from worker.providers.chat_answer import ERROR_CODES, MOVES_ON, ChatAnswer, words_of
from worker.providers.failures import ProviderFailure, bad_key, failed, invalid_input, no_key, refused
from worker.providers.http import KEY_OF_NONE, HttpClient
from worker.providers.openai import is_strict
from worker.providers.provider import Said
from worker.providers.reading import Reader
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
    system_text,
    text_of,
    tools,
    turns,
)
from worker.providers.sdk_types import checked_options

# Hosts whose newer models take `max_completion_tokens` only, which most other servers do not know.
_OPENAI = (".openai.com", ".openai.azure.com")
_LIMITS = ("max_completion_tokens", "max_tokens")


class OpenAIChatProvider:
    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        silence_s: float,
        idle_s: float | None = None,
        bounds: Bounds = DEFAULT_BOUNDS,
        name: str = "openai-chat",
        ends_by_done: bool = False,
    ) -> None:
        """Without a `base_url`, what the SDK's variables say: OPENAI_BASE_URL, OPENAI_API_KEY and the others. With one,
        nothing of these is sent there, and a server that wants no key needs none.

        `ends_by_done`: the server never says a finish_reason, and `[DONE]` is all that tells a whole answer from a
        broken one.
        """
        self.name = name
        self._http = HttpClient(bounds, silence_s)
        key = api_key or (KEY_OF_NONE if base_url else os.environ.get("OPENAI_API_KEY")) or _no_key
        self._client = AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, http_client=self._http)
        if base_url:
            self._client.organization = self._client.project = None
            self._client._custom_headers = {}  # OPENAI_CUSTOM_HEADERS, which may hold a key
        self._is_openai = f".{self._client.base_url.host}".endswith(_OPENAI)
        self._ends_by_done = ends_by_done
        self._reader = Reader(bounds, silence_s, idle_s or 10 * silence_s, _failure)

    async def warm_up(self) -> None:
        """A connection, kept for the first attempt. (What the SDK imports has been imported with this module.)"""
        await self._http.warm_up(self._client.base_url)

    async def check(self) -> None:
        try:
            await self._client.models.list()
        except Exception as error:
            raise self._reader.failure(error) from None

    async def aclose(self) -> None:
        await self._client.close()

    def stream(self, model: str, request: dict[str, Any]) -> AsyncGenerator[Said, None]:
        choices = _choices(request, self.name)
        answer = ChatAnswer(self.name, choices=choices, ends_by_done=self._ends_by_done)
        return self._reader.read(partial(self._ask, model, request), answer)

    async def _ask(self, model: str, request: dict[str, Any]) -> httpx2.Response:
        body = orjson.dumps(asked(model, request, self.name, is_openai=self._is_openai))
        try:
            answer = await self._client.post(
                "/chat/completions",
                content=body,
                cast_to=ChatCompletion,
                stream=True,
                stream_cls=AsyncStream[ChatCompletionChunk],
            )
        except UnicodeEncodeError:
            raise bad_key() from None
        return answer.response


async def _no_key() -> str:
    raise no_key("OPENAI_API_KEY")


def _choices(request: dict[str, Any], name: str) -> int:
    options = request.get("provider_options")
    own = options.get(name) if isinstance(options, dict) else None
    count = own.get("n") if isinstance(own, dict) else None
    return count if type(count) is int else 1


# ---- Asking


def asked(model: str, request: dict[str, Any], name: str, *, is_openai: bool) -> dict[str, Any]:
    """The wire's request. Raises ProviderFailure (invalid_input)."""
    options = checked_options(request, name, CompletionCreateParamsBase, not_here={"model", "messages", "stream"})
    body: dict[str, Any] = {"model": model, "messages": list(_messages(request, name, model)), "stream": True}
    body["stream_options"] = {"include_usage": True}
    if request.get("max_tokens") is not None and not options.keys() & set(_LIMITS):
        body[_LIMITS[0] if is_openai else _LIMITS[1]] = request["max_tokens"]
    for field_name, theirs in (("temperature", "temperature"), ("stop_sequences", "stop")):
        if request.get(field_name) not in (None, []):
            body[theirs] = request[field_name]
    body.update(_tools(request))
    if effort := _effort(request):
        body["reasoning_effort"] = effort
    if schema := request.get("output_schema"):
        body["response_format"] = _response_format(schema)
    body |= options | _joined(body, options)
    return {key: value for key, value in body.items() if value is not None}  # null: what we would have sent is not


def _joined(body: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """What an option adds to instead of taking its place."""
    joined: dict[str, Any] = {}
    if isinstance(given := options.get("stream_options"), dict):
        joined["stream_options"] = {**body["stream_options"], **given}
    if isinstance(given := options.get("tools"), list):
        joined["tools"] = [*body.get("tools", ()), *given]
    return joined


def _tools(request: dict[str, Any]) -> dict[str, Any]:
    found = [_tool(one) for one in tools(request)]
    choice = request.get("tool_choice") or {}
    if not found:
        return {}
    asked: dict[str, Any] = {"tools": found}
    kind = choice.get("type") if isinstance(choice, dict) else ""
    if kind == "tool":
        asked["tool_choice"] = {"type": "function", "function": {"name": field(choice, "name", str, "tool_choice")}}
    elif kind is not None:
        if kind not in _CHOICES:
            raise invalid_input("tool_choice.type is none of auto, any, none, tool.")
        asked["tool_choice"] = _CHOICES[kind]
    if choice.get("disable_parallel_tool_use") is True:
        asked["parallel_tool_calls"] = False
    return asked


_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def _tool(tool: Tool | Block) -> dict[str, Any]:
    if isinstance(tool, Block):  # the provider's own: as given
        return {name: value for name, value in tool.data.items() if name != "cache_control"}
    described = {"name": tool.name, "description": tool.description, "parameters": tool.schema}
    return {"type": "function", "function": {key: value for key, value in described.items() if value is not None}}


def _effort(request: dict[str, Any]) -> str | None:
    if effort := request.get("effort"):
        return str(effort)
    thinking = of_type(request.get("thinking") or {}, dict, "thinking")
    if thinking.get("type") == "disabled":
        return "none"
    if thinking.get("type") == "enabled":
        budget = thinking.get("budget_tokens") or 0
        return "low" if budget < 4096 else "medium" if budget < 16384 else "high"
    return None  # adaptive: as the model likes


def _response_format(schema: dict[str, Any]) -> dict[str, Any]:
    strict = {"strict": True} if is_strict(schema) else {}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **strict}}


def _messages(request: dict[str, Any], name: str, model: str) -> Iterator[dict[str, Any]]:
    if system := system_text(request):
        yield {"role": "system", "content": system}
    functions: dict[str, str] = {}
    for turn in turns(request):
        if turn.role == "system":
            yield {"role": "system", "content": "\n\n".join(map(text_of, _only_text(turn.blocks)))}
        elif turn.role == "user":
            yield from _of_a_user(turn, functions)
        elif is_own(turn.native, name, model) and isinstance(content := (turn.native or {}).get("content"), dict):
            functions = _functions(turn, content)
            yield content
        else:
            functions = {}
            if message := _of_a_model(turn):
                yield message


def _only_text(found: list[Block]) -> list[Block]:
    for block in found:
        if block.kind != "text":
            raise cannot_take(block)
    return found


def _functions(turn: Turn, native: dict[str, Any]) -> dict[str, str]:
    """Calls of before there were tools: their results are given by the function's name."""
    called = native.get("function_call")
    return {block.data.get("id", ""): called["name"] for block in turn.blocks if called and block.kind == "tool_use"}


def _of_a_model(turn: Turn) -> dict[str, Any] | None:
    texts, calls = [], []
    for block in turn.blocks:
        if block.kind == "text":
            texts.append(text_of(block))
        elif block.kind == "tool_use":
            function = {"name": field(block.data, "name", str, block.place)}
            function["arguments"] = orjson.dumps(input_of(block)).decode()
            calls.append({"id": field(block.data, "id", str, block.place), "type": "function", "function": function})
        elif block.kind not in ("thinking", "redacted_thinking"):  # those are for the model that thought them
            raise cannot_take(block)
    if not texts and not calls:
        return None
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or None}
    return {**message, "tool_calls": calls} if calls else message


def _of_a_user(turn: Turn, functions: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Results first: nothing may stand between a call and its result. Their images, which the wire has no place for,
    come after them, with what the person says.
    """
    parts: list[dict[str, Any]] = []
    for block in turn.blocks:
        if block.kind == "tool_result":
            text, shown = _result(block)
            parts.extend(shown)
            call_id = field(block.data, "tool_use_id", str, block.place)
            if call_id in functions:
                yield {"role": "function", "name": functions[call_id], "content": text}
            else:
                yield {"role": "tool", "tool_call_id": call_id, "content": text}
    parts.extend(_part(block) for block in turn.blocks if block.kind != "tool_result")
    if len(parts) == 1 and parts[0]["type"] == "text":  # as every server takes it
        yield {"role": "user", "content": parts[0]["text"]}
    elif parts:
        yield {"role": "user", "content": parts}


def _result(block: Block) -> tuple[str, list[dict[str, Any]]]:
    """Its text, and what is none."""
    found = blocks(block.data.get("content"), f"{block.place}.content")
    text = "\n".join(text_of(one) for one in found if one.kind == "text")
    if block.data.get("is_error") is True:  # which the wire has no word for
        text = f"Error: {text}"
    return text, [_part(one) for one in found if one.kind != "text"]


def _part(block: Block) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "text", "text": text_of(block)}
    if block.kind == "image":
        return {"type": "image_url", "image_url": {"url": source_of(block).url}}
    if block.kind == "document":
        return _document(block)
    raise cannot_take(block)


def _document(block: Block) -> dict[str, Any]:
    source = source_of(block)
    title = block.data.get("title")
    if source.kind == "text":
        return {"type": "text", "text": f"{title}\n\n{source.data}" if title else source.data}
    if source.kind == "url":
        raise invalid_input(f"{block.place}.source is a url, and this provider takes documents only as base64 or text.")
    return {"type": "file", "file": {"filename": title or "document.pdf", "file_data": source.url}}


# ---- Failing


def _failure(error: Exception) -> ProviderFailure | None:
    """The SDK's own errors."""
    match error:
        case APIStatusError():
            return _refusal(error)
        case APIConnectionError():
            return failed("provider_cut")
    return None


def _refusal(error: APIStatusError) -> ProviderFailure:
    words = words_of(error.body)
    codes = [ERROR_CODES[word] for word in words if word in ERROR_CODES]
    exact = [code for code in codes if code in ("provider_overloaded", "provider_refused")]
    # A status says as much as most of the words do, but a quota that is used up is a 429 too.
    code = exact[0] if exact and error.status_code in (400, 404, 413, 422, 429, 503) else None
    if error.status_code == 429 and code == "provider_refused" and not any(word in MOVES_ON for word in words):
        code = None
    moves_on = any(word in MOVES_ON for word in words)
    return refused(error.status_code, _said(error.body), error.response.headers, code=code, moves_on=moves_on)


def _said(body: object) -> object:
    """OpenAI: {"message"}; FastAPI's servers: {"detail"}; others a text."""
    if isinstance(body, dict):
        return body.get("message") or body.get("detail")
    return body
