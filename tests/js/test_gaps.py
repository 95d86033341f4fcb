"""Events that a client had are gone from the log: it has the whole text all the same, and says that some is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.js.cutting import Cutter, cutting
from tests.js.following import Case, Outcome, follow
from tests.rig.deployment import HTTP, Deployment, until
from tests.viewers.producer import Producer
from tests.viewers.viewer import post

pytestmark = pytest.mark.npm

PACE = 50
CURSOR = 4
"""What the app has kept ends here: `queued`, and three words that the log has no more."""


async def stream_without_its_middle(deployment: Deployment) -> Producer:
    """On a server that nobody has followed it on: it looks at the log."""
    producer = await Producer.create(deployment.ports[0])
    await producer.write("one ", "two ", "lost ", "three ", "four ")
    await lose(deployment, producer.sid, CURSOR)
    return producer


async def lose(deployment: Deployment, sid: str, event_id: int) -> None:
    async with Redis.from_url(deployment.redis_url) as redis:
        assert await redis.xdel(f"le:{{{sid}}}:log", f"{event_id}-0") == 1


def resumed(cutter: Cutter, sid: str) -> Case:
    url = f"{cutter.url}/v1/streams/{sid}/events"
    answer = {"cursor": CURSOR, "state": "running", "text": "one two lost "}
    return Case(sid, url, kept={"v": 1, "user": None, "url": url, "answer": answer})


def text_of(deployment: Deployment, sid: str) -> str:
    return HTTP.get(f"{deployment.url}/v1/streams/{sid}/text").text


def paths(cutter: Cutter, sid: str) -> list[tuple[str, int]]:
    """What it asked for, and from which cursor."""
    return [(asked.path.partition("?")[0].rpartition("/")[2], asked.cursor) for asked in cutter.asked[sid]]


async def test_a_stream_that_goes_on_behind_a_gap_is_followed_from_its_text(js: Path, deployment: Deployment) -> None:
    producer = await stream_without_its_middle(deployment)
    sid = producer.sid
    async with cutting(*deployment.ports) as cutter, asyncio.TaskGroup() as group:
        following = group.create_task(follow(js, [resumed(cutter, sid)], pace=PACE))
        await until(lambda: len(cutter.asked[sid]) == 3, "it follows what the text was read of")
        await producer.write("five ")
        await producer.finish()
        [outcome] = await following
    assert paths(cutter, sid) == [("events", CURSOR), ("text", 0), ("events", 6)]
    assert outcome.events == [(7, "text_delta"), (8, "done")]
    assert outcome.answer["text"] == text_of(deployment, sid) == "one two three four five "
    assert (outcome.answer["state"], outcome.answer["incomplete"]) == ("done", True)


async def test_the_ending_behind_a_gap_is_reached(js: Path, deployment: Deployment) -> None:
    """`/text` names the last event, which is the ending: what follows it is nothing, so the client asks for it."""
    producer = await stream_without_its_middle(deployment)
    await producer.finish()
    outcome, asked = await follow_to_the_end(js, deployment, producer.sid)
    assert asked == [("events", CURSOR), ("text", 0), ("events", 7), ("events", 6)]
    assert outcome.events == [(7, "done")]
    assert outcome.answer["text"] == text_of(deployment, producer.sid) == "one two three four "
    assert (outcome.answer["state"], outcome.answer["ending"], outcome.answer["incomplete"]) == ("done", {}, True)


async def test_the_ending_behind_a_gap_is_reached_though_nothing_stands_right_before_it(
    js: Path, deployment: Deployment
) -> None:
    """A server has written it, in a block of ids of its own."""
    sid = (await stream_without_its_middle(deployment)).sid
    ended = (await post(deployment.ports[0], f"/v1/streams/{sid}/cancel", {})).json
    assert ended["last_event_id"] > 1_000_000
    outcome, asked = await follow_to_the_end(js, deployment, sid)
    assert outcome.events == [(ended["last_event_id"], "cancelled")]
    assert outcome.answer["text"] == text_of(deployment, sid) == "one two three four "
    assert (outcome.answer["state"], outcome.answer["incomplete"]) == ("cancelled", True)
    assert outcome.answer["ending"]["reason"] == "requested"
    assert len(asked) == 4


async def follow_to_the_end(js: Path, deployment: Deployment, sid: str) -> tuple[Outcome, list[Any]]:
    async with cutting(*deployment.ports) as cutter:
        [outcome] = await follow(js, [resumed(cutter, sid)], pace=PACE, limit_s=20)
    return outcome, paths(cutter, sid)


async def test_clients_that_had_what_redis_lost_together_with_its_writer_have_the_successor_s_text(
    js: Path, own_deployment: Callable[..., Deployment]
) -> None:
    """They are connected all the time."""
    deployment = own_deployment(servers=2, workers=1)
    sid = deployment.create("[[tokens=2000 rate=20 ttft_ms=0]]")
    url = f"/v1/streams/{sid}/events"

    def last_id() -> int:
        record: dict[str, int] = HTTP.get(f"{deployment.url}/v1/streams/{sid}").json()
        return record["last_event_id"]

    async with cutting(*deployment.ports) as cutter, asyncio.timeout(60), asyncio.TaskGroup() as group:
        cases = [Case(f"client-{n}", cutter.url + url) for n in range(10)]
        following = group.create_task(follow(js, cases, pace=PACE))
        await until(lambda: cutter.answering() == len(cases) and last_id() >= 10, "all are following")
        async with Redis.from_url(deployment.redis_url) as redis:
            await redis.save()
        kept = last_id()
        await until(lambda: last_id() >= kept + 10, "they have more than Redis has kept")
        for process in (deployment.workers[0], deployment.valkey):
            process.kill()
            process.start()
        await until(lambda: all(len(cutter.asked[case.case]) == 3 for case in cases), "they follow the successor's")
        await post(deployment.ports[0], f"/v1/streams/{sid}/cancel", {})
        outcomes = await following
    text = text_of(deployment, sid)
    for outcome in outcomes:
        assert outcome.error is None
        assert (outcome.answer["text"], outcome.answer["state"], outcome.answer["incomplete"]) == (
            text,
            "cancelled",
            True,
        )
        assert outcome.ids == sorted(set(outcome.ids))
        assert outcome.ids[-1] == deployment.log_of(sid)[-1]["id"] > 1_000_000
    for case in cases:
        asked = [request.path.partition("?")[0].rpartition("/")[2] for request in cutter.asked[case.case]]
        assert asked == ["events", "text", "events"]
