"""A client of sockets, over somebody else's WebSocket library (`websockets`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

LIMIT_S = 60.0


class Speaker:
    """`heard`: all messages, as they came."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.heard: list[dict[str, Any]] = []
        self._refs = count(1)

    async def say(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            await self.connection.send(json.dumps(message))

    async def say_raw(self, message: str | bytes) -> None:
        await self.connection.send(message)

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(LIMIT_S):
            message: dict[str, Any] = json.loads(await self.connection.recv())
        self.heard.append(message)
        return message

    async def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while not wanted(message := await self.hear()):
            pass
        return message

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """The answer, which names this op's `ref`."""
        ref = next(self._refs)
        await self.say({"op": op, "ref": ref, **fields})
        return await self.until(lambda message: message.get("ref") == ref)

    async def over(self, sid: str) -> str:
        """The state in which it ended."""
        told = await self.until(lambda message: message["event"] == "over" and message["stream"] == sid)
        state: str = told["data"]["state"]
        return state

    async def closed(self) -> tuple[int, str]:
        """Why: the close code and its reason."""
        try:
            while True:
                await self.hear()
        except ConnectionClosed as closed:
            frame = closed.rcvd
        return (frame.code, frame.reason) if frame else (1006, "")

    def events(self, sid: str) -> list[dict[str, Any]]:
        """Without `stream`: as a line of NDJSON has it."""
        of_stream = [dict(message) for message in self.heard if message.get("stream") == sid and "id" in message]
        for event in of_stream:
            del event["stream"]
        return of_stream

    def ids(self, sid: str) -> list[int]:
        return [event["id"] for event in self.events(sid)]


@asynccontextmanager
async def speaker(url: str, credential: str | None = None, **headers: str) -> AsyncIterator[Speaker]:
    """`url`: a server's, as http. Its `hello` has been heard."""
    if credential is not None:
        headers["Authorization"] = f"Bearer {credential}"
    address = url.replace("http", "ws", 1) + "/v1/socket"
    async with connect(address, additional_headers=headers, proxy=None, max_size=None) as connection:
        talks = Speaker(connection)
        assert (await talks.hear())["event"] in ("hello", "refused")
        yield talks


def code_of(answer: dict[str, Any]) -> str:
    """Of a refusal."""
    assert answer["event"] == "refused", answer
    code: str = answer["data"]["code"]
    return code
