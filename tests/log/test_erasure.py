"""Erasing a finished stream: its content is gone, a tombstone stays, and nothing brings anything back."""

from __future__ import annotations

from typing import Any

import pytest

from broker.errors import StreamClosed, StreamNotFound, StreamRunning, WriterSuperseded
from broker.log.meta import Meta, new_claim_id
from broker.log.seizures import Seizures
from broker.log.stream_log import StreamLog
from tests.rig.streams import batch, ending, kinds, meta, new_stream, running, text

SECRET = "ann-the-secret"


@pytest.fixture
def log(any_redis: Any) -> StreamLog:
    return StreamLog(any_redis, retention_s=500)


async def test_what_runs_cannot_be_erased(log: StreamLog) -> None:
    claimed = await running(log)
    with pytest.raises(StreamRunning):
        await log.erase(claimed.sid, Meta(await meta(log, claimed.sid)), 7, by="anyone")
    assert await kinds(log, claimed.sid) == ["queued"]


async def test_the_content_goes_and_a_tombstone_stays_for_the_retention(log: StreamLog) -> None:
    claimed = await running(log, user=SECRET, session=SECRET, metadata={"a": SECRET})
    await log.append(batch(claimed, 2, *text(SECRET), ending()))
    await log.redis.hset(log.keys.views_of(claimed.sid), "view", SECRET)
    await log.redis.hset(log.keys.crowd_of(claimed.sid), "server", "1 1")
    assert await log.erase(claimed.sid, Meta(await meta(log, claimed.sid)), 7, by="anyone") == 7
    left = await meta(log, claimed.sid)
    assert (left["state"], left["erased"], left["erased_by"], left["tail"]) == ("done", "7", "anyone", "3")
    assert SECRET not in str(left)
    assert 0 < await log.redis.ttl(log.keys.stream(claimed.sid).meta) <= 500
    assert not [
        key
        async for key in log.redis.scan_iter()
        if SECRET.encode() in key or key.endswith((b":log", b"views", b"crowd"))
    ]


async def test_erasing_again_is_the_same_erasure(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, ending()))
    before = Meta(await meta(log, claimed.sid))
    assert [await log.erase(claimed.sid, before, at_ms, by="anyone") for at_ms in (7, 9)] == [7, 7]


async def test_nobody_writes_to_a_tombstone_or_brings_the_stream_back(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("a"), ending()))
    await log.erase(claimed.sid, Meta(await meta(log, claimed.sid)), 7, by="anyone")
    left = await meta(log, claimed.sid)
    for first, events in ((2, text("a")), (4, text("b")), (0, text("c")), (2, [])):
        with pytest.raises(StreamClosed):
            await log.append(batch(claimed, first, *events))
    with pytest.raises(StreamClosed):
        await log.claim(claimed.sid, new_claim_id(), "worker-2")
    with pytest.raises((StreamClosed, WriterSuperseded)):
        await log.release(claimed.sid, claimed.pen)
    await log.restore(claimed)
    assert not await log.create(new_stream(claimed.sid))
    seized = await Seizures(log).seize(claimed.sid, "cancelled", b"{}")
    assert (seized.state, seized.last_event_id, seized.already) == ("done", 3, True)
    assert await meta(log, claimed.sid) == left
    assert await kinds(log, claimed.sid) == []
    with pytest.raises(StreamNotFound):
        await log.read_last(claimed.sid)


async def test_a_stream_that_only_the_archive_has_gets_its_tombstone_here_too(log: StreamLog) -> None:
    known = {"tenant": "t", "state": "done", "created": "1", "finished": "2", "events": "3", "tail": "3"}
    await log.erase("a", Meta({**known, "session": "s"}), 7, by="anyone")
    assert await meta(log, "a") == {**known, "erased": "7", "erased_by": "anyone"}
    seized = await Seizures(log).seize("a", "cancelled", b"{}")
    assert (seized.state, seized.already) == ("done", True)
