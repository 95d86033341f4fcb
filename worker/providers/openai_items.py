"""Output items of OpenAI's Responses API: what kinds there are, what is in them, and how the next turn gets them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from broker.log.turn import literal
from worker.providers.provider import ProviderEvent
from worker.providers.reading import count_of, object_of

Json = dict[str, Any]

# Items by which the model asks the caller for something. A shell may also be the provider's, tool_search too.
CLIENT_CALLS = frozenset(
    {
        *("function_call", "custom_tool_call", "computer_call", "local_shell_call", "shell_call", "apply_patch_call"),
        *("tool_search_call", "mcp_approval_request"),
    }
)
# Items that are a call of the provider's own tool and its result in one.
OWN_CALLS = frozenset(
    ("web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_call")
)
CALLS = CLIENT_CALLS | OWN_CALLS | {"program"}
# Items that are the result of a call which is an item of its own.
RESULTS = frozenset(
    {
        *("function_call_output", "custom_tool_call_output", "computer_call_output", "local_shell_call_output"),
        *("shell_call_output", "apply_patch_call_output", "tool_search_output", "program_output"),
    }
)

# Texts that come as deltas, each in a part of its item: what the part holds it under, and what it is to viewers.
PARTS = {
    "output_text": ("text", "text_delta"),
    "refusal": ("refusal", "text_delta"),
    "summary_text": ("text", "thinking_delta"),
    "reasoning_text": ("text", "thinking_delta"),
}


class Part:
    """One text of an item, as far as it has been shown. The text itself is not kept."""

    __slots__ = ("begins", "citations", "has_logprobs", "kind", "shown", "type")

    def __init__(self, kind: str) -> None:
        self.type = kind
        self.kind = PARTS[kind][1]
        self.begins = 0  # at which character of the answer's text
        self.shown = 0
        self.citations = 0
        self.has_logprobs = False


class Item:
    """One output item, as far as it has been said."""

    __slots__ = ("began", "call_id", "parts", "pieces", "tool", "type", "whole")

    def __init__(self, kind: str) -> None:
        self.type = kind
        self.call_id = ""  # once the call has been told
        self.tool = ""
        self.began = time.monotonic()
        self.pieces: list[str] = []  # of a call's arguments
        self.parts: dict[tuple[str, int], Part] = {}
        self.whole: Json | None = None


def id_of(item: Json) -> str:
    return item.get("call_id") or item.get("id") or ""


def tool_of(item: Json) -> str:
    """A function's own name; of the API's tools the name of their kind."""
    kind: str = item["type"]
    if kind in ("function_call", "custom_tool_call", "mcp_call"):
        return item.get("name") or ""
    return kind.removesuffix("_call")


def is_clients(item: Json) -> bool:
    if item["type"] == "shell_call":
        return bool((item.get("environment") or {}).get("type", "local") == "local")
    if item["type"] == "tool_search_call":
        return item.get("execution") == "client"
    return item["type"] in CLIENT_CALLS


def _only(item: Json, *names: str) -> Json:
    return {name: item[name] for name in names if item.get(name) is not None}


# Where the arguments of a call are in its item. Of the others they are `arguments`, a string of JSON.
ARGUMENTS: dict[str, Callable[[Json], Any]] = {
    "custom_tool_call": lambda item: item.get("input") or "",
    "web_search_call": lambda item: item.get("action") or {},
    "file_search_call": lambda item: _only(item, "queries"),
    "code_interpreter_call": lambda item: _only(item, "code"),
    "image_generation_call": lambda item: _only(item, "revised_prompt"),
    "computer_call": lambda item: _only(item, "action", "actions", "pending_safety_checks"),
    "local_shell_call": lambda item: item.get("action") or {},
    "shell_call": lambda item: item.get("action") or {},
    "apply_patch_call": lambda item: item.get("operation") or {},
    "tool_search_call": lambda item: item.get("arguments"),
    "program": lambda item: _only(item, "code"),
    "mcp_approval_request": lambda item: _only(item, "server_label", "name", "arguments"),
}


def quoted(text: Any) -> str:
    if type(text) is not str:
        raise TypeError("a delta without text")
    return orjson.dumps(text).decode()[1:-1]


def part_of(item: Item, kind: str, event: Json) -> Part:
    index = event.get("summary_index" if kind == "summary_text" else "content_index") or 0
    part = item.parts.get((kind, index))
    if part is None:
        part = item.parts[kind, index] = Part(kind)
    return part


def texts_in(item: Json) -> Iterator[tuple[str, int, Json]]:
    for name in ("summary", "content"):
        for index, said in enumerate(item.get(name) or ()):
            yield name, index, said


_CITED = ("url_citation", "file_citation", "container_file_citation")


def citation_of(said: Any, begins: int) -> Json | None:
    """Places in a part's text become places in the answer's. None: it cites nothing that we know."""
    if not isinstance(said, dict) or said.get("type") not in (
        "url_citation",
        "file_citation",
        "container_file_citation",
    ):
        return None
    index = said.get("index")  # a file's: where its mark belongs
    start, end = said.get("start_index", index), said.get("end_index", index)
    return {
        "url": said.get("url"),
        "title": said.get("title") or said.get("filename"),
        "cited_text": None,
        "start": start + begins if type(start) is int else None,
        "end": end + begins if type(end) is int else None,
    }


def ended(item: Item, said: Json) -> ProviderEvent:
    """What the provider's own tool gave."""
    data = {
        "tool_call_id": item.call_id,
        "tool": item.tool,
        "duration_ms": round((time.monotonic() - item.began) * 1000),
    }
    wrong = _went_wrong(said)
    if wrong is None:
        return "tool_end", {**data, "output": said}
    return "tool_error", {**data, "message": wrong, "code": "failed", "output": said}


def _went_wrong(item: Json) -> str | None:
    """What a person reads of a tool that failed; None if it did not."""
    error = item.get("error")
    if error:
        said = error.get("message") if isinstance(error, dict) else error
        return said if isinstance(said, str) and said else "The tool failed."
    if item.get("status") in ("failed", "incomplete"):
        return "The tool failed." if item["status"] == "failed" else "The tool did not finish."
    output = item.get("output")
    for one in output if isinstance(output, list) else ():
        outcome = one.get("outcome") if isinstance(one, dict) else None
        if isinstance(outcome, dict) and outcome.get("type") == "timeout":
            return "The command took too long."
        if isinstance(outcome, dict) and outcome.get("exit_code"):
            return f"The command ended with {outcome['exit_code']}."
    return None


_TOLD = {
    "message": ("content",),
    "reasoning": ("summary", "content", "encrypted_content"),
    "function_call": ("arguments",),
    "custom_tool_call": ("input",),
    "computer_call": ("action", "actions", "pending_safety_checks"),
    "local_shell_call": ("action",),
    "shell_call": ("action",),
    "apply_patch_call": ("operation",),
    "tool_search_call": ("arguments",),
    "program": ("code",),
    "mcp_approval_request": ("arguments",),
}


def bare(item: Item) -> Json:
    """The item without what other events have told of it: its id, phase, namespace …"""
    whole = item.whole or {"type": item.type}
    told = _TOLD.get(item.type)
    names = whole.keys() & {"id", "type"} if told is None else whole.keys() - told
    return {name: value for name, value in whole.items() if name in names and value is not None}


def usage_of(said: Any) -> Json:
    """OpenAI's input_tokens hold what came from a cache and went into one; ours do not."""
    counted = object_of(said)
    into, out = object_of(counted.get("input_tokens_details")), object_of(counted.get("output_tokens_details"))
    counts = {
        "cache_read_input_tokens": into.get("cached_tokens"),
        "cache_creation_input_tokens": into.get("cache_write_tokens"),
        "thinking_tokens": out.get("reasoning_tokens"),
    }
    usage: Json = {name: count for name, count in counts.items() if count_of(count) is not None}
    cached = usage.get("cache_read_input_tokens", 0) + usage.get("cache_creation_input_tokens", 0)
    usage["input_tokens"] = max((count_of(counted.get("input_tokens")) or 0) - cached, 0)
    usage["output_tokens"] = count_of(counted.get("output_tokens")) or 0
    return {**usage, "provider": said} if said else usage


# ---- The next turn


def can_be_sent(item: Json, is_stored: bool) -> bool:
    """Nothing half said, and no thoughts that only the provider could look up."""
    if item["type"] == "reasoning" and not is_stored:
        return bool(item.get("encrypted_content") or item.get("content"))
    return not (item["type"] in CALLS and item.get("status") == "incomplete")


def is_one_text(item: Json) -> bool:
    content = item.get("content") or []
    if item["type"] != "message" or item.get("phase") is not None or len(content) != 1:
        return False
    return content[0].get("type") == "output_text" and not content[0].get("annotations")


def lengths_of(item: Item, kind: str) -> Iterator[int]:
    for _, _, said in texts_in(item.whole or {}):
        name, told_as = PARTS.get(said.get("type", ""), ("", ""))
        if told_as == kind and said[name]:
            yield len(said[name])


def with_references(item: Item, refers: set[str]) -> Json:
    """What events hold already is referred to (broker/log/turn.py)."""
    said = item.whole or {}
    whole = {name: literal(value) for name, value in said.items()}
    if "call_id" in said and item.call_id:
        whole["call_id"] = item.call_id
    for name in ("summary", "content"):
        if isinstance(said.get(name), list):
            whole[name] = [_part_with_reference(part, refers) for part in said[name]]
    if item.type == "function_call" and said.get("arguments") and said["arguments"] == "".join(item.pieces):
        whole["arguments"] = {"$lastevent": "args", "tool_call_id": item.call_id}
    elif item.type == "custom_tool_call":
        whole["input"] = {"$lastevent": "input", "tool_call_id": item.call_id}
    return whole


def _part_with_reference(said: Json, refers: set[str]) -> Json:
    kept = {name: literal(value) for name, value in said.items() if name != "logprobs"}
    name, kind = PARTS.get(said.get("type", ""), ("", ""))
    if kind in refers and said[name]:
        what = "text" if kind == "text_delta" else "thinking"
        kept[name] = {"$lastevent": what, "characters": len(said[name])}
    return kept
