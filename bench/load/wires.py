"""What a provider writes of an answer of words, on each of the wires: as few events around them as the API has."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

Event = dict[str, object]

USAGE = {"input_tokens": 10, "output_tokens": 1}


class Wire(NamedTuple):
    """`delta(text)`: one event. `head`, `end`: what stands before and behind them."""

    head: bytes
    delta: Callable[[str], bytes]
    end: bytes


def named(data: Event) -> bytes:
    return f"event: {data['type']}\n".encode() + unnamed(data)


def unnamed(data: Event) -> bytes:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _anthropic_delta(text: str) -> bytes:
    delta = {"type": "text_delta", "text": text}
    return named({"type": "content_block_delta", "index": 0, "delta": delta})


ANTHROPIC = Wire(
    named(
        {
            "type": "message_start",
            "message": {
                "id": "msg_bench",
                "type": "message",
                "role": "assistant",
                "model": "bench",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": USAGE,
            },
        }
    )
    + named({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
    + named({"type": "ping"}),
    _anthropic_delta,
    named({"type": "content_block_stop", "index": 0})
    + named(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 100},
        }
    )
    + named({"type": "message_stop"}),
)

_PLACE: Event = {"item_id": "msg_bench", "output_index": 0, "content_index": 0}
_ITEM: Event = {"type": "message", "id": "msg_bench", "role": "assistant", "status": "in_progress", "content": []}
_PART: Event = {"type": "output_text", "text": "", "annotations": []}


def _response(status: str, **more: object) -> Event:
    return {"id": "resp_bench", "object": "response", "model": "bench", "status": status, "output": [], **more}


def _responses_delta(text: str) -> bytes:
    return named({"type": "response.output_text.delta", "sequence_number": 4, **_PLACE, "delta": text, "logprobs": []})


RESPONSES = Wire(
    named({"type": "response.created", "sequence_number": 0, "response": _response("in_progress")})
    + named({"type": "response.output_item.added", "sequence_number": 1, "output_index": 0, "item": _ITEM})
    + named({"type": "response.content_part.added", "sequence_number": 2, **_PLACE, "part": _PART}),
    _responses_delta,
    named(
        {
            "type": "response.completed",
            "sequence_number": 9,
            "response": _response("completed", usage={**USAGE, "total_tokens": 11}),
        }
    ),
)


def _chunk(choices: list[Event], **more: object) -> bytes:
    envelope = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1, "model": "bench"}
    return unnamed({**envelope, "choices": choices, **more})


def _choice(delta: Event, finish_reason: str | None = None) -> Event:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def _chat_delta(text: str) -> bytes:
    return _chunk([_choice({"content": text})])


CHAT = Wire(
    _chunk([_choice({"role": "assistant", "content": ""})]),
    _chat_delta,
    _chunk([_choice({}, "stop")])
    + _chunk([], usage={"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11})
    + b"data: [DONE]\n\n",
)


def _candidate(text: str, **more: object) -> bytes:
    content = {"role": "model", "parts": [{"text": text}]}
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 1, "totalTokenCount": 11}
    candidate = {"content": content, "index": 0, **more}
    return unnamed({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "bench", "responseId": "bench"})


GEMINI = Wire(b"", _candidate, _candidate("", finishReason="STOP"))

WIRES = {"anthropic": ANTHROPIC, "openai": RESPONSES, "openai-chat": CHAT, "gemini": GEMINI}
"""By our name of the provider."""

BASE_URLS = {
    "anthropic": ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", ""),
    "openai": ("OPENAI_BASE_URL", "OPENAI_API_KEY", "/v1"),
    "openai-chat": ("OPENAI_BASE_URL", "OPENAI_API_KEY", "/v1"),
    "gemini": ("GOOGLE_GEMINI_BASE_URL", "GEMINI_API_KEY", ""),
}
"""The variables that lead an SDK to a server, and give it a key; and where the address ends."""
