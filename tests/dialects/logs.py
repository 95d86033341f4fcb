"""Logs that folds are tried with: of each kind of stream, and of any shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from broker.dialects.fold import Facts
from broker.log.event import Event, encode_data

FACTS = Facts("0f3c" * 8, "s-1", "fast", 1_796_000_000_123, {}, {})

Told = tuple[str, Any]

START: Told = ("start", {"model": "any/model", "provider": "any", "attempt": 1})
CALL, OTHERS = {"tool_call_id": "c1", "tool": "find"}, {"tool_call_id": "c2", "tool": "search"}
SECOND = {"tool_call_id": "c3", "tool": "pay"}
USAGE = {
    "input_tokens": 7,
    "cache_read_input_tokens": 3,
    "cache_creation_input_tokens": 2,
    "output_tokens": 9,
    "thinking_tokens": 4,
}
DONE: Told = ("done", {"stop_reason": "end_turn", "usage": USAGE})
FAILED: Told = ("error", {"code": "provider_overloaded", "message": "Too busy.", "recoverable": True})
CANCELLED: Told = ("cancelled", {"reason": "requested", "by": "user:ann"})
RESTART: Told = ("restart", {"attempt": 2, "reason": "provider_cut"})


def text(said: str) -> Told:
    return "text_delta", {"text": said}


def thought(said: str) -> Told:
    return "thinking_delta", {"text": said}


CALLS: list[Told] = [
    ("tool_start", {**CALL, "client": True}),
    ("tool_args_delta", {**CALL, "partial_json": '{"q":'}),
    ("tool_start", OTHERS),
    ("tool_args_delta", {**CALL, "partial_json": '"where?"}'}),
    ("tool_args", {**CALL, "args": {"q": "where?"}, "complete": True}),
    ("tool_end", {**OTHERS, "duration_ms": 3, "output": "secret"}),
    ("tool_start", {**SECOND, "client": True}),
    ("tool_args", {**SECOND, "args": {"sum": 1.5}, "complete": True}),
]

LOGS: dict[str, list[Told]] = {
    "plain": [START, text("Ich fahre "), text("🚲 mit\u0085Rad\u2028."), DONE],
    "thinking": [START, thought("Well, "), thought("now."), text("Yes."), thought("Or?"), text("No."), DONE],
    "calls": [START, text("I look."), *CALLS, ("done", {"stop_reason": "tool_use", "usage": USAGE})],
    "mixed calls": [
        START,
        ("tool_start", {**CALL, "client": True}),
        ("tool_start", {**SECOND, "client": True}),
        ("tool_args_delta", {**SECOND, "partial_json": "{"}),
        ("tool_args_delta", {**CALL, "partial_json": '{"q":1}'}),
        text("Meanwhile."),
        ("tool_args_delta", {**SECOND, "partial_json": "}"}),
        ("done", {}),
    ],
    "restart": [START, text("Once"), RESTART, START, text("Twice "), RESTART, START, text("Thrice"), DONE],
    "silent restart": [START, ("status", {"message": "…"}), RESTART, START, text("Yes."), DONE],
    "restart of a call": [START, *CALLS[:2], RESTART, START, *CALLS, DONE],
    "error": [START, text("Half"), FAILED],
    "cancelled": [START, *CALLS[:2], CANCELLED],
    "nothing": [DONE],
    "others": [
        START,
        ("status", {"message": "…"}),
        ("citation", {"url": "a"}),
        ("app.note", {"n": 1}),
        text("a"),
        DONE,
    ],
}


def events(told: Iterable[Told], begin: int = 1) -> list[Event]:
    whole = [("queued", {}), *told] if begin == 1 else told
    return [
        Event(begin + index, kind, encode_data(data), 1_796_000_000_200 + index)
        for index, (kind, data) in enumerate(whole)
    ]


_SCALARS = st.none() | st.booleans() | st.integers(-5, 2**60) | st.sampled_from(["", "c1", "c2", "a\u2028", "end_turn"])
_ANY = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner))
_FIELDS = (
    *("text", "tool_call_id", "tool", "client", "partial_json", "args", "stop_reason", "usage", "code", "message"),
    *("reason", "stop_sequence", "provider_stop_reason"),
)
_DATA = st.dictionaries(st.sampled_from(_FIELDS), _ANY, max_size=5)
_KINDS = st.sampled_from(
    [
        *("start", "status", "thinking_delta", "text_delta", "tool_start", "tool_args_delta", "tool_args", "tool_end"),
        *("tool_error", "citation", "restart", "app.note"),
    ]
)
_LIKELY = st.sampled_from(
    [told for log in LOGS.values() for told in log if told[0] not in ("done", "error", "cancelled")]
)
_ENDINGS = st.tuples(st.sampled_from(["done", "error", "cancelled"]), _DATA | _ANY)

strange_logs = st.tuples(st.lists(_LIKELY | st.tuples(_KINDS, _DATA | _ANY), max_size=12), _ENDINGS).map(
    lambda parts: [*parts[0], parts[1]]
)
"""Of any shape under kinds that are known, likely ones among them; each ends once."""
