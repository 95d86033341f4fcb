"""A stream's events as messages of a socket: frames that somebody else's library reads, shared by all that follow."""

from __future__ import annotations

import json

import pytest
from websockets.frames import Opcode
from websockets.protocol import CLIENT, OPEN, Protocol

from broker.dialects.format import Chosen, Format
from broker.dialects.socket import SocketForm, notice, text_frame
from broker.dialects.sse import Gap
from broker.log.event import Event, from_published

EVENTS = [
    Event(2, "text_delta", b'{"text":"Gr\xc3\xbc"}', 1700000000001),
    Event(3, "text_delta", b'{"text":"\xc3\x9fe"}', 1700000000002),
    Event(4, "internal.note", b"{}", 1700000000003),
    Event(1_000_001, "done", b'{"stop_reason":"end_turn"}', 1700000000004),
]
LINES = [line for id_, kind, data, t in EVENTS for line in (b"%d" % id_, b"%d" % t, kind.encode(), data)]
FORMS = [SocketForm("a_1", inner) for inner in (*Format, Chosen(Format.EXACT, frozenset({"text_delta"})))]


def messages(wire: bytes) -> list[str]:
    peer = Protocol(CLIENT, state=OPEN, max_size=None)
    peer.receive_data(wire)
    frames = peer.events_received()
    assert all(frame.opcode is Opcode.TEXT and frame.fin for frame in frames)
    return [frame.data.decode() for frame in frames]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 300_000])
def test_a_message_is_one_frame_whatever_its_size(size: int) -> None:
    assert messages(text_frame(b"x" * size) + text_frame(b"y")) == ["x" * size, "y"]


def test_an_event_is_the_object_of_ndjson_with_its_stream_first() -> None:
    form = SocketForm("a_1", Format.EXACT)
    expected = [{"stream": "a_1", **json.loads(line)} for line in Format.NDJSON.render(EVENTS).splitlines()]
    found = [json.loads(message) for message in messages(form.render(EVENTS))]
    assert found == expected
    assert [list(message) for message in found] == [["stream", "id", "event", "data", "t"]] * len(EVENTS)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.inner.access_name}")
def test_what_a_topic_writes_is_what_a_viewers_own_task_would(form: SocketForm) -> None:
    batches = [LINES, *(LINES[at : at + 4] for at in range(0, len(LINES), 4))]
    for lines in batches:
        shown = form.shown_lines(lines)
        written = form.encode_lines(shown) if shown else b""
        assert written == form.render(from_published(b"\n".join(lines)))
    assert form.encode_lines(form.shown_lines(LINES)) == form.encode(form.sent(EVENTS))


def test_equal_forms_write_the_same_and_others_are_others() -> None:
    assert len({*FORMS, *(SocketForm("a_1", form.inner) for form in FORMS)}) == len(FORMS)
    assert SocketForm("a_2", Format.EXACT) != SocketForm("a_1", Format.EXACT)


def test_a_notice_has_no_id() -> None:
    [gap] = messages(SocketForm("a_1", Format.EXACT).render_gap(Gap(5, 9, "log_lost_tail")))
    assert json.loads(gap) == {
        "stream": "a_1",
        "event": "gap",
        "data": {"requested": 5, "earliest": 9, "reason": "log_lost_tail"},
    }
    [said] = messages(notice("ok", {}, ref=7))
    assert json.loads(said) == {"event": "ok", "ref": 7, "data": {}}
