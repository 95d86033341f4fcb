"""Workers that die, stand still, or leave."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis

from tests.faults.conftest import Provider
from tests.rig.deployment import HTTP, Deployment, Process, wait_until
from tests.rig.long import LONG

Deploy = Callable[..., Deployment]

SILENT = "[[tokens=20 ttft_ms=0 rate=0 stall_at=5]]"
SLOW = "[[tokens=100 rate=10 ttft_ms=0]]"
STOPPED_S = 30 if LONG else 8
"""Longer than a lease; `make chaos` takes the long form."""


def log(deployment: Deployment, sid: str) -> list[dict[str, Any]]:
    lines = HTTP.get(f"{deployment.url}/v1/streams/{sid}/export").text.splitlines()
    return [json.loads(line) for line in lines]


def kinds(deployment: Deployment, sid: str) -> list[str]:
    return [event["event"] for event in log(deployment, sid)]


def has(deployment: Deployment, sid: str, kind: str) -> Callable[[], bool]:
    return lambda: kind in kinds(deployment, sid)


def cancel(deployment: Deployment, sid: str) -> dict[str, Any]:
    answer = HTTP.post(f"{deployment.url}/v1/streams/{sid}/cancel")
    assert answer.status_code == 200, answer.text
    ended: dict[str, Any] = answer.json()
    return ended


def writer_of(deployment: Deployment, sid: str) -> Process:
    """The worker that holds a stream's lease."""
    with redis.Redis.from_url(deployment.redis_url) as client:
        holder = (client.hget(f"le:{{{sid}}}:meta", "worker") or b"").decode()
    return next(worker for worker in deployment.workers if holder.endswith(f":{worker.pid}"))


def test_a_dead_workers_stream_goes_on_within_ten_seconds_in_a_block_of_its_own(deploy: Deploy) -> None:
    deployment = deploy(servers=1, workers=2)
    sid = deployment.create(SLOW)
    wait_until(has(deployment, sid, "text_delta"), "it has begun")
    writer_of(deployment, sid).kill()
    killed = time.time() * 1000
    wait_until(has(deployment, sid, "restart"), "it goes on")
    restart = next(event for event in log(deployment, sid) if event["event"] == "restart")
    print(f"{(restart['t'] - killed) / 1000:.1f} s after the kill")
    assert restart["t"] - killed < 10_000
    assert restart["id"] % 1_000_000 == 1
    assert restart["data"] == {"attempt": 2, "reason": "worker_lost"}
    assert cancel(deployment, sid)["state"] == "cancelled"


def test_a_worker_that_has_just_said_that_it_is_ready_takes_over_in_time_though_it_is_still_importing_sdks(
    deploy: Deploy, provider: Provider
) -> None:
    others = {"OPENAI_BASE_URL": f"{provider.url}/v1", "OPENAI_API_KEY": "x", "GEMINI_API_KEY": "x"}
    deployment = deploy(servers=1, workers=1, GOOGLE_GEMINI_BASE_URL=provider.url, LASTEVENT_LOG_LEVEL="info", **others)
    sid = deployment.create("[[tokens=400 rate=10 ttft_ms=0]]")
    wait_until(has(deployment, sid, "text_delta"), "it has begun")
    # Not from the zygote, which has imported them: as an operator starts it.
    late = Process("late", [sys.executable, "-u", "-m", "worker"], deployment.environment, deployment.folder)
    deployment.workers.append(late)
    late.start()
    wait_until(lambda: "this worker takes generations" in late.output.read_text(), "it is ready")
    deployment.workers[0].kill()
    killed = time.time() * 1000
    wait_until(has(deployment, sid, "restart"), "it goes on")
    restart = next(event for event in log(deployment, sid) if event["event"] == "restart")
    print(f"{(restart['t'] - killed) / 1000:.1f} s after the kill")
    assert restart["t"] - killed < 10_000
    assert cancel(deployment, sid)["state"] == "cancelled"


def test_a_worker_that_stood_still_for_longer_than_its_lease_adds_nothing(deploy: Deploy) -> None:
    deployment = deploy(servers=1, workers=2)
    sid = deployment.create("[[tokens=400 rate=10 ttft_ms=0]]")
    wait_until(has(deployment, sid, "text_delta"), "it has begun")
    zombie = writer_of(deployment, sid)
    zombie.send(signal.SIGSTOP)
    stopped_at = time.monotonic()
    try:
        wait_until(has(deployment, sid, "restart"), "another worker goes on")
        wait_until(lambda: time.monotonic() - stopped_at > STOPPED_S, "it has stood still for long")
    finally:
        zombie.send(signal.SIGCONT)
    before = [event["id"] for event in log(deployment, sid) if event["id"] < 1_000_000]
    # It learns that it is fenced: then it has tried.
    wait_until(lambda: "stood still" in zombie.output.read_text(), "it has noticed")
    assert cancel(deployment, sid)["state"] == "cancelled"
    events = log(deployment, sid)
    assert [event["id"] for event in events if event["id"] < 1_000_000] == before
    assert [event["event"] for event in events].count("restart") == 1
    taken = [event["id"] for event in events if event["id"] > 1_000_000]
    assert taken[:-1] == list(range(taken[0], taken[0] + len(taken) - 1)), "nobody else wrote among them"


def test_a_worker_that_leaves_hands_its_streams_over_at_once(deploy: Deploy) -> None:
    deployment = deploy(servers=1, workers=2, LASTEVENT_WORKER_DRAIN_S="0.5")
    sid = deployment.create(SLOW)
    wait_until(has(deployment, sid, "text_delta"), "it has begun")
    leaving = writer_of(deployment, sid)
    leaving.send(signal.SIGTERM)
    assert leaving.wait() == 0
    left = time.time() * 1000
    wait_until(has(deployment, sid, "restart"), "the other one goes on")
    restart = next(event for event in log(deployment, sid) if event["event"] == "restart")
    print(f"the other worker went on {restart['t'] - left:.0f} ms after this one had left")
    assert restart["t"] - left < 1500
    assert cancel(deployment, sid)["state"] == "cancelled"


def test_a_stream_that_asked_for_no_restart_ends_when_its_worker_leaves(deploy: Deploy) -> None:
    deployment = deploy(servers=1, workers=1, LASTEVENT_WORKER_DRAIN_S="0")
    sid = deployment.create(SLOW, on_worker_loss="fail")
    wait_until(has(deployment, sid, "text_delta"), "it has begun")
    deployment.workers[0].send(signal.SIGTERM)
    assert deployment.workers[0].wait() == 0
    last = log(deployment, sid)[-1]
    assert (last["event"], last["data"]["code"], last["data"]["recoverable"]) == ("error", "worker_lost", True)


def test_a_worker_that_leaves_lets_finish_what_can(deploy: Deploy) -> None:
    deployment = deploy(servers=1, workers=1)
    sid = deployment.create("[[tokens=20 rate=10 ttft_ms=0]]")
    wait_until(has(deployment, sid, "text_delta"), "it has begun")
    deployment.workers[0].send(signal.SIGTERM)
    late = deployment.create("[[tokens=1]]")
    assert deployment.workers[0].wait() == 0
    assert kinds(deployment, sid)[-1] == "done"
    assert "restart" not in kinds(deployment, sid)
    assert kinds(deployment, late) == ["queued"], "it takes no more work"


# -- cancel ------------------------------------------------------------------------------------------------


def test_a_cancel_closes_the_connection_of_a_silent_provider_within_two_seconds(
    deploy: Deploy, provider: Provider
) -> None:
    deployment = deploy(servers=1, workers=1)
    took_s = []
    for n in range(5):
        sid = deployment.create(f"{SILENT} {n}")
        wait_until(lambda sid=sid: kinds(deployment, sid).count("text_delta") == 5, "the provider is silent")
        assert provider.open() == 1
        cancel(deployment, sid)
        began = time.monotonic()
        wait_until(lambda: provider.open() == 0, "the connection is closed")
        took_s.append(time.monotonic() - began)
    print("closed after", [f"{1000 * s:.0f} ms" for s in took_s])
    assert max(took_s) < 2


def test_a_cancel_while_the_worker_is_dead_ends_the_stream_at_once(deploy: Deploy) -> None:
    deployment = deploy(servers=1, workers=1)
    sid = deployment.create(SLOW)
    wait_until(has(deployment, sid, "text_delta"), "it has begun")
    deployment.workers[0].kill()
    ended = cancel(deployment, sid)
    assert (ended["state"], ended["already"]) == ("cancelled", False)
    assert log(deployment, sid)[-1]["id"] == ended["last_event_id"]
    assert log(deployment, sid)[-2]["id"] == ended["stopped_after"]
    deployment.workers[0].start()
    after = deployment.create("[[tokens=1 ttft_ms=0]]")
    assert deployment.wait_until_ended(after)["state"] == "done"
    assert kinds(deployment, sid)[-1] == "cancelled"


@pytest.mark.parametrize("rate", [0, 100])
def test_a_cancel_that_races_the_end_is_told_how_the_stream_ended(deploy: Deploy, rate: int) -> None:
    deployment = deploy(servers=1, workers=1)
    seen = set()
    for n in range(40):
        # The last ones begin late enough for a cancel to come first, however slow this machine is.
        ttft_ms = 200 * max(0, n - 34)
        sid = deployment.create(f"[[tokens={n // 4} rate={rate} ttft_ms={ttft_ms}]] {n}")
        ended = cancel(deployment, sid)
        record = deployment.wait_until_ended(sid)
        assert ended["state"] == record["state"] == kinds(deployment, sid)[-1]
        assert ended["already"] == (record["state"] != "cancelled")
        assert sum(kind in ("done", "error", "cancelled") for kind in kinds(deployment, sid)) == 1
        seen.add(record["state"])
    assert "cancelled" in seen


# -- abandonment -------------------------------------------------------------------------------------------


def test_what_nobody_watches_is_cancelled_and_a_viewer_on_any_server_counts(deploy: Deploy) -> None:
    deployment = deploy(servers=2, workers=1)
    watched, unwatched, patient = (
        deployment.create("[[tokens=80 rate=10 ttft_ms=0]]", abandon_after_s=1),
        deployment.create("[[tokens=80 rate=10 ttft_ms=0]]", abandon_after_s=1),
        deployment.create("[[tokens=80 rate=10 ttft_ms=0]]"),
    )
    with httpx.stream("GET", f"{deployment.urls[1]}/v1/streams/{watched}/events", timeout=30) as body:
        assert deployment.wait_until_ended(unwatched)["state"] == "cancelled"
        ending = log(deployment, unwatched)[-1]["data"]
        assert (ending["reason"], ending["by"]) == ("abandoned", "lastevent")
        assert ending["usage"]["input_tokens"] > 0, "it was paid for"
        for _ in body.iter_bytes():
            pass
    assert deployment.wait_until_ended(watched)["state"] == "done"
    assert deployment.wait_until_ended(patient)["state"] == "done"
