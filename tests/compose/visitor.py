"""Viewers and producers that come with what servers with keys ask for."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.compose.balancer import AUTHORIZED
from tests.viewers.producer import Producer
from tests.viewers.viewer import LIMIT_S, Answer, CutAt, Viewer, connect, post


class Visitor(Viewer):
    """A viewer that has nothing but `events_url`, like a browser."""

    def __init__(self, record: dict[str, Any], **headers: str) -> None:
        super().__init__(record["id"])
        self._path = record["events_url"]
        self._headers = {"Accept": "text/event-stream", **headers}

    async def view(self, port: int, cut: CutAt | None = None) -> Answer:
        headers = self._headers
        if self.last_event_id is not None:
            headers = {**headers, "Last-Event-ID": str(self.last_event_id)}
        async with asyncio.timeout(LIMIT_S), connect(port) as connection:
            connection.send("GET", self._path, headers)
            answer = await connection.read_head()
            self.answers.append(answer)
            try:
                await connection.read_body(answer, cut)
            finally:
                self.take(answer)
        return answer


class KeyedProducer(Producer):
    async def try_to_write(self, events: list[dict[str, Any]]) -> Answer:
        body = {"epoch": self._epoch, "first": self.last_event_id + 1, "events": events}
        return await post(self.port, f"/v1/streams/{self.sid}/events", body, AUTHORIZED)


async def get(port: int, path: str, **headers: str) -> Answer:
    """The whole answer to a request of its own connection, cut or not."""
    async with asyncio.timeout(LIMIT_S), connect(port) as connection:
        connection.send("GET", path, {**AUTHORIZED, **headers})
        answer = await connection.read_head()
        await connection.read_body(answer)
    return answer
