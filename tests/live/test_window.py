"""Windows: what a viewer may be sent beyond what it has acknowledged, by its own task and by a topic."""

from __future__ import annotations

import asyncio
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.dialects.format import Chosen, Form, Format
from broker.dialects.socket import SocketForm
from broker.live.lane import Lane
from broker.live.topic import Topic
from broker.live.window import KEPT_RUNS, Count, Window
from tests.live.test_lane import Wire, carried, said

SOCKET = SocketForm("s1", Format.EXACT)
COMPACT_SOCKET = SocketForm("s1", Format.COMPACT)


def windowed(size: int, form: Form = SOCKET) -> tuple[Lane, Wire]:
    wire = Wire()
    lane = Lane(wire, form, b"", is_paused=False)
    lane.window = Window(size)
    return lane, wire


def ids_in(wire: Wire) -> list[int]:
    """Of the events in its frames, each of which is shorter than 126 bytes here."""
    ids, at = [], 0
    while at < len(wire.body):
        assert wire.body[at] == 0x81
        size = wire.body[at + 1]
        ids.append(int(wire.body[at + 2 : at + 2 + size].partition(b'"id":')[2].partition(b",")[0]))
        at += 2 + size
    return ids


steps = st.lists(st.integers(1, 4).map(lambda n: 1 if n < 4 else 1000), max_size=40)


@given(steps, st.data())
def test_events_are_counted_as_a_list_of_their_ids_would_count_them(holes: list[int], data: st.DataObject) -> None:
    ids = list(accumulate(holes))
    count, at = Count(), 0
    while at < len(ids):
        end = data.draw(st.integers(at + 1, len(ids)))
        count.add(ids[at:end])
        at = end
    assert count.total == len(ids)
    for event_id in range(max(ids, default=0) % 10_000 + 3):
        assert count.upto(event_id) == sum(known <= event_id for known in ids)


@given(steps, steps, st.integers(0, 40))
def test_what_a_topic_has_counted_is_taken_over_by_the_viewer_that_it_wrote_to(
    before: list[int], holes: list[int], since: int
) -> None:
    ids = list(accumulate(before + holes))
    ridden = Count()
    ridden.add(ids)
    since = min(since, len(ids))
    own, first = Count(), [n - 10**6 for n in range(3)]
    own.add(first)
    own.take(ridden, since)
    expected = first + ids[since:]
    assert own.total == len(expected)
    for event_id in expected:
        assert own.upto(event_id) == sum(known <= event_id for known in expected)


def test_runs_that_no_window_needs_are_forgotten_and_the_count_goes_on() -> None:
    count = Count()
    for n in range(1, 1001):
        count.add([10 * n])
        count.forget(count.total - 5)
    assert len(count._firsts) <= KEPT_RUNS + 1
    assert [count.upto(10 * n) for n in range(996, 1001)] == [996, 997, 998, 999, 1000]


async def test_a_window_has_room_again_for_what_was_acknowledged_and_not_for_what_was_never_sent() -> None:
    window = Window(4)
    window.wrote([5, 6, 1_000_001, 1_000_002])
    assert window.room == 0
    waiting = asyncio.create_task(window.has_room())
    window.acknowledge(4)
    await asyncio.sleep(0)
    assert not waiting.done()
    window.acknowledge(1_000_000)
    await waiting
    assert window.room == 2, "a jump of ids is no event"
    window.acknowledge(2**60)
    window.acknowledge(6)
    assert window.room == 4
    window.wrote([1_000_003])
    assert window.room == 3, "what comes later is not acknowledged by what was said before"


@pytest.fixture
def topic() -> Topic:
    topic = Topic("s1")
    topic.reset(version=1)
    return topic


async def test_a_topic_writes_not_one_event_beyond_a_window_and_goes_on_writing_to_others(topic: Topic) -> None:
    (narrow, wire), (wide, wide_wire) = windowed(3), windowed(100)
    free, free_wire = windowed(1)
    free.window = None
    tasks = [await carried(topic, lane, 0) for lane in (narrow, wide, free)]
    for n in range(1, 4):
        topic.publish([said(n, '{"text":"a"}')])
    topic.publish([said(4, '{"text":"a"}')])
    assert await tasks[0] == 3
    assert ids_in(wire) == [1, 2, 3]
    assert ids_in(wide_wire) == ids_in(free_wire) == [1, 2, 3, 4]
    assert narrow.window
    assert narrow.window.room == 0
    narrow.window.acknowledge(2)
    assert narrow.window.room == 2
    for task in tasks[1:]:
        task.cancel()


async def test_a_batch_that_is_larger_than_a_window_is_left_to_the_viewers_own_task(topic: Topic) -> None:
    viewer, wire = windowed(3)
    task = await carried(topic, viewer, 0)
    topic.publish([said(1, *['{"text":"a"}'] * 4)])
    assert await task == 0
    assert ids_in(wire) == []


async def test_what_is_acknowledged_while_a_topic_writes_makes_room_there(topic: Topic) -> None:
    viewer, wire = windowed(3)
    assert viewer.window
    viewer.window.wrote([1, 2])
    task = await carried(topic, viewer, 2)
    for n in range(3, 50):
        topic.publish([said(n, '{"text":"a"}')])
        viewer.window.acknowledge(n)
    assert ids_in(wire) == list(range(3, 50))
    topic.release_lane(viewer)
    assert await task == 49
    assert viewer.window.room == 3


async def test_merged_text_counts_as_the_one_event_that_it_is_sent_as(topic: Topic) -> None:
    viewer, wire = windowed(2, COMPACT_SOCKET)
    task = await carried(topic, viewer, 0)
    topic.publish([said(1, *['{"text":"a"}'] * 9)])
    topic.publish([said(10, *['{"text":"a"}'] * 9)])
    assert ids_in(wire) == [9, 18]
    topic.publish([said(19, '{"text":"a"}')])
    assert await task == 18
    assert ids_in(wire) == [9, 18]


async def test_what_is_not_shown_takes_no_room(topic: Topic) -> None:
    viewer, wire = windowed(1, SocketForm("s1", Chosen(Format.EXACT, frozenset({"status"}))))
    task = await carried(topic, viewer, 0)
    topic.publish([said(1, '{"text":"a"}', '{"text":"b"}')])
    topic.publish([said(3, "{}", kind="status")])
    topic.publish([said(4, '{"text":"a"}')])
    assert ids_in(wire) == [3]
    topic.publish([said(5, "{}", kind="status")])
    assert await task == 4
    assert ids_in(wire) == [3]


async def test_sockets_that_follow_a_stream_are_written_the_same_bytes(topic: Topic) -> None:
    (one, wire), (other, other_wire) = windowed(10), windowed(20)
    tasks = [await carried(topic, lane, 0) for lane in (one, other)]
    topic.publish([said(1, '{"text":"a"}')])
    assert wire.body == other_wire.body
    assert wire.body[2:] == b'{"stream":"s1","id":1,"event":"text_delta","data":{"text":"a"},"t":0}'
    for task in tasks:
        task.cancel()


async def test_a_connection_with_signs_of_life_of_its_own_gets_none_from_a_topic(topic: Topic) -> None:
    viewer, wire = windowed(10)
    task = await carried(topic, viewer, 0)
    for _ in range(20):
        topic.turn()
    assert wire.body == b""
    assert topic.silent_turns(viewer) == 20
    task.cancel()
