"""A run that has ended, and what an SDK that is not cut gets of it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from broker.dialects.langgraph import run_id_of
from tests.js.cutting import Cut
from tests.rig.deployment import HTTP, Deployment
from tests.rig.long import LONG

PROMPT = "Wörter 漢字 🚲 [[ttft_ms=0 rate=0 thinking=2 tools=1 args_piece=24 tokens=12 cut_at=2 cut_times=1]]"
"""Of two attempts: the provider breaks off the first one."""

MODES = ["values", "updates", "messages", "messages-tuple", "custom"]

Part = tuple[str | None, str, Any]
"""Its id, its name, its data."""


class Recorded(NamedTuple):
    thread_id: str
    run_id: str
    body: bytes
    parts: list[Part]

    @property
    def path(self) -> str:
        return f"/threads/{self.thread_id}/runs/{self.run_id}/stream"

    def cuts(self, step: int) -> dict[str, Cut]:
        """Behind each frame, and at each `step`th byte: by the name of the case."""
        ends = [at + 2 for at in range(len(self.body)) if self.body[at : at + 2] == b"\n\n"]
        places = sorted({*ends, *range(0, len(self.body), 1 if LONG else step)})
        return {str(at): Cut(at, "reset" if number % 2 else "close") for number, at in enumerate(places)}


def recorded(deployment: Deployment, thread_id: str) -> Recorded:
    sid = deployment.create(PROMPT, show=["thinking", "args"], session_id=thread_id)
    deployment.wait_until_ended(sid)
    run = Recorded(thread_id, run_id_of(sid), b"", [])
    answer = HTTP.get(f"{deployment.url}/langgraph{run.path}", params={"stream_mode": MODES})
    assert answer.status_code == 200, answer.text
    made = run._replace(body=answer.content, parts=list(map(_part, answer.content.split(b"\n\n")[:-1])))
    names = {name for _, name, _ in made.parts}
    assert {"metadata", "values", "updates", "messages", "messages/partial", "custom", "end"} <= names
    return made


def _part(frame: bytes) -> Part:
    fields = dict(line.split(": ", 1) for line in frame.decode().split("\n"))
    return fields["id"], fields["event"], json.loads(fields["data"])
