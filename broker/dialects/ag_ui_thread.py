"""What a thread of AG-UI says, for TanStack AI's `hydrate`: UIMessage[] of its newest run's request and answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from broker.dialects.ag_ui import NAME, messages_before, run_id
from broker.dialects.fold import Facts, Text
from broker.dialects.sse import CONTENT_TYPE, HEARTBEAT, Gap
from broker.log.event import RESTART, TEXT_DELTA, Event


class AgUiThreadFold:
    """Says nothing, and keeps the answer's text: in one message, under the id that its first one has in the run."""

    __slots__ = ("_attempt", "_facts", "_text", "is_over", "number")

    def __init__(self, facts: Facts) -> None:
        self.number = 0
        self.is_over = False
        self._facts = facts
        self._attempt = 1
        self._text = Text()

    @property
    def run_id(self) -> str:
        return run_id(self._facts)

    def step(self, event: Event) -> list[bytes]:
        if event.kind == TEXT_DELTA:
            text = orjson.loads(event.data)
            if isinstance(text, dict) and isinstance(text.get("text"), str):
                self._text.add(text["text"])
        elif event.kind == RESTART:
            self._attempt += 1
            self._text = Text()
        return []

    def messages(self, *, with_answer: bool) -> list[dict[str, Any]]:
        shown = [_shown(message) for message in messages_before(self._facts) if isinstance(message, dict)]
        messages = [message for message in shown if message]
        if with_answer and (text := str(self._text)):
            messages.append(_message(f"{self._facts.sid}-{self._attempt}-1", "assistant", text))
        return messages

    def opening(self) -> list[bytes]:
        return []

    def gap(self, gap: Gap) -> list[bytes]:
        return []

    def copy(self) -> AgUiThreadFold:
        copy = AgUiThreadFold(self._facts)
        copy._attempt, copy._text = self._attempt, self._text.copy()
        return copy


def _shown(message: Mapping[str, Any]) -> dict[str, Any] | None:
    """A message as it was sent: TanStack AI's has its own parts. What is no user's or model's is not shown."""
    role = message.get("role")
    if role not in ("user", "assistant") or not isinstance(message.get("id"), str):
        return None
    if isinstance(message.get("parts"), list):
        return {"id": message["id"], "role": role, "parts": message["parts"]}
    content = message.get("content")
    return _message(message["id"], role, content) if isinstance(content, str) and content else None


def _message(message_id: str, role: str, text: str) -> dict[str, Any]:
    return {"id": message_id, "role": role, "parts": [{"type": "text", "content": text}]}


@dataclass(frozen=True, slots=True)
class AgUiThread:
    name: str = NAME
    content_type: str = CONTENT_TYPE
    heartbeat: bytes = HEARTBEAT
    end: bytes = b""
    merges: bool = False
    needs_request: bool = True
    """Whether what was asked is among the messages."""

    def begin(self, facts: Facts) -> AgUiThreadFold:
        return AgUiThreadFold(facts)

    def frame(self, payload: bytes, event_id: int, index: int) -> bytes:
        return payload
