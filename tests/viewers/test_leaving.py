"""A viewer that leaves is forgotten, whatever the server was doing for it at that moment."""

import asyncio
import random

from tests.rig.deployment import Deployment, until
from tests.viewers.producer import Producer
from tests.viewers.viewer import Viewer, connect, viewers_connected

VISITORS = 10
VISITS = 60


async def test_viewers_that_leave_as_soon_as_they_have_come_are_forgotten(deployment: Deployment) -> None:
    here = deployment.ports[0]
    producer = await Producer.create(here)
    stays, log = Viewer(producer.sid), deployment.servers[0].output
    said_before = len(log.read_text())
    async with asyncio.TaskGroup() as group:
        group.create_task(stays.view(here))
        enough = asyncio.Event()
        group.create_task(_write(producer, enough))
        async with asyncio.TaskGroup() as visits:
            for visitor in range(VISITORS):
                visits.create_task(_come_and_go(here, producer.sid, random.Random(visitor)))
        await until(lambda: viewers_connected(deployment.url) == 1, "the server has only the one who stays")
        enough.set()

    assert stays.ids == list(range(1, producer.last_event_id + 1))
    assert "Traceback" not in log.read_text()[said_before:]
    await until(lambda: viewers_connected(deployment.url) == 0, "the server has no viewers any more")


async def _write(producer: Producer, enough: asyncio.Event) -> None:
    while not enough.is_set():
        await producer.write("word")
    await producer.finish()


async def _come_and_go(port: int, sid: str, numbers: random.Random) -> None:
    for _ in range(VISITS):
        async with connect(port) as connection:
            connection.send("GET", f"/v1/streams/{sid}/events")
            if numbers.random() < 0.8:
                await connection.read_head()
            # Some go while the server asks Redis for them: at any of the steps of that.
            for _ in range(numbers.randrange(4)):
                await asyncio.sleep(0)
