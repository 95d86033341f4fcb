"""Redis stops, fills up, refuses to write, drops connections, comes back with less than it had.

Viewers are the raw ones of tests/viewers: what they got is compared with the log as it is in the end.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import pytest
import redis

from tests.faults.watching import log_blocks, seen, watched
from tests.rig.deployment import HTTP, Deployment, wait_until
from tests.viewers.viewer import post

Deploy = Callable[..., Deployment]

LONGER_THAN_A_LEASE_S = 7.5
PROMPT = "[[tokens=60 rate=20 ttft_ms=0]]"  # three seconds


def admin(deployment: Deployment) -> redis.Redis:
    return redis.Redis.from_url(deployment.redis_url, socket_timeout=5)


def record(deployment: Deployment, sid: str) -> dict[str, Any]:
    found: dict[str, Any] = HTTP.get(f"{deployment.url}/v1/streams/{sid}").json()
    return found


def listing(deployment: Deployment) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = HTTP.get(f"{deployment.url}/v1/streams").json()["streams"]
    return found


async def roll_back(deployment: Deployment) -> None:
    """Redis dies, and comes back as it was at its last SAVE."""

    def kill_and_start() -> None:
        deployment.valkey.kill()
        deployment.valkey.start()
        deployment.wait_until_ready()

    await asyncio.to_thread(kill_and_start)


def save(deployment: Deployment) -> None:
    with admin(deployment) as client:
        client.save()


# -- it is away, and back ----------------------------------------------------------------------------------


async def test_a_pause_longer_than_the_lease_costs_nobody_anything(deploy: Deploy) -> None:
    deployment = deploy(servers=2, workers=2)
    sid = deployment.create(PROMPT)
    async with watched(deployment, sid) as viewers:
        await seen(viewers, 10)
        deployment.valkey.send(signal.SIGSTOP)
        await asyncio.sleep(LONGER_THAN_A_LEASE_S)  # the fault itself
        deployment.valkey.send(signal.SIGCONT)
    assert record(deployment, sid)["attempt"] == 1, "its worker lives: nobody may take it over"
    for viewer in viewers:
        assert viewer.bytes == await log_blocks(deployment, sid)
        assert viewer.ids == list(range(1, 64))


@pytest.mark.parametrize("fault", ["full", "read only", "resets"])
async def test_a_redis_that_takes_no_writes_for_a_while_costs_nobody_anything(deploy: Deploy, fault: str) -> None:
    deployment = deploy(servers=2, workers=1)
    sid = deployment.create(PROMPT)
    async with watched(deployment, sid) as viewers:
        await seen(viewers, 10)
        with admin(deployment) as client:
            if fault == "resets":
                for _ in range(20):
                    client.client_kill_filter(_type="normal")
                    client.client_kill_filter(_type="pubsub")
                    await asyncio.sleep(0.05)  # the fault itself
            else:
                _refuse_writes(client, fault)
                answer = await post(deployment.ports[0], "/v1/streams", {"prompt": "hello"})
                await asyncio.sleep(1.5)  # the fault itself
                _take_writes(client, fault)
                # A server that has just asked how much room there is learns of a full Redis by its refusal.
                codes = {"full": ["store_full", "redis_unavailable"]}.get(fault, ["redis_unavailable"])
                assert (answer.status, answer.json["code"] in codes) == (503, True)
                assert int(answer.headers["retry-after"]) >= 1
    assert record(deployment, sid)["attempt"] == 1
    for viewer in viewers:
        assert viewer.bytes == await log_blocks(deployment, sid)
        assert viewer.ids == list(range(1, 64))


def _refuse_writes(client: redis.Redis, fault: str) -> None:
    if fault == "full":
        client.config_set("maxmemory", "1")
    else:
        client.replicaof("127.0.0.1", "1")  # whose primary is nowhere


def _take_writes(client: redis.Redis, fault: str) -> None:
    if fault == "full":
        client.config_set("maxmemory", "0")
    else:
        client.replicaof("NO", "ONE")


# -- it comes back with less -------------------------------------------------------------------------------


async def test_a_tail_that_redis_lost_is_put_back_under_the_same_ids(deploy: Deploy) -> None:
    deployment = deploy(servers=2, workers=1)
    sid = deployment.create(PROMPT)
    async with watched(deployment, sid) as viewers:
        await seen(viewers, 10)
        save(deployment)
        await seen(viewers, 30)
        await roll_back(deployment)
    for viewer in viewers:
        assert viewer.ids == list(range(1, 64)), "no repeat, no hole"
        assert viewer.bytes == await log_blocks(deployment, sid)


async def test_a_stream_that_redis_lost_whole_is_put_back(deploy: Deploy) -> None:
    deployment = deploy(servers=2, workers=1)
    save(deployment)
    sid = deployment.create(PROMPT, metadata={"a": "b"})
    async with watched(deployment, sid) as viewers:
        await seen(viewers, 20)
        before = record(deployment, sid)
        await roll_back(deployment)
    after = record(deployment, sid)
    for name in ("session_id", "user_id", "model", "attempt", "created_at", "started_at", "metadata", "request"):
        assert after[name] == before[name]
    assert [stream["id"] for stream in listing(deployment)] == [sid]
    for viewer in viewers:
        assert viewer.ids == list(range(1, 64))
        assert viewer.bytes == await log_blocks(deployment, sid)


async def test_a_request_that_is_repeated_after_redis_lost_its_stream_finds_the_one_that_is_put_back(
    deploy: Deploy,
) -> None:
    deployment = deploy(servers=2, workers=1)
    save(deployment)
    here, there = (f"{url}/v1/streams" for url in deployment.urls)
    request: dict[str, Any] = {"json": {"prompt": PROMPT}, "headers": {"Idempotency-Key": "once"}}
    sid = HTTP.post(here, **request).json()["id"]
    async with watched(deployment, sid) as viewers:
        await seen(viewers, 10)
        await roll_back(deployment)
        answers: list[int] = []

        def is_answered() -> bool:
            answers.append(HTTP.post(there, **request).status_code)
            return answers[-1] != 503

        await asyncio.to_thread(wait_until, is_answered, "its key is known again")
        assert answers[-1] == 200, "not 201: it is the same stream"
    assert [stream["id"] for stream in listing(deployment)] == [sid]
    assert {viewer.ids[-1] for viewer in viewers} == {63}


@pytest.mark.parametrize("since", ["the middle", "before the stream"])
async def test_an_ending_that_redis_lost_is_put_back(deploy: Deploy, since: str) -> None:
    deployment = deploy(servers=2, workers=1)
    save(deployment)
    sid = deployment.create(PROMPT)
    async with watched(deployment, sid) as viewers:
        await seen(viewers, 10)
        if since == "the middle":
            save(deployment)
    await roll_back(deployment)
    wait_until(lambda: record(deployment, sid).get("state") == "done", "its writer has put it back")
    for viewer in viewers:
        assert viewer.ids == list(range(1, 64))
        assert viewer.bytes == await log_blocks(deployment, sid)


async def test_a_cancel_that_redis_lost_is_put_back_under_its_id(deploy: Deploy) -> None:
    deployment = deploy(servers=2, workers=1)
    sid = deployment.create("[[tokens=400 rate=20 ttft_ms=0]]")
    async with watched(deployment, sid) as viewers:
        await seen(viewers, 10)
        save(deployment)
        ended = (await post(deployment.ports[0], f"/v1/streams/{sid}/cancel", {})).json
    await roll_back(deployment)
    wait_until(lambda: record(deployment, sid)["state"] == "cancelled", "the server has put it back")
    assert record(deployment, sid)["last_event_id"] == ended["last_event_id"]
    assert {viewer.ids[-1] for viewer in viewers} == {ended["last_event_id"]}


async def test_a_tail_lost_together_with_its_writer_leaves_a_gap_and_no_id_is_used_again(deploy: Deploy) -> None:
    deployment = deploy(servers=2, workers=1)
    sid = deployment.create("[[tokens=60 rate=20 ttft_ms=0]]")
    async with watched(deployment, sid) as viewers:
        await seen(viewers, 10)
        save(deployment)
        await seen(viewers, 30)
        deployment.workers[0].kill()
        await roll_back(deployment)
        deployment.workers[0].start()
    now = await log_blocks(deployment, sid)
    for viewer in viewers:
        lost = [block for block in viewer.blocks if block not in now and b"event: gap" not in block]
        assert len(lost) >= 10, "it has seen what no longer exists"
        [gap] = [event for event in viewer.events if event.kind == "gap"]
        assert '"reason":"log_lost_tail"' in gap.data
        known = {block.rpartition(b"\n")[2] for block in now.split(b"\n\n")}
        assert not [block for block in lost if block.strip().rpartition(b"\n")[2] in known], "an id names another event"
        after = [event.id for event in viewer.events[viewer.events.index(gap) + 1 :]]
        assert after[0] is not None
        assert after[0] > 1_000_000
        assert after == list(range(after[0], after[0] + len(after)))
    assert record(deployment, sid)["state"] == "done"
