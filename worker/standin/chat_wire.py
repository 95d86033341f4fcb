"""The OpenAI Chat Completions streaming wire, which many servers speak:

chunks with a choice's delta …  a chunk with its finish_reason  a chunk with the usage, if asked for  [DONE]
"""

from __future__ import annotations

import re
import time
from typing import Any

import orjson

from worker.standin import openai_errors
from worker.standin.directives import Directives
from worker.standin.wire import (
    Citation,
    Refused,
    Request,
    Wire,
    asked_last,
    demand,
    encoded,
    forced_of,
    list_of,
    object_of,
    objects,
    quoted,
    read_object,
    stop_sequence_of,
    text_of,
    texts_of,
    tools_of,
    torn_quoted,
)

_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class ChatWire(Wire):
    PATH = re.compile("/v1/chat/completions")
    REQUEST_ID = b"x-request-id"
    INTERLEAVES = True
    GARBAGE = b'data: {"id":"chatcmpl-standin","object":\n\n'

    def __init__(self, number: int, request: Request, asked: Directives) -> None:
        super().__init__(number, request, asked)
        options = request.fields.get("stream_options")
        self._has_usage = not request.is_streamed or object_of(options).get("include_usage") is True
        self._chunk = {
            "id": f"chatcmpl-standin-{number}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": request.model,
            "service_tier": "default",
            "system_fingerprint": "fp_standin",
            **({"usage": None} if self._has_usage else {}),
        }
        # A delta of text differs from the one before only in its text: the rest is made once.
        field = "refusal" if asked.refuse else "content"
        self._before, _, self._after = self._delta({field: ""}).rpartition(b'""')

    @staticmethod
    def read_request(body: bytes, path: str, query: str) -> Request:
        return read_request(body)

    @staticmethod
    def refusal(number: int, refused: Refused, model: str) -> dict[str, Any]:
        return openai_errors.refusal(refused, model)

    @staticmethod
    def models() -> dict[str, Any]:
        return openai_errors.MODELS

    @staticmethod
    def whole(events: list[dict[str, Any]]) -> dict[str, Any] | None:
        message: dict[str, Any] = {}
        reason = None
        for choice in (choice for said in events for choice in said.get("choices", [])):
            reason = choice["finish_reason"] or reason
            for name, value in choice["delta"].items():
                if name == "tool_calls":
                    _add_calls(message.setdefault(name, []), value)
                elif isinstance(value, list):
                    message.setdefault(name, []).extend(value)
                else:
                    message[name] = (message.get(name) or "") + value if value else message.get(name, value)
        if reason is None:
            return None
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return {**events[-1], "object": "chat.completion", "choices": [choice]}

    def begin(self) -> bytes:
        return self._delta({"role": "assistant", "content": "", "refusal": None})

    def thinking(self, text: str) -> bytes:
        return self._delta({"reasoning" if self._asked.ollama else "reasoning_content": text})

    def text(self, text: str) -> bytes:
        return b"%b%b%b" % (self._before, quoted(text), self._after)

    def torn_text(self, text: str) -> bytes:
        return b"%b%b%b" % (self._before, torn_quoted(text), self._after)

    def citation(self, index: int, citation: Citation) -> bytes:
        cited = {
            "url": citation.url,
            "title": citation.title,
            "start_index": citation.start,
            "end_index": citation.end,
        }
        return self._delta({"annotations": [{"type": "url_citation", "url_citation": cited}]})

    def open_call(self, call: int, name: str, args: str) -> bytes:
        own_id = {"id": f"call_standin_{self._number}_{call}"} if self._asked.call_ids else {}
        function = {"name": name, "arguments": args if self._asked.ollama else ""}
        index = 0 if self._asked.ollama else call
        return self._delta({"tool_calls": [{"index": index, **own_id, "type": "function", "function": function}]})

    def call_args(self, call: int, piece: str) -> bytes:
        if self._asked.ollama:
            return b""
        return self._delta({"tool_calls": [{"index": call, "function": {"arguments": piece}}]})

    def error(self, kind: str) -> bytes:
        return b"data: %b\n\n" % orjson.dumps({"error": openai_errors.error_of(kind)})

    def finish(self, stop_reason: str, output_tokens: int) -> bytes:
        reason = "stop" if self._asked.refuse else _FINISH_REASONS.get(stop_reason, stop_reason)
        # Which sequence it was says no OpenAI, but vLLM.
        stops = self._request.fields.get("stop")
        which = {"stop_reason": stop_sequence_of(stops)} if stop_reason == "stop_sequence" else {}
        end = self._delta({}, reason, **which)
        if self._has_usage:
            end += b"data: %b\n\n" % orjson.dumps({**self._chunk, "choices": [], "usage": self._usage(output_tokens)})
        return end + b"data: [DONE]\n\n"

    def _delta(self, delta: dict[str, Any], finish_reason: str | None = None, **fields: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason, **fields}
        return b"data: %b\n\n" % encoded({**self._chunk, "choices": [choice]})

    def _usage(self, output_tokens: int) -> dict[str, Any]:
        prompt_tokens = self._request.input_tokens + self._asked.cached
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": prompt_tokens + output_tokens,
            "prompt_tokens_details": {"cached_tokens": self._asked.cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": min(self._asked.thinking, output_tokens),
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


def _add_calls(calls: list[dict[str, Any]], pieces: list[dict[str, Any]]) -> None:
    """A piece with a name begins a call."""
    for piece in pieces:
        function = piece["function"]
        if "name" in function:
            calls.append({key: value for key, value in piece.items() if key != "index"})
        else:
            calls[piece["index"]]["function"]["arguments"] += function["arguments"]


def read_request(body: bytes) -> Request:
    request = read_object(body)
    model = request.get("model")
    if not isinstance(model, str):
        raise Refused(400, "you must provide a model parameter")
    messages = objects(request, "messages")
    user = [i for i, message in enumerate(messages) if message.get("role") == "user"]
    demand(bool(user), "messages: one must be the user's")
    message, results = asked_last(
        (one.get("role") == "tool", text_of(one.get("content")))
        for one in messages
        if one.get("role") in ("user", "tool")
    )
    choice = request.get("tool_choice")
    return Request(
        model,
        message,
        input_tokens=1 + sum(len(text_of(messages[i].get("content"))) for i in user) // 4,
        results=results,
        fields=request,
        is_streamed=request.get("stream") is True,
        tools=tools_of((object_of(tool).get("function") for tool in list_of(request.get("tools"))), "parameters"),
        forced=forced_of(object_of(object_of(choice).get("function")).get("name") or choice),
        stops=texts_of(request.get("stop")),
    )
