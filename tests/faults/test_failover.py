"""The primary is killed in the middle of fifty generations; another server goes on. Nobody misses an event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from broker.log.stream_log import StreamLog
from broker.log.writer import StreamWriter
from broker.store.connect import connect
from broker.store.redis_url import parse_redis_url
from tests.faults.replicas import Replicas, replicated
from tests.rig.deployment import Deployment, wait_until
from tests.rig.streams import committing, running
from tests.viewers.viewer import Viewer, outcome

STREAMS = 50
PROMPT = "[[tokens=60 rate=12 ttft_ms=0]]"  # five seconds
LIMIT_S = 60


@contextmanager
def _deployed(folder: Path, replicas: Replicas) -> Iterator[Deployment]:
    deployment = Deployment(folder, replicas.primary, replicas.url, servers=2, workers=2)
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.stop()


@pytest.mark.parametrize("sentinels", [3, 0], ids=["sentinel", "pair"])
async def test_a_primary_killed_in_the_middle_of_fifty_generations_costs_nobody_an_event(
    tmp_path: Path, sentinels: int
) -> None:
    with replicated(tmp_path, sentinels=sentinels) as replicas, _deployed(tmp_path, replicas) as deployment:
        streams = [await asyncio.to_thread(deployment.create, f"{PROMPT} {n}") for n in range(STREAMS)]
        viewers = [Viewer(sid) for sid in streams]
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
            for n, viewer in enumerate(viewers):
                group.create_task(_view_to_the_end(viewer, deployment.ports[n % 2]))
            await _until(lambda: all(viewer.has_seen(10) for viewer in viewers))
            began = time.monotonic()
            if not sentinels:
                # From here on the primary's events reach no replica: they are lost with it, and its writers heal them.
                replicas.promote()
                await _until(lambda: all(viewer.has_seen(20) for viewer in viewers))
            replicas.primary.kill()
            await _until(replicas.is_promoted)
            promoted_s = time.monotonic() - began
        logs = [_ids(replicas, sid) for sid in streams]
        records = [await asyncio.to_thread(deployment.wait_until_ended, sid) for sid in streams]

    faults = [outcome(viewer, log) for viewer, log in zip(viewers, logs, strict=True)]
    totals = {name: sum(fault[name] for fault in faults) for name in faults[0]}
    attempts = sum(record["attempt"] > 1 for record in records)
    print(f"promoted after {promoted_s:.1f} s; {STREAMS} generations, {attempts} started again: {totals}")
    assert not any(totals.values())
    assert {record["state"] for record in records} == {"done"}
    assert attempts == 0, "their workers lived, and went on"


async def test_a_planned_failover_costs_a_writer_nothing_though_its_process_still_reaches_the_old_primary(
    tmp_path: Path,
) -> None:
    """The connections of its pool go on leading there, and scripts are not replicated."""
    with replicated(tmp_path) as replicas:
        async with connect(replicas.url) as client, asyncio.timeout(LIMIT_S):
            log = StreamLog(client)
            async with committing(log) as commit:
                writer = StreamWriter(commit, await running(log))
                writer.write("text_delta", {"text": "Salt"})
                await writer.flush()
                await log.now_ms()
                with replicas.client(0) as primary:
                    primary.execute_command("FAILOVER")
                await _until(replicas.is_promoted)
                writer.write("text_delta", {"text": "bread"})
                await writer.flush()
        assert _ids(replicas, writer.sid) == [1, 2, 3]


async def _view_to_the_end(viewer: Viewer, port: int) -> None:
    while not viewer.has_ended:
        with suppress(OSError):
            await viewer.view(port)


async def _until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, condition, "it is so")


def _ids(replicas: Replicas, sid: str) -> list[int]:
    with replicas.client(1) as client:
        return [int(entry_id.split(b"-")[0]) for entry_id, _ in client.xrange(f"le:{{{sid}}}:log")]


def test_an_address_may_be_one_server_several_or_sentinels() -> None:
    one = parse_redis_url("redis://user:secret@example.com/3?protocol=3")
    assert one.is_fixed
    assert one.addresses == (("example.com", 6379),)
    pair = parse_redis_url("rediss://:secret@a,b:7000,[::1]:7001/1")
    assert not pair.is_fixed
    assert pair.one == "rediss://:secret@a:6379/1?ssl_check_hostname=true"
    assert pair.addresses == (("a", 6379), ("b", 7000), ("::1", 7001))
    watched = parse_redis_url("redis+sentinel://:secret@a,b:7000/main/2?sentinel_password=other")
    assert (watched.service, watched.addresses) == ("main", (("a", 26379), ("b", 7000)))
    assert watched.one == "redis://:secret@a:26379/2"
    assert watched.sentinel_credentials == {"password": "other"}
    assert parse_redis_url("unix:///tmp/s?db=1").is_fixed


@pytest.mark.parametrize(
    "url", ["http://a", "redis+sentinel://a:26379", "redis+sentinel://a/", "redis://a:port", "tcp://a"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        parse_redis_url(url)
