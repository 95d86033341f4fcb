"""A deploy: every server and every worker is replaced, one after the other, while people read."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

from tests.rig.deployment import Deployment, Process, until
from tests.viewers.viewer import Viewer, post

STREAMS = 24
VIEWERS_A_STREAM = 2
READING = 16
"""How many there are, on both servers, whenever a process is restarted."""

LIMIT_S = 60


async def test_a_rolling_restart_of_servers_and_workers_loses_nothing(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(servers=2, workers=2, LASTEVENT_WORKER_DRAIN_S="1")
    streams: list[str] = []
    viewers: list[Viewer] = []
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        restarting = group.create_task(_restart_all(deployment, viewers))
        while len(streams) < STREAMS or not restarting.done():
            streams.append(await _start(deployment, len(streams)))
            viewers += [Viewer(streams[-1]) for _ in range(VIEWERS_A_STREAM)]
            for viewer in viewers[-VIEWERS_A_STREAM:]:
                group.create_task(_view(viewer, deployment))
            await asyncio.sleep(0.2)  # the load
    lost = restarts = 0
    for viewer in viewers:
        now = Viewer(viewer.sid)
        await now.view_to_the_end(*deployment.ports)
        lost += viewer.bytes != now.bytes
        restarts += viewer.bytes.count(b"event: restart")
        assert viewer.events[-1].kind == "done"
    cuts = sum(len(viewer.answers) - 1 for viewer in viewers)
    print(f"{len(streams)} streams, {len(viewers)} viewers, {cuts} cuts, {restarts} restarts: {lost} lost anything")
    assert lost == 0
    assert cuts > 10


async def _restart_all(deployment: Deployment, viewers: list[Viewer]) -> None:
    for process in (*deployment.workers, *deployment.servers):
        await until(
            lambda: sum(viewer.has_something and not viewer.has_ended for viewer in viewers) >= READING,
            "enough people are reading",
        )
        await asyncio.to_thread(_restart, process)
        if process in deployment.servers:
            await asyncio.to_thread(deployment.wait_until_ready)


def _restart(process: Process) -> None:
    process.stop()
    process.start()


async def _start(deployment: Deployment, number: int) -> str:
    """As a client does: with a key, again elsewhere while one is going away."""
    body = {"prompt": f"[[tokens=100 rate=20 ttft_ms=0]] {number}"}
    while True:
        with suppress(OSError, EOFError):
            answer = await post(random.choice(deployment.ports), "/v1/streams", body, {"Idempotency-Key": f"k{number}"})
            if answer.status in (200, 201):
                sid: str = answer.json["id"]
                return sid
            assert answer.status == 503


async def _view(viewer: Viewer, deployment: Deployment) -> None:
    while not viewer.has_ended:
        with suppress(OSError, EOFError):
            await viewer.view(random.choice(deployment.ports))
