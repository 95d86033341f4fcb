"""Where no lane is offered (another ASGI server, HTTP/1.0) viewers are served through send(): with the same bytes."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import uvicorn

from bench.ports import free_port
from broker.settings import Settings
from broker.web.app import create_app
from tests.rig.deployment import Deployment, until
from tests.viewers.producer import Producer
from tests.viewers.viewer import LIMIT_S, Viewer, bare, connect, get_events, viewers_connected

WORDS = 40


@asynccontextmanager
async def served(redis_url: str, protocol: str) -> AsyncIterator[int]:
    """The port of an SSE tier under uvicorn's own protocol classes."""
    app, port = create_app(Settings(redis_url=redis_url)), free_port()
    config = uvicorn.Config(app, port=port, http=protocol, ws="none", log_config=None, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started, "it listens")
    yield port
    server.should_exit = True
    await serving


async def _say(producer: Producer) -> None:
    for n in range(WORDS):
        await producer.write(f"{n} ")
        await asyncio.sleep(0)
    await producer.finish()


@pytest.mark.parametrize("protocol", ["h11", "httptools"])
async def test_under_another_asgi_server_a_viewer_gets_the_same_bytes(deployment: Deployment, protocol: str) -> None:
    async with served(deployment.redis_url, protocol) as elsewhere:
        producer = await Producer.create(deployment.ports[0])
        here, there = Viewer(producer.sid), Viewer(producer.sid)
        async with asyncio.TaskGroup() as group:
            group.create_task(here.view(deployment.ports[1]))
            group.create_task(there.view(elsewhere))
            await until(lambda: here.has_something and there.has_something, "both follow")
            group.create_task(_say(producer))
    assert here.ids == list(range(1, WORDS + 3))
    assert there.bytes == here.bytes
    assert there.has_ended


async def test_a_viewer_that_leaves_another_asgi_server_is_seen_to_leave(deployment: Deployment) -> None:
    producer = await Producer.create(deployment.ports[0])
    app = create_app(Settings(redis_url=deployment.redis_url))
    viewers = app.state.tier.viewers
    config = uvicorn.Config(app, port=free_port(), http="h11", ws="none", log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started, "it listens")
    async with get_events(config.port, producer.sid):
        await until(lambda: viewers.connected == 1, "it is there")
    await until(lambda: viewers.connected == 0, "it has left")
    server.should_exit = True
    await serving
    await producer.finish()


async def test_http_1_0_gets_a_body_without_chunks_that_ends_with_its_connection(deployment: Deployment) -> None:
    producer = await Producer.create(deployment.ports[0])
    modern = Viewer(producer.sid)
    async with asyncio.TaskGroup() as group:
        group.create_task(modern.view(deployment.ports[0]))
        old = group.create_task(_get_http_1_0(deployment.ports[1], f"/v1/streams/{producer.sid}/events"))
        await until(lambda: modern.has_something, "the other one follows")
        group.create_task(_say(producer))
    head, _, body = (await old).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body.startswith(b"retry: ")
    assert bare(body) == modern.bytes


async def test_over_http_1_0_every_cut_is_a_reset_and_no_end(own_deployment: Callable[..., Deployment]) -> None:
    """There the end of a connection is the proper end of a body: nothing else could tell a cut from it.

    nginx speaks HTTP/1.0 to what it proxies unless it is told otherwise.
    """
    deployment = own_deployment(servers=2, workers=0, LASTEVENT_MAX_VIEWERS="1")
    here, there = deployment.ports
    producer = await Producer.create(here)
    path = f"/v1/streams/{producer.sid}/events"
    async with AsyncExitStack() as stack:
        killed = await stack.enter_async_context(_http_1_0(here, path))
        drained = await stack.enter_async_context(_http_1_0(there, path))
        refused = await stack.enter_async_context(_http_1_0(there, path, until=b"too_many_viewers\n"))
        assert await _is_reset(refused)
        deployment.servers[0].kill()
        deployment.servers[1].send(signal.SIGTERM)
        assert await _is_reset(killed)
        assert (await drained.readuntil(b": draining\n")).startswith(b"retry: ")
        assert await _is_reset(drained)


async def test_over_http_1_0_who_has_gone_is_no_fault_and_who_does_not_read_delays_no_exit(
    own_deployment: Callable[..., Deployment],
) -> None:
    deployment = own_deployment(servers=1, workers=0, LASTEVENT_DRAIN_S="60")
    [here], [server] = deployment.ports, deployment.servers
    producer = await Producer.create(here)
    path = f"/v1/streams/{producer.sid}/events"
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", here)
        writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        await writer.drain()
        writer.transport.abort()
    async with _http_1_0(here, path) as stalled:
        stalled._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(40):
            await producer.write("x" * 95_000)
        server.send(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait, 20) == 0
    assert b" ERROR " not in server.output.read_bytes()


@asynccontextmanager
async def _http_1_0(port: int, path: str, until: bytes = b"id: 1\n\n") -> AsyncIterator[asyncio.StreamReader]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    try:
        async with asyncio.timeout(LIMIT_S):
            await reader.readuntil(until)
            yield reader
    finally:
        writer.transport.abort()


async def _is_reset(reader: asyncio.StreamReader) -> bool:
    try:
        assert not (rest := await reader.read()), rest
    except ConnectionResetError:
        return True
    return False


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_viewer_that_leaves_with_another_request_sent_behind_is_seen_to_leave(
    deployment: Deployment, version: str
) -> None:
    producer = await Producer.create(deployment.ports[0])
    log = deployment.servers[0].output
    said_before = len(log.read_text())
    request = f"GET /v1/streams/{producer.sid}/events HTTP/{version}\r\nHost: 127.0.0.1\r\n"
    async with asyncio.timeout(LIMIT_S), connect(deployment.ports[0]) as connection:
        connection.send_bytes(f"{request}Connection: keep-alive\r\n\r\n".encode())
        await connection.read_head()
        connection.send_bytes(f"{request}Connection: keep-alive\r\n\r\n".encode())
        await producer.write("one")
    for n in range(5):
        await producer.write(f"{n}")
    await until(lambda: viewers_connected(deployment.url) == 0, "it has left")
    await producer.finish()
    assert "Traceback" not in log.read_text()[said_before:]


@pytest.mark.parametrize("path", ["/healthz", "/v1/streams/none", "/v1/streams"])
async def test_http_1_0_gets_whole_answers(deployment: Deployment, path: str) -> None:
    head, _, body = (await _get_http_1_0(deployment.ports[0], path)).partition(b"\r\n\r\n")
    [length] = [line.split(b": ")[1] for line in head.split(b"\r\n") if line.startswith(b"content-length")]
    assert len(body) == int(length)
    assert body.startswith(b"{")


async def _get_http_1_0(port: int, path: str) -> bytes:
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET %b HTTP/1.0\r\nHost: 127.0.0.1:%d\r\n\r\n" % (path.encode(), port))
        received = await reader.read()
        writer.close()
        return received
