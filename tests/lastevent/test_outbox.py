"""A producer's outbox against a log as Redis keeps it, with everything lost, refused and repeated that can be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastevent.client.outbox import (
    AGAIN_S,
    BATCH_EVENTS,
    FIRST,
    HEARTBEAT_S,
    MOST_UNSENT,
    Answer,
    Outbox,
    Send,
    Wait,
    encoded,
)


class Log:
    """What the append step does (broker/log/scripts/append.lua), for one pen."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    @property
    def tail(self) -> int:
        return len(self.events) + 1

    def take(self, sent: Send) -> Answer:
        body = json.loads(sent.content)
        if sent.call == "heartbeat":
            return (
                Answer(409, {"code": "stream_closed"}) if self.has_ended else Answer(200, {"last_event_id": self.tail})
            )
        first, events = body["first"], body["events"]
        there = self.events[first - FIRST :][: len(events)]
        if there != events[: len(there)]:
            return Answer(409, {"code": "stream_closed" if self.has_ended else "writer_superseded"})
        if len(there) < len(events):
            if self.has_ended:
                return Answer(409, {"code": "stream_closed"})
            if first > self.tail + 1:
                return Answer(409, {"code": "append_gap", "last_event_id": self.tail})
            self.events += events[len(there) :]
        return Answer(200, {"last_event_id": self.tail})

    @property
    def has_ended(self) -> bool:
        return bool(self.events) and self.events[-1]["event"] == "done"


def text(n: int) -> bytes:
    return encoded("text_delta", {"text": str(n)})


def outbox(events: int = 0, *, ended: bool = False) -> Outbox:
    box = Outbox(1, 0.0, random=lambda: 1.0)
    for n in range(events):
        box.add(text(n))
    if ended:
        box.add(encoded("done", {}), is_ending=True)
    return box


def sent(box: Outbox, now: float = 0.0) -> Send:
    step = box.next(now)
    assert isinstance(step, Send), step
    return step


def waited(box: Outbox, now: float) -> float:
    step = box.next(now)
    assert isinstance(step, Wait), step
    assert step.seconds is not None
    return now + step.seconds


def test_events_are_numbered_from_2_in_batches_of_500() -> None:
    box, log, sizes = outbox(1200), Log(), []
    while box.unsent:
        step = sent(box)
        assert json.loads(step.content)["first"] == box.confirmed + 2
        sizes.append(step.count)
        box.answered(step, log.take(step), 0.0)
    assert sizes == [BATCH_EVENTS, BATCH_EVENTS, 200]
    assert [event["data"]["text"] for event in log.events] == [str(n) for n in range(1200)]


def test_a_batch_has_a_body_that_a_server_takes() -> None:
    box = Outbox(1, 0.0)
    for _ in range(10):
        box.add(encoded("text_delta", {"text": "x" * 100_000}))
    assert sent(box).count == 2
    box = Outbox(1, 0.0)
    box.add(encoded("text_delta", {"text": "x" * 500_000}))
    assert sent(box).count == 1


def test_it_is_full_at_2000_unsent() -> None:
    assert not outbox(MOST_UNSENT - 1).is_full
    assert outbox(MOST_UNSENT).is_full


def test_a_silent_producer_gives_signs_of_life() -> None:
    box, log = outbox(1), Log()
    step = sent(box)
    box.answered(step, log.take(step), 1.0)
    assert waited(box, 2.0) == 1.0 + HEARTBEAT_S
    beat = sent(box, 1.0 + HEARTBEAT_S)
    assert (beat.call, json.loads(beat.content)) == ("heartbeat", {"epoch": 1})
    box.answered(beat, log.take(beat), 9.0)
    assert waited(box, 9.0) == 9.0 + HEARTBEAT_S


def test_a_heartbeat_that_finds_the_log_short_puts_the_events_back() -> None:
    box, log = outbox(3), Log()
    step = sent(box)
    box.answered(step, log.take(step), 0.0)
    del log.events[1:]
    beat = sent(box, HEARTBEAT_S)
    box.answered(beat, log.take(beat), HEARTBEAT_S)
    step = sent(box, HEARTBEAT_S)
    assert json.loads(step.content)["first"] == 3
    assert log.take(step).status == 200
    assert len(log.events) == 3


def test_a_missing_answer_is_followed_by_the_same_events_though_there_are_more() -> None:
    box = outbox(2)
    first = sent(box)
    box.unanswered(first, 0.0)
    box.add(encoded("another", {}))
    again = sent(box, waited(box, 0.0))
    assert again.content == first.content


@pytest.mark.parametrize("status", [503, 500, 502, 429, 408, 425, 204])
def test_who_is_told_later_waits_longer_each_time_and_as_long_as_it_was_told(status: int) -> None:
    box, now, waits = outbox(1), 0.0, []
    for _ in range(9):
        box.answered(sent(box, now), Answer(status), now)
        until = waited(box, now)
        waits.append(round(until - now, 2))
        now = until
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8.0, 8.0]
    box.answered(sent(box, now), Answer(status, {}, 30.0), now)
    assert waited(box, now) == now + 30


def test_the_ending_is_sent_again_after_3_and_10_s() -> None:
    box, log = outbox(3, ended=True), Log()
    step = sent(box)
    assert not box.is_confirmed
    box.answered(step, log.take(step), 1.0)
    assert box.is_confirmed
    now = 1.0
    for after_s in AGAIN_S:
        assert waited(box, now) == 1.0 + after_s
        now = 1.0 + after_s
        again = sent(box, 1.0 + after_s)
        assert (again.count, json.loads(again.content)["first"]) == (1, 5)
        box.answered(again, log.take(again), 1.0 + after_s)
    assert box.is_over
    assert box.next(11.0) is None
    assert len(log.events) == 4


@pytest.mark.parametrize("lost", [1, 2, 4])
def test_an_ending_that_redis_lost_is_put_back_with_what_it_lost_besides(lost: int) -> None:
    box, log = outbox(3, ended=True), Log()
    step = sent(box)
    box.answered(step, log.take(step), 0.0)
    whole = list(log.events)
    del log.events[-lost:]
    now = 3.0
    for _ in range(2):
        if isinstance(step := box.next(now), Send):
            box.answered(step, log.take(step), now)
    assert log.events == whole


def test_a_repetition_that_nobody_answers_is_left_at_that() -> None:
    box, log, now = outbox(ended=True), Log(), 0.0
    step = sent(box)
    box.answered(step, log.take(step), now)
    while step := box.next(now):
        if isinstance(step, Wait):
            now += step.seconds or 0
        else:
            box.unanswered(step, now)
    assert 60 < now < 70


@pytest.mark.parametrize("code", ["writer_superseded", "stream_closed"])
def test_a_refusal_for_good_ends_it(code: str) -> None:
    box = outbox(1)
    box.answered(sent(box), Answer(409, {"code": code, "detail": "why"}), 0.0)
    assert box.trouble
    assert box.trouble == (code, 409, "why")
    assert box.next(1.0) is None


def test_a_gap_above_what_was_sent_is_somebody_elses() -> None:
    box = outbox(1)
    box.answered(sent(box), Answer(409, {"code": "append_gap", "last_event_id": 7}), 0.0)
    assert box.trouble
    assert box.trouble.code == "writer_superseded"


def test_a_refused_token_is_replaced_once() -> None:
    box = outbox(1)
    assert sent(box).why is None
    box.answered(sent(box), Answer(401, {"code": "token_expired"}), 0.0)
    assert sent(box).why == "refused"
    box.answered(sent(box), Answer(401, {"code": "token_expired"}), 0.0)
    assert box.trouble
    assert box.trouble.code == "token_expired"


def test_an_event_that_no_server_takes_takes_nothing_with_it_but_what_is_unsent() -> None:
    box, log = outbox(2), Log()
    step = sent(box)
    box.answered(step, log.take(step), 0.0)
    for n in range(3):
        box.add(text(n))
    box.add(encoded("done", {}), is_ending=True)
    box.answered(sent(box), Answer(422, {"code": "invalid_request", "detail": "events.0: why"}), 0.0)
    assert box.trouble
    assert box.trouble.code == "invalid_request"
    assert (box.unsent, box.has_ended, box.is_over) == (0, False, False)
    box.add(encoded("error", {}), is_ending=True)
    assert log.take(sent(box)).body == {"last_event_id": 4}


def test_a_body_that_is_too_large_is_sent_in_smaller_ones() -> None:
    box = outbox(8)
    for count in (8, 4, 2, 1):
        step = sent(box)
        assert step.count == count
        box.answered(step, Answer(413, {"code": "body_too_large"}), 0.0)
    assert box.spoilt_by


def test_events_of_a_process_before_come_first_and_are_put_back_too() -> None:
    log = Log()
    box = Outbox(1, 0.0, [text(0), text(1)])
    box.add(text(2))
    step = sent(box)
    assert json.loads(step.content)["first"] == 4
    box.answered(step, log.take(step), 0.0)
    step = sent(box)
    assert (json.loads(step.content)["first"], step.count) == (2, 3)


def test_events_that_cannot_be_put_back_are_said_to_be_so() -> None:
    box = Outbox(1, 0.0, [b"", b""])
    box.add(text(2))
    box.answered(sent(box), Answer(409, {"code": "append_gap", "last_event_id": 2}), 0.0)
    assert box.next(0.0) is None
    assert box.trouble
    assert box.trouble.code == "log_lost_tail"


@pytest.mark.parametrize("kind", ["queued", "gap", "message", "Text", "", "a b", "a\n", "ä", "a" * 65])
def test_a_kind_that_no_producer_may_write_is_an_error_where_it_is_said(kind: str) -> None:
    with pytest.raises(ValueError, match=r"kind"):
        encoded(kind, {})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_what_is_no_json_is_an_error_where_it_is_said(value: object) -> None:
    with pytest.raises(ValueError):
        encoded("text_delta", {"text": value})


HAPPENS = st.lists(
    st.sampled_from(["answered"] * 4 + ["no answer", "never came", "refused", "lost tail", "lost the last", "say"]),
    max_size=60,
)


@settings(max_examples=200)
@given(HAPPENS)
def test_whatever_is_lost_the_log_is_exact_in_the_end(happens: list[str]) -> None:
    """Losses come to an end before the last repetition: later ones nobody can see."""
    box, log, now, said = outbox(), Log(), 0.0, 0
    todo = iter(happens)
    for _ in range(2000):
        what = next(todo, "answered")
        if what == "say" or (what == "answered" and said < 5):
            if not box.has_ended:
                box.add(text(said))
                said += 1
        elif said >= 5 and not box.has_ended:
            box.add(encoded("done", {}), is_ending=True)
        if what == "lost tail" and not box.is_confirmed:
            del log.events[len(log.events) // 2 :]
        if what == "lost the last" and log.events and not box.is_confirmed:
            log.events.pop()
        step = box.next(now)
        if step is None:
            break
        if isinstance(step, Wait):
            now += step.seconds or 0.0
        elif what == "never came":
            box.unanswered(step, now)
        elif what == "no answer":
            log.take(step)
            box.unanswered(step, now)
        elif what == "refused":
            box.answered(step, Answer(503, {"code": "redis_unavailable"}, 1.0), now)
        else:
            box.answered(step, log.take(step), now)
    assert box.is_over
    assert box.trouble is None
    assert [event["data"].get("text") for event in log.events] == [*map(str, range(said)), None]
