"""Redis goes away and comes back: viewers stay where they are, and get everything once."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.deployment import Deployment, until, wait_until
from tests.viewers.durable import answers, durable_deployment
from tests.viewers.producer import Producer
from tests.viewers.viewer import Viewer, get_events

PING = b": ping\n"
PINGS_AWAY = 10  # at one every 0.3 s
VIEWERS = 20
WELL_UNDER_WAY = 20  # the id of an event: by then the worker holds the pen


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    with durable_deployment(tmp_path, LASTEVENT_HEARTBEAT_S="0.3") as deployment:
        yield deployment


async def test_viewers_of_a_generation_outlast_a_killed_redis(deployment: Deployment) -> None:
    sid = deployment.create("[[tokens=150 rate=50 ttft_ms=0]]")
    viewers = [Viewer(sid) for _ in range(VIEWERS)]
    async with asyncio.TaskGroup() as group:
        for n, viewer in enumerate(viewers):
            group.create_task(viewer.view(deployment.ports[n % 2]))
        await until(lambda: all(viewer.has_seen(WELL_UNDER_WAY) for viewer in viewers), "all are following")
        deployment.valkey.kill()
        await _each_gets_pings(viewers)
        for port in deployment.ports:
            await _expect_a_cut_that_names_redis(port, sid)
        deployment.valkey.start()

    _expect_everything_on_one_connection(viewers, last=153)


async def test_viewers_of_an_external_stream_outlast_a_killed_redis(deployment: Deployment) -> None:
    here, there = deployment.ports
    producer = await Producer.create(here)
    viewers = [Viewer(producer.sid) for _ in range(VIEWERS)]
    async with asyncio.TaskGroup() as group:
        for n, viewer in enumerate(viewers):
            group.create_task(viewer.view(deployment.ports[n % 2]))
        await producer.write(*"before")
        await until(lambda: all(viewer.has_something for viewer in viewers), "all are connected")
        deployment.valkey.kill()
        refused = await producer.try_to_write([{"event": "text_delta", "data": {"text": "while"}}])
        await _each_gets_pings(viewers)
        deployment.valkey.start()
        await asyncio.to_thread(wait_until, lambda: answers(deployment), "Redis answers again")
        producer.port = there
        await producer.write(*"after")
        await producer.finish()

    assert refused.status == 503
    assert refused.headers["retry-after"]
    _expect_everything_on_one_connection(viewers, last=1 + len("before") + len("after") + 1)
    assert {viewer.text() for viewer in viewers} == {"beforeafter"}


async def test_viewers_outlast_a_redis_that_stands_still(deployment: Deployment) -> None:
    """Its connections stay open and nothing answers on them: what a paused machine looks like."""
    sid = deployment.create("[[tokens=150 rate=50 ttft_ms=0]]")
    viewers = [Viewer(sid) for _ in range(VIEWERS)]
    async with asyncio.TaskGroup() as group:
        for n, viewer in enumerate(viewers):
            group.create_task(viewer.view(deployment.ports[n % 2]))
        await until(lambda: all(viewer.has_seen(WELL_UNDER_WAY) for viewer in viewers), "all are following")
        deployment.valkey.send(signal.SIGSTOP)
        try:
            await _each_gets_pings(viewers)
        finally:
            deployment.valkey.send(signal.SIGCONT)

    _expect_everything_on_one_connection(viewers, last=153)


async def _each_gets_pings(viewers: list[Viewer]) -> None:
    already = [_pings(viewer) for viewer in viewers]
    await until(
        lambda: all(_pings(viewer) >= had + PINGS_AWAY for viewer, had in zip(viewers, already, strict=True)),
        "every viewer has had a row of heartbeats while Redis is away",
    )


def _pings(viewer: Viewer) -> int:
    return sum(answer.body.count(PING) for answer in viewer.answers)


async def _expect_a_cut_that_names_redis(port: int, sid: str) -> None:
    """An EventSource that comes while Redis is away gives up at any status but 200."""
    async with get_events(port, sid) as (connection, answer):
        await connection.read_body(answer)
    assert answer.status == 200
    assert answer.is_cut
    assert answer.body.startswith(b"retry: ")
    assert answer.body.endswith(b"\n: redis_unavailable\n")


def _expect_everything_on_one_connection(viewers: list[Viewer], last: int) -> None:
    for viewer in viewers:
        assert viewer.ids == list(range(1, last + 1))
        assert viewer.bytes == viewers[0].bytes
        assert len(viewer.answers) == 1, "it was never cut"
        assert viewer.has_ended
