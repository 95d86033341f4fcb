"""Anthropic's Messages API as a Provider, over the anthropic SDK.

The SDK makes the request; its answer is read by reading.py. The SDK's typed events cost 17 µs each, parsing the raw
ones 4 µs (anthropic 2.11).
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from functools import partial
from typing import Any

import httpx2
import orjson
from anthropic import (
    APIConnectionError,
    APIStatusError,
    AsyncAnthropic,
    AsyncStream,
    CredentialsError,
)
from anthropic.types import Message, RawMessageStreamEvent

from worker.providers.bounds import DEFAULT_BOUNDS, Bounds
from worker.providers.failures import ProviderFailure, bad_key, failed, no_key, refused
from worker.providers.http import HttpClient
from worker.providers.provider import Counted, Finish, ProviderEvent, Said
from worker.providers.reading import Reader, parse


class AnthropicProvider:
    name = "anthropic"

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        silence_s: float,
        idle_s: float | None = None,
        bounds: Bounds = DEFAULT_BOUNDS,
        name: str = "anthropic",
    ) -> None:
        """None means what it means to the SDK: ANTHROPIC_API_KEY, ANTHROPIC_BASE_URL, the API's address."""
        self.name = name
        self._http = HttpClient(bounds, silence_s)
        self._client = AsyncAnthropic(api_key=api_key, base_url=base_url, max_retries=0, http_client=self._http)
        self._reader = Reader(bounds, silence_s, idle_s or 10 * silence_s, _failure)

    async def warm_up(self) -> None:
        """A connection, kept for the first attempt. (What the SDK imports has been imported with this module.)"""
        await self._http.warm_up(self._client.base_url)

    async def check(self) -> None:
        try:
            await self._client.models.list(limit=1)
        except Exception as error:
            raise self._reader.failure(error) from None

    async def aclose(self) -> None:
        await self._client.close()

    def stream(self, model: str, request: dict[str, Any]) -> AsyncGenerator[Said, None]:
        return self._reader.read(partial(self._ask, model, request), _Message())

    async def _ask(self, model: str, request: dict[str, Any]) -> httpx2.Response:
        try:
            answer = await self._client.post(
                "/v1/messages",
                content=_body(model, request),
                cast_to=Message,
                stream=True,
                stream_cls=AsyncStream[RawMessageStreamEvent],
            )
        except UnicodeEncodeError:
            raise bad_key() from None
        return answer.response


def _failure(error: Exception) -> ProviderFailure | None:
    """The SDK's own errors."""
    match error:
        case APIStatusError():
            return _refusal(error)
        case CredentialsError():
            return failed("provider_unauthorized")
        case TypeError() if "authentication method" in str(error):  # all the SDK has to say about a missing key
            return no_key("ANTHROPIC_API_KEY")
        case APIConnectionError():
            return failed("provider_cut")
    return None


def _body(model: str, request: dict[str, Any]) -> bytes:
    """As `messages.create` makes it, which takes 0.15 s for 32 MiB, in which no other generation goes on."""
    asked = {name: request[name] for name in ("messages", "max_tokens", "system") if request.get(name)}
    return orjson.dumps({"model": model, "stream": True, **asked})


# ---- Reading


class _Message:
    """What must be remembered of an answer to read the rest of it; its text is not kept."""

    may_end = False
    has_effects = False

    def __init__(self) -> None:
        self.finish: Finish | None = None
        self._blocks: dict[int, tuple[str, str]] = {}  # content block → the tool call it holds, and the tool
        self._calls: dict[str, tuple[str, float]] = {}  # tool call of the provider's own → the tool, when it began
        self._usage = {"input_tokens": 0, "output_tokens": 0}
        self._stop_reason = "unknown"

    def end(self) -> Finish:
        raise AssertionError("message_stop is the only end")

    def take(self, name: bytes, data: bytes) -> Iterable[ProviderEvent | Counted]:
        """Read one server-sent event. Unknown kinds come with newer APIs and are ignored."""
        event: ProviderEvent | None = None
        match name:
            case b"content_block_delta":
                event = self._delta(parse(data))
            case b"content_block_start":
                event = self._block(parse(data))
            case b"message_start":
                self._count(parse(data)["message"].get("usage"))
                return (Counted(dict(self._usage)),)
            case b"message_delta":
                self._end(parse(data))
            case b"message_stop":
                self.finish = Finish(self._stop_reason, self._usage)
            case b"error":
                raise _event_failure(parse(data)["error"])
        return () if event is None else (event,)

    def _delta(self, data: Any) -> ProviderEvent | None:
        delta = data["delta"]
        kind = delta["type"]
        if kind == "text_delta":
            return _text_event("text_delta", delta["text"])
        if kind == "thinking_delta":
            return _text_event("thinking_delta", delta["thinking"])
        if kind == "input_json_delta" and delta["partial_json"]:
            call_id, tool = self._blocks[data["index"]]
            return "tool_args_delta", {"tool_call_id": call_id, "tool": tool, "partial_json": delta["partial_json"]}
        return None

    def _block(self, data: Any) -> ProviderEvent | None:
        block = data["content_block"]
        kind = block["type"]
        # By their endings, since there are many: server_tool_use, mcp_tool_use, web_search_tool_result …
        if kind.endswith("tool_use"):
            return self._tool_start(data["index"], block["id"], block["name"])
        if kind.endswith("tool_result"):
            return self._tool_end(block)
        if kind == "text":
            return _text_event("text_delta", block.get("text", ""))  # empty today; the SDK would not lose it either
        return None

    def _tool_start(self, index: int, call_id: str, tool: str) -> ProviderEvent:
        self._blocks[index] = (call_id, tool)
        self._calls[call_id] = (tool, time.monotonic())
        return "tool_start", {"tool_call_id": call_id, "tool": tool}

    def _tool_end(self, block: dict[str, Any]) -> ProviderEvent:
        call_id = block["tool_use_id"]
        tool, began = self._calls.get(call_id) or (block["type"].removesuffix("_tool_result"), time.monotonic())
        duration_ms = round((time.monotonic() - began) * 1000)
        kind = "tool_error" if _is_error(block) else "tool_end"
        return kind, {"tool_call_id": call_id, "tool": tool, "duration_ms": duration_ms}

    def _end(self, data: Any) -> None:
        self._stop_reason = data["delta"]["stop_reason"] or self._stop_reason
        self._count(data.get("usage"))

    def _count(self, usage: dict[str, Any] | None) -> None:
        # Cumulative, so the latest holds. What is not a plain count (tiers, breakdowns) is left out.
        self._usage.update((name, n) for name, n in (usage or {}).items() if type(n) is int)


def _text_event(kind: str, text: Any) -> ProviderEvent | None:
    if type(text) is not str:
        raise TypeError(f"a {kind} without text")
    return (kind, {"text": text}) if text else None


def _is_error(block: dict[str, Any]) -> bool:
    content = block.get("content")
    return block.get("is_error") is True or (isinstance(content, dict) and str(content.get("type")).endswith("_error"))


# ---- Failing

# The API's error types, in a refusal's body or in an `error` event (https://docs.anthropic.com/en/api/errors).
_ERROR_TYPES = {
    "overloaded_error": "provider_overloaded",
    "rate_limit_error": "provider_rate_limited",
    "api_error": "provider_error",
    "timeout_error": "provider_error",
    "authentication_error": "provider_unauthorized",
    "permission_error": "provider_unauthorized",
    "invalid_request_error": "provider_refused",
    "not_found_error": "provider_refused",
    "request_too_large": "provider_refused",
    "billing_error": "provider_refused",
}


def _refusal(error: APIStatusError) -> ProviderFailure:
    code = "provider_overloaded" if error.type == "overloaded_error" else None
    return refused(error.status_code, error.api_message, error.response.headers, code=code)


def _event_failure(error: dict[str, Any]) -> ProviderFailure:
    return failed(_ERROR_TYPES.get(error["type"], "provider_error"), said=error.get("message"))
