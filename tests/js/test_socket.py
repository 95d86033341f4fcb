"""`lastevent/socket`: the same streams over one WebSocket, and without one where none comes through."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.js.cutting import Blocking, Cut, Cutter, cutting
from tests.js.following import run
from tests.js.test_gaps import CURSOR, resumed, stream_without_its_middle
from tests.rig.deployment import HTTP, Deployment, until
from tests.rig.long import LONG
from tests.viewers.producer import Producer

pytestmark = pytest.mark.npm

ANSWER = "[[tokens=60 rate=300 ttft_ms=0]]"
WINDOW = 256
CUTS = 300 if LONG else 12


def followed(base: str, *sids: str, **more: Any) -> list[dict[str, Any]]:
    """As the events are in the log, not merged."""
    return [{"url": f"{base}/v1/streams/{sid}/events?compact=0", **more} for sid in sids]


async def over_socket(
    js: Path, folder: Path, base: str, streams: list[dict[str, Any]], *, name: str = "bun", **asked: Any
) -> dict[str, Any]:
    """What npm/socket.mjs says."""
    file = folder / "asked.json"
    file.write_text(json.dumps({"api": base, "socket": f"{base}/v1/socket", "streams": streams, **asked}))
    [said] = await run(js, "socket.mjs", str(file), name=name, limit_s=300 if LONG else 60)
    return said


def sid_of(outcome: dict[str, Any]) -> str:
    sid: str = outcome["url"].partition("/streams/")[2].partition("/")[0]
    return sid


def require_exact(deployment: Deployment, outcomes: list[dict[str, Any]], state: str = "done") -> None:
    """The text is that of `/text`. Of what is not merged, each event is there once and in order."""
    for outcome in outcomes:
        assert outcome.get("error") is None
        text = HTTP.get(f"{deployment.url}/v1/streams/{sid_of(outcome)}/text").text
        assert (outcome["state"], outcome["text"]) == (state, text)
        log = [[event["id"], event["event"]] for event in deployment.log_of(sid_of(outcome))]
        if "compact=0" in outcome["url"]:
            assert outcome["events"] == log
        ids = [event_id for event_id, _ in outcome["events"]]
        assert ids == sorted(set(ids))
        assert set(map(tuple, outcome["events"])) <= set(map(tuple, log))
        assert outcome["events"][-1] == log[-1]


def sockets(cutter: Cutter) -> int:
    return sum(asked.path == "/v1/socket" for asked in cutter.asked[""])


@pytest.mark.parametrize("name", ["bun", "deno"])
async def test_eight_streams_that_are_started_and_followed_share_one_connection(
    js: Path, deployment: Deployment, tmp_path: Path, name: str
) -> None:
    async with cutting(deployment.ports[0]) as cutter:
        starts = [{"url": f"{cutter.url}/v1/streams", "body": {"prompt": ANSWER}}] * 4
        follows = followed(cutter.url, *(deployment.create(ANSWER) for _ in range(4)))
        said = await over_socket(js, tmp_path, cutter.url, starts + follows, name=name)
        assert [asked.path for asked in cutter.asked[""]] == ["/v1/socket"]
    require_exact(deployment, said["outcomes"])
    assert (said["sockets"], said["fetched"]) == (1, [])


async def test_sockets_that_are_cut_at_any_byte_lose_nothing_and_start_nothing_twice(
    js: Path, deployment: Deployment, tmp_path: Path
) -> None:
    """Each is with the other server. The first cuts fall into the answers to the ops."""
    numbers = random.Random("sockets")
    user = f"cut-{tmp_path.name}"
    prompt = f"[[tokens={CUTS * 20} rate={100 if LONG else 150} ttft_ms=0]]"
    async with cutting(*deployment.ports) as cutter:
        cutter.cuts[""] = [Cut(numbers.randrange(1200 if n < CUTS // 3 else 8000)) for n in range(CUTS)]
        starts = [{"url": f"{cutter.url}/v1/streams", "body": {"prompt": prompt, "user_id": user}}] * 2
        follows = followed(cutter.url, *(deployment.create(prompt) for _ in range(3)))
        said = await over_socket(js, tmp_path, cutter.url, starts + follows, pace=20)
        cut = sockets(cutter)
    require_exact(deployment, said["outcomes"])
    assert cut > CUTS // 2
    assert said["most"] <= 2, "one; and one whose end has not been told"
    assert len(HTTP.get(f"{deployment.url}/v1/streams?user_id={user}").json()["streams"]) == 2
    print(f"{cut} sockets, {len(said['fetched'])} requests beside them")


async def test_servers_that_are_killed_and_drained_cost_nothing(
    js: Path, own_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    own = own_deployment(servers=2, workers=1)
    sids = [own.create("[[tokens=4000 rate=40 ttft_ms=0]]") for _ in range(4)]
    here, there = own.ports

    def last_id() -> int:
        record: dict[str, int] = HTTP.get(f"{own.url}/v1/streams/{sids[0]}").json()
        return record["last_event_id"]

    async with cutting(here, there) as cutter, asyncio.TaskGroup() as group:
        said = group.create_task(over_socket(js, tmp_path, cutter.url, followed(cutter.url, *sids), pace=5))
        await until(lambda: cutter.answering(here) == 1 and last_id() > 20, "they follow")
        own.servers[0].kill()
        await until(lambda: cutter.answering(there) >= 1, "they are with the other one")
        own.servers[0].start()
        await asyncio.to_thread(own.wait_until_ready)
        own.servers[1].send(signal.SIGTERM)
        await until(lambda: cutter.answering(here) >= 1 and not cutter.answering(there), "and here again")
        for sid in sids:
            assert HTTP.post(f"{own.urls[0]}/v1/streams/{sid}/cancel").status_code == 200
        outcomes = (await said)["outcomes"]
    require_exact(own, outcomes, "cancelled")


@pytest.mark.parametrize("blocking", get_args(Blocking))
async def test_where_no_socket_comes_through_all_goes_by_server_sent_events(
    js: Path, deployment: Deployment, tmp_path: Path, blocking: Blocking
) -> None:
    async with cutting(deployment.ports[0]) as cutter:
        cutter.blocking = blocking
        starts = [{"url": f"{cutter.url}/v1/streams", "body": {"prompt": ANSWER}}]
        follows = followed(cutter.url, *(deployment.create(ANSWER) for _ in range(2)))
        said = await over_socket(js, tmp_path, cutter.url, starts + follows, patience=10)
        assert sockets(cutter) == 1
    require_exact(deployment, said["outcomes"])
    assert sorted(said["fetched"]) == ["GET /v1/streams/*/events"] * 2 + ["POST /v1/streams"]


async def test_what_a_slow_reader_does_not_take_is_not_sent_and_holds_up_nobody(
    js: Path, deployment: Deployment, tmp_path: Path
) -> None:
    events = WINDOW * 2
    slow = await Producer.create(deployment.ports[0])
    for _ in range(events // WINDOW):
        await slow.write(*("x" * 100 for _ in range(WINDOW)))
    await slow.finish()
    follows = followed(deployment.url, slow.sid, *(deployment.create(ANSWER) for _ in range(3)))
    said = await over_socket(js, tmp_path, deployment.url, follows, slow=3)
    require_exact(deployment, said["outcomes"])
    assert said["order"][-1] == 0
    assert said["said"]["ack"] <= 2 + events // 64 + 3
    assert (said["sockets"], said["fetched"]) == (1, [])


async def test_calls_go_over_the_socket_that_is_there(js: Path, deployment: Deployment, tmp_path: Path) -> None:
    streams = followed(deployment.url, deployment.create("[[tokens=4000 rate=40 ttft_ms=0]]"))
    said = await over_socket(js, tmp_path, deployment.url, streams, cancels=True)
    require_exact(deployment, said["outcomes"], "cancelled")
    assert (said["said"]["follow"], said["said"]["cancel"], said["fetched"]) == (1, 1, [])


async def test_a_gap_is_bridged_by_the_text_and_the_stream_goes_on_over_the_socket(
    js: Path, deployment: Deployment, tmp_path: Path
) -> None:
    producer = await stream_without_its_middle(deployment)
    async with cutting(*deployment.ports) as cutter:
        case = resumed(cutter, producer.sid)
        await producer.finish()
        said = await over_socket(js, tmp_path, cutter.url, [{"url": case.url, "kept": case.kept}])
    [outcome] = said["outcomes"]
    text = HTTP.get(f"{deployment.url}/v1/streams/{producer.sid}/text").text
    assert (outcome["text"], outcome["state"], outcome["incomplete"]) == (text, "done", True)
    assert outcome["events"] == [[CURSOR + 3, "done"]]
    assert said["fetched"] == ["GET /v1/streams/*/text"]
    assert said["said"]["follow"] == 3


async def test_a_stream_that_is_followed_twice_has_a_connection_of_its_own_for_the_second_time(
    js: Path, deployment: Deployment, tmp_path: Path
) -> None:
    [stream] = followed(deployment.url, deployment.create(ANSWER))
    said = await over_socket(js, tmp_path, deployment.url, [stream, stream])
    require_exact(deployment, said["outcomes"])
    assert (said["said"]["follow"], said["fetched"]) == (1, ["GET /v1/streams/*/events"])


async def test_what_is_no_call_of_a_stream_there_goes_by_fetch_and_the_rest_as_fetch_would_answer_it(
    js: Path, deployment: Deployment
) -> None:
    """Another host, path, query, form or credential, a producer's append, a start too large or without a key."""
    producer = await Producer.create(deployment.ports[0])
    events = f"{deployment.url}/v1/streams/{producer.sid}/events"
    [said] = await run(js, "socket-calls.mjs", deployment.url, events, name="bun")
    assert (said["byFetch"], said["opened"]) == (10, 0)
    assert said["first"] == "event: queued"
    assert said["status"] == [200, 404, "stream_not_found", 200]
    assert said["location"].startswith(f"{deployment.url}/v1/streams/")
    assert said["cancelled"]["state"] == "cancelled"
    assert said["said"][:3] == ["follow", "unfollow", "follow"]
    assert said["idle"] == 0, "it is closed when nothing is followed"
    assert (said["fetched"], said["live"]) == ([f"GET {events}"], 0), "closed for good"
