"""Servers, workers and Redis are killed, drained and away while the package follows: nobody loses an event.

Each connection of a client goes to the other server.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from tests.js.cutting import Cutter, cutting
from tests.js.following import Case, Outcome, follow, run
from tests.rig.deployment import HTTP, Deployment, until
from tests.rig.long import LONG
from tests.viewers.durable import durable_deployment
from tests.viewers.producer import Producer

pytestmark = pytest.mark.npm

PACE = 5
"""How many times shorter waits are: some are met while the other side is still away."""
LEAST_WAIT_S = 0.5 / PACE
"""Half of the least `retry:` that a server says."""
CLIENTS = 50 if LONG else 8
SOME = 10
ANOTHER_BLOCK = 1_000_000
LARGE_EVENTS, EVENT_BYTES = 60, 95_000
LIMIT_S = 60


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Each test leaves it as it was."""
    folder = tmp_path_factory.mktemp("servers")
    with durable_deployment(folder, LASTEVENT_HEARTBEAT_S="0.3", LASTEVENT_VIEWER_STALL_S="1") as deployment:
        yield deployment


class Followed:
    """A stream that runs until it is cancelled, and clients of it."""

    def __init__(self, deployment: Deployment, cutter: Cutter) -> None:
        self.sid = deployment.create("[[tokens=2000 rate=20 ttft_ms=0]]")
        self.cutter = cutter
        self.cases = [f"client-{n}" for n in range(CLIENTS)]
        self.outcomes: list[Outcome] = []
        self._deployment = deployment

    async def follow(self, js: Path) -> None:
        url = f"{self.cutter.url}/v1/streams/{self.sid}/events?compact=0"
        self.outcomes = await follow(js, [Case(case, url) for case in self.cases], pace=PACE)

    def last_id(self) -> int:
        record: dict[str, int] = HTTP.get(f"{self._deployment.url}/v1/streams/{self.sid}").json()
        return record["last_event_id"]

    def all_are_with(self, *ports: int) -> bool:
        return self.cutter.answering(*ports) == CLIENTS

    async def grows(self) -> None:
        before = self.last_id()
        await until(lambda: self.last_id() > before + SOME, "it goes on")

    async def cancel(self) -> None:
        """Asked again while Redis has just come back."""
        url = f"{self._deployment.url}/v1/streams/{self.sid}/cancel"
        await until(lambda: HTTP.post(url).status_code == 200, "it is cancelled")

    def expect_all_of_it(self) -> Outcome:
        log = self._deployment.log_of(self.sid)
        text = HTTP.get(f"{self._deployment.url}/v1/streams/{self.sid}/text").text
        [outcome] = self.outcomes
        assert outcome.error is None
        assert len(outcome.cases) == CLIENTS
        assert outcome.events == [(event["id"], event["event"]) for event in log]
        assert outcome.answer["text"] == text
        assert outcome.answer["state"] == "cancelled"
        return outcome

    def expect_no_hurry(self) -> None:
        for case in self.cases:
            expect_waits(self.cutter, case)


def expect_waits(cutter: Cutter, case: str) -> None:
    for before, after in pairwise(cutter.asked[case]):
        assert after.at - before.at > 0.9 * LEAST_WAIT_S


@asynccontextmanager
async def followed(js: Path, deployment: Deployment) -> AsyncIterator[Followed]:
    """With all clients well under way; at the end the stream is cancelled, and they have followed it to there."""
    async with cutting(*deployment.ports) as cutter, asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        stream = Followed(deployment, cutter)
        group.create_task(stream.follow(js))
        await until(stream.all_are_with, "all are following")
        await stream.grows()
        yield stream
        await until(stream.all_are_with, "all are following again")
        await stream.grows()
        await stream.cancel()


async def test_web_servers_that_are_killed_cost_no_client_an_event(js: Path, deployment: Deployment) -> None:
    async with followed(js, deployment) as stream:
        for server, other in zip(deployment.servers, reversed(deployment.ports), strict=True):
            server.kill()
            await until(partial(stream.all_are_with, other), "all are with the other one")
            server.start()
            await asyncio.to_thread(deployment.wait_until_ready)
    stream.expect_all_of_it()
    stream.expect_no_hurry()


async def test_a_killed_worker_s_text_is_taken_back_and_its_successor_s_is_whole(
    js: Path, deployment: Deployment
) -> None:
    [worker] = deployment.workers
    async with followed(js, deployment) as stream:
        worker.kill()
        worker.start()
        await until(lambda: stream.last_id() > ANOTHER_BLOCK, "another attempt has begun")
    outcome = stream.expect_all_of_it()
    assert "restart" in [kind for _, kind in outcome.events]
    assert (outcome.answer["restarts"], outcome.answer["attempt"]) == (1, 2)
    assert outcome.answer["text"]


async def test_a_draining_server_s_clients_go_to_another_one(js: Path, deployment: Deployment) -> None:
    here, there = deployment.servers[0], deployment.ports[1]
    async with followed(js, deployment) as stream:
        here.send(signal.SIGTERM)
        await until(partial(stream.all_are_with, there), "all are with the other one")
        await asyncio.to_thread(here.wait)
        here.start()
        await asyncio.to_thread(deployment.wait_until_ready)
    stream.expect_all_of_it()
    stream.expect_no_hurry()


async def test_clients_that_come_while_redis_is_away_wait_and_then_have_everything(
    js: Path, deployment: Deployment
) -> None:
    async with followed(js, deployment) as stream:
        deployment.valkey.kill()
        stream.cutter.reset_all()
        asked = {case: len(stream.cutter.asked[case]) for case in stream.cases}
        await until(
            lambda: all(len(stream.cutter.asked[case]) >= n + 3 for case, n in asked.items()), "all have been sent away"
        )
        deployment.valkey.start()
        await asyncio.to_thread(deployment.wait_until_ready)
    stream.expect_all_of_it()
    stream.expect_no_hurry()


async def test_a_start_that_finds_redis_away_is_asked_for_until_there_is_one_stream(
    js: Path, deployment: Deployment
) -> None:
    body = {"prompt": "[[tokens=5 rate=0 ttft_ms=0]]", "user_id": "patient"}
    async with cutting(*deployment.ports) as cutter, asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        deployment.valkey.kill()
        starting = group.create_task(follow(js, [Case("start", f"{cutter.url}/v1/streams", body)], pace=PACE))
        await until(lambda: len(cutter.asked["start"]) >= 3, "it has been sent away")
        deployment.valkey.start()
        [outcome] = await starting
    [stream] = HTTP.get(f"{deployment.url}/v1/streams?user_id=patient").json()["streams"]
    assert outcome.error is None
    assert outcome.answer["text"] == HTTP.get(f"{deployment.url}/v1/streams/{stream['id']}/text").text != ""
    asked = cutter.asked["start"]
    assert {request.method for request in asked} == {"POST"}
    assert len({request.headers["idempotency-key"] for request in asked}) == 1
    expect_waits(cutter, "start")


async def test_an_app_that_takes_nothing_is_cut_as_too_slow_and_takes_the_rest_afterwards(
    js: Path, deployment: Deployment
) -> None:
    """The server has sent what fits between them, and no more."""
    producer = await Producer.create(deployment.ports[0])
    for _ in range(LARGE_EVENTS):
        await producer.write("x" * EVENT_BYTES)
    await producer.finish()
    [held] = await run(js, "holding.mjs", deployment.url, producer.sid)
    assert held["how"] == "too_slow"
    assert held["cursor"] <= held["sent"] + 1 < LARGE_EVENTS
    assert held["ids"] == list(range(1, LARGE_EVENTS + 3))
    assert (held["text"], held["state"]) == (LARGE_EVENTS * EVENT_BYTES, "done")
