"""The worker's way to Redis breaks in the middle of a batch, and its provider speaks in ways that are seldom met.

All on one deployment, whose worker reaches Redis through tests/rig/commits.py. Whatever breaks, viewers get each delta
once, in the provider's order, of the first attempt: nothing is written by halves, twice, or by another.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from itertools import islice
from typing import NamedTuple

import pytest

from broker.store.connect import SOCKET_TIMEOUT_S
from tests.conftest import deployment_in
from tests.faults.watching import log_blocks, seen, watched
from tests.rig.commits import (
    Batch,
    Commits,
    Fault,
    answer_late_by,
    commits_to,
    reset_before_the_answer,
    reset_in_a_command,
    reset_in_the_answer,
    stop_for,
)
from tests.rig.deployment import Deployment, Process
from tests.viewers.viewer import Viewer
from worker.standin.words import words

TOKENS = 40
LONGER_THAN_ITS_TIMEOUT_S = SOCKET_TIMEOUT_S + 0.5


class Place(NamedTuple):
    deployment: Deployment
    commits: Commits


@pytest.fixture(scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("committer")
    with deployment_in(folder, servers=1, workers=0, LASTEVENT_PROVIDER_SILENCE_S="1") as deployment:
        async with commits_to(deployment.redis_url.removeprefix("unix://")) as commits:
            environment = {**deployment.environment, "LASTEVENT_REDIS_URL": commits.url}
            worker = Process("worker", [sys.executable, "-m", "worker"], environment, folder)
            deployment.workers.append(worker)
            worker.start()
            yield Place(deployment, commits)
            worker.kill()


async def create(place: Place, prompt: str) -> str:
    # The worker's way is of this thread: it must not wait here.
    return await asyncio.to_thread(place.deployment.create, prompt)


def said(prompt: str, tokens: int = TOKENS) -> str:
    return "".join(islice(words(prompt), tokens))


def kinds(viewer: Viewer) -> list[str]:
    """Without what is for operators alone."""
    return [event.kind for event in viewer.events if not event.kind.startswith("internal.")]


# -- its connection to Redis ---------------------------------------------------------------------------------


async def breaks(place: Place, fault: Fault, *, lasting_s: float = 0.5) -> None:
    """In the middle of a batch of several streams, which go on for long enough afterwards. Nobody notices anything.

    Their paces differ, so each batch is another selection of them: an answer that is taken for another's tells.
    """
    rates = (23, 31, 40)
    all_have_begun = asyncio.Barrier(len(rates) + 1)  # what nobody has claimed, Redis may lose for good
    async with asyncio.TaskGroup() as streams:
        for rate in rates:
            streams.create_task(_is_whole(place, rate, round(rate * (lasting_s + 1)), all_have_begun))
        await all_have_begun.wait()
        await place.commits.at_next_batch(fault)


async def _is_whole(place: Place, rate: int, tokens: int, all_have_begun: asyncio.Barrier) -> None:
    prompt = f"[[tokens={tokens} rate={rate} ttft_ms=0]]"
    sid = await create(place, prompt)
    async with watched(place.deployment, sid) as viewers:
        await seen(viewers, 3)
        await all_have_begun.wait()
    [viewer] = viewers
    assert viewer.ids == list(range(1, tokens + 4))
    assert viewer.text() == said(prompt, tokens)
    assert viewer.bytes == await log_blocks(place.deployment, sid)
    assert [event.kind for event in viewer.events].count("done") == 1


@pytest.mark.parametrize("fault", [reset_in_a_command, reset_before_the_answer, reset_in_the_answer])
async def test_a_connection_that_is_reset_in_a_batch_costs_nobody_anything(place: Place, fault: Fault) -> None:
    await breaks(place, fault)


@pytest.mark.parametrize("seconds", [1.5, LONGER_THAN_ITS_TIMEOUT_S])
async def test_a_connection_that_stops_in_a_batch_costs_nobody_anything(place: Place, seconds: float) -> None:
    await breaks(place, stop_for(seconds), lasting_s=seconds)


@pytest.mark.parametrize("seconds", [1.5, LONGER_THAN_ITS_TIMEOUT_S])
async def test_an_answer_that_comes_late_is_not_taken_for_that_of_another_batch(place: Place, seconds: float) -> None:
    await breaks(place, answer_late_by(seconds), lasting_s=seconds)


async def test_a_redis_that_dies_between_a_batch_and_its_answer_is_given_it_again(place: Place) -> None:
    def kill_and_start() -> None:
        place.deployment.valkey.kill()
        place.deployment.valkey.start()
        place.deployment.wait_until_ready()

    async def restart(batch: Batch) -> None:
        batch.pass_all()
        await batch.is_answered()
        await asyncio.to_thread(kill_and_start)
        batch.reset()

    await breaks(place, restart)


# -- its provider --------------------------------------------------------------------------------------------

SPOKEN = ["piece=1", "line_end=cr", "line_end=crlf", "line_end=torn", "line_end=crlf piece=1", "hold=1"]


async def ended(place: Place, prompt: str) -> Viewer:
    viewer = Viewer(await create(place, prompt))
    await viewer.view_to_the_end(*place.deployment.ports)
    assert viewer.ids == list(range(1, len(viewer.ids) + 1))
    return viewer


async def test_an_answer_is_read_whole_however_its_bytes_come(place: Place) -> None:
    prompts = [f"[[tokens={TOKENS} rate=100 ttft_ms=0 {how}]]" for how in SPOKEN]
    for prompt, viewer in zip(
        prompts, await asyncio.gather(*(ended(place, prompt) for prompt in prompts)), strict=True
    ):
        assert viewer.text() == said(prompt), prompt
        assert len(viewer.ids) == TOKENS + 3, prompt
        assert viewer.events[-1].kind == "done", prompt


async def test_a_compressed_answer_that_nobody_asked_for_is_not_understood(place: Place) -> None:
    viewer = await ended(place, f"[[tokens={TOKENS} rate=0 ttft_ms=0 gzip=1]]")
    assert viewer.text() == ""
    assert kinds(viewer) == ["queued", "start", "status", "status", "error"]
    assert '"provider_bad_answer"' in viewer.events[-1].data


async def test_a_provider_that_falls_silent_before_the_end_is_not_waited_for(place: Place) -> None:
    prompt = "[[tokens=5 rate=0 ttft_ms=0 stall_at=5]]"
    viewer = await ended(place, prompt)
    attempt = ["start", *["text_delta"] * 5]
    assert kinds(viewer) == ["queued", *attempt, "restart", *attempt, "restart", *attempt, "error"]
    assert '"provider_silent"' in viewer.events[-1].data
