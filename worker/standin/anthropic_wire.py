"""The Anthropic Messages streaming wire:

message_start  content_block_start ping content_block_delta… content_block_stop  …  message_delta message_stop
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from worker.standin.wire import (
    Citation,
    Refused,
    Request,
    Wire,
    asked_last,
    demand,
    event,
    list_of,
    object_of,
    objects,
    read_object,
    stop_sequence_of,
    text_of,
    texts_of,
    tools_of,
    torn_quoted,
)

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
REASONS = {
    "overloaded_error": "Overloaded",
    "rate_limit_error": "This request would exceed your organization's rate limit",
    "api_error": "Internal server error",
    "authentication_error": "invalid x-api-key",
    "permission_error": "Your API key does not have permission to use the specified resource",
    "not_found_error": "The requested resource could not be found",
}
_SEARCH_FOUND = [
    {
        "type": "web_search_result",
        "title": "Nothing was searched",
        "url": "https://example.com/",
        "encrypted_content": "",
        "page_age": None,
    }
]
_SEARCH_FAILED = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
_REFUSAL = {"type": "refusal", "category": None, "explanation": "A stand-in was asked to refuse."}


@lru_cache(maxsize=8192)  # few words, repeated often: a delta costs a look-up instead of two encodings
def _delta(index: int, kind: str, field: str, text: str) -> bytes:
    return event({"type": "content_block_delta", "index": index, "delta": {"type": kind, field: text}})


_PING = event({"type": "ping"})


class AnthropicWire(Wire):
    PATH = re.compile("/v1/messages")
    OVERLOADED = 529
    REQUEST_ID = b"request-id"
    PAUSES = True
    GARBAGE = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":\n\n'

    _index = 0  # of the content block

    @staticmethod
    def read_request(body: bytes, path: str, query: str) -> Request:
        return read_request(body)

    @staticmethod
    def refusal(number: int, refused: Refused, model: str) -> dict[str, Any]:
        kind = ERROR_TYPES.get(refused.status, "invalid_request_error" if refused.status < 500 else "api_error")
        # The API names the model that it does not find, too: some of its words are the caller's.
        own = f"model: {model}" if model and refused.status == 404 else REASONS.get(kind, "Asked to refuse")
        return {**error_event(kind, refused.message or own), "request_id": f"req_standin_{number}"}

    @staticmethod
    def models() -> dict[str, Any]:
        model = {
            "type": "model",
            "id": "claude-stand-in",
            "display_name": "Stand-in, no model",
            "created_at": "1970-01-01T00:00:00Z",
            "lifecycle": "active",
        }
        return {"data": [model], "has_more": False, "first_id": model["id"], "last_id": model["id"]}

    @staticmethod
    def whole(events: list[dict[str, Any]]) -> dict[str, Any] | None:
        message: dict[str, Any] = {}
        args = ""
        for said in events:
            if said["type"] == "message_start":
                message = said["message"]
            elif said["type"] == "content_block_start":
                message["content"].append(said["content_block"])
                args = ""
            elif said["type"] == "content_block_delta":
                args += said["delta"].get("partial_json", "")
                _add(message["content"][-1], said["delta"])
            elif said["type"] == "content_block_stop" and args:
                message["content"][-1]["input"] = json.loads(args)
            elif said["type"] == "message_delta":
                return {**message, **said["delta"], "usage": said["usage"]}
        return None

    def ping(self) -> bytes:
        return _PING

    def begin(self) -> bytes:
        message: dict[str, Any] = {
            "id": f"msg_standin_{self._number}",
            "type": "message",
            "role": "assistant",
            "model": self._request.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(output_tokens=1),
        }
        return event({"type": "message_start", "message": message})

    def open_thinking(self) -> bytes:
        return self._open_block({"type": "thinking", "thinking": "", "signature": ""})

    def thinking(self, text: str) -> bytes:
        return _delta(self._index, "thinking_delta", "thinking", text)

    def close_thinking(self) -> bytes:
        return _delta(self._index, "signature_delta", "signature", "c3RhbmQtaW4=") + self._close_block()

    def open_text(self) -> bytes:
        return self._open_block({"type": "text", "text": ""})

    def text(self, text: str) -> bytes:
        return _delta(self._index, "text_delta", "text", text)

    def torn_text(self, text: str) -> bytes:
        whole = event(
            {"type": "content_block_delta", "index": self._index, "delta": {"type": "text_delta", "text": ""}}
        )
        return whole.replace(b'"text":""', b'"text":' + torn_quoted(text))

    def citation(self, index: int, citation: Citation) -> bytes:
        location = {
            "type": "web_search_result_location",
            "url": citation.url,
            "title": citation.title,
            "cited_text": citation.text,
            "encrypted_index": f"index_{index}",
        }
        delta = {"type": "citations_delta", "citation": location}
        return event({"type": "content_block_delta", "index": self._index, "delta": delta})

    def close_text(self) -> bytes:
        return self._close_block()

    def open_call(self, call: int, name: str, args: str) -> bytes:
        tool = {"type": "tool_use", "id": f"toolu_standin_{self._number}_{call}", "name": name, "input": {}}
        return self._open_block(tool) + self.call_args(call, "")  # the API's first piece is empty too

    def call_args(self, call: int, piece: str) -> bytes:
        return _delta(self._index, "input_json_delta", "partial_json", piece)

    def close_call(self, call: int, args: str) -> bytes:
        return self._close_block()

    def search(self, query: str, is_found: bool) -> Iterator[bytes]:
        use_id = f"srvtoolu_standin_{self._number}"
        use = {"type": "server_tool_use", "id": use_id, "name": "web_search", "input": {}}
        found = _SEARCH_FOUND if is_found else _SEARCH_FAILED
        yield from self._own_call(use, json.dumps({"query": query}))
        yield self._whole_block({"type": "web_search_tool_result", "tool_use_id": use_id, "content": found})

    def mcp_call(self, args: str, output: str) -> Iterator[bytes]:
        use_id = f"mcptoolu_standin_{self._number}"
        use = {"type": "mcp_tool_use", "id": use_id, "name": "read_thermometer", "server_name": "house", "input": {}}
        said = [{"type": "text", "text": output, "citations": None}]
        yield from self._own_call(use, args)
        yield self._whole_block({"type": "mcp_tool_result", "tool_use_id": use_id, "is_error": False, "content": said})

    def error(self, kind: str) -> bytes:
        return event(error_event(kind, REASONS.get(kind, "Asked to fail")))

    def finish(self, stop_reason: str, output_tokens: int) -> bytes:
        delta: dict[str, Any] = {"stop_reason": stop_reason, "stop_sequence": None}
        if stop_reason == "stop_sequence":
            delta["stop_sequence"] = stop_sequence_of(self._request.fields.get("stop_sequences"))
        if self._asked.refuse:
            delta["stop_details"] = _REFUSAL
        usage = self._usage(output_tokens)
        return event({"type": "message_delta", "delta": delta, "usage": usage}) + event({"type": "message_stop"})

    def _own_call(self, use: dict[str, Any], args: str) -> Iterator[bytes]:
        yield self._open_block(use)
        for piece in ("", args[:12], args[12:]):
            yield self.call_args(0, piece)
        yield self._close_block()

    def _usage(self, output_tokens: int) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "input_tokens": self._request.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self._asked.cached,
            "output_tokens": output_tokens,
            "server_tool_use": None,
        }
        if self._asked.thinking:
            usage["output_tokens_details"] = {"thinking_tokens": min(self._asked.thinking, output_tokens)}
        return usage

    def _open_block(self, block: dict[str, Any]) -> bytes:
        start = event({"type": "content_block_start", "index": self._index, "content_block": block})
        return start if self._index else start + _PING

    def _close_block(self) -> bytes:
        self._index += 1
        return event({"type": "content_block_stop", "index": self._index - 1})

    def _whole_block(self, block: dict[str, Any]) -> bytes:
        return self._open_block(block) + self._close_block()


def _add(block: dict[str, Any], delta: dict[str, Any]) -> None:
    """To the block that is open; but no arguments, which are JSON only at its end."""
    if delta["type"] == "citations_delta":
        block.setdefault("citations", []).append(delta["citation"])
    elif (name := delta["type"].removesuffix("_delta")) in block:
        block[name] += delta[name]


def error_event(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def read_request(body: bytes) -> Request:
    request = read_object(body)
    demand(isinstance(request.get("model"), str), "model: Field required")
    max_tokens = request.get("max_tokens")
    demand(type(max_tokens) is int and max_tokens > 0, "max_tokens: must be an integer greater than 0")
    messages = objects(request, "messages")
    said = [i for i, m in enumerate(messages) if m.get("role") == "user"]
    demand(bool(said), "messages: one must be the user's")
    texts = [text_of(messages[i].get("content")) for i in said]
    message, results = asked_last(one for i in said for one in _said(messages[i].get("content")))
    behind = max((i for i in said if text_of(messages[i].get("content")) == message), default=said[-1])
    choice = object_of(request.get("tool_choice"))
    return Request(
        request["model"],
        message,
        input_tokens=1 + sum(map(len, texts)) // 4,
        results=results,
        pauses=_pauses(messages[behind + 1 :]),
        fields=request,
        tools=tools_of(list_of(request.get("tools")), "input_schema"),
        forced=str(choice.get("name") or choice.get("type") or ""),
        stops=texts_of(request.get("stop_sequences")),
        is_streamed=request.get("stream") is True,
    )


def _said(content: Any) -> Iterator[tuple[bool, str]]:
    """A user's message: results, then what was said beside them."""
    results = [block for block in list_of(content) if object_of(block).get("type") == "tool_result"]
    yield from ((True, text_of(block.get("content"))) for block in results)
    if not results or len(results) < len(content):
        yield False, text_of(content)


def _blocks(message: dict[str, Any], kind: str) -> list[Any]:
    content = message.get("content")
    return [b for b in content if isinstance(b, dict) and b.get("type") == kind] if isinstance(content, list) else []


def _pauses(after: list[dict[str, Any]]) -> int:
    # By the searches that they end with: a client may send its pauses as one message or as several.
    return sum(len(_blocks(message, "server_tool_use")) for message in after)
