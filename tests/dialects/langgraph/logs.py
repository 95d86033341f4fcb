"""Logs as workers and producers write them, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from broker.dialects.fold import Facts, step
from broker.dialects.langgraph import MODES, LangGraph, Run
from broker.log.event import Event

SID = "0f3c8a5e21d94b7c8a5e21d94b7c0f3c"
RUN_ID = "0f3c8a5e-21d9-4b7c-8a5e-21d94b7c0f3c"
QUEUED = ("queued", {})
START = ("start", {"model": "m/n", "provider": "m", "attempt": 1})
USAGE = {"input_tokens": 7, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 1, "output_tokens": 5}
DONE = ("done", {"stop_reason": "end_turn", "usage": USAGE, "model": "m/n-2026"})

Written = tuple[str, Any]


def text(*words: str) -> list[Written]:
    return [("text_delta", {"text": word}) for word in words]


def call(call_id: str, tool: str, args: dict[str, Any], **more: Any) -> list[Written]:
    named = {"tool_call_id": call_id, "tool": tool, **more}
    whole = json.dumps(args)
    pieces = [whole[at : at + 4] for at in range(0, len(whole), 4)]
    return [
        ("tool_start", named),
        *(("tool_args_delta", {**named, "partial_json": piece}) for piece in pieces),
        ("tool_args", {**named, "args": args, "complete": True}),
    ]


def result(call_id: str, tool: str, output: Any) -> Written:
    return "tool_end", {"tool_call_id": call_id, "tool": tool, "duration_ms": 1, "output": output}


WITH_TOOLS = [
    *(QUEUED, START, ("thinking_delta", {"text": "Hm. "}), *text("Let me ", "look.")),
    *call("c1", "find", {"order": "A17"}),
    *call("c2", "find", {"order": "B2"}),
    ("tool_progress", {"tool_call_id": "c1", "tool": "find", "message": "half"}),
    result("c1", "find", {"state": "sent"}),
    ("tool_error", {"tool_call_id": "c2", "tool": "find", "code": "failed", "message": "no such order"}),
    ("citation", {"url": "https://example.com", "title": None, "cited_text": "x", "start": 0, "end": 1}),
    *text("It is ", "on its way \u2028."),
]
RESTARTED = [
    *WITH_TOOLS,
    ("restart", {"attempt": 2, "reason": "worker_lost"}),
    START,
    *text("Sent."),
    *call("c3", "refund", {}, client=True),
    ("done", {**DONE[1], "stop_reason": "tool_use"}),
]
FAILED = [*WITH_TOOLS, ("error", {"code": "provider_cut", "message": "It broke off.", "recoverable": True})]
CANCELLED = [*WITH_TOOLS, ("cancelled", {"reason": "requested", "by": "key:a"})]
OF_AN_AGENT = [
    *(QUEUED, START, ("agent_start", {"agent": "researcher.1", "parent": "desk"})),
    *call("r1", "search", {"q": "x"}, agent="researcher.1"),
    ("tool_end", {"tool_call_id": "r1", "tool": "search", "agent": "researcher.1", "duration_ms": 1}),
    ("agent_text_delta", {"agent": "researcher.1", "text": "found"}),
    *(("status", {"message": "Writing"}), ("shop.progress", {"done": 1}), *text("Here.")),
    ("done", {**DONE[1], "result": {"answer": 42}}),
]
LOGS = {
    "tools": [*WITH_TOOLS, DONE],
    "restart": RESTARTED,
    "error": FAILED,
    "cancelled": CANCELLED,
    "agent": OF_AN_AGENT,
    "nothing": [QUEUED, START, DONE],
}

ASKED = {"messages": [{"role": "user", "content": "Where is A17?"}], "max_tokens": 10}


def facts(request: dict[str, Any] | None = None, **echo: Any) -> Facts:
    return Facts(SID, "thread-1", "m/n", 0, echo, ASKED if request is None else request)


def log_of(written: Iterable[Written], ids: Sequence[int] = ()) -> list[Event]:
    return [Event(ids[at] if ids else at + 1, kind, orjson.dumps(data), 0) for at, (kind, data) in enumerate(written)]


def frames(run: Run, events: Iterable[Event]) -> list[bytes]:
    frame = LangGraph().frame
    return [frame(payload, event.id, at) for event in events for at, payload in enumerate(step(run, event))]


def begun(*modes: str, request: dict[str, Any] | None = None, **echo: Any) -> Run:
    return LangGraph(frozenset(modes or MODES)).begin(facts(request, **echo))


def parsed(frame: bytes) -> tuple[str, Any]:
    name, data, cursor, *rest = frame.decode().split("\n")
    assert (rest, cursor[:4]) == (["", ""], "id: ")
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def told(written: Iterable[Written], *modes: str, **begin: Any) -> list[tuple[str, Any]]:
    return [parsed(frame) for frame in frames(begun(*modes, **begin), log_of(written))]
