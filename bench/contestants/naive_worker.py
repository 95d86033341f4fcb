"""The naive worker, as a competent engineer's first version: the SDK's typed stream, and an XADD for each text delta.

    python -m bench.contestants.naive_worker REDIS_URL GENERATIONS CLIENT

It has no queue, no leases, no endings, no retries and no limits, and nothing is published: its viewers would XREAD.
CLIENT is what speaks HTTP for the SDK: `httpx`, its own, or `aiohttp`, which it offers as the cheaper one.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import uvloop
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from bench.generating import WORKER, Place, Start
from bench.load.agent import raise_descriptor_limit
from bench.load.provider import STAMP_DIGITS
from bench.loads import Load
from bench.processes import start
from broker.store.connect import Client, connect

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic


class NaiveWorker:
    first_delta = 1
    own_events = 0

    def __init__(self, stack: ExitStack, place: Place, load: Load, client: str) -> None:
        argv = ["-m", "bench.contestants.naive_worker", place.redis_url, str(load.generations), client]
        # A proxy that the environment names could not reach this machine's loopback.
        pid = start(stack, [sys.executable, *argv], NO_PROXY="127.0.0.1", no_proxy="127.0.0.1", **place.provider)
        self.parts = {WORKER: pid}
        self.redis: Client = connect(place.redis_url)
        self._streams = [_stream(generation) for generation in range(load.generations)]
        self._began_ms = 0

    async def begin(self) -> None:
        """It begins by itself."""

    def ask_counts(self, pipe: Pipeline) -> None:
        for stream in self._streams:
            pipe.xlen(stream)

    async def begin_timing(self) -> None:
        self._began_ms = _now_ms()

    async def delays_ms(self) -> list[float]:
        """To the time in the id that Redis has given to the entry."""
        ended_ms = _now_ms()
        return [
            delay_ms(entry_id, fields)
            for stream in self._streams
            for entry_id, fields in await self.redis.xrange(stream, self._began_ms, ended_ms)
        ]

    async def missing(self, deltas: int) -> int:
        return 0  # nobody reads it

    async def aclose(self) -> None:
        await self.redis.aclose()


def delay_ms(entry_id: bytes, fields: dict[bytes, bytes]) -> float:
    """Ids are in whole milliseconds, rounded down: half of one makes up for it in the mean."""
    _, _, stamp = fields[b"data"].partition(b"~")
    return int(entry_id.partition(b"-")[0]) + 0.5 - int(stamp[:STAMP_DIGITS]) / 1e6


def _stream(generation: int) -> str:
    return f"naive:{generation}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class NaiveContestant(NamedTuple):
    name: str
    start: Start


NAIVE_WORKERS: Sequence[NaiveContestant] = (
    NaiveContestant("naive, httpx", partial(NaiveWorker, client="httpx")),
    NaiveContestant("naive, aiohttp", partial(NaiveWorker, client="aiohttp")),
)


# -- its process -----------------------------------------------------------------------------------------


async def main(redis_url: str, generations: str, client: str) -> None:
    # A second of CPU, which only this process needs, and not what starts it.
    from anthropic import AsyncAnthropic, DefaultAioHttpClient, DefaultAsyncHttpxClient

    # Made by the SDK, both have room for 1000 connections: no generation waits for one.
    clients = {"httpx": DefaultAsyncHttpxClient, "aiohttp": DefaultAioHttpClient}
    model = AsyncAnthropic(max_retries=0, http_client=clients[client]())
    async with model, Redis.from_url(redis_url) as redis, asyncio.TaskGroup() as group:
        for generation in range(int(generations)):
            group.create_task(_generate(model, redis, _stream(generation)))


async def _generate(model: AsyncAnthropic, redis: Redis, stream: str) -> None:
    # The cheaper of the SDK's two: `messages.stream` gathers the whole message, too.
    events = await model.messages.create(
        model="bench", max_tokens=1024, messages=[{"role": "user", "content": "Go on."}], stream=True
    )
    async for event in events:
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            await redis.xadd(stream, {"event": "text_delta", "data": json.dumps({"text": event.delta.text})})


if __name__ == "__main__":
    raise_descriptor_limit()
    uvloop.run(main(*sys.argv[1:]))
