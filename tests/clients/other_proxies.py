"""docs/ops/haproxy.cfg and docs/ops/Caddyfile as they are, in front of two servers. Part of `make clients`, not of CI.

Only addresses and the certificate are others here, and the timeouts where the test is about them. Caddy 2.6, which
Debian 12 has, fails two of these: it makes proper ends of cuts.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from bench.ports import free_port
from tests.compose.balancer import AUTHORIZED, Balanced, Balancer
from tests.compose.compose_file import ROOT
from tests.compose.conftest import certificate as certificate  # a fixture
from tests.compose.visitor import KeyedProducer, Visitor, get
from tests.conftest import require
from tests.rig.deployment import HTTP, Deployment, Process, until, wait_until

OPS = ROOT / "docs" / "ops"
MIB = 2**20
SILENCE_S = 2


class Front(Balancer):
    """HAProxy or Caddy where nginx stands otherwise."""

    def __init__(
        self, name: str, folder: Path, certificate: Path, upstreams: Sequence[int], change: Callable[[str], str] = str
    ) -> None:
        self.port = free_port()
        self.tls_port = self.port
        self.url = f"http://127.0.0.1:{self.port}"
        write = {"haproxy": self._haproxy, "caddy": self._caddy}[name]
        file = folder / name
        self.argv = write(file)
        configuration = (OPS / ("haproxy.cfg" if name == "haproxy" else "Caddyfile")).read_text()
        for n, upstream in enumerate(upstreams, start=1):
            configuration = configuration.replace(f" server-{n}:8000", f" 127.0.0.1:{upstream}")
        (folder / "tls.pem").write_text((certificate / "tls.crt").read_text() + (certificate / "tls.key").read_text())
        file.write_text(change(self._here(name, configuration, folder)))
        self.process = Process(name, self.argv, {**os.environ, "HOME": str(folder)}, folder)

    def _here(self, name: str, configuration: str, folder: Path) -> str:
        if name == "haproxy":
            here = configuration.replace("bind :8080", f"bind 127.0.0.1:{self.port}")
            here = here.replace("maxconn 20000", "maxconn 2000")  # two descriptors each: not on every machine
            here = here.replace("bind :8443", f"bind 127.0.0.1:{free_port()}").replace("/etc/haproxy", str(folder))
        else:
            here = configuration.replace("streams.example.com {", f"http://127.0.0.1:{self.port} {{")
            here = here.replace("{\n\tservers {", "{\n\tadmin off\n\tservers {", 1)
        assert str(self.port) in here
        return here

    @staticmethod
    def _haproxy(file: Path) -> list[str]:
        return [require("haproxy", "haproxy"), "-db", "-f", str(file)]

    @staticmethod
    def _caddy(file: Path) -> list[str]:
        return [require("caddy", "caddy, of 2.11 or newer"), "run", "--adapter", "caddyfile", "--config", str(file)]


def _begin(balanced: Balanced) -> Iterator[Balanced]:
    try:
        balanced.start()
        wait_until(lambda: HTTP.get(f"{balanced.nginx.url}/readyz").status_code == 200, "a server is ready behind it")
        yield balanced
    finally:
        balanced.stop()


@pytest.fixture(params=["haproxy", "caddy"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def behind(name: str, deployment: Deployment, certificate: Path, tmp_path: Path) -> Iterator[Balanced]:
    yield from _begin(Balanced(deployment, tmp_path, certificate, partial(Front, name)))


@pytest.fixture
def impatient(name: str, deployment: Deployment, certificate: Path, tmp_path: Path) -> Iterator[Balanced]:
    """Its timeouts are two seconds, and the servers' heartbeats come every half."""

    def change(configuration: str) -> str:
        return re.sub(r"(timeout (?:client|server)) 60s", rf"\1 {SILENCE_S}s", configuration)

    front = partial(Front, name, change=change)
    yield from _begin(Balanced(deployment, tmp_path, certificate, front, LASTEVENT_HEARTBEAT_S="0.5"))


async def test_each_event_comes_before_the_next_is_written_and_nothing_is_compressed(behind: Balanced) -> None:
    record = behind.create(producer="external")
    producer = KeyedProducer(record, behind.ports[1])
    viewer = Visitor(record, **{"Accept-Encoding": "gzip, zstd, br"})
    viewing = asyncio.create_task(viewer.view(behind.nginx.port))
    for n in range(1, 6):
        await until(lambda n=n: viewer.has_seen(n), f"event {n} is there")
        await producer.write("one small event")
    await producer.finish()
    await viewing
    [answer] = viewer.answers
    assert "content-encoding" not in answer.headers
    assert not answer.is_cut, "the end is a proper one"


async def test_a_viewer_that_leaves_it_leaves_its_server(behind: Balanced) -> None:
    viewer = Visitor(behind.create(producer="external"))
    viewing = asyncio.create_task(viewer.view(behind.nginx.port))
    await until(lambda: sum(behind.viewers()) == 1, "a server has it")
    viewing.cancel()
    await until(lambda: sum(behind.viewers()) == 0, "it has left")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "drained"])
async def test_a_server_that_goes_is_a_cut_and_the_other_one_has_the_rest(
    behind: Balanced, how: signal.Signals
) -> None:
    record = behind.create(producer="external")
    producer = KeyedProducer(record, behind.ports[1])
    viewers = [Visitor(record) for _ in range(4)]
    viewing = [asyncio.create_task(viewer.view_to_the_end(behind.nginx.port)) for viewer in viewers]
    await until(lambda: all(viewer.has_seen(1) for viewer in viewers), "all are connected")
    behind.servers[0].send(how)
    await until(lambda: any(len(viewer.answers) > 1 for viewer in viewers), "one has come back")
    await producer.write(*"what they missed")
    await producer.finish()
    await asyncio.gather(*viewing)
    moved = [viewer for viewer in viewers if len(viewer.answers) > 1]
    assert all(viewer.answers[0].is_cut for viewer in moved)
    assert all((b": draining\n" in viewer.answers[0].body) == (how == signal.SIGTERM) for viewer in moved)
    assert {answer.status for viewer in viewers for answer in viewer.answers} == {200}
    for viewer in viewers:
        assert viewer.ids == list(range(1, len("what they missed") + 3))


async def test_heartbeats_keep_a_silent_stream_beyond_its_timeouts(impatient: Balanced) -> None:
    record = impatient.create(producer="external")
    viewer = Visitor(record)
    viewing = asyncio.create_task(viewer.view(impatient.nginx.port))
    await until(lambda: viewer.has_seen(1), "it is connected")
    await asyncio.sleep(2 * SILENCE_S)  # time itself is tested
    await KeyedProducer(record, impatient.ports[1]).finish()
    await viewing
    assert len(viewer.answers) == 1
    assert not viewer.answers[0].is_cut


async def test_while_no_server_is_there_an_event_source_is_told_to_come_back(behind: Balanced) -> None:
    path = "/v1/streams/0f3c/events"
    await asyncio.to_thread(behind.kill_servers)

    async def refused() -> bool:
        answer = await get(behind.nginx.port, path, Accept="text/event-stream")
        return b"no_server" in answer.body

    await until(refused, "it knows that both are gone")
    answer = await get(behind.nginx.port, path, Accept="text/event-stream")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert re.fullmatch(rb"retry: 1[0-9]{3}\n: no_server\n\n?", answer.body)
    assert (await get(behind.nginx.port, path, Accept="application/x-ndjson")).status in (502, 503)
    assert (await get(behind.nginx.port, "/v1/streams/0f3c")).status in (502, 503)


@pytest.mark.parametrize(("path", "limit"), [("/v1/streams", 32 * MIB), ("/v1/streams/x/cancel", MIB)], ids=str)
def test_a_body_beyond_the_servers_limit_is_refused(behind: Balanced, path: str, limit: int) -> None:
    statuses = []
    for size in (limit, limit + 1):
        body = b'{"prompt": "%s"}' % (b"x" * (size - len('{"prompt": ""}')))
        statuses.append(
            HTTP.post(f"{behind.nginx.url}{path}", content=body, headers=AUTHORIZED, timeout=30).status_code
        )
    assert statuses[0] != 413
    assert statuses[1] == 413


async def test_what_a_viewer_says_of_its_own_address_is_not_passed_on_and_no_log_has_its_token(
    behind: Balanced,
) -> None:
    record = behind.create(producer="external")
    await KeyedProducer(record, behind.ports[1]).finish()
    await Visitor(record, **{"X-Forwarded-For": "10.9.8.7", "Forwarded": "for=10.9.8.7"}).view(behind.nginx.port)
    views = f"{behind.nginx.url}/v1/streams/{record['id']}/views"
    seen = ""

    def is_recorded() -> bool:
        nonlocal seen
        seen = HTTP.get(views, headers=AUTHORIZED).text
        return "forwarded_for" in seen

    await until(is_recorded, "the view is recorded")
    assert "127.0.0.1" in seen
    assert "10.9.8.7" not in seen
    token = record["events_url"].partition("token=")[2]
    await until(lambda: record["id"] in behind.nginx.log, "it is logged")
    assert len(token) > 40
    assert token not in behind.nginx.log


@pytest.mark.parametrize("name", ["haproxy"])
async def test_beyond_its_rate_an_event_source_is_told_to_come_back_later_and_others_are_refused(
    behind: Balanced, name: str
) -> None:
    port, path = behind.nginx.port, "/v1/streams/0f3c/events"
    answers = [await get(port, "/healthz") for _ in range(450)]
    assert {answer.status for answer in answers} == {200, 429}
    refused = await get(port, path, Accept="text/event-stream")
    assert refused.status == 200
    assert re.fullmatch(rb"retry: 1[0-9]{4}\n: too_many\n", refused.body)
