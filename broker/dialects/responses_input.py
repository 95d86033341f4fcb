"""What a stream was asked, as items of OpenAI Responses. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

Json = dict[str, Any]

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}


def input_items(request: Mapping[str, Any], sid: str) -> list[Json]:
    """Of any stream, however it was started. `request`: the native one, whose blocks nobody has looked into.

    Nothing of a thought, nor of what this dialect has no word for.
    """
    items = [item for message in request.get("messages") or [] for item in _items_of(message)]
    return [{"id": f"{_PREFIXES[item['type']]}_{sid}_in_{index}", **item} for index, item in enumerate(items)]


def _items_of(message: Json) -> Iterator[Json]:
    role, content = message["role"], message["content"]
    blocks: list[Json] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    parts: list[Json] = []
    for block in blocks:
        if (made := _item_of(block)) is None:
            parts += _parts_of(block, is_answer=role == "assistant")
            continue
        yield from _message(role, parts)
        parts = []
        yield made
    yield from _message(role, parts)


def _message(role: str, parts: list[Json]) -> Iterator[Json]:
    if parts:
        yield {"type": "message", "role": role, "status": "completed", "content": parts}


def _item_of(block: Json) -> Json | None:
    """Of a block that is an item by itself."""
    if block.get("type") == "tool_use":
        arguments = orjson.dumps(block.get("input")).decode()
        called = {"call_id": block.get("id"), "name": block.get("name"), "arguments": arguments}
        return {"type": "function_call", "status": "completed", **called}
    if block.get("type") == "tool_result":
        called = {"call_id": block.get("tool_use_id"), "output": _text_of(block.get("content"))}
        return {"type": "function_call_output", "status": "completed", **called}
    return None


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    blocks = [one for one in content if isinstance(one, dict)] if isinstance(content, list) else []
    return "".join(text for block in blocks if isinstance(text := block.get("text"), str))


def _parts_of(block: Json, *, is_answer: bool) -> list[Json]:
    if block.get("type") == "text":
        if is_answer:
            return [{"type": "output_text", "text": block.get("text"), "annotations": []}]
        return [{"type": "input_text", "text": block.get("text")}]
    source = block.get("source")
    if block.get("type") == "image" and isinstance(source, dict):
        of_data = f"data:{source.get('media_type')};base64,{source.get('data')}"
        url = source.get("url") if source.get("type") == "url" else of_data
        return [{"type": "input_image", "image_url": url, "detail": "auto"}]
    return []
