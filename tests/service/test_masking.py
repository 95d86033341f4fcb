"""The threads that apply masks: the loop goes on beside them, and no reader stands in the others' way for long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
import regex

from broker.errors import Draining, MasksBusy, MasksTooSlow
from broker.log.event import Event
from broker.service import masking as masking_module
from broker.service.masking import PLACES, THREADS, Masking
from broker.service.masks import Mask, Redactor

pytestmark = pytest.mark.anyio

E_MAIL = r"[\w.+-]{1,64}@[\w.-]{1,255}"  # of docs/AUDIT.md

SIZE = 900_000
METADATA: dict[str, Callable[[], Any]] = {
    "e-mails": lambda: " ".join(f"user{n}@example.org" for n in range(SIZE // 22)),
    "many small values": lambda: {f"k{n}": f"v{n}" for n in range(SIZE // 18)},
    "numbers": lambda: list(range(100_000, 100_000 + SIZE // 8)),
    "one long word": lambda: "a" * SIZE,
    "long strings of digits": lambda: ["4111" * (SIZE // 400)] * 100,
    "nothing but matches": lambda: "a@b " * (SIZE // 4),
}

STEPS = ["z" * 20 + "b"] * 100_000
"""Many texts, each of which takes the slow pattern some 10 ms: a quarter of an hour in all."""

PAUSE_LIMIT_S = 0.05


@pytest.fixture
def masking() -> Iterator[Masking]:
    made = Masking(Redactor([Mask("e-mail", regex.compile(E_MAIL)), Mask("slow", regex.compile("(?:z|zz)+$"))]))
    yield made
    made.close()


def metadata(value: Any) -> dict[str, Any]:
    return {"metadata": value}


def has_begun(masking: Masking, jobs: int) -> Callable[[], bool]:
    return lambda: len(masking._running) == jobs


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # what it waits for happens in threads
            await asyncio.sleep(0.001)


@asynccontextmanager
async def held(masking: Masking, readers: int) -> AsyncIterator[None]:
    """So many readers, each of which would take a quarter of an hour; they go at its end."""

    async def read() -> None:
        with masking.place() as place:
            await place.records([metadata(STEPS)])

    reading = [asyncio.create_task(read()) for _ in range(readers)]
    await until(lambda: masking._places == PLACES - readers)
    yield
    for task in reading:
        task.cancel()
    await asyncio.wait(reading)


async def longest_pause_s(work: Awaitable[Any]) -> float:
    """The most CPU that this process used between two turns of the loop, which asks for its turn all the time."""
    working = asyncio.ensure_future(work)
    longest_s, before_s = 0.0, time.process_time()
    while not working.done():
        await asyncio.sleep(0.001)
        now_s = time.process_time()
        longest_s, before_s = max(longest_s, now_s - before_s), now_s
    await working
    return longest_s


@pytest.mark.parametrize("kind", METADATA)
async def test_the_loop_has_its_turns_while_a_page_of_long_records_is_masked(kind: str) -> None:
    masking = Masking(Redactor([Mask("e-mail", regex.compile(E_MAIL))]))
    records = [metadata(orjson.loads(orjson.dumps(METADATA[kind]()))) for _ in range(5)]
    pauses_s: list[float] = []
    with masking.place() as place:
        # What holds the loop up holds it up each time; the machine, which may run the loop later, does not.
        while len(pauses_s) < 3 and min(pauses_s, default=1.0) >= PAUSE_LIMIT_S:
            pauses_s.append(await longest_pause_s(place.records(records)))
    masking.close()
    assert min(pauses_s) < PAUSE_LIMIT_S


async def test_records_views_and_events_come_back_masked_in_their_order(masking: Masking) -> None:
    mails = [f"user{n}@example.org" for n in range(5)]
    with masking.place() as place:
        records = await place.records([{"n": n, "metadata": mail} for n, mail in enumerate(mails)])
        views = await place.views([{"id": n, "user_agent": mail} for n, mail in enumerate(mails)])
        events = await place.events([Event(1, "custom", b'"ann@example.org"', 1)])
    assert records == [{"n": n, "metadata": "█" * 17} for n in range(5)]
    assert views == [{"id": n, "user_agent": "█" * 17} for n in range(5)]
    assert [event.data.decode() for event in events] == [f'"{"█" * 15}"']


async def test_no_more_are_masked_at_a_time_than_there_are_threads_which_are_not_asyncios(masking: Masking) -> None:
    async with held(masking, THREADS + 3):
        await until(has_begun(masking, THREADS))
        assert [thread.name for thread in masking._threads] == ["masks"] * THREADS
        assert await asyncio.to_thread(str, 5) == "5"


async def test_a_reader_without_a_place_is_sent_away_and_comes_back(masking: Masking) -> None:
    async with held(masking, PLACES):
        with pytest.raises(MasksBusy), masking.place():
            pass
    with masking.place() as place:
        assert await place.records([metadata("x")]) == [metadata("x")]


async def test_a_reader_that_goes_frees_its_thread_before_the_next_text(
    masking: Masking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masking_module, "LIMIT_S", 1000.0)
    monkeypatch.setattr(masking_module, "PAGE_LIMIT_S", 1000.0)
    async with held(masking, PLACES):
        await until(has_begun(masking, THREADS))
    await until(has_begun(masking, 0))


async def test_a_long_page_lets_others_go_first_after_each_turn(
    masking: Masking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masking_module, "TURN_S", 0.0)
    ended: list[str] = []

    async def read(name: str, records: int) -> None:
        with masking.place() as place:
            await place.records([metadata("z" * 18 + "b")] * records)
        ended.append(name)

    async with asyncio.TaskGroup() as readers:
        for name, records in (("long", 40), ("also long", 40), ("short", 1)):
            readers.create_task(read(name, records))
    assert ended[0] == "short"


async def test_a_page_has_a_limit_for_all_its_records(masking: Masking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking_module, "PAGE_LIMIT_S", 0.1)
    monkeypatch.setattr(masking_module, "TURN_S", 0.02)
    with masking.place() as place, pytest.raises(MasksTooSlow):
        await place.records([metadata("z" * 18 + "b")] * 10_000)


async def test_a_drain_waits_for_no_pattern(masking: Masking) -> None:
    endless = metadata("z" * 60 + "b")
    with masking.place() as place:
        reading = asyncio.gather(*(place.records([endless]) for _ in range(4)), return_exceptions=True)
        await until(has_begun(masking, THREADS))
        masking.close()
        assert [type(error) for error in await reading] == [Draining] * 4
        assert len(masking._running) == THREADS
        with pytest.raises(Draining):
            await place.records([endless])
