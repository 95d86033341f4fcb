"""Proxies as others set them up: those that compress hold no event back, and behind old HTTP a cut is still a cut."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from bench.ports import free_port
from tests.clients.programs import Case, Language, Shown
from tests.rig.deployment import Deployment, Process, until, wait_until
from tests.viewers.producer import Producer

LIMIT_S = 20.0
NGINX = """
daemon off;
error_log stderr crit;
pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    server {{
        listen 127.0.0.1:{port};
        gzip on;
        gzip_types text/event-stream;
        gzip_min_length 0;
        gzip_proxied any;
        location / {{ proxy_pass http://127.0.0.1:{upstream}; proxy_http_version {http_version}; }}
    }}
}}
"""
"""nginx with its own defaults otherwise: it buffers."""


def start_nginx(nginx: str, folder: Path, upstream: int, http_version: str) -> tuple[Process, int]:
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(port=port, upstream=upstream, http_version=http_version))
    argv = [nginx, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]
    process = Process("nginx", argv, dict(os.environ), folder)
    process.start()
    wait_until((folder / "nginx.pid").exists, "nginx runs")
    return process, port


@pytest.fixture(params=["1.1", "1.0"])
def compressing_nginx(
    request: pytest.FixtureRequest, tmp_path: Path, deployment: Deployment, require: Callable[[str, str], str]
) -> Iterator[int]:
    process, port = start_nginx(require("nginx", "nginx"), tmp_path, deployment.ports[0], request.param)
    yield port
    process.stop()


@pytest.fixture
def compression_of_node(deployment: Deployment, node: Language) -> Iterator[int]:
    command = ["node", "compress.mjs", str(deployment.ports[0])]
    with subprocess.Popen(command, cwd=node.folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield int(process.stdout.readline())
        process.kill()


async def test_an_event_comes_through_a_compressing_nginx_while_its_stream_stays_open(
    deployment: Deployment, compressing_nginx: int
) -> None:
    await _each_event_comes_before_the_next_is_written(deployment, compressing_nginx)


@pytest.mark.npm
async def test_an_event_comes_through_the_compression_of_node_while_its_stream_stays_open(
    deployment: Deployment, compression_of_node: int
) -> None:
    await _each_event_comes_before_the_next_is_written(deployment, compression_of_node)


@pytest.mark.npm
@pytest.mark.parametrize("how", ["killed", "drained"])
async def test_behind_an_nginx_that_asks_in_http_1_0_fetch_event_source_takes_no_cut_for_the_end(
    how: str,
    own_deployment: Callable[..., Deployment],
    node: Language,
    tmp_path: Path,
    require: Callable[[str, str], str],
) -> None:
    """1.0 is what nginx speaks unless it is told otherwise, and has no chunks: an end looks like a cut."""
    deployment = own_deployment(servers=2)
    (tmp_path / "nginx").mkdir()
    nginx, port = start_nginx(require("nginx", "nginx"), tmp_path / "nginx", deployment.ports[0], "1.0")
    producer = await Producer.create(deployment.ports[1])
    url = f"http://127.0.0.1:{port}/v1/streams/{producer.sid}/events"
    shown: dict[str, Shown] = {}
    following = asyncio.create_task(node.run([Case("fetch-event-source-alone", "it", url)], shown=shown))
    try:
        await until(lambda: shown and shown["it"].events, "it follows")
        await producer.write("before")
        await until(lambda: len(shown["it"].events) == 2, "it has the second event")
        deployment.servers[0].send(signal.SIGKILL if how == "killed" else signal.SIGTERM)
        await asyncio.to_thread(deployment.servers[0].wait)
        await producer.write("while it was away")
        await producer.finish()
        deployment.servers[0].start()
        await following
    finally:
        nginx.stop()
        following.cancel()
    assert [event.id for event in shown["it"].events] == ["1", "2", "3", "4"]
    assert shown["it"].has_ended, "and takes the end for the end"


async def _each_event_comes_before_the_next_is_written(deployment: Deployment, port: int) -> None:
    producer = await Producer.create(deployment.ports[0])
    loop = asyncio.get_running_loop()
    waited = []
    async with asyncio.timeout(LIMIT_S), _lines(port, producer.sid) as lines:
        await _until(lines, "id: 1")
        for n in range(2, 7):
            await producer.write("one small event")
            written = loop.time()
            await _until(lines, f"id: {n}")
            waited.append(loop.time() - written)
    print(f"an event came {[round(s * 1000) for s in waited]} ms after it was written")
    await producer.finish()


@asynccontextmanager
async def _lines(port: int, sid: str) -> AsyncIterator[AsyncIterator[str]]:
    url = f"http://127.0.0.1:{port}/v1/streams/{sid}/events"
    async with (
        httpx.AsyncClient(trust_env=False, timeout=LIMIT_S) as client,
        client.stream("GET", url, headers={"Accept-Encoding": "gzip"}) as answer,
    ):
        yield answer.aiter_lines()


async def _until(lines: AsyncIterator[str], wanted: str) -> None:
    async for line in lines:
        if line == wanted:
            return
    raise AssertionError(f"the body ended before {wanted}")
