"""What the loop decides beyond the table: patience, what it says of a loss, what it takes for an answer. No I/O."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Sequence
from typing import Any

import pytest

from lastevent import Answer, Event, StreamError
from lastevent.client.errors import Lost
from lastevent.client.following import CLOSE, READ, Following, Head, Pause, Send, World
from lastevent.client.frames import Frames

URL = "http://le.test/v1/streams/s1/events"


class Played:
    """A loop and its server: each connection says pieces at their seconds, and is cut behind the last one."""

    def __init__(self, connections: Sequence[Sequence[tuple[float, bytes]] | Head], **options: Any) -> None:
        self.time = 0.0
        world = World(lambda: self.time, lambda: self.time, lambda: 0.5, lambda seconds: None)
        self.lost: list[str] = []
        options = {"url": URL, "on_lost": lambda error: self.lost.append(str(error)), **options}
        self.following = Following(world, **options)
        self.connections = iter(connections)
        self.tries = 0

    def run(self) -> list[int | None]:
        """The ids of the events, None for a notice. Raises StreamError; without another connection StopIteration."""
        steps = self.following.run()
        ids = []
        is_open = False
        pieces: list[tuple[float, bytes]] = []
        step = next(steps)
        try:
            while True:
                reply: Any = None
                if isinstance(step, Event):
                    ids.append(step.id)
                elif step is CLOSE:
                    is_open = False
                elif isinstance(step, Pause):
                    assert not is_open, "what is lost is closed before the wait"
                    self.time += step.seconds
                elif isinstance(step, Send):
                    assert not is_open, "one connection at a time"
                    self.tries += 1
                    said = next(self.connections, None)
                    if said is None:
                        step = steps.throw(Lost("no server answers"))
                        continue
                    is_open = True
                    reply = said if isinstance(said, Head) else Head(200, {"Content-Type": step.headers["Accept"]})
                    pieces = [] if isinstance(said, Head) else [(self.time + at, piece) for at, piece in said]
                elif step is READ and pieces:
                    self.time, reply = pieces.pop(0)
                step = steps.send(reply)
        except StopIteration:
            return ids


def event(number: int, kind: str = "text_delta") -> bytes:
    return b'id: %d\nevent: %s\ndata: {"text":"x"}\n\n' % (number, kind.encode())


def test_patience_ends_at_its_time_behind_the_first_loss() -> None:
    played = Played([[(0, event(1))]], patience_s=100)
    with pytest.raises(StreamError) as over:
        played.run()
    assert (over.value.code, over.value.status) == ("lost", 0)
    assert str(over.value) == "no server answers; gave up after 100 s"
    assert played.time == 100
    assert played.lost[:2] == ["the connection was cut", "no server answers"]


def test_a_server_that_says_for_long_that_it_is_there_is_no_loss() -> None:
    pings = [(30.0 * n, b": ping\n") for n in range(40)]
    played = Played([[(0, event(1)), *pings], pings, [(0, event(2, "done"))]], patience_s=100)
    assert played.run() == [1, 2]
    assert played.time > 2000


def test_an_event_gives_patience_back() -> None:
    played = Played([[(0, event(n))] for n in range(1, 50)] + [[(0, event(50, "done"))]], patience_s=2)
    assert played.run() == list(range(1, 51))
    assert played.time > 30


def test_answers_without_an_event_do_not() -> None:
    played = Played([[(0, b"retry: 1000\n")]] * 1000, patience_s=60)
    with pytest.raises(StreamError, match="gave up after 60 s"):
        played.run()
    assert played.time == 60


def test_who_is_told_to_come_later_than_patience_lasts_is_told_at_once() -> None:
    played = Played([Head(503, {"Retry-After": "200"})], patience_s=100)
    with pytest.raises(StreamError, match="gave up") as over:
        played.run()
    assert (over.value.status, played.time) == (503, 0)


def test_a_loss_is_logged_and_warned_of_when_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lastevent")
    with pytest.raises(StreamError):
        Played([], patience_s=60).run()
    levels = [record.levelname for record in caplog.records]
    assert levels[:2] == ["INFO", "INFO"]
    assert set(levels[2:]) == {"WARNING"}
    assert caplog.messages[0] == f"{URL}: no server answers; try 2 in 0.8 s"


def test_a_redirect_is_not_followed_and_says_where_to() -> None:
    played = Played([Head(301, {"Location": "https://le.test/"})], patience_s=5)
    with pytest.raises(StreamError):
        played.run()
    assert played.lost[0] == "HTTP 301, to https://le.test/"


def test_a_huge_page_in_place_of_a_refusal_is_not_read_to_its_end() -> None:
    played = Played([], patience_s=5)
    steps = played.following.run()
    assert next(steps)  # Ask
    assert isinstance(steps.send(None), Send)
    step = steps.send(Head(502, {}))
    reads = 0
    while step is READ:
        reads += 1
        step = steps.send(b"x" * 65536)
    assert reads == 2


def test_a_text_behind_a_gap_is_read_on_a_connection_of_its_own() -> None:
    gap = b'event: gap\ndata: {"requested":0}\n\n'
    text = Head(200, {"Last-Event-ID": "3"})
    played = Played([[(0, gap)], text, [(0, event(4, "done"))]])
    assert played.run() == [4]
    assert (played.following.answer.incomplete, played.tries) == (True, 3)


def test_a_name_and_a_password_in_an_address_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StreamError):
        Played([], url=URL.replace("le.test", "ann:secret@le.test") + "?t=secret", patience_s=10).run()
    assert caplog.messages
    assert all(said.startswith(f"{URL}: ") for said in caplog.messages)


def test_what_is_raised_at_a_loss_ends_the_loop() -> None:
    def told(error: StreamError) -> None:
        raise error

    played = Played([Head(200, {"Content-Type": "text/html"})], on_lost=told)
    with pytest.raises(StreamError, match="what answers is no stream"):
        played.run()
    assert (played.tries, played.time) == (1, 0)


def test_an_ending_before_what_was_read_has_the_stream_read_once_more() -> None:
    """Redis forgot a second, in which it was cancelled; what ended it was put back where the log is now."""
    ended = [(0, event(2, "cancelled"))]
    seen = [(0, event(n)) for n in (1, 2, 3)]
    played = Played([seen, ended, [(0, event(1)), *ended]])
    assert played.run() == [1, 2, 3]
    answer = played.following.answer
    assert (answer.text, answer.state, answer.cursor, played.tries) == ("x", "cancelled", 2, 3)
    for_ever = Played([seen, ended, seen, ended])
    with pytest.raises(StreamError, match="before what was read") as over:
        for_ever.run()
    assert over.value.code == "no_ending"


# -- raw -----------------------------------------------------------------------------------------------------


def line(number: int | None, kind: str = "text_delta", **data: Any) -> bytes:
    said = {"event": kind, "data": data} if number is None else {"id": number, "event": kind, "data": data, "t": 7}
    return json.dumps(said).encode() + b"\n"


def raw(*connections: Any, **options: Any) -> Played:
    return Played(connections, is_raw=True, **options)


def test_raw_gives_notices_too_and_goes_on_behind_a_gap_with_what_is_left() -> None:
    said = line(1) + line(None, "gap", requested=1) + b"\n" + line(5, "done")
    played = raw([(0, said[:40]), (0, said[40:])])
    assert played.run() == [1, None, 5]
    assert (played.following.answer.incomplete, played.tries) == (True, 1)


def test_raw_tells_when_an_event_was_written() -> None:
    played = raw()
    steps = played.following.run()
    step = next(steps)
    while step is not READ:
        step = steps.send(Head(200, {"Content-Type": "application/x-ndjson"}) if isinstance(step, Send) else None)
    first = steps.send(line(1) + line(None, "ping"))
    assert isinstance(first, Event)
    assert (first.id, first.t) == (1, 7)
    second = next(steps)
    assert isinstance(second, Event)
    assert (second.id, second.t) == (None, None)


def test_raw_resumes_where_a_line_was_cut_or_was_none() -> None:
    none = [b"nothing\n", b"[]\n", b'{"id": 2}\n', b"[" * 100_000 + b"\n"]
    played = raw([(0, line(1)), (0, line(2)[:-1])], *([(0, said)] for said in none), [(0, line(2, "done"))])
    assert played.run() == [1, 2]
    assert played.lost == ["the connection was cut", *["what was said is no JSON"] * len(none)]


def test_behind_the_ending_raw_gives_nothing_and_knows_the_ending() -> None:
    """It asks once more from before the ending, where nothing need stand: that gap is nobody's."""
    answer = Answer(cursor=5, incomplete=True)
    again = [(0, line(None, "gap", requested=4) + line(5, "error", message="why"))]
    played = raw(Head(204, {}), again, answer=answer, is_behind_cursor=True)
    assert played.run() == []
    assert (played.following.answer.state, played.following.answer.ending) == ("error", {"message": "why"})


def test_an_ending_before_the_cursor_is_given_as_it_is() -> None:
    answer = Answer(cursor=9, incomplete=True)
    played = raw([(0, line(2, "cancelled"))], answer=answer, is_behind_cursor=True)
    assert played.run() == [2]
    assert (played.following.answer.state, played.tries) == ("cancelled", 1)


# -- bytes, answers, errors ----------------------------------------------------------------------------------


def framed(said: bytes) -> list[tuple[int | None, str]]:
    return [(frame.id, frame.event) for frame in Frames().push(said)]


def test_a_frame_without_data_leaves_nothing_to_the_next_one() -> None:
    assert framed(b"id: 5\nevent: x\n\ndata: {}\n\n") == [(None, "message")]


def test_one_bom_is_no_part_of_the_first_name() -> None:
    assert framed(b"\xef\xbb\xbfid: 1\ndata: 1\n\n\xef\xbb\xbfid: 2\ndata: 2\n\n") == [
        (1, "message"),
        (None, "message"),
    ]


def test_a_retry_within_a_frame_is_for_other_clients() -> None:
    frames = Frames()
    assert len(list(frames.push(b"retry: 500\nid: 1\nevent: done\nretry: 99\ndata: {}\n\n"))) == 1
    assert frames.retry_ms == 500


def test_an_answer_is_the_same_in_json_and_back() -> None:
    answer = Answer(cursor=3, text="Wörter 🚲", tools=({"id": "a", "json": "{"},), agents={"r": {"text": "x"}})
    assert Answer.from_json(answer.to_json()) == answer
    assert Answer.from_json({"cursor": 3}) == Answer(cursor=3)


@pytest.mark.parametrize("kept", ["", "[]", "null", '{"v": 2}', '{"cursor": "3"}', '{"tools": null}', b"\xff"])
def test_what_is_no_answer_is_refused(kept: str | bytes) -> None:
    with pytest.raises(ValueError):
        Answer.from_json(kept)


def test_an_answer_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Answer().text = "x"  # type: ignore[misc]


def test_what_is_raised_survives_a_queue_of_jobs() -> None:
    error = pickle.loads(pickle.dumps(StreamError("lost", 503, "gone", "Away")))
    assert (error.code, error.status, str(error), error.title) == ("lost", 503, "gone", "Away")


def test_an_event_of_a_server_has_an_id_and_any_kind() -> None:
    assert repr(Event.received(3, "start", {"a": 1})) == "<Event 3: 'start', {'a': 1}>"
    assert Event("step", {"a": 1}).id is None
