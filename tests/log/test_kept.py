"""`kept`: the attempt that made the last progress of an agent's stream. Attempts without any are what is counted.

That no order of steps makes it differ from the log is in test_log_model.py and tests/protocol.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker.errors import WriterSuperseded
from broker.log.event import encode_data
from broker.log.steps import Unsent
from broker.log.stream_log import StreamLog
from tests.rig.streams import batch, meta, remember, running, survive_a_restart_of_redis, taken_over, text
from worker.attempts import MOST_ATTEMPTS, may_restart

TURN = Unsent("internal.turn", encode_data({"turn": 0}))
RESULT = Unsent("internal.tool_result", encode_data({"key": "k", "tool_call_id": "c", "tool": "t", "output": 1}))
PROVIDERS = Unsent("internal.tool_result", encode_data({"tool_call_id": "c", "tool": "search", "output": {"key": "k"}}))
RESTART = Unsent("restart", b"{}")


@pytest.fixture
def log(any_redis: Any) -> StreamLog:
    return StreamLog(any_redis)


async def kept(log: StreamLog, sid: str) -> int:
    return int((await meta(log, sid)).get("kept", "0"))


@pytest.mark.parametrize(("event", "attempt"), [(TURN, 1), (RESULT, 1), (PROVIDERS, 0), (text("Salt")[0], 0)])
async def test_a_turn_or_a_calls_result_is_progress(log: StreamLog, event: Unsent, attempt: int) -> None:
    claimed = await running(log, agent="digest")
    await log.append(batch(claimed, 2, *text("a"), event, *text("b")))
    assert await kept(log, claimed.sid) == attempt


async def test_a_stream_without_an_agent_has_none(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, TURN, RESULT))
    assert "kept" not in await meta(log, claimed.sid)


async def test_a_restart_within_the_worker_begins_an_attempt(log: StreamLog) -> None:
    claimed = await running(log, agent="digest")
    await log.append(batch(claimed, 2, RESULT, RESTART))
    assert await kept(log, claimed.sid) == 1
    await log.append(batch(claimed, 2, RESULT, RESTART, RESULT))  # the first two were there: the reply had been lost
    assert await kept(log, claimed.sid) == 2


async def test_the_next_worker_finds_it_in_its_claim_and_a_fenced_one_sets_nothing(log: StreamLog) -> None:
    first = await running(log, agent="digest", show=["results"])
    await log.append(batch(first, 2, RESULT))
    second = await taken_over(log, first.sid)
    assert (second.attempt, second.meta.kept, second.meta.agent, second.meta.show) == (2, 1, "digest", ["results"])
    await log.append(batch(second, second.pen.base, TURN))
    with pytest.raises(WriterSuperseded):
        await log.append(batch(first, 3, TURN))
    assert await kept(log, first.sid) == 2


async def test_what_redis_lost_and_its_writer_sends_again_counts_again(log: StreamLog) -> None:
    claimed = await running(log, agent="digest")
    forget = await remember(log, claimed.sid)
    said = batch(claimed, 2, *text("a"), RESTART, RESULT)
    await log.append(said)
    await forget()
    assert await kept(log, claimed.sid) == 0
    await log.append(said)
    assert await kept(log, claimed.sid) == 2


async def test_a_stream_that_is_put_back_has_it_from_what_is_put_back(log: StreamLog) -> None:
    first = await running(log, agent="digest")
    await log.append(batch(first, 2, RESULT))
    claimed = await taken_over(log, first.sid)
    await survive_a_restart_of_redis(log, claimed.sid)
    await log.redis.delete(*log.keys.stream(claimed.sid)[:2])
    await log.restore(replace(claimed, server="another server"))
    restored = await meta(log, claimed.sid)
    assert (restored["agent"], restored["attempt"], "kept" in restored) == ("digest", "2", False)
    await log.append(batch(claimed, claimed.pen.base, TURN)._replace(attempt=2))
    assert await kept(log, claimed.sid) == 2


def test_attempts_without_progress_are_counted() -> None:
    assert [may_restart("restart", attempt, 0) for attempt in (1, 2, 3)] == [True, True, False]
    assert [may_restart("restart", attempt, 7) for attempt in (7, 8, 9, 10)] == [True, True, True, False]
    assert not may_restart("fail", 7, 7)
    assert not may_restart("restart", MOST_ATTEMPTS, MOST_ATTEMPTS)
