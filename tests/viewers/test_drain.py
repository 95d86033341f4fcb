"""A server that is told to go sends its viewers to another one, and nobody loses an event."""

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from tests.rig.deployment import Deployment, until
from tests.viewers.producer import Producer
from tests.viewers.viewer import LIMIT_S, Answer, Connection, CutAt, Viewer, at_byte, connect, get_events

EXIT_LIMIT_S = 20
FAREWELL = re.compile(rb"retry: ([0-9]{4})\n: draining\n")


@pytest.fixture
def here_and_there(own_deployment: Callable[..., Deployment]) -> Deployment:
    return own_deployment(servers=2)


async def test_every_viewer_of_a_draining_server_is_cut_between_two_frames_and_loses_nothing_elsewhere(
    here_and_there: Deployment,
) -> None:
    here, there = here_and_there.ports
    sid = here_and_there.create("[[tokens=200 rate=50 ttft_ms=0]]")
    uncut, viewers = Viewer(sid), [Viewer(sid) for _ in range(50)]
    async with asyncio.TaskGroup() as group:
        group.create_task(uncut.view(there))
        first = [group.create_task(viewer.view(here)) for viewer in viewers]
        await until(lambda: all(viewer.has_something for viewer in viewers), "all are connected")
        here_and_there.servers[0].send(signal.SIGTERM)
        began = time.monotonic()
        answers = [await view for view in first]
        for viewer in viewers:
            group.create_task(viewer.view_to_the_end(there))
    await asyncio.to_thread(here_and_there.servers[0].wait, EXIT_LIMIT_S)

    assert time.monotonic() - began < EXIT_LIMIT_S
    assert not _was_impatient(here_and_there)
    assert all(answer.is_cut for answer in answers), "the final chunk would say that the stream has ended"
    assert not any(answer.remainder for answer in answers)
    farewells = [FAREWELL.fullmatch(bytes(answer.body).rpartition(b"\n\n")[2]) for answer in answers]
    delays = {int(farewell[1]) for farewell in farewells if farewell}
    assert all(farewells)
    assert min(delays) >= 1000
    assert max(delays) <= 2000
    assert len(delays) > 20, "viewers that leave together must not come back together"
    for viewer in viewers:
        assert viewer.ids == list(range(1, 204))
        assert viewer.bytes == uncut.bytes


async def test_a_viewer_that_never_reads_does_not_keep_a_drained_server(here_and_there: Deployment) -> None:
    here = here_and_there.ports[0]
    producer = await Producer.create(here)
    async with get_events(here, producer.sid, receive_buffer=4096) as (stalled, _):
        stalled.stop_reading()
        for _ in range(6):
            await producer.write("x" * 600_000)
        here_and_there.servers[0].send(signal.SIGTERM)
        await asyncio.to_thread(here_and_there.servers[0].wait, EXIT_LIMIT_S)
    assert not _was_impatient(here_and_there)
    producer.port = here_and_there.ports[1]
    await producer.finish()


async def test_requests_that_meet_a_drain_get_an_answer_that_an_event_source_can_live_with_or_none(
    here_and_there: Deployment,
) -> None:
    """On connections that were open before it, idle or with half a request sent, and on new ones while it runs."""
    here, there = here_and_there.ports
    producer = await Producer.create(there)
    path = f"/v1/streams/{producer.sid}/events"
    answers: list[Answer] = []

    async with AsyncExitStack() as stack, asyncio.timeout(LIMIT_S):
        idle = [await stack.enter_async_context(_used_once(here)) for _ in range(20)]
        pending = [await stack.enter_async_context(connect(here)) for _ in range(20)]
        for connection in pending:
            connection.send_bytes(f"GET {path} HTTP/1.1\r\n".encode())
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(_ask_until_refused(here, path, answers))
            await until(lambda: len(answers) > 50, "requests are coming in")
            here_and_there.servers[0].send(signal.SIGTERM)
            for connection in pending:
                connection.send_bytes(b"Host: 127.0.0.1\r\n\r\n")
            for connection in idle:
                connection.send("GET", path)
            for connection in (*pending, *idle):
                group.create_task(_read_answer(connection, answers))
        await asyncio.to_thread(here_and_there.servers[0].wait, EXIT_LIMIT_S)
    await producer.finish()

    print(f"{len(answers)} answers around a drain, {sum(b'draining' in answer.body for answer in answers)} during it")
    assert not _was_impatient(here_and_there)
    assert {answer.status for answer in answers} == {200}
    assert not any(answer.has_final_chunk for answer in answers)


@asynccontextmanager
async def _used_once(port: int) -> AsyncIterator[Connection]:
    async with connect(port) as connection:
        connection.send("GET", "/healthz")
        await connection.read_body(await connection.read_head())
        yield connection


async def _read_answer(connection: Connection, answers: list[Answer], cut: CutAt | None = None) -> None:
    with suppress(ConnectionError, asyncio.IncompleteReadError):  # it was closed before it answered
        answer = await connection.read_head()
        answers.append(answer)
        await connection.read_body(answer, cut)


async def _ask_until_refused(port: int, path: str, answers: list[Answer]) -> None:
    with suppress(ConnectionRefusedError):
        while True:
            async with connect(port) as connection:
                connection.send("GET", path)
                await _read_answer(connection, answers, cut=at_byte(1))


def _was_impatient(deployment: Deployment) -> bool:
    """The server had to break off what did not end by itself: somebody was not sent away."""
    return "timeout graceful shutdown exceeded" in deployment.servers[0].output.read_text()
