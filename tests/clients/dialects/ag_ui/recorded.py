"""Runs to be read, as a client that is not cut gets them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from tests.rig.deployment import HTTP, Deployment

PATH = "/v1/ag-ui"

SECRET = "planted-6d1f"
"""In events for operators alone."""

CALL, OWN = {"tool_call_id": "c1", "tool": "find"}, {"tool_call_id": "c2", "tool": "ask"}
ALL_KINDS: list[tuple[str, dict[str, Any]]] = [
    ("start", {"model": "any/model", "provider": "any", "attempt": 1}),
    ("status", {"message": "Reading …"}),
    ("internal.provider", {"secret": SECRET}),
    ("thinking_delta", {"text": "Well, "}),
    ("thinking_delta", {"text": "now\u2028then."}),
    ("text_delta", {"text": "Ich fahre "}),
    ("text_delta", {"text": "🚲 mit\u0085Rad."}),
    ("tool_start", CALL),
    ("internal.tool_args", {**CALL, "args": {"secret": SECRET}}),
    ("tool_progress", {**CALL, "message": "half"}),
    ("tool_end", {**CALL, "duration_ms": 3, "output": {"found": [1, 2]}}),
    ("text_delta", {"text": "Now you: "}),
    ("app.note", {"n": 1}),
    ("tool_start", {**OWN, "client": True}),
    ("tool_args_delta", {**OWN, "partial_json": '{"q":'}),
    ("tool_args_delta", {**OWN, "partial_json": '"where?"}'}),
    ("tool_args", {**OWN, "args": {"q": "where?"}, "complete": True}),
]
RESTARTS = "[[thinking=2 tokens=7 rate=0 ttft_ms=0 cut_at=4 cut_times=1]]"
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
    """A run that has ended."""

    run_id: str
    body: bytes

    @property
    def frames(self) -> list[bytes]:
        return [frame + b"\n\n" for frame in self.body.split(b"\n\n")[:-1]]

    @property
    def events(self) -> list[dict[str, Any]]:
        datas = [line.removeprefix(b"data: ") for line in self.body.split(b"\n") if line.startswith(b"data: ")]
        return [json.loads(data) for data in datas]

    @property
    def ids(self) -> list[str]:
        return [line[4:].decode() for line in self.body.split(b"\n") if line.startswith(b"id: ")]

    @property
    def ends(self) -> list[int]:
        """Of each frame, in bytes."""
        return list(accumulate(map(len, self.frames)))


def read(deployment: Deployment, run_id: str, number: int = 0) -> Ended:
    """`number`: of the server."""
    answer = HTTP.get(f"{deployment.urls[number]}{PATH}", params={"runId": run_id, "offset": "-1"}).raise_for_status()
    return Ended(run_id, answer.content)


def asked(text: str, run_id: str, thread_id: str = "t", **more: Any) -> dict[str, Any]:
    """RunAgentInput"""
    messages = [{"id": "asked", "role": "user", "content": text}]
    given = {"state": {}, "tools": [], "context": [], "forwardedProps": {}}
    return {"threadId": thread_id, "runId": run_id, "messages": messages, **given, **more}


def record(deployment: Deployment) -> dict[str, Ended]:
    """One of each kind of ending, and one with a restart."""
    kinds = Told(deployment)
    kinds.tell(*ALL_KINDS, DONE)
    failed = Told(deployment)
    failed.tell(*ALL_KINDS[:7], ("error", {"code": "provider_error", "message": "It broke.", "recoverable": True}))
    cancelled = Told(deployment)
    cancelled.tell(*ALL_KINDS[:10])
    cancelled.cancel()
    props = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2048}
    HTTP.post(f"{deployment.url}{PATH}", json=asked(RESTARTS, "restarts", forwardedProps=props)).raise_for_status()
    names = {"kinds": kinds.sid, "error": failed.sid, "cancelled": cancelled.sid, "restart": "restarts"}
    return {name: read(deployment, run_id) for name, run_id in names.items()}
