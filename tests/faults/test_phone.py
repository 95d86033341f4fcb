"""The fault suite's own viewer reads what a server sends, wherever the network has cut it."""

from __future__ import annotations

import pytest

from tests.faults.phone import Dechunker, Phone
from tests.faults.plan import ViewerPlan

EVENTS = (
    "retry: 1500\nid: 1\nevent: queued\ndata: {}\n\n"
    ": ping\n\n"
    'id: 2\nevent: text_delta\ndata: {"text":"ü"}\n\n'
    'event: gap\ndata: {"requested":2,"earliest":9,"reason":"log_lost_tail"}\n\n'
).encode()
CHUNKED = b"%x\r\n%s\r\n" % (len(EVENTS[:40]), EVENTS[:40]) + b"%x\r\n%s\r\n" % (len(EVENTS[40:]), EVENTS[40:])


@pytest.mark.parametrize("cut", range(len(CHUNKED)))
def test_chunks_are_joined_wherever_they_are_cut(cut: int) -> None:
    chunks = Dechunker()
    assert chunks.feed(CHUNKED[:cut]) + chunks.feed(CHUNKED[cut:]) == EVENTS
    assert not chunks.complete
    assert chunks.feed(b"0\r\n\r\n") == b""
    assert chunks.complete


def test_only_complete_blocks_count() -> None:
    phone = Phone("s", ViewerPlan("v", 0, 0, False, False), [])
    for byte in EVENTS[:-1]:
        phone._take(bytes([byte]))
    assert [(event.id, event.kind, event.data) for event in phone.transcript.received] == [
        (1, "queued", "{}"),
        (2, "text_delta", '{"text":"ü"}'),
    ]
    assert phone.counts["notices"] == 0
    phone._take(b"\n")
    assert phone.counts["notices"] == 1
