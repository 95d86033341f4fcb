"""A replay keeps the pace of the original: measured at the client, over real HTTP.

The suite runs beside it. How late the machine was meanwhile is not counted as the replay's error. How late the server
was is not seen: one that was held up is asked again, and is not held up each time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from statistics import median, quantiles
from typing import TypeVar

import httpx
from redis.asyncio import Redis

from broker.log.meta import new_claim_id
from broker.log.steps import Append, Unsent
from broker.log.stream_log import StreamLog
from tests.rig.deployment import Deployment
from tests.rig.long import LONG
from tests.rig.streams import new_stream

LASTS_S = 60
EVENTS = 1500
SPEED = 16
IS_ALONE = LONG
TIMES_ASKED = 1 if IS_ALONE else 3


async def a_generation(deployment: Deployment, lasted_s: float, events: int = EVENTS) -> str:
    """A finished stream whose events' times are a model's: uneven, with pauses."""
    numbers = random.Random(7)
    async with Redis.from_url(deployment.redis_url) as redis:
        log = StreamLog(redis)
        new = new_stream(tenant="default")
        await log.create(new)
        claimed = await log.claim(new.sid, new_claim_id(), "a test")
        began = (await log.read_last(new.sid)).t
        places = sorted(numbers.random() ** 1.5 for _ in range(events - 2))
        times = [began + round(place * lasted_s * 1000) for place in places]
        deltas = [Unsent("text_delta", b'{"text":"."}', t) for t in times]
        ending = Unsent("done", b"{}", began + round(lasted_s * 1000))
        await log.append(Append(new.sid, claimed.pen, claimed.pen.base, [*deltas, ending]))
    return new.sid


async def arrivals(deployment: Deployment, sid: str, speed: float, first: int = 1) -> dict[int, float]:
    """Event id → seconds after the first one's."""
    arrived: dict[int, float] = {}
    async with httpx.AsyncClient(trust_env=False, timeout=LASTS_S * 2) as http:
        path = f"{deployment.url}/v1/streams/{sid}/replay?speed={speed}&from={first}"
        async with http.stream("GET", path) as answer:
            rest = b""
            async for body in answer.aiter_bytes():  # not by lines: httpx would be what is measured
                *lines, rest = (rest + body).split(b"\n")
                now = time.monotonic()
                arrived |= {int(line[4:]): now for line in lines if line.startswith(b"id: ")}
    start = min(arrived.values())
    return {event: at - start for event, at in arrived.items()}


async def times(deployment: Deployment, sid: str) -> dict[int, float]:
    async with Redis.from_url(deployment.redis_url) as redis:
        log = await StreamLog(redis).read_all(sid)
    return {event.id: (event.t - log[0].t) / 1000 for event in log}


async def test_at_speed_1_each_event_comes_when_it_came(deployment: Deployment) -> None:
    lasts_s, events = (LASTS_S, EVENTS) if IS_ALONE else (4, 100)
    sid = await a_generation(deployment, lasts_s, events)
    original = await times(deployment, sid)

    def is_kept(arrived: dict[int, float], late_ms: list[float]) -> bool:
        assert arrived.keys() == original.keys()
        errors_ms = [abs(arrived[event] - original[event]) * 1000 for event in original]
        p50, p99 = median(errors_ms), p99_of(errors_ms)
        print(f"\nspeed 1, {lasts_s} s, {events} events: error p50 {p50:.2f} ms, p99 {p99:.2f} ms")
        return p99 <= 20 + (0 if IS_ALONE else p99_of(late_ms))

    assert await once(lambda: arrivals(deployment, sid, 1), is_kept)


T = TypeVar("T")


async def once(replay: Callable[[], Awaitable[T]], is_kept: Callable[[T, list[float]], bool]) -> bool:
    """Whether one of the replays kept the pace, given how late the machine was meanwhile (ms)."""
    for _ in range(TIMES_ASKED):
        machine = asyncio.create_task(lateness_ms())
        done = await replay()
        machine.cancel()
        if is_kept(done, await machine):
            return True
    return False


def took(lasted_s: float, wanted_s: float, late_ms: list[float]) -> bool:
    """Events have deadlines of their own, so a machine that was late once was late for the last event at most."""
    return wanted_s * 0.95 < lasted_s < wanted_s * 1.05 + max(late_ms) / 1000


async def lateness_ms() -> list[float]:
    """How late this process is woken, until it is cancelled: twice, since a server is woken like that too."""
    late: list[float] = []
    with suppress(asyncio.CancelledError):
        while True:
            due = time.monotonic() + 0.005
            await asyncio.sleep(0.005)
            late.append(2 * (time.monotonic() - due) * 1000)
    return late


def p99_of(values: list[float]) -> float:
    return quantiles(values, n=100)[98]


async def test_a_minute_at_speed_16_takes_a_sixteenth(deployment: Deployment) -> None:
    sid = await a_generation(deployment, LASTS_S)

    def is_kept(arrived: dict[int, float], late_ms: list[float]) -> bool:
        lasted_s = max(arrived.values())
        print(f"\n{LASTS_S} s at speed {SPEED}: {lasted_s:.3f} s")
        return took(lasted_s, LASTS_S / SPEED, late_ms)

    assert await once(lambda: arrivals(deployment, sid, SPEED), is_kept)


async def test_a_seek_keeps_the_pace_from_there(deployment: Deployment) -> None:
    sid = await a_generation(deployment, LASTS_S)
    original = await times(deployment, sid)
    middle = EVENTS // 2
    wanted_s = (original[EVENTS] - original[middle]) / SPEED

    def is_kept(arrived: dict[int, float], late_ms: list[float]) -> bool:
        assert min(arrived) == middle
        return took(max(arrived.values()), wanted_s, late_ms)

    assert await once(lambda: arrivals(deployment, sid, SPEED, first=middle), is_kept)


async def test_many_replays_at_once_keep_it_too(deployment: Deployment) -> None:
    sid = await a_generation(deployment, LASTS_S, EVENTS if IS_ALONE else 300)

    def are_kept(lasted: list[dict[int, float]], late_ms: list[float]) -> bool:
        return all(took(max(arrived.values()), LASTS_S / SPEED, late_ms) for arrived in lasted)

    assert await once(lambda: asyncio.gather(*(arrivals(deployment, sid, SPEED) for _ in range(10))), are_kept)
