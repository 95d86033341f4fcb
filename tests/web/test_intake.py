"""Intake: large bodies are counted as they come, and few are unpacked at a time."""

from __future__ import annotations

import asyncio

import pytest

from broker.errors import RateLimited
from broker.web.intake import SMALL_BYTES, UNPACKED_AT_ONCE, Intake


def test_what_is_announced_and_never_sent_takes_nothing_from_others() -> None:
    intake = Intake(at_once=10)
    with intake.place() as announced, intake.place() as sent:
        announced.announce(10)
        sent.announce(10)
        sent.take(10)
        with pytest.raises(RateLimited) as refused:
            announced.take(1)
    assert refused.value.limit == "requests_at_once"
    assert intake.held == 0


def test_what_would_not_fit_is_refused_before_it_is_sent() -> None:
    intake = Intake(at_once=10)
    with intake.place() as one, intake.place() as other:
        one.take(6)
        with pytest.raises(RateLimited):
            other.announce(5)
        other.announce(4)


async def test_few_large_bodies_are_unpacked_at_a_time_and_small_ones_do_not_wait() -> None:
    intake = Intake()
    turns = [intake.turn(SMALL_BYTES + 1) for _ in range(UNPACKED_AT_ONCE)]
    for turn in turns:
        await turn.__aenter__()
    waiting = asyncio.create_task(_through(intake, SMALL_BYTES + 1))
    await _through(intake, SMALL_BYTES)
    assert not waiting.done()
    await turns[0].__aexit__(None, None, None)
    await waiting


async def _through(intake: Intake, size: int) -> None:
    async with intake.turn(size):
        pass
