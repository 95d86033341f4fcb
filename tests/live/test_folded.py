"""A dialect's viewers resume anywhere, and what one of them has cost the others need not pay again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import fakeredis
import pytest

from broker.dialects.format import Batch
from broker.live.folded import ALL_EVENTS, EVENT_BYTES, MARK_EVENTS, Folded, Folds, Lost, Place
from broker.live.tail import replay
from broker.log.event import encode_data, public
from broker.log.keys import Keys
from broker.log.steps import Unsent
from broker.log.stream_log import StreamLog
from tests.rig.streams import batch, ending, running, taken_over, text
from tests.rig.tally_dialect import FACTS, Tally, TallyFold

EVENTS = 1300


@pytest.fixture
async def log() -> AsyncIterator[StreamLog]:
    async with fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer()) as client:
        yield StreamLog(client, Keys())


async def long_stream(log: StreamLog, events: int = EVENTS, *, ends: bool = True) -> str:
    """With a takeover after its first part, and with what is internal."""
    claimed = await running(log)
    words = [*text(*map(str, range(events // 2))), Unsent("internal.note", encode_data({}))]
    await log.append(batch(claimed, 2, *words))
    claimed = await taken_over(log, claimed.sid)
    words = [Unsent("restart", encode_data({})), *text(*map(str, range(events // 2)))]
    await log.append(batch(claimed, claimed.pen.base, *words, *([ending()] if ends else [])))
    return claimed.sid


async def said(log: StreamLog, sid: str) -> list[tuple[int, int, bytes]]:
    """(event, payload, frame), by one fold over all there is."""
    dialect, fold = Tally(), TallyFold()
    return [
        (event.id, index, dialect.frame(payload, event.id, index))
        for event in public(await log.read_all(sid))
        for index, payload in enumerate(fold.step(event))
    ]


async def read(folded: Folded, log: StreamLog, place: Place) -> bytes:
    parts = [place.first]
    async with aclosing(replay(log, folded.sid, place.cursor)) as steps:
        async for step in steps:
            assert isinstance(step, Batch)
            await folded.stand(log, step.after)
            parts.append(folded.written(step).body)
    return b"".join(parts)


async def test_who_resumes_behind_any_payload_gets_the_rest(log: StreamLog) -> None:
    sid = await long_stream(log, 60)
    whole = await said(log, sid)
    assert await read(Folded(sid, Tally(), FACTS), log, Place(0)) == b"".join(f for _, _, f in whole) + Tally().end
    folded = Folded(sid, Tally(), FACTS)
    for at, (event_id, index, frame) in enumerate(whole):
        rest = b"".join(frame for _, _, frame in whole[at + 1 :])
        number = int(frame.split()[1])
        for one in (folded, Folded(sid, Tally(), FACTS)):
            assert (await read(one, log, await one.after(log, event_id, index))).removesuffix(Tally().end) == rest
            assert (await read(one, log, await one.after_number(log, number))).removesuffix(Tally().end) == rest


async def test_a_number_that_was_never_given_is_lost_and_one_beyond_an_ending_is_its_end(log: StreamLog) -> None:
    ended, runs = await long_stream(log, 20), await long_stream(log, 20, ends=False)
    numbers = [int(frame.split()[1]) for _, _, frame in await said(log, ended)]
    missing = next(n for n in range(numbers[-1]) if n not in numbers)
    for folded in (Folded(ended, Tally(), FACTS), Folded(runs, Tally(), FACTS)):
        for _ in range(2):
            with pytest.raises(Lost):
                await folded.after_number(log, missing)
    beyond = Folded(ended, Tally(), FACTS)
    for _ in range(2):
        assert await beyond.after_number(log, numbers[-1] + 1) == Place((await log.read_last(ended)).id)
    running = Folded(runs, Tally(), FACTS)
    for _ in range(2):
        with pytest.raises(Lost):
            await running.after_number(log, numbers[-1] + 1)


@pytest.mark.parametrize("event_id", [999, 999_999, 10**12])
async def test_behind_an_event_that_is_not_there_is_no_place(log: StreamLog, event_id: int) -> None:
    folded = Folded(await long_stream(log, 20), Tally(), FACTS)
    for _ in range(2):
        with pytest.raises(Lost):
            await folded.after(log, event_id, 0)
        with pytest.raises(Lost):
            await folded.stand(log, event_id)


async def test_the_attempt_begins_at_the_last_restart_with_words_of_its_own(log: StreamLog) -> None:
    sid = await long_stream(log, 20)
    folded = Folded(sid, Tally(), FACTS)
    [restart] = [event.id for event in await log.read_all(sid) if event.kind == "restart"]
    place = await folded.attempt(log)
    assert place.cursor == restart
    assert place.first.startswith(b"data: opening")
    assert (await read(folded, log, place)).endswith((await said(log, sid))[-1][2] + Tally().end)
    claimed = await running(log)
    assert await Folded(claimed.sid, Tally(), FACTS).attempt(log) == Place(0)


class Counting(TallyFold):
    steps = 0

    def step(self, event: object) -> list[bytes]:
        Counting.steps += 1
        return super().step(event)  # type: ignore[arg-type]

    def copy(self) -> Counting:
        copy = Counting()
        copy.number, copy.sum, copy.text = self.number, self.sum, self.text.copy()
        return copy


class CountingTally(Tally):
    def begin(self, facts: object) -> Counting:
        return Counting()


async def test_what_one_viewer_has_folded_the_next_one_does_not_fold_again(log: StreamLog) -> None:
    sid = await long_stream(log)
    whole = await said(log, sid)
    event_id, index, _ = whole[int(len(whole) * 0.9)]
    folded = Folded(sid, CountingTally(), FACTS)
    Counting.steps = 0
    async with asyncio.TaskGroup() as viewers:
        for _ in range(5):
            viewers.create_task(folded.after(log, event_id, index))
    assert Counting.steps < EVENTS + 5 * MARK_EVENTS
    Counting.steps = 0
    await folded.after(log, event_id, index)
    assert Counting.steps <= MARK_EVENTS


async def test_a_mark_that_redis_has_lost_leads_nowhere_and_is_forgotten(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text(*map(str, range(600)))))
    folded = Folded(claimed.sid, Tally(), FACTS)
    await folded.stand_at_tail(log)
    key = log.keys.stream(claimed.sid)
    for lost in range(300, 602):
        await log.redis.xdel(key.log, f"{lost}-0")
    await log.redis.hset(key.meta, mapping={"tail": 299, "events": 299})
    other = await taken_over(log, claimed.sid)
    await log.append(batch(other, other.pen.base, Unsent("restart", b"{}"), *text("a", "b"), ending()))
    whole = await said(log, claimed.sid)
    tail = await folded.stand_at_tail(log)
    assert tail == whole[-1][0]
    assert str(folded.state(tail).number) == str(int(whole[-1][2].split()[1]) + 1)
    at = await folded.after(log, whole[-3][0], whole[-3][1])
    assert (await read(folded, log, at)).removesuffix(Tally().end) == b"".join(frame for _, _, frame in whole[-2:])


async def test_a_restart_that_redis_has_lost_is_no_beginning_of_an_attempt(log: StreamLog) -> None:
    claimed = await running(log)
    await log.append(batch(claimed, 2, *text("a", "b")))
    other = await taken_over(log, claimed.sid)
    await log.append(batch(other, other.pen.base, Unsent("restart", b"{}"), *text("c")))
    folded = Folded(claimed.sid, Tally(), FACTS)
    assert (await folded.attempt(log)).cursor == other.pen.base
    key = log.keys.stream(claimed.sid)
    await log.redis.xdel(key.log, f"{other.pen.base}-0", f"{other.pen.base + 1}-0")
    await log.redis.hset(key.meta, mapping={"tail": 3, "events": 3})
    assert await folded.stand_at_tail(log) == 3
    assert await folded.attempt(log) == Place(0)


async def test_a_batch_that_is_said_to_two_groups_of_viewers_is_folded_once(log: StreamLog) -> None:
    folded = Folded("a", Tally(), FACTS)
    folded.lead_from(0)
    lines = [b"1", b"0", b"queued", b"{}"]
    said = folded.say(lines)
    assert said[1]
    assert folded.say(lines) == said
    assert folded.leads_from(1)


def test_a_process_keeps_folds_that_are_used_and_so_many_events_of_others() -> None:
    folds, tally = Folds(), Tally()
    used = folds.of("used", tally, FACTS)
    used.events = ALL_EVENTS
    assert folds.of("used", Tally(), FACTS) is used
    for n in range(10):
        folds.of(f"other-{n}", tally, FACTS).events = ALL_EVENTS // 4
    assert folds.known("used", tally, FACTS.created_ms) is used
    assert folds.known("used", tally, FACTS.created_ms + 1) is None
    kept = [n for n in range(10) if folds.known(f"other-{n}", tally, FACTS.created_ms)]
    assert kept == [6, 7, 8, 9] or kept == [7, 8, 9]


def test_a_fold_that_keeps_a_large_request_counts_as_many_events() -> None:
    folds, tally = Folds(), Tally()
    large = FACTS._replace(request_size=ALL_EVENTS * EVENT_BYTES // 2)
    for n in range(3):
        folds.of(f"large-{n}", tally, large)
    assert [n for n in range(3) if folds.known(f"large-{n}", tally, FACTS.created_ms)] == [2]
