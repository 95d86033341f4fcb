"""Messages as LangChain writes them, and as a request has them (docs/API.md, "What is asked"): both ways, pure.

A thread shows `human`, `ai` and `tool` messages. A request has `user`, `assistant` and `system` ones, in blocks, and
what tools gave is part of a user's. So one message of a request may be several of a thread, or none: `system` messages
are the model's, and a thread does not show them; nor does it show what an answer has beside its text and the calls that
the caller runs, since that may be for operators alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from broker.dialects.parts import image_block, of_type, refused, text_block, tool_result, tool_use

Json = dict[str, Any]

_DATA_URL = "data:"

_NAMES = {
    "human": ("user", "Human"),
    "ai": ("assistant", "AI"),
    "system": ("developer", "System"),
    "tool": ("", "Tool"),
}

ROLES = {
    name: kind
    for kind, (role, of_class) in _NAMES.items()
    for name in (kind, role, f"{of_class}Message", f"{of_class}MessageChunk")
    if name
}
"""What a message calls itself, in `type` or `role`, as a dict, or in the name of its class (LangChain's `dumpd`)."""

MAX_MESSAGES = 1000
MAX_PARTS = 20_000
"""Of all messages of a request: as many as a start takes (service/bodies.py, web/strict_json.py). Here texts may be
messages and parts, so that a body of 2 MiB has half a million of them: all others would wait for seconds.
"""

_DROPPED = frozenset({"thinking", "redacted_thinking", "reasoning", "tool_use", "tool_call", "input_json_delta"})
"""Parts of an answer that is sent back: thoughts without their signature no provider takes, and calls are in
`tool_calls`."""


def plain(kind: str, content: Any, message_id: str | None, **more: Any) -> Json:
    """A message as LangChain's Pydantic classes write it."""
    return {
        "content": content,
        "additional_kwargs": {},
        "response_metadata": {},
        "type": kind,
        "name": None,
        "id": message_id,
        **more,
    }


def ai(content: Any, message_id: str | None, calls: Sequence[Json] = (), **more: Any) -> Json:
    return plain("ai", content, message_id, **{"tool_calls": list(calls), "invalid_tool_calls": [], **more})


# -- from a request ------------------------------------------------------------------------------------------------


def shown(message: Any, ids: Sequence[Any] = ()) -> list[Json]:
    """What a thread shows of a request's message. `ids`: of those, as far as they are known."""
    if not isinstance(message, dict):
        return []
    made = list(_shown(message.get("role"), message.get("content")))
    for one, message_id in zip(made, ids, strict=False):
        one["id"] = message_id if isinstance(message_id, str) else None
    return made


def _shown(role: Any, content: Any) -> Iterator[Json]:
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    if role == "user" and isinstance(content, str):
        yield plain("human", content, None)
    elif role == "user":
        for block in blocks:
            if block.get("type") == "tool_result":
                yield _result(block)
        if parts := [_part(block) for block in blocks if block.get("type") != "tool_result"]:
            yield plain("human", parts, None)
    elif role == "assistant":
        text = content if isinstance(content, str) else "".join(_texts(blocks))
        yield ai(text, None, [_call(block) for block in blocks if block.get("type") == "tool_use"])


def _texts(blocks: Sequence[Json]) -> Iterator[str]:
    for block in blocks:
        if block.get("type") == "text" and isinstance(text := block.get("text"), str):
            yield text


def _call(block: Json) -> Json:
    return {"name": block.get("name"), "args": block.get("input") or {}, "id": block.get("id"), "type": "tool_call"}


def _result(block: Json) -> Json:
    content = block.get("content", "")
    if isinstance(content, list):
        content = [_part(part) for part in content if isinstance(part, dict)]
    status = "error" if block.get("is_error") is True else "success"
    return plain("tool", content, None, tool_call_id=block.get("tool_use_id"), artifact=None, status=status)


def _part(block: Json) -> Json:
    source = block.get("source")
    if block.get("type") != "image" or not isinstance(source, dict):
        return block
    url = source.get("url")
    if source.get("type") == "base64":
        url = f"{_DATA_URL}{source.get('media_type')};base64,{source.get('data')}"
    return {"type": "image_url", "image_url": {"url": url}} if isinstance(url, str) else block


# -- to a request --------------------------------------------------------------------------------------------------


class Asked:
    """One message of a request, and those of a thread that it stands for."""

    __slots__ = ("message", "shown")

    def __init__(self, message: Json, shown: list[Json]) -> None:
        self.message = message
        self.shown = shown

    def kept(self) -> list[Any]:
        """What a request keeps of them: their ids where they follow from its message, else all of them."""
        ids = [one.get("id") for one in self.shown]
        return ids if shown(self.message, ids) == self.shown else self.shown


def asked(given: Any, where: str) -> list[Asked]:
    """A run's messages as a request has them. `given`: one, or a list, in any form that LangGraph's servers take.

    Raises InvalidRequest, which names the place.
    """
    if isinstance(given, list) and len(given) > MAX_MESSAGES:
        raise refused(where, f"at most {MAX_MESSAGES} messages")
    made: list[Asked] = []
    parts = 0
    for number, one in enumerate(given if isinstance(given, list) else [given]):
        place = f"{where}[{number}]" if isinstance(given, list) else where
        kind, message, as_shown = _one(one, place)
        if (parts := parts + _count_parts(message["content"])) > MAX_PARTS:
            raise refused(place, f"at most {MAX_PARTS} parts in all messages")
        _append(made, kind, message, as_shown)
    return made


def _count_parts(content: Any) -> int:
    """With those of a tool's result."""
    blocks = content if isinstance(content, list) else ()
    return len(blocks) + sum(len(said) for block in blocks if isinstance(said := block.get("content"), list))


def _append(made: list[Asked], kind: str, message: Json, as_shown: list[Json]) -> None:
    last = made[-1] if made else None
    if kind == "tool" and last and last.shown and last.shown[-1]["type"] == "tool":
        # Providers want what parallel calls gave in one message.
        last.message["content"] += message["content"]
        last.shown += as_shown
    else:
        made.append(Asked(message, as_shown))


def _one(given: Any, where: str) -> tuple[str, Json, list[Json]]:
    kind, message = _kind_of(given, where)
    content, message_id = message.get("content", ""), message.get("id")
    ids = [message_id if isinstance(message_id, str) else None]
    if kind == "tool":
        made = {"role": "user", "content": [_tool_result(message, where)]}
    elif kind == "ai":
        made = {"role": "assistant", "content": _answer(message, where)}
    else:
        made = {"role": "user" if kind == "human" else "system", "content": _content(content, f"{where}.content")}
    return kind, made, shown(made, ids)


def _kind_of(given: Any, where: str) -> tuple[str, Json]:
    if isinstance(given, str):
        return "human", {"content": given}
    if isinstance(given, list) and len(given) == 2 and all(isinstance(part, str) for part in given):
        given = {"role": given[0], "content": given[1]}
    if not isinstance(given, dict):
        raise refused(where, "a message is an object with type (or role) and content")
    if given.get("type") == "constructor" and isinstance(of := given.get("id"), list) and of:
        given = {**_object(given.get("kwargs")), "type": of[-1]}
    name = given.get("type") or given.get("role")
    kind = ROLES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise refused(f"{where}.type", "human, ai, system or tool; messages cannot be removed from a thread")
    return kind, given


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _content(content: Any, where: str) -> str | list[Json]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise refused(where, "a text, or a list of parts")
    if len(content) > MAX_PARTS:
        raise refused(where, f"at most {MAX_PARTS} parts in all messages")
    return [made for number, part in enumerate(content) for made in _block(part, f"{where}[{number}]")]


def _block(part: Any, where: str) -> Iterator[Json]:
    if isinstance(part, str):
        yield {"type": "text", "text": part}
        return
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        yield {name: part[name] for name in ("type", "text", "cache_control") if name in part}
    elif kind in ("image", "document") and isinstance(part.get("source"), dict):
        yield part  # as a request has it
    elif kind in ("image", "image_url"):
        yield image_block(_url(part), where)
    elif not isinstance(kind, str) or kind not in _DROPPED:
        raise refused(f"{where}.type", "text, image_url or image; no other parts are carried")


def _url(part: Json) -> Any:
    """Of a part in any of LangChain's forms: OpenAI's, and its own two."""
    url = part.get("image_url", part.get("url"))
    if isinstance(url, dict):
        url = url.get("url")
    if url is None and isinstance(data := part.get("base64", part.get("data")), str):
        return f"{_DATA_URL}{part.get('mime_type')};base64,{data}"
    return url


def _answer(message: Json, where: str) -> str | list[Json]:
    content = _content(message.get("content") or "", f"{where}.content")
    calls = of_type(message.get("tool_calls") or [], list, f"{where}.tool_calls")
    if not calls:
        return content
    said = [text_block(content, where)] if isinstance(content, str) and content else content or []
    return [*(block for block in said if isinstance(block, dict)), *_uses(calls, f"{where}.tool_calls")]


def _uses(calls: list[Any], where: str) -> Iterator[Json]:
    for number, call in enumerate(calls):
        place = f"{where}[{number}]"
        given = of_type(call, dict, place)
        yield tool_use(given.get("id"), given.get("name"), given.get("args"), place)


def _tool_result(message: Json, where: str) -> Json:
    content = message.get("content", "")
    if not isinstance(content, str | list):
        content = orjson.dumps(content).decode()
    said = _content(content, f"{where}.content")
    return tool_result(
        message.get("tool_call_id"), said, f"{where}.tool_call_id", is_error=message.get("status") == "error"
    )
