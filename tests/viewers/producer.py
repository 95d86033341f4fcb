"""An external producer: with it a test, not a clock, says when a stream goes on and when it ends."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.viewers.viewer import Answer, post


class Producer:
    """Writes one stream; event 1 (`queued`) is there already."""

    def __init__(self, created: dict[str, Any], port: int) -> None:
        self.sid: str = created["id"]
        self.port = port
        self.last_event_id = 1
        self._epoch = created["epoch"]

    @classmethod
    async def create(cls, port: int) -> Producer:
        return cls((await post(port, "/v1/streams", {"producer": "external"})).json, port)

    async def write(self, *texts: str) -> None:
        self._check(await self.try_to_write([{"event": "text_delta", "data": {"text": text}} for text in texts]))

    async def finish(self) -> None:
        """Asks again when it is told to: for some seconds after a restart of Redis an ending has to wait."""
        answer = await self.try_to_write([{"event": "done", "data": {}}])
        if answer.status == 503:
            await asyncio.sleep(int(answer.headers["retry-after"]))
            answer = await self.try_to_write([{"event": "done", "data": {}}])
        self._check(answer)

    async def try_to_write(self, events: list[dict[str, Any]]) -> Answer:
        """May be repeated, until it was a success: `first` says which events these are."""
        body = {"epoch": self._epoch, "first": self.last_event_id + 1, "events": events}
        return await post(self.port, f"/v1/streams/{self.sid}/events", body)

    def _check(self, answer: Answer) -> None:
        assert answer.status == 200, answer
        self.last_event_id = answer.json["last_event_id"]
