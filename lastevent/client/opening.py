"""How a producer comes to its stream: it starts one, or takes one over. No I/O: producer.py drives it.

A start is sent until it is answered, with the same Idempotency-Key. So a process that is killed and started again with
its key finds the stream that it had (200 instead of 201), with the epoch that is needed to write it, and reads what is
in the log: it goes on behind that, and can send it again if Redis comes back with less.

Races

- The last request of the process before may arrive after the log was read. What comes then under the same ids is
  another event: the next append is refused with `writer_superseded`, and nothing is mixed.
- The lease of the process before runs out after 30 s: the stream has then ended, which is said at once.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

from lastevent.client.outbox import ENDINGS, FIRST, Answer, Refusal, Wait, Waits, encoded, is_passing

JSON = {"Content-Type": "application/json"}


class Ask(NamedTuple):
    """A request. `why`: of the token, `refused` if that of the request before was."""

    method: str
    path: str
    content: bytes = b""
    headers: Mapping[str, str] = {}
    why: str | None = None


class Opened(NamedTuple):
    sid: str
    epoch: int
    written: list[tuple[int, str, dict[str, Any]]]
    """(id, kind, data) of what a process before has written, from id 2 on."""
    last_id: int

    @property
    def kept(self) -> list[bytes]:
        """Encoded, one for each id; empty for what this process may not see."""
        seen = {id: encoded(kind, data) for id, kind, data in self.written}
        return [seen.get(id, b"") for id in range(FIRST, self.last_id + 1)]


Steps = Generator[Ask | Wait, Answer | None, Answer]


def start(body: Mapping[str, Any], key: str) -> Generator[Ask | Wait, Answer | None, Opened | Refusal]:
    """A stream of one's own, by POST. Each step is answered with an Answer, or None if there was none."""
    content = json.dumps(dict(body), separators=(",", ":"), allow_nan=False).encode()
    answer = yield from _until_answered(Ask("POST", "/v1/streams", content, {**JSON, "Idempotency-Key": key}))
    return (yield from _take(answer, None))


def attach(sid: str, epoch: int) -> Generator[Ask | Wait, Answer | None, Opened | Refusal]:
    """A stream that was started elsewhere."""
    answer = yield from _until_answered(Ask("GET", f"/v1/streams/{sid}"))
    return (yield from _take(answer, epoch))


def _take(answer: Answer, epoch: int | None) -> Generator[Ask | Wait, Answer | None, Opened | Refusal]:
    record = answer.body
    if answer.status not in (200, 201) or "id" not in record:
        code = str(record.get("code") or "unexpected_answer")
        return Refusal(code, answer.status, str(record.get("detail") or f"The server answered {answer.status}."))
    if record["state"] in ENDINGS:
        return Refusal("stream_closed", 0, f"The stream {record['id']} has ended: {record['state']}.")
    sid, last_id = str(record["id"]), int(record["last_event_id"])
    epoch = int(record.get("epoch") or 1) if epoch is None else epoch
    written: list[tuple[int, str, dict[str, Any]]] = []
    waits = Waits()
    while last_id >= FIRST:
        ask = Ask("GET", f"/v1/streams/{sid}/events?follow=0", headers={"Accept": "application/x-ndjson"})
        answer = yield from _until_answered(ask)
        if answer.status >= 400:  # a key that may only append
            break
        events = [json.loads(line) for line in answer.content.splitlines() if line.strip()]
        written = [(one["id"], one["event"], one["data"]) for one in events if one.get("id", 0) >= FIRST]
        last_id = max([last_id, *(id for id, _, _ in written)])
        if not any(kind == "gap" for kind in (one["event"] for one in events)):
            break
        yield Wait(waits.next_s())
    if written and written[-1][1] in ENDINGS:
        return Refusal("stream_closed", 0, f"The stream {sid} has ended: {written[-1][1]}.")
    return Opened(sid, epoch, written, last_id)


def _until_answered(ask: Ask) -> Steps:
    waits = Waits()
    while True:
        answer = yield ask
        if answer is not None and (answer.status in (200, 201) or not is_passing(answer.status)):
            return answer
        yield Wait(waits.next_s(answer.retry_after_s if answer else 0.0))
