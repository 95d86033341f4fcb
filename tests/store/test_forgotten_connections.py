"""A firewall forgets connections that were silent, and tells nobody: after a quiet time every request is served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

import broker.store.connect
import broker.store.listen
from broker.errors import RedisUnavailable
from broker.store.connect import POOL_CONNECTIONS, SOCKET_TIMEOUT_S, Client
from broker.store.listen import messages
from tests.rig.deployment import Deployment, Process, until
from tests.rig.proxy import Proxy

SILENT_S = 0.2
LIMIT_S = 6.0


async def ask(client: Client, count: int) -> list[float]:
    """How long each of so many questions at a time took."""

    async def one() -> float:
        began_s = time.monotonic()
        assert await client.time()
        return time.monotonic() - began_s

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def test_after_a_quiet_time_a_full_pool_answers_everybody_and_nobody_waits_for_a_timeout(
    client: Client, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.store.connect, "ASK_AFTER_S", SILENT_S / 2)
    await ask(client, POOL_CONNECTIONS)
    assert proxy.connections == POOL_CONNECTIONS
    proxy.forget_after(SILENT_S)
    await asyncio.sleep(1.5 * SILENT_S)
    assert max(await ask(client, 2 * POOL_CONNECTIONS)) < SOCKET_TIMEOUT_S


async def test_of_many_dead_connections_only_those_in_use_at_once_are_waited_for(
    client: Client, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.store.connect, "ASK_AFTER_S", SILENT_S / 2)
    await ask(client, POOL_CONNECTIONS)
    proxy.forget_after(SILENT_S)
    await asyncio.sleep(1.5 * SILENT_S)
    waits = [(await ask(client, 1))[0] for _ in range(3)]
    assert [wait > broker.store.connect.ANSWER_S / 2 for wait in waits] == [True, False, False]


async def test_a_connection_in_use_is_not_asked(client: Client, redis: Redis) -> None:
    async def pings() -> int:
        stats = await redis.info("commandstats")
        return int(stats.get("cmdstat_ping", {"calls": 0})["calls"])

    await ask(client, 1)
    before = await pings()
    for _ in range(20):
        await ask(client, 1)
    assert await pings() == before


async def test_a_subscription_that_was_forgotten_is_made_again_and_says_so(
    client: Client, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.store.listen, "PING_S", SILENT_S)
    async with aclosing(messages(client, "le:x")) as heard:
        assert await anext(heard) is None
        await client.publish("le:x", "1")
        assert await anext(heard) == b"1"
        proxy.forget_after(SILENT_S / 2)
        assert await anext(heard) is None
        proxy.refuse()
        with pytest.raises(RedisUnavailable):
            await anext(heard)


async def test_a_silent_subscription_is_kept_by_its_pings(
    client: Client, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.store.listen, "PING_S", 0.01)
    async with aclosing(messages(client, "le:x")) as heard:
        assert await anext(heard) is None
        waiting = asyncio.ensure_future(anext(heard))
        await asyncio.sleep(0.01 * (broker.store.listen.PINGS + 5))
        await redis.publish("le:x", "1")
        assert await waiting == b"1"


@contextmanager
def started(folder: Path, redis_url: str) -> Iterator[str]:
    """A server and a worker on this Redis; the server's address."""
    unused = Process("unused", [], {}, folder)
    deployment = Deployment(folder, unused, redis_url, servers=1)
    try:
        for process in (*deployment.servers, *deployment.workers):
            process.start()
        yield deployment.url
    finally:
        deployment.stop()


@pytest.mark.processes
async def test_after_a_quiet_time_every_start_and_listing_is_served_and_a_viewer_has_missed_nothing(
    proxy: Proxy, tmp_path: Path
) -> None:
    quiet_s = 8 * broker.store.connect.ASK_AFTER_S  # the firewall is late itself, where its process waits for a CPU
    with started(tmp_path, proxy.url) as url:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:

            async def is_ready() -> bool:
                try:
                    return (await http.get("/readyz")).is_success
                except httpx.HTTPError:
                    return False

            async def start(prompt: str = "[[tokens=3 rate=0 ttft_ms=0]]") -> str:
                answer = await http.post("/v1/streams", json={"prompt": prompt})
                assert answer.status_code == 201, answer.text
                return str(answer.json()["id"])

            await until(is_ready, "the server is ready")
            await asyncio.gather(*(start() for _ in range(20)))  # each pool is full
            slow = await start("[[tokens=8 rate=2 ttft_ms=0]]")
            viewer = asyncio.create_task(http.get(f"/v1/streams/{slow}/events"))
            proxy.forget_after(0.75 * quiet_s)
            await asyncio.sleep(quiet_s)
            began_s = time.monotonic()
            await asyncio.gather(*(start() for _ in range(20)))
            assert time.monotonic() - began_s < LIMIT_S
            await asyncio.sleep(quiet_s)
            began_s = time.monotonic()
            listed = await asyncio.gather(*(http.get("/v1/streams") for _ in range(8)))
            assert time.monotonic() - began_s < LIMIT_S
            assert [answer.status_code for answer in listed] == [200] * 8
            seen = (await viewer).text
            assert seen.count("event: text_delta") == 8
            assert "event: done" in seen
