"""Responses that have ended, of each kind: made once, and followed by many clients."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from tests.rig.deployment import HTTP, Deployment

SECRET = "planted-91be"
"""In events for operators alone."""

CALL, OTHER = {"tool_call_id": "c1", "tool": "weather"}, {"tool_call_id": "c2", "tool": "search"}
FAILED = {"tool_call_id": "c3", "tool": "pay"}
ALL_KINDS: list[tuple[str, dict[str, Any]]] = [
    ("start", {"model": "any/model", "provider": "any", "attempt": 1}),
    ("status", {"message": "Reading …"}),
    ("internal.provider", {"secret": SECRET}),
    ("thinking_delta", {"text": "Well, "}),
    ("thinking_delta", {"text": "now\u2028then."}),
    ("text_delta", {"text": "Ich fahre "}),
    ("text_delta", {"text": "🚲 mit\u0085Rad."}),
    ("tool_start", OTHER),
    ("internal.tool_args", {**OTHER, "args": {"secret": SECRET}}),
    ("text_delta", {"text": "Meanwhile. "}),
    ("tool_end", {**OTHER, "duration_ms": 3, "output": {"found": [1, 2]}}),
    ("tool_start", FAILED),
    ("tool_error", {**FAILED, "code": "failed", "message": "no money"}),
    ("app.note", {"n": 1}),
    ("text_delta", {"text": "Done."}),
    ("tool_start", {**CALL, "client": True}),
    ("tool_args_delta", {**CALL, "partial_json": '{"city":'}),
    ("tool_args_delta", {**CALL, "partial_json": '"Oslo"}'}),
    ("tool_args", {**CALL, "args": {"city": "Oslo"}, "complete": True}),
]
DONE = ("done", {"stop_reason": "tool_use", "usage": {"input_tokens": 7, "output_tokens": 9}})


@dataclass
class Ended:
    """`frames`: as they come from the wire, `data: [DONE]` among them."""

    sid: str
    frames: list[bytes]

    @property
    def id(self) -> str:
        return f"resp_{self.sid}"

    @property
    def body(self) -> bytes:
        return b"".join(self.frames)

    @property
    def ends(self) -> list[int]:
        """Of each frame, in bytes."""
        return list(accumulate(map(len, self.frames)))

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(frame.partition(b"\ndata: ")[2]) for frame in self.frames[:-1]]

    @property
    def numbers(self) -> list[int]:
        return [event["sequence_number"] for event in self.events]

    @property
    def response(self) -> dict[str, Any]:
        """That of its ending."""
        response: dict[str, Any] = self.events[-1]["response"]
        return response


def external(deployment: Deployment, *events: tuple[str, dict[str, Any]]) -> str:
    """A stream of these events; its id."""
    created = HTTP.post(f"{deployment.url}/v1/streams", json={"producer": "external"}).raise_for_status().json()
    told = [{"event": kind, "data": data} for kind, data in events]
    url = f"{deployment.url}/v1/streams/{created['id']}/events"
    HTTP.post(url, json={"epoch": created["epoch"], "events": told}).raise_for_status()
    sid: str = created["id"]
    return sid


def read(deployment: Deployment, sid: str) -> Ended:
    answer = HTTP.get(f"{deployment.url}/v1/responses/resp_{sid}?stream=true").raise_for_status()
    frames = [frame + b"\n\n" for frame in answer.content.split(b"\n\n")[:-1]]
    assert frames[-1] == b"data: [DONE]\n\n"
    assert all(frame.startswith(b"event: ") for frame in frames[:-1])
    return Ended(sid, frames)


def record(deployment: Deployment) -> dict[str, Ended]:
    """One of each kind of ending, and one with a restart."""
    kinds = external(deployment, *ALL_KINDS, DONE)
    error = external(deployment, *ALL_KINDS[:7], ("error", {"code": "provider_cut", "message": "Cut."}))
    cancelled = external(deployment, *ALL_KINDS[:10])
    HTTP.post(f"{deployment.url}/v1/streams/{cancelled}/cancel").raise_for_status()
    restart = deployment.create("[[thinking=2 tokens=7 rate=0 ttft_ms=0 cut_at=4 cut_times=1]]", show=["thinking"])
    deployment.wait_until_ended(restart)
    sids = {"kinds": kinds, "error": error, "cancelled": cancelled, "restart": restart}
    return {name: read(deployment, sid) for name, sid in sids.items()}
