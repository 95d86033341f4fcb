"""The naive server, as a competent engineer's first version: one blocking XREAD a viewer, sse-starlette, FastAPI.

    python -m bench.contestants.naive PORT REDIS_URL

It resumes (entry ids are SSE ids), it is stateless, and its log is in Redis. It has no leases, no endings, no limits.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Header
from redis.asyncio import Redis
from sse_starlette import EventSourceResponse

from bench.contestants.side import REDIS, SERVER, Contestant, Shape, Side, open_streams
from bench.load import stamp
from bench.load.agent import raise_descriptor_limit
from bench.load.pipeline import Gathered, Pipeline, open_pipeline, packed
from bench.ports import free_port
from bench.processes import start, start_redis, wait_for_port


def create_app(redis_url: str) -> FastAPI:
    app = FastAPI()
    redis: Redis = Redis.from_url(redis_url, decode_responses=True)

    @app.get("/streams/{stream}/events")
    async def events(stream: str, last_event_id: Annotated[str, Header()] = "0") -> EventSourceResponse:
        async def follow() -> AsyncIterator[dict[str, str]]:
            cursor = last_event_id
            while True:
                for _, entries in await redis.xread({stream: cursor}, block=15_000):
                    for cursor, fields in entries:
                        yield {"id": cursor, "event": fields["event"], "data": fields["data"]}

        return EventSourceResponse(follow())

    return app


class XaddSink:
    def __init__(self, redis_port: str) -> None:
        self._port = int(redis_port)
        self._commands: list[bytes] = []
        self._pipeline: Pipeline

    async def open(self, streams: int) -> list[str]:
        self._pipeline = await open_pipeline(self._port, self._take, lambda answer: isinstance(answer, bytes))
        return [f"/streams/{stream}/events" for stream in range(streams)]

    def write(self, stream: int, n: int) -> None:
        arguments = packed("XADD", stream, "*", "event", "text_delta", "data", stamp.event_json(n))
        self._commands.append(b"*7\r\n" + arguments)

    def send(self) -> None:
        self._pipeline.send()

    @property
    def untaken(self) -> int:
        return len(self._commands) + self._pipeline.untaken

    async def flush(self) -> None:
        await self._pipeline.flush()

    def _take(self) -> Gathered:
        commands, self._commands = self._commands, []
        return commands, len(commands)


def sink(redis_port: str) -> XaddSink:
    return XaddSink(redis_port)


def start_naive(stack: ExitStack, shape: Shape) -> Side:
    redis_pid, redis_port = start_redis(stack)
    redis_url = f"redis://127.0.0.1:{redis_port}"
    port = free_port()
    pid = start(stack, [sys.executable, "-m", "bench.contestants.naive", str(port), redis_url])
    wait_for_port(port, pid)
    agents, paths = open_streams(stack, "naive", str(redis_port), shape.streams)
    return Side(port, paths, {SERVER: pid, REDIS: redis_pid}, agents)


NAIVE = Contestant("XREAD a viewer", start_naive)


def main(port: str, redis_url: str) -> None:
    raise_descriptor_limit()
    uvicorn.run(create_app(redis_url), port=int(port), loop="uvloop", log_level="warning", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
