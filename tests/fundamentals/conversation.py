"""What these tests say to a server, and how they read what it answers: an SSE client in ten lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx


class Event(NamedTuple):
    id: int
    kind: str
    data: dict[str, Any]


def client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, trust_env=False, timeout=60)


def events(answer: httpx.Response) -> Iterator[Event]:
    """Each event as its blank line arrives."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            yield Event(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            fields = {}


def watch(server: httpx.Client, stream: str, *, after: int = 0, until: str = "") -> list[Event]:
    """Watch a stream: to its end, or until an event of some kind has come, when this viewer's connection is cut."""
    seen: list[Event] = []
    with server.stream("GET", f"/v1/streams/{stream}/events", headers={"Last-Event-ID": str(after)}) as answer:
        assert answer.status_code in (200, 204)  # 204: the stream has ended, and `after` was its last event
        for event in events(answer):
            seen.append(event)
            if event.kind == until:
                break
    return seen


def text(seen: list[Event]) -> str:
    return "".join(event.data["text"] for event in seen if event.kind == "text_delta")
