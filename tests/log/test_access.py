"""The access record's times, which stand beside the events' times."""

import asyncio
import time

import pytest
from redis.asyncio import Redis

from broker.log.access import AccessRecord, View, read_views
from broker.log.keys import Keys
from broker.log.meta import new_sid


async def test_an_answer_that_a_busy_loop_reads_late_does_not_shift_them(redis: Redis) -> None:
    keys, sid = Keys(), new_sid()
    access = AccessRecord(redis, keys, retention_s=60, is_archived=False)
    await access.flush()
    access.opened(View(sid, {}))
    seconds, microseconds = await redis.time()
    opened_ms = seconds * 1000 + microseconds // 1000
    asyncio.get_running_loop().call_soon(time.sleep, 0.2)  # the loop, busy with others while Redis' answer is there
    await access.flush()
    [record] = await read_views(redis, keys, sid, opened_ms)
    assert abs(record["opened"] - opened_ms) <= 50


async def test_a_clock_that_was_set_counts_at_once(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    access = AccessRecord(redis, Keys(), retention_s=60, is_archived=False)
    await access.flush()
    real = time.time
    monkeypatch.setattr("broker.log.access.time.time", lambda: real() - 3600)
    await access.flush()
    sid = new_sid()
    access.opened(View(sid, {}))
    await access.flush()
    [record] = await read_views(redis, Keys(), sid, 0)
    assert abs(record["opened"] - real() * 1000) <= 1000
