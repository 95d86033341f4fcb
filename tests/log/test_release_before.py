"""A roll-out: the release before shares a Redis with this one. It knows no short way, and believes what meta says.

Its claim, append and seizure are kept in before/, as they were.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from broker.errors import StreamClosed, WriterSuperseded
from broker.log.meta import Meta
from broker.log.steps import Pen
from broker.log.stream_log import StreamLog
from broker.log.writer import GroupCommit, StreamWriter
from tests.rig.streams import expire_lease, ids, kinds, meta, queued, running, taken_over
from worker.heartbeat import Heartbeat

SCRIPTS = Path(__file__).parent / "before"
LEASE_MS, RETENTION_MS = 6000, 60_000
BEGINS = 1_000_001
"""Of the first block after the one in which the first claim writes."""


class Before:
    """A worker or a server of the release before."""

    def __init__(self, log: StreamLog) -> None:
        self._log = log

    async def claim(self, sid: str, claim_id: str) -> Pen:
        ok, epoch, base, *_ = await self._run("claim", sid, 6, claim_id, "a worker", LEASE_MS, "", 0)
        assert ok == b"OK"
        return Pen(epoch, claim_id, base)

    async def append(self, sid: str, pen: Pen, first: int, *events: tuple[str, str]) -> list[Any]:
        limits = (RETENTION_MS, 150_000, 16 * 2**20, 1)
        said = [part for kind, data in events for part in (kind, data, "")]
        args = (pen.epoch, pen.claim_id, pen.base, first, LEASE_MS, *limits, "", "", 0, "", *said)
        return await self._run("append", sid, 4, *args)

    async def cancel(self, sid: str, claim_id: str) -> list[Any]:
        args = (claim_id, "cancelled", '{"by":"x"}', LEASE_MS, RETENTION_MS, 0, "", 0, self._log.keys.seized, 0, 0, 0)
        return await self._run("seize", sid, 8, *args)

    async def _run(self, step: str, sid: str, keys: int, *args: object) -> list[Any]:
        text = "".join(SCRIPTS.joinpath(f"{name}.lua").read_text() for name in ("prelude", step))
        names = self._log.keys.stream(sid)[:keys]
        answer: list[Any] = await self._log.redis.eval(text, keys, *names, *args)  # type: ignore[misc,arg-type]
        return answer


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis)


@pytest.fixture
async def writer(log: StreamLog, commit: GroupCommit) -> StreamWriter:
    """It writes by the short way, and no heartbeat has told meta."""
    writer = StreamWriter(commit, await running(log))
    await say(writer, "Salt")
    for word in ("bread", "index"):
        await say(writer, word)
    return writer


async def say(writer: StreamWriter, word: str) -> None:
    writer.write("text_delta", {"text": word})
    await writer.flush()


async def test_its_claim_fences_a_writer_on_the_short_way(log: StreamLog, writer: StreamWriter) -> None:
    await expire_lease(log, writer.sid)
    pen = await Before(log).claim(writer.sid, "theirs")
    writer.write("text_delta", {"text": "zombie"})
    with pytest.raises(WriterSuperseded):
        await writer.flush()
    assert pen.base == BEGINS
    assert (await Before(log).append(writer.sid, pen, pen.base, ("text_delta", "{}")))[0] == b"OK"
    assert await ids(log, writer.sid) == [1, 2, 3, 4, BEGINS]


async def test_its_cancel_ends_a_stream_on_the_short_way(log: StreamLog, writer: StreamWriter) -> None:
    assert (await Before(log).cancel(writer.sid, "theirs"))[:3] == [b"OK", b"cancelled", BEGINS]
    writer.write("text_delta", {"text": "late"})
    with pytest.raises(StreamClosed):
        await writer.flush()
    assert await kinds(log, writer.sid) == ["queued", "text_delta", "text_delta", "text_delta", "cancelled"]
    known = await meta(log, writer.sid)
    assert (known["state"], known["tail"]) == ("cancelled", str(BEGINS))
    page = await log.read_page(writer.sid, BEGINS)
    assert (page.state, page.tail, page.present) == ("cancelled", BEGINS, True)


@pytest.mark.parametrize("by", ["claim", "cancel"])
async def test_its_steps_fence_a_heartbeat_on_the_short_way(log: StreamLog, writer: StreamWriter, by: str) -> None:
    await expire_lease(log, writer.sid)
    await getattr(Before(log), by)(writer.sid, "theirs")
    before = await meta(log, writer.sid)
    heartbeat = Heartbeat(log)
    heartbeat.keep(writer)
    await heartbeat.renew()
    assert writer.lost
    assert await meta(log, writer.sid) == before


async def test_what_it_writes_after_a_takeover_is_gone_on_with(
    log: StreamLog, commit: GroupCommit, writer: StreamWriter
) -> None:
    """Its count of events is too low by those of the short way: this release counts the log."""
    await expire_lease(log, writer.sid)
    pen = await Before(log).claim(writer.sid, "theirs")
    await Before(log).append(writer.sid, pen, pen.base, ("text_delta", "{}"), ("text_delta", "{}"))
    again = StreamWriter(commit, await taken_over(log, writer.sid))
    await say(again, "far")
    await say(again, "shore")
    known = Meta(await meta(log, writer.sid))
    assert (await log.at_tail(writer.sid, known)).tail == 2 * BEGINS
    again.write("done", {})
    await again.flush()
    events = await log.read_all(writer.sid)
    assert [event.id for event in events] == [1, 2, 3, 4, BEGINS, BEGINS + 1, *range(2 * BEGINS - 1, 2 * BEGINS + 2)]
    assert int((await meta(log, writer.sid))["events"]) == len(events)


async def test_its_writer_is_taken_over_from_and_fenced(log: StreamLog, commit: GroupCommit) -> None:
    sid = await queued(log)
    pen = await Before(log).claim(sid, "theirs")
    await Before(log).append(sid, pen, 2, ("text_delta", '{"text":"Salt"}'))
    writer = StreamWriter(commit, await taken_over(log, sid))
    await say(writer, "bread")
    await say(writer, "index")
    assert await Before(log).append(sid, pen, 3, ("text_delta", '{"text":"zombie"}')) == [b"SUPERSEDED"]
    assert await ids(log, sid) == [1, 2, BEGINS, BEGINS + 1]
