"""parts: what single steps cost, as docs/ARCHITECTURE.md tells it. One process beside Redis, nothing paced.

First, the CPU of whoever reads the subscription, a message: by redis-py's PubSub, by redis-py's connection alone, and
as the hub does. Then the CPU of Redis, an event: written the whole way and the short way, one and more at once, and
what an append is made of, each alone in a script that gets an append's keys and arguments (so each holds the cost of
any script).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import redis as blocking
from redis.asyncio import Redis

from bench.contestants.side import REDIS
from bench.meter import CpuMeter
from bench.processes import start_redis
from bench.scenario import Options
from bench.table import Table, number
from broker.live.subscription import subscription
from broker.log.event import TEXT_DELTA, encode_data
from broker.log.meta import NewStream, new_claim_id, new_sid
from broker.log.steps import LEASE_S, Append, Appended, Claimed, Extend, Renew, Unsent, Writing
from broker.log.stream_log import StreamLog
from broker.store.connect import connect

MESSAGES, MESSAGES_SHORT = 60_000, 2_000
CHANNELS = 100
MESSAGE = b'12345\n1700000000000\ntext_delta\n{"text":" word","sent":1234567890123456789}'

STREAMS, STREAMS_SHORT = 500, 50
CALLS_A_STREAM = 20
PIPELINE = 100
SENT = {0: "a heartbeat", 1: "one event"}
ROUNDS = 5
STEPS = {
    "any script": "",
    "TIME": "redis.call('TIME')",
    "HGET": "redis.call('HGET', KEYS[2], 'claim')",
    "XLEN": "redis.call('XLEN', KEYS[1])",
    "HMGET of 7 fields": (
        "redis.call('HMGET', KEYS[2], 'state', 'epoch', 'claim', 'tail', 'events', 'bytes', 'first_text')"
    ),
    "XADD": "redis.call('XADD', KEYS[1], '*', 'k', ARGV[16], 'd', ARGV[17], 't', '1700000000000')",
    "HSET of 4 fields": "redis.call('HSET', KEYS[2], 'tail', '2', 'events', '2', 'bytes', '9', 'lease_until', '1')",
    "PUBLISH": "redis.call('PUBLISH', KEYS[3], ARGV[17])",
}


def parts(options: Options) -> list[Table]:
    rounds = 1 if options.short else options.rounds or ROUNDS
    with ExitStack() as stack:
        pid, port = start_redis(stack)
        return asyncio.run(_measure(pid, f"redis://127.0.0.1:{port}", rounds, options))


async def _measure(pid: int, url: str, rounds: int, options: Options) -> list[Table]:
    messages = MESSAGES_SHORT if options.short else MESSAGES
    streams = STREAMS_SHORT if options.short else STREAMS
    print("  … readers of the subscription", file=sys.stderr)
    readers = {"redis-py's PubSub": _pubsub, "redis-py's connection": _connection, "the hub's": _hub}
    read_us = {name: [await read(url, messages) for _ in range(rounds)] for name, read in readers.items()}
    print("  … appends", file=sys.stderr)
    append_us = await _appends(pid, url, streams, rounds)
    notes = [f"Medians of {rounds} rounds."]
    return [
        Table(
            "parts: reading the subscription",
            ("reader", "µs a message"),
            [[name, number(median(us))] for name, us in read_us.items()],
            notes,
        ),
        Table(
            "parts: an append in Redis",
            ("step", "Redis µs an event"),
            [[name, number(median(us))] for name, us in append_us.items()],
            notes,
        ),
    ]


# -- readers ---------------------------------------------------------------------------------------------

NAMES = [f"channel-{n}" for n in range(CHANNELS)]


def _publish(url: str, count: int) -> None:
    with blocking.Redis.from_url(url) as client:
        for _ in range(count // CHANNELS):
            pipe = client.pipeline(transaction=False)
            for name in NAMES:
                pipe.publish(name, MESSAGE)
            pipe.execute()


async def _cpu_us(url: str, count: int, read: Callable[[], Awaitable[object]]) -> float:
    """This thread's CPU, while another one publishes."""
    publishing = asyncio.create_task(asyncio.to_thread(_publish, url, count))
    began = time.thread_time()
    await read()
    spent_s = time.thread_time() - began
    await publishing
    return spent_s * 1e6 / count


async def _pubsub(url: str, count: int) -> float:
    async with connect(url) as client, client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(*NAMES)

        async def read() -> None:
            left = count
            async for _ in pubsub.listen():
                left -= 1
                if not left:
                    return

        return await _cpu_us(url, count, read)


async def _connection(url: str, count: int) -> float:
    async with connect(url) as client:
        connection: Any = await client.connection_pool.get_connection()
        await connection.send_command("SUBSCRIBE", *NAMES)
        for _ in NAMES:
            await connection.read_response()

        async def read() -> None:
            for _ in range(count):
                await connection.read_response(timeout=10)

        spent_us = await _cpu_us(url, count, read)
        await connection.disconnect()
        await client.connection_pool.release(connection)
        return spent_us


async def _hub(url: str, count: int) -> float:
    subscribed, got = 0, 0
    is_subscribed, has_all = asyncio.Event(), asyncio.Event()

    def take(message: list[Any]) -> None:
        nonlocal subscribed, got
        if message[0] == b"message":
            got += 1
            if got == count:
                has_all.set()
        else:
            subscribed += 1
            if subscribed == CHANNELS:
                is_subscribed.set()

    async with connect(url) as client, subscription(client, take) as made:
        made.send("SUBSCRIBE", [name.encode() for name in NAMES])
        await is_subscribed.wait()
        return await _cpu_us(url, count, has_all.wait)


# -- appends ---------------------------------------------------------------------------------------------


async def _appends(pid: int, url: str, streams: int, rounds: int) -> dict[str, list[float]]:
    spent: dict[str, list[float]] = {}
    async with connect(url) as client:
        log = StreamLog(client, max_events=10**6, max_bytes=2**30)
        ways = {way: [await _running(log) for _ in range(streams)] for way in (_whole, _short)}
        keys = log.keys.stream(new_sid())[:3]
        tail = 1
        for _ in range(rounds):
            for events in (0, 1, 4, 20):
                for way, claimed in ways.items():
                    steps = [way(stream, tail + 1, events) for stream in claimed]
                    meter = CpuMeter({REDIS: pid})
                    for at in range(0, streams, PIPELINE):
                        outcomes = await log.append_many(partial(steps.__getitem__, slice(at, at + PIPELINE)))
                        assert all(isinstance(outcome, Appended) for outcome in outcomes)
                    name = f"{way.__doc__}, {SENT.get(events, f'{events} at once')}"
                    spent.setdefault(name, []).append(meter.spent_us()[REDIS] / (streams * max(events, 1)))
                tail += events
            for name, step in STEPS.items():
                arguments = log.append_call(_whole(ways[_whole][0], tail + 1, 1)).args
                spent.setdefault(name, []).append(
                    await _step_us(client, pid, step, keys, arguments, CALLS_A_STREAM * streams)
                )
    return spent


async def _step_us(
    client: Redis, pid: int, step: str, keys: tuple[str, ...], arguments: list[Any], count: int
) -> float:
    sha = await client.script_load(step)
    await client.hset(keys[1], mapping={str(n): "a field among others" for n in range(20)})  # type: ignore[misc]
    meter = CpuMeter({REDIS: pid})
    for _ in range(0, count, PIPELINE):
        async with client.pipeline(transaction=False) as pipe:
            for _ in range(min(PIPELINE, count)):
                pipe.evalsha(sha, len(keys), *keys, *arguments)
            await pipe.execute()
    return meter.spent_us()[REDIS] / count


async def _running(log: StreamLog) -> Claimed:
    sid = new_sid()
    await log.create(
        NewStream(sid=sid, tenant="default", session=sid, model="anthropic/bench", request={"messages": []})
    )
    return await log.claim(sid, new_claim_id(), "bench")


def _whole(stream: Claimed, first: int, events: int) -> Writing:
    """the whole way"""
    return Append(stream.sid, stream.pen, first, _said(events))


def _short(stream: Claimed, first: int, events: int) -> Writing:
    """the short way"""
    if not events:
        return Renew(stream.sid, stream.pen.claim_id, LEASE_S, b"", first - 1, first - 1, 1_000)
    return Extend(stream.sid, stream.pen.claim_id, first - 1, time.time_ns() // 1_000_000, first, _said(events))


def _said(events: int) -> list[Unsent]:
    return [Unsent(TEXT_DELTA, encode_data({"text": " word"}))] * events
