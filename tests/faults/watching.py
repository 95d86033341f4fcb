"""Viewers of a stream on every server, until its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.rig.deployment import Deployment, until
from tests.viewers.viewer import Viewer

LIMIT_S = 60


async def log_blocks(deployment: Deployment, sid: str) -> bytes:
    """The whole log, as a viewer that comes now gets it."""
    late = Viewer(sid)
    await late.view_to_the_end(*deployment.ports)
    return late.bytes


@asynccontextmanager
async def watched(deployment: Deployment, sid: str) -> AsyncIterator[list[Viewer]]:
    """A viewer on each server from the beginning; when the block is left, until they have seen the ending."""
    viewers = [Viewer(sid) for _ in deployment.ports]
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        for viewer, port in zip(viewers, deployment.ports, strict=True):
            group.create_task(_view(viewer, port))
        yield viewers


async def _view(viewer: Viewer, port: int) -> None:
    while not viewer.has_ended:
        with suppress(OSError):
            await viewer.view(port)


async def seen(viewers: list[Viewer], event_id: int) -> None:
    await until(lambda: all(viewer.has_seen(event_id) for viewer in viewers), f"event {event_id} is seen")
