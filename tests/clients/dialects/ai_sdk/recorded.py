"""Streams to be read in chunks: those that have ended, as a client that is not cut gets them; and one that goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from tests.rig.deployment import HTTP, Deployment

SECRET = "planted-6d1f"
"""In events for operators alone."""

CALL, OWN = {"tool_call_id": "c1", "tool": "find"}, {"tool_call_id": "c2", "tool": "ask"}
FAILED, OPEN = {"tool_call_id": "c3", "tool": "pay"}, {"tool_call_id": "c4", "tool": "look"}
ALL_KINDS: list[tuple[str, dict[str, Any]]] = [
    ("start", {"model": "any/model", "provider": "any", "attempt": 1}),
    ("status", {"message": "Reading …"}),
    ("internal.provider", {"secret": SECRET}),
    ("thinking_delta", {"text": "Well, "}),
    ("thinking_delta", {"text": "now\u2028then."}),
    ("text_delta", {"text": "Ich fahre "}),
    ("text_delta", {"text": "🚲 mit\u0085Rad."}),
    ("citation", {"url": "https://example.com/a", "title": "A", "cited_text": "a", "start": 0, "end": 3}),
    ("tool_start", CALL),
    ("internal.tool_args", {**CALL, "args": {"secret": SECRET}}),
    ("tool_progress", {**CALL, "message": "half"}),
    ("text_delta", {"text": "Meanwhile. "}),
    ("tool_end", {**CALL, "duration_ms": 3, "output": {"found": [1, 2]}}),
    ("tool_start", {**FAILED, "title": "Paying"}),
    ("tool_error", {**FAILED, "code": "failed", "message": "no money"}),
    ("app.note", {"n": 1}),
    ("tool_start", {**OWN, "client": True}),
    ("tool_args_delta", {**OWN, "partial_json": '{"q":'}),
    ("tool_args_delta", {**OWN, "partial_json": '"where?"}'}),
    ("tool_args", {**OWN, "args": {"q": "where?"}, "complete": True}),
    ("tool_start", {**OPEN, "client": True}),
    ("tool_args_delta", {**OPEN, "partial_json": '{"q":1}'}),
    ("text_delta", {"text": "Done."}),
]
DONE = ("done", {"stop_reason": "tool_use", "usage": {"input_tokens": 7, "output_tokens": 9}})


class Told:
    """An external stream, as far as its producer has told it."""

    def __init__(self, deployment: Deployment, session: str | None = None) -> None:
        body = {"producer": "external", **({"session_id": session} if session else {})}
        created = HTTP.post(f"{deployment.url}/v1/streams", json=body).raise_for_status().json()
        self.sid: str = created["id"]
        self._url = f"{deployment.url}/v1/streams/{self.sid}"
        self._epoch = created["epoch"]

    def tell(self, *events: tuple[str, dict[str, Any]]) -> None:
        body = {"epoch": self._epoch, "events": [{"event": kind, "data": data} for kind, data in events]}
        HTTP.post(f"{self._url}/events", json=body).raise_for_status()

    def cancel(self) -> None:
        HTTP.post(f"{self._url}/cancel", json={"reason": "enough"}).raise_for_status()


@dataclass
class Ended:
    """A stream that has ended, as WorkflowChatTransport is given it."""

    sid: str
    chunks: list[dict[str, Any]]
    frames: list[bytes]

    @property
    def body(self) -> bytes:
        return b"".join(self.frames)

    @property
    def ends(self) -> list[int]:
        """Of each frame, in bytes."""
        return list(accumulate(map(len, self.frames)))


def read(deployment: Deployment, sid: str, query: str = "") -> Ended:
    answer = HTTP.get(f"{deployment.url}/v1/ai-sdk/workflow/{sid}/stream{query}").raise_for_status()
    frames = [frame + b"\n\n" for frame in answer.content.split(b"\n\n")[:-1]]
    assert frames[-1] == b"data: [DONE]\n\n"
    datas = [frame.removeprefix(b": ping\n").removeprefix(b"data: ") for frame in frames[:-1]]
    return Ended(sid, [json.loads(data) for data in datas], frames)


def record(deployment: Deployment) -> dict[str, Ended]:
    """One of each kind of ending, and one with a restart."""
    kinds = Told(deployment)
    kinds.tell(*ALL_KINDS, DONE)
    failed = Told(deployment)
    failed.tell(*ALL_KINDS[:7], ("error", {"code": "provider_error", "message": "It broke.", "recoverable": True}))
    cancelled = Told(deployment)
    cancelled.tell(*ALL_KINDS[:10])
    cancelled.cancel()
    restarted = deployment.create("[[thinking=2 tokens=7 rate=0 ttft_ms=0 cut_at=4 cut_times=1]]", show=["thinking"])
    deployment.wait_until_ended(restarted)
    sids = {"kinds": kinds.sid, "error": failed.sid, "cancelled": cancelled.sid, "restart": restarted}
    return {name: read(deployment, sid) for name, sid in sids.items()}
