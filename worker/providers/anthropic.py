"""Anthropic's Messages API as a Provider, over the anthropic SDK.

The SDK makes the request; its answer is split into server-sent events and read here. The SDK's typed events cost 17 µs
each, parsing the raw ones 4 µs (anthropic 2.11).

Not shown to viewers: signatures (for the API only), citations, and redacted thinking (ciphertext).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from email.utils import parsedate_to_datetime
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

from worker.providers.bounds import EVENTS, Bounds, OutOfBounds
from worker.providers.http import HttpClient
from worker.providers.provider import Finish, ProviderEvent, ProviderFailure
from worker.providers.sse import EventSplitter
from worker.providers.transport import BODY, Body

# How long the end of the body may take once the message is complete. Only a body read to its end leaves its
# connection, and its TLS handshake, to the next request; a server that does not end it costs us no more than this.
BODY_END_TIMEOUT_S = 0.25
QUOTE_LIMIT = 300  # characters of the provider's own words that are passed on to people
DEFAULT_BOUNDS = Bounds()


class AnthropicProvider:
    name = "anthropic"

    def __init__(
        self, *, api_key: str | None, base_url: str | None, silence_s: float, bounds: Bounds = DEFAULT_BOUNDS
    ) -> None:
        """None means what it means to the SDK: ANTHROPIC_API_KEY, ANTHROPIC_BASE_URL, the API's address."""
        self._silence_s = silence_s
        self._bounds = bounds
        self._http = HttpClient(bounds, silence_s)
        self._client = AsyncAnthropic(api_key=api_key, base_url=base_url, max_retries=0, http_client=self._http)

    async def warm_up(self) -> None:
        """A connection, kept for the first attempt. (What the SDK imports has been imported with this module.)"""
        await self._http.warm_up(self._client.base_url)

    async def aclose(self) -> None:
        await self._client.close()

    async def stream(self, model: str, request: dict[str, Any]) -> AsyncGenerator[ProviderEvent | Finish, None]:
        finish: Finish | None = None
        try:
            async with await self._open(model, request) as answer:
                body: Body = answer.response.extensions[BODY]
                wire = EventSplitter(self._bounds.event_bytes)
                message = _Message()
                while finish is None and (some := await body.read()):
                    for name, data in wire.feed(some):
                        event = message.take(name, data)
                        if isinstance(event, Finish):
                            finish = event
                            break
                        if event is not None:
                            yield event
                if finish is not None:
                    await _read_to_the_end(body)
        except ProviderFailure:
            raise
        except Exception as error:
            raise self._failure(error) from error
        if finish is None:
            raise _failed("provider_cut", "The model provider's answer ended before it was complete.")
        yield finish  # only now that the connection is given back, since a consumer need not read on after a Finish

    async def _open(self, model: str, request: dict[str, Any]) -> AsyncStream[RawMessageStreamEvent]:
        body = _body(model, request)
        try:
            # A drip of interim answers (1xx), or of a refusal's body, is not silent, and has no end.
            async with asyncio.timeout(self._silence_s):
                answer = await self._client.post(
                    "/v1/messages",
                    content=body,
                    cast_to=Message,
                    stream=True,
                    stream_cls=AsyncStream[RawMessageStreamEvent],
                )
        except TimeoutError:
            raise self._silent() from None
        except UnicodeEncodeError:
            raise _bad_key() from None
        except APIConnectionError as error:
            if isinstance(error.__cause__, httpx2.LocalProtocolError):
                raise _bad_key() from None
            raise
        if not answer.response.headers.get("content-type", "").startswith(EVENTS):
            await answer.close()
            raise _failed("provider_bad_answer", "What answered is not the model provider.")
        return answer

    def _silent(self) -> ProviderFailure:
        return _failed("provider_silent", f"The model provider was silent for {self._silence_s:g} seconds.")

    def _failure(self, error: Exception) -> ProviderFailure:
        """The one place where errors of the SDK, of its HTTP client and of reading are translated."""
        # Before the answer begins the SDK wraps what its HTTP client raised; after that it lets it through.
        cause = error.__cause__ if isinstance(error, APIConnectionError) else error
        match cause:
            case APIStatusError():
                return _refusal(cause)
            case CredentialsError():
                return _failed("provider_unauthorized")
            case TypeError() if "authentication method" in str(cause):  # all the SDK has to say about a missing key
                return _failed("provider_unauthorized", "No API key for the model provider is configured here.")
            case OutOfBounds():
                return _failed("provider_bad_answer", "The model provider's answer is longer than it may be.")
            case httpx2.ReadTimeout():
                return self._silent()
            case httpx2.ConnectError() | httpx2.ConnectTimeout():
                return _failed("provider_cut", "The model provider could not be reached.")
            case httpx2.TransportError():
                return _failed("provider_cut")
        return _failed("provider_cut" if isinstance(error, APIConnectionError) else "provider_bad_answer")


def _body(model: str, request: dict[str, Any]) -> bytes:
    """As `messages.create` makes it, which takes 0.15 s for 32 MiB, in which no other generation goes on."""
    asked = {name: request[name] for name in ("messages", "max_tokens", "system") if request.get(name)}
    return orjson.dumps({"model": model, "stream": True, **asked})


async def _read_to_the_end(body: Body) -> None:
    with suppress(Exception):  # the message is complete: nothing that happens now can take that back
        async with asyncio.timeout(BODY_END_TIMEOUT_S):
            while await body.read():
                pass


# ---- Reading


class _Message:
    """What must be remembered of an answer to read the rest of it; its text is not kept."""

    def __init__(self) -> None:
        self._blocks: dict[int, tuple[str, str]] = {}  # content block → the tool call it holds, and the tool
        self._calls: dict[str, tuple[str, float]] = {}  # tool call of the provider's own → the tool, when it began
        self._usage = {"input_tokens": 0, "output_tokens": 0}
        self._stop_reason = "unknown"

    def take(self, name: bytes, data: bytes) -> ProviderEvent | Finish | None:
        """Read one server-sent event. Unknown kinds come with newer APIs and are ignored."""
        match name:
            case b"content_block_delta":
                return self._delta(_parse(data))
            case b"content_block_start":
                return self._block(_parse(data))
            case b"message_start":
                self._count(_parse(data)["message"].get("usage"))
            case b"message_delta":
                self._end(_parse(data))
            case b"message_stop":
                return Finish(self._stop_reason, self._usage)
            case b"error":
                raise _event_failure(_parse(data)["error"])
        return None

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


def _parse(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # Half of a surrogate pair, perhaps: models do tear emoji, orjson refuses them, and viewers get UTF-8.
        whole = json.dumps(json.loads(data), ensure_ascii=False)
        return orjson.loads(_SURROGATE.sub("\ufffd", whole))


_SURROGATE = re.compile("[\ud800-\udfff]")


def _text_event(kind: str, text: Any) -> ProviderEvent | None:
    if type(text) is not str:
        raise TypeError(f"a {kind} without text")
    return (kind, {"text": text}) if text else None


def _is_error(block: dict[str, Any]) -> bool:
    content = block.get("content")
    return block.get("is_error") is True or (isinstance(content, dict) and str(content.get("type")).endswith("_error"))


# ---- Failing

# Code: whether the same request may succeed later, and the message for a person.
_CODES = {
    "provider_overloaded": (True, "The model provider is overloaded."),
    "provider_rate_limited": (True, "The model provider's rate limit was reached."),
    "provider_error": (True, "The model provider had an internal error."),
    "provider_refused": (False, "The model provider refused the request."),
    "provider_unauthorized": (False, "The model provider did not accept this server's credentials."),
    "provider_cut": (True, "The connection to the model provider broke."),
    "provider_silent": (True, "The model provider was silent for too long."),
    "provider_bad_answer": (True, "The model provider's answer could not be understood."),
}
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
_STATUSES = {
    401: "provider_unauthorized",
    403: "provider_unauthorized",
    408: "provider_error",  # "again, please", says the API with these two, and the SDK's own retries obey
    409: "provider_error",
    429: "provider_rate_limited",
    529: "provider_overloaded",
}
# The provider's own words help with these alone; about credentials they may reveal too much.
_QUOTED = ("provider_refused", "provider_error")


def _failed(code: str, message: str = "", retry_after_s: float | None = None) -> ProviderFailure:
    retryable, default = _CODES[code]
    return ProviderFailure(code, message or default, retryable=retryable, retry_after_s=retry_after_s)


def _bad_key() -> ProviderFailure:
    """Nothing is said of what went wrong with it, here or in a cause: that may be the header, and so the key."""
    return _failed("provider_unauthorized", "The API key contains characters that no API key can have.")


def _refusal(error: APIStatusError) -> ProviderFailure:
    code = _STATUSES.get(error.status_code) or _code_of_class(error)
    message = _quote(code, error.api_message)
    return _failed(code, message, _retry_after_s(error.response.headers.get("retry-after")))


def _code_of_class(error: APIStatusError) -> str:
    if error.status_code >= 500:
        return "provider_overloaded" if error.type == "overloaded_error" else "provider_error"
    return "provider_refused" if error.status_code >= 400 else "provider_bad_answer"


def _event_failure(error: dict[str, Any]) -> ProviderFailure:
    code = _ERROR_TYPES.get(error["type"], "provider_error")
    return _failed(code, _quote(code, error.get("message")))


def _quote(code: str, said: object) -> str:
    if code not in _QUOTED or not isinstance(said, str):
        return ""
    line = "".join(c if c.isprintable() else " " for c in _KEY.sub("sk-…", said[:QUOTE_LIMIT]))
    return f"{_CODES[code][1]} It said: {line}"


_KEY = re.compile(r"sk-[\w-]+")  # the shape of API keys here and at gateways, some of which echo them


def _retry_after_s(header: str | None) -> float | None:
    """RFC 9110 §10.2.3: seconds, or a date, as seconds from now. Not capped; what is neither counts as absent."""
    if header is None:
        return None
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", header):
        return float(header)
    with suppress(ValueError, OverflowError):
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    return None
