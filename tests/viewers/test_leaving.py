"""A viewer that leaves is forgotten, whatever the server was doing for it at that moment."""

import asyncio
import random

from tests.deployment import Deployment, until
from tests.viewers.producer import Producer
from tests.viewers.viewer import connect, viewers_connected

VISITORS = 10
VISITS = 60


async def test_viewers_that_leave_as_soon_as_they_have_come_are_forgotten(deployment: Deployment) -> None:
    here = deployment.ports[0]
    producer = await Producer.create(here)
    async with asyncio.TaskGroup() as group:
        for visitor in range(VISITORS):
            group.create_task(_come_and_go(here, producer.sid, random.Random(visitor)))

    await until(lambda: viewers_connected(deployment.url) == 0, "the server has no viewers any more")
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
