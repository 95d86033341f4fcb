"""What one address may do, and what nginx says beyond that: an EventSource comes back, everybody else is told."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.compose.balancer import CONFIGURATION, Balancer
from tests.compose.http2 import connect
from tests.compose.visitor import get
from tests.rig.deployment import until
from tests.viewers.viewer import Answer

EVENTS = "/v1/streams/0f3c/events"
LATER = re.compile(rb"retry: (1[0-9]{4})\n: too_many\n")
BURST, RATE_S = 200, 50
CONNECTIONS = 100
"""Fewer than in production, and than the burst."""


class Upstream:
    """A server that answers at once, or, to /hold, never."""

    def __init__(self) -> None:
        self.holding = 0
        self.heads: list[str] = []

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head.decode())
            if b" /hold" in head:
                self.holding += 1
                try:
                    await reader.read()
                finally:
                    self.holding -= 1
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def limited(
    request: pytest.FixtureRequest, tmp_path: Path, certificate: Path, require: Callable[[str, str], str]
) -> AsyncIterator[tuple[Balancer, Upstream]]:
    require("nginx", "nginx")
    upstream = Upstream()
    async with await asyncio.start_server(upstream.take, "127.0.0.1", 0, backlog=4096) as server:
        port = server.sockets[0].getsockname()[1]
        http = getattr(request, "param", "http {\n")
        nginx = Balancer(
            tmp_path,
            certificate,
            [port, port],
            requests_s=RATE_S,
            connections=CONNECTIONS,
            change=lambda configuration: configuration.replace("http {\n", http, 1),
        )
        await asyncio.to_thread(nginx.start)
        try:
            yield nginx, upstream
        finally:
            await asyncio.to_thread(nginx.process.stop)


async def beyond_the_rate(nginx: Balancer, path: str, **headers: str) -> Answer:
    """The first answer that is a refusal. A busy machine may not ask faster than nginx allows at once."""
    for _ in range(50):
        answers = await asyncio.gather(*(get(nginx.port, path, **headers) for _ in range(CONNECTIONS // 2)))
        if refused := [answer for answer in answers if answer.body]:
            assert any(not answer.body for answer in answers), "others are served"
            return refused[0]
    pytest.fail("nothing was refused")


async def test_beyond_fifty_a_second_and_a_burst_events_as_sse_are_a_200_a_retry_line_and_a_cut(
    limited: tuple[Balancer, Upstream],
) -> None:
    refused = await beyond_the_rate(limited[0], f"{EVENTS}?token=x", Accept="text/event-stream")
    assert LATER.fullmatch(refused.body)
    assert (refused.status, refused.is_cut) == (200, True)
    assert refused.headers["content-type"] == "text/event-stream"
    assert refused.headers["cache-control"] == "no-store, no-transform"
    assert refused.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(("path", "accept"), [("/v1/streams/0f3c", "*/*"), (EVENTS, "application/x-ndjson")])
async def test_beyond_that_everything_else_is_a_429_problem(
    limited: tuple[Balancer, Upstream], path: str, accept: str
) -> None:
    refused = await beyond_the_rate(limited[0], path, Accept=accept)
    assert refused.status == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["retry-after"] == "10"
    assert refused.json["code"] == "too_many_requests"


def test_the_numbers_are_those_that_are_documented() -> None:
    configuration = CONFIGURATION.read_text()
    for words in (
        *("limit_conn connections_of_one 2000;", "limit_conn connections_of_all 20000;", "rate=50r/s;"),
        *("burst=200 nodelay;", "keepalive_requests 1000;", "http2_max_concurrent_streams 256;"),
    ):
        assert words in configuration


async def test_beyond_its_connections_an_address_is_refused_and_another_one_is_served(
    limited: tuple[Balancer, Upstream],
) -> None:
    nginx, upstream = limited
    async with AsyncExitStack() as stack:

        async def ask(path: str, address: str) -> asyncio.StreamReader:
            reader, writer = await asyncio.open_connection("127.0.0.1", nginx.port, local_addr=(address, 0))
            stack.callback(writer.close)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            return reader

        for _ in range(CONNECTIONS):
            await ask("/hold", "127.0.0.1")
        await until(lambda: upstream.holding == CONNECTIONS, "all are held")
        assert b" 429 " in await (await ask("/v1/streams/0f3c", "127.0.0.1")).readline()
        assert b" 200 " in await (await ask("/v1/streams/0f3c", "127.0.0.2")).readline()
        await ask("/hold", "127.0.0.2")
        await until(lambda: upstream.holding == CONNECTIONS + 1, "it may hold one too")


BEHIND_ANOTHER = "http {\n    set_real_ip_from 127.0.0.1;\n    real_ip_header X-Forwarded-For;\n"
"""As docs/OPERATIONS.md says for an nginx that has another proxy in front."""


@pytest.mark.parametrize("limited", [BEHIND_ANOTHER], indirect=True)
async def test_behind_another_proxy_the_addresses_of_one_ipv6_network_are_one_caller(
    limited: tuple[Balancer, Upstream],
) -> None:
    nginx, upstream = limited
    async with AsyncExitStack() as stack:

        async def ask(path: str, address: str) -> asyncio.StreamReader:
            reader, writer = await asyncio.open_connection("127.0.0.1", nginx.port)
            stack.callback(writer.close)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {address}\r\n\r\n".encode())
            return reader

        for n in range(CONNECTIONS):
            await ask("/hold", f"2001:db8:0:a::{n:x}")
        await until(lambda: upstream.holding == CONNECTIONS, "all are held")
        statuses = {
            address: (await (await ask("/", address)).readline()).split()[1]
            for address in ("2001:db8:0:a:ffff::1", "2001:db8:0:b::1", "2001:db8::1", "192.0.2.1")
        }
    assert statuses == dict(zip(statuses, (b"429", b"200", b"200", b"200"), strict=True))
    forwarded = re.findall(r"^X-Forwarded-For: (.+)\r$", "".join(upstream.heads), re.MULTILINE)
    assert forwarded[-1] == "192.0.2.1", "the servers are told who calls"


async def test_what_a_caller_says_of_its_own_address_is_not_passed_on(limited: tuple[Balancer, Upstream]) -> None:
    nginx, upstream = limited
    claims = {"X-Forwarded-For": "10.0.0.1, 10.0.0.2", "Forwarded": "for=10.0.0.1", "X-Forwarded-Proto": "https"}
    await get(nginx.port, "/", **claims)
    [head] = upstream.heads
    said = dict(line.split(": ", 1) for line in head.splitlines() if line.startswith(("X-Forw", "Forw")))
    host = f"127.0.0.1:{nginx.port}"
    assert said == {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": host, "X-Forwarded-Proto": "http"}


async def test_over_tls_browsers_are_told_to_stay_there_but_not_for_this_machine_s_own_names(
    limited: tuple[Balancer, Upstream], certificate: Path
) -> None:
    trust = ssl.create_default_context(cafile=certificate / "tls.crt")
    said: Counter[str] = Counter()
    for host in ("app.example.com", "localhost", "127.0.0.1", "[::1]:8443"):
        reader, writer = await asyncio.open_connection("localhost", limited[0].tls_port, ssl=trust)
        writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        head = (await reader.read()).decode().lower()
        said[host] = head.count("strict-transport-security: max-age=31536000\r\n")
        writer.close()
    assert +said == Counter({"app.example.com": 1})
    assert "strict-transport-security" not in (await get(limited[0].port, "/")).headers


async def test_a_connection_on_which_requests_are_begun_and_reset_is_closed_after_a_thousand(
    limited: tuple[Balancer, Upstream], certificate: Path
) -> None:
    trust = ssl.create_default_context(cafile=certificate / "tls.crt")
    trust.set_alpn_protocols(["h2", "http/1.1"])
    async with connect(limited[0].tls_port, trust) as connection:
        begun = 0
        while not connection.is_closed and begun < 5000:
            connection.give_up(connection.get("/hold"))
            begun += 1
            await asyncio.sleep(0)
        await until(lambda: connection.is_closed, "nginx has closed it")
