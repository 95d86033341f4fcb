"""Logs of each kind, as they are in Redis: what a worker writes, what external producers do, takeovers, endings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from broker.dialects.fold import Facts
from broker.log.event import Event, encode_data

SID = "0f" * 16
T_MS = 1_795_251_158_000
FACTS = Facts(SID, "s-1", "gpt-5-mini", T_MS, {}, {})

Said = tuple[str, dict[str, Any]]
CALL = {"tool_call_id": "call_1", "tool": "get_weather"}
OTHER = {"tool_call_id": "call_2", "tool": "search"}
USAGE = {"input_tokens": 7, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 3, "output_tokens": 4}


def log(said: Iterable[Said], takeovers: Iterable[int] = (), *, block: int = 9) -> list[Event]:
    """`takeovers`: before which of them, counted from 0, another writer begins."""
    events, at, before = [], 0, set(takeovers)
    for index, (kind, data) in enumerate(said):
        if index in before:
            at = block * 1_000_000
            block += 3
        at += 1
        events.append(Event(at, kind, encode_data(data), T_MS + 10 * index))
    return events


def words(*texts: str) -> list[Said]:
    return [("text_delta", {"text": text}) for text in texts]


def thoughts(*texts: str) -> list[Said]:
    return [("thinking_delta", {"text": text}) for text in texts]


BEGUN: list[Said] = [("queued", {}), ("start", {"model": "m", "provider": "p", "attempt": 1})]
DONE: Said = ("done", {"stop_reason": "end_turn", "usage": {**USAGE, "thinking_tokens": 2}})
RESTART: list[Said] = [("restart", {"attempt": 2, "reason": "worker_lost"}), ("start", {"attempt": 2})]
CALLED: list[Said] = [
    ("tool_start", {**CALL, "client": True}),
    ("tool_args_delta", {**CALL, "partial_json": '{"city": '}),
    ("tool_args_delta", {**CALL, "partial_json": '"Oslo"}'}),
    ("tool_args", {**CALL, "args": {"city": "Oslo"}, "complete": True}),
]
FAILED: Said = ("tool_error", {**OTHER, "duration_ms": 3, "code": "failed"})
CUT: Said = ("error", {"code": "provider_cut", "message": "It was cut.", "usage": USAGE})
RUN: list[Said] = [
    ("tool_start", OTHER),
    ("tool_progress", {**OTHER, "message": "…"}),
    ("tool_end", {**OTHER, "duration_ms": 3, "output": {"found": 2}}),
]

LOGS: dict[str, list[Event]] = {
    "plain": log([*BEGUN, *words("Oslo", " is\u2028", "fine", "\x85."), DONE]),
    "thinking": log([*BEGUN, *thoughts("hm"), *words("a"), *thoughts("b"), DONE]),
    "tools": log([*BEGUN, *words("I look."), *CALLED, *RUN, *words("Now"), DONE]),
    "two open calls": log(
        [
            *BEGUN,
            CALLED[0],
            ("tool_start", OTHER),
            CALLED[1],
            CALLED[2],
            ("tool_error", {**OTHER, "code": "failed"}),
            DONE,
        ]
    ),
    "two restarts": log([*BEGUN, *words("a", "b"), *RESTART, *words("c"), *RESTART, *words("d", "e"), DONE], [4]),
    "a takeover within calls": log(
        [*BEGUN, *words("x"), *CALLED[:2], *RUN[:1], *RESTART, *words("y"), *CALLED, DONE], [6]
    ),
    "error": log(
        [*BEGUN, *words("half"), ("error", {"code": "provider_cut", "message": "It was cut.", "usage": USAGE})]
    ),
    "cancelled": log([*BEGUN, *words("half"), ("cancelled", {"reason": "requested", "by": "anyone"})], [3]),
    "a producer's own": log([BEGUN[0], *words("no start"), ("status", {"message": "x"}), ("custom", {"a": 1}), DONE]),
    "empty": log([BEGUN[0], ("done", {})]),
}
