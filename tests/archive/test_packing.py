"""How an archived log is read: page by page, in linear time, without holding the loop."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.archive.packing import compress, decompress, pack, unpack
from broker.archive.reader import PAGE_BYTES, ArchivedLog
from broker.dialects.format import Batch
from broker.errors import ArchiveDamaged
from broker.live.tail import replay
from broker.log.event import Event, encode_data

MANY = 10_000

DATA = st.sampled_from(
    [b"{}", b'{"text":" a"}', encode_data({"text": "x" * PAGE_BYTES}), encode_data({"text": "ü\n\n"})]
)
STEPS = st.tuples(
    st.integers(1, 3) | st.just(1_000_000), st.integers(-5, 50), st.sampled_from(["text_delta", "a"]), DATA
)


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    id_steps, t_steps, kinds, data = zip(*draw(st.lists(STEPS, min_size=1, max_size=30)), strict=True)
    return [Event(*row) for row in zip(accumulate(id_steps), kinds, data, accumulate(t_steps), strict=True)]


def archived(events: list[Event]) -> ArchivedLog:
    return ArchivedLog(pack(events), state=events[-1].kind, tail=events[-1].id)


def long_log(events: int = MANY, size: int = 10) -> list[Event]:
    text = encode_data({"text": " " + "word " * (size // 5)})
    return [*(Event(n, "text_delta", text, 1_700_000_000_000 + 33 * n) for n in range(1, events)), END]


END = Event(MANY, "done", b"{}", 1_700_000_000_000 + 33 * MANY)


@st.composite
def logs_and_cursors(draw: st.DrawFn) -> tuple[list[Event], list[int]]:
    events = draw(logs())
    cursors = st.sampled_from([0, *(event.id for event in events)]) | st.integers(0, events[-1].id + 2)
    return events, draw(st.lists(cursors, min_size=1, max_size=4))


@settings(deadline=None)  # others use the machine too
@given(logs_and_cursors(), st.integers(1, 12))
async def test_a_page_holds_what_lies_after_its_cursor(read: tuple[list[Event], list[int]], count: int) -> None:
    events, cursors = read
    log = archived(events)
    for cursor in cursors:
        page = await log.read_page("", cursor, count)
        after = [event for event in events if event.id > cursor]
        assert page.events == after[: len(page.events)]
        assert len(page.events) <= count
        assert bool(page.events) == bool(after)
        assert page.more == (len(page.events) < len(after))
        assert page.present == (cursor == 0 or any(event.id == cursor for event in events))
        assert (page.state, page.tail) == (events[-1].kind, events[-1].id)


@settings(deadline=None)
@given(logs())
async def test_its_pages_together_are_the_log(events: list[Event]) -> None:
    assert await archived(events).read_all("") == events
    assert await archived(events).read_last("") == events[-1]


async def test_a_page_is_bounded_by_its_data_too() -> None:
    events = long_log(100, size=10_000)
    page = await archived(events).read_page("", 0)
    assert PAGE_BYTES / 2 < sum(len(event.data) for event in page.events) < 2 * PAGE_BYTES
    assert page.more


def damaged() -> Iterator[tuple[str, bytes]]:
    block = pack(long_log(300))
    yield "cut short", block[:-1]
    yield "something added", block + b"\0"
    yield "a bit changed", block[:100] + bytes([block[100] ^ 1]) + block[101:]
    yield "not a block", b"nothing"
    content = decompress(block)
    yield "a line of data too many", compress(content + b"\n{}")
    yield "an id too few", compress(content.replace(b"1 1 1", b"1 1", 1))
    yield "an id that is not a number", compress(content.replace(b"1 1 1", b"1 x 1", 1))
    yield "three columns", compress(b"1\n\n1\n\ndone")


@pytest.mark.parametrize(("what", "block"), list(damaged()), ids=[what for what, _ in damaged()])
async def test_a_damaged_log_gives_no_event(what: str, block: bytes) -> None:
    with pytest.raises(ArchiveDamaged):
        await ArchivedLog(block, state="done", tail=300).read_all("")


async def replay_all(log: ArchivedLog) -> int:
    events = 0
    async for step in replay(log, "", 0):
        assert isinstance(step, Batch)
        events += len(step)
    return events


async def test_a_long_log_is_replayed_in_at_most_three_times_the_time_of_one_unpack() -> None:
    block = pack(long_log())
    ratios = []
    for _ in range(5):
        began = time.process_time()
        assert len(unpack(block)) == MANY
        unpacked = time.process_time()
        assert await replay_all(ArchivedLog(block, state="done", tail=MANY)) == MANY
        ratios.append((time.process_time() - unpacked) / (unpacked - began))
    assert min(ratios) <= 3


@pytest.mark.parametrize("size", [10, 1000])
async def test_no_slice_of_it_holds_the_loop_for_more_than_five_milliseconds(size: int) -> None:
    log = long_log(size=size)
    longest = []
    for _ in range(5):
        gc.collect()  # or it would be counted as the replay's
        gc.disable()
        try:
            turns = asyncio.create_task(longest_turn_s())
            await replay_all(archived(log))
            turns.cancel()
            longest.append(await turns)
        finally:
            gc.enable()
    assert min(longest) <= 0.005


async def longest_turn_s() -> float:
    """Until it is cancelled: the longest time between two of its own turns, in CPU time of the loop's thread."""
    longest = 0.0
    try:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)
    except asyncio.CancelledError:
        return longest
