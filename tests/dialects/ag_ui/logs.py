"""Logs of each kind of run, as their events are; `whole` is what a client that is not cut is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from ag_ui_validate import Diagnostic
from ag_ui_validate.transport import TransportOptions, validate_body

from broker.dialects.ag_ui import AgUi
from broker.dialects.fold import Facts, step
from broker.log.event import Event, encode_data

SID = "a" * 32
ASKED = [{"id": "asked", "role": "user", "content": "Where?"}]
FACTS = Facts(
    sid=SID,
    session="thread-1",
    model="any",
    created_ms=1,
    echo={"thread_id": "thread-1", "run_id": "run-1"},
    request={"echo": {"messages": ASKED}},
)

BEGUN: list[tuple[str, Any]] = [
    ("queued", {}),
    ("start", {"model": "any/model", "provider": "any", "attempt": 1}),
    ("status", {"message": "Reading …"}),
    ("thinking_delta", {"text": "Well, "}),
    ("thinking_delta", {"text": "now\u2028then."}),
    ("text_delta", {"text": "Ich fahre "}),
    ("text_delta", {"text": "🚲 mit\u0085Rad."}),
]
SEARCH, ASK = {"tool_call_id": "c1", "tool": "find"}, {"tool_call_id": "c2", "tool": "ask"}
TOOLS: list[tuple[str, Any]] = [
    ("tool_start", SEARCH),
    ("tool_progress", {**SEARCH, "message": "half"}),
    ("tool_end", {**SEARCH, "duration_ms": 3, "output": {"found": [1, 2]}}),
    ("tool_start", {"tool_call_id": "c3", "tool": "pay"}),
    ("tool_error", {"tool_call_id": "c3", "tool": "pay", "code": "failed", "message": "no money"}),
    ("text_delta", {"text": "And: "}),
    ("app.note", {"n": 1}),
    ("tool_start", {**ASK, "client": True}),
    ("tool_args_delta", {**ASK, "partial_json": '{"q":'}),
    ("tool_args_delta", {**ASK, "partial_json": '"where?"}'}),
    ("tool_args", {**ASK, "args": {"q": "where?"}, "complete": True}),
    ("tool_start", {"tool_call_id": "c4", "tool": "ask", "client": True}),
    ("tool_args", {"tool_call_id": "c4", "tool": "ask", "args": {"q": "when?"}, "complete": True}),
]
DONE = ("done", {"stop_reason": "end_turn", "usage": {"input_tokens": 7, "output_tokens": 9}})
AGAIN = ("restart", {"attempt": 2, "reason": "worker_lost"})

LOGS: dict[str, list[tuple[str, Any]]] = {
    "plain": [*BEGUN, DONE],
    "tools": [*BEGUN, *TOOLS, ("done", {"stop_reason": "tool_use"})],
    "two restarts": [*BEGUN, *TOOLS[:4], AGAIN, *BEGUN[1:], *TOOLS, AGAIN, *BEGUN[1:4], DONE],
    "error": [*BEGUN, *TOOLS[:1], ("error", {"code": "provider_error", "message": "It broke.", "recoverable": True})],
    "cancelled": [*BEGUN, ("cancelled", {"reason": "enough", "by": "a"})],
    "cancelled while it waits": [("queued", {}), ("cancelled", {"reason": "enough", "by": "a"})],
    "an agent's": [("queued", {}), ("agent_start", {"agent": "b"}), ("agent_text_delta", {"agent": "b", "text": "x"}),
                   ("done", {"result": {"n": 1}})],
}  # fmt: skip


def events(log: Iterable[tuple[str, Any]], jump: int = 0) -> list[Event]:
    """`jump`: by how many ids a restart does."""
    made: list[Event] = []
    at = 0
    for kind, data in log:
        at += 1 + jump * (kind == "restart")
        made.append(Event(at, kind, encode_data(data), 1_780_000_000_000 + at))
    return made


def whole(log: Sequence[Event], facts: Facts = FACTS) -> bytes:
    dialect = AgUi()
    fold = dialect.begin(facts)
    return b"".join(
        dialect.frame(payload, event.id, index) for event in log for index, payload in enumerate(step(fold, event))
    )


async def found_in(body: bytes) -> list[Diagnostic]:
    """What ag-ui-validate finds in a recorded answer."""

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    return (await validate_body(chunks(), "text/event-stream", TransportOptions(recorded=True))).report.diagnostics
