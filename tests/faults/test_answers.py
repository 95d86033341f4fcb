"""What compares a log with what its provider said is checked: what is right passes, and each wrong is named."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from tests.faults.answers import misread
from tests.faults.checker import Entry, FinalStream
from tests.faults.plan import StreamPlan
from worker.standin.words import words

PROMPT = "Story [[tokens=4]]"
SAID = [("text_delta", {"text": text}) for text in islice(words(PROMPT), 4)]
START, RESTART, DONE = ("start", {}), ("restart", {}), ("done", {})
BAD_ANSWER = ("error", {"code": "provider_bad_answer"})


def found(*events: tuple[str, object], wire: str = "") -> list[str]:
    entries = [Entry(id, kind, json.dumps(data), 0) for id, (kind, data) in enumerate(events, 1)]
    plan = StreamPlan(PROMPT, 4, wire, "restart", None, 0, [])
    return list(misread([FinalStream("s", entries, None, None)], {"s": plan}))


@pytest.mark.parametrize(
    "events",
    [
        (START, *SAID, DONE),
        (START, *SAID[:2], RESTART, START, *SAID, DONE),
        (START, *SAID[:2], ("cancelled", {})),
        (START, *SAID[:3], ("error", {"code": "worker_lost"})),
    ],
)
def test_what_the_provider_said_or_the_beginning_of_it_is_right(events: tuple[tuple[str, object], ...]) -> None:
    assert found(*events) == []
    assert found(START, BAD_ANSWER, wire="compressed") == []


def test_a_delta_that_is_doubled_missing_or_out_of_order_is_named() -> None:
    for wrong in ([SAID[0], *SAID[:3]], SAID[1:], [*SAID[:2], SAID[3], SAID[2]]):
        assert "its text is not what the provider said" in found(START, *wrong, DONE)[0]
    assert "it is done after 3 of 4 deltas" in found(START, *SAID[:3], DONE)[0]


def test_an_answer_that_only_some_understand_is_named() -> None:
    assert "nobody unpacks" in found(START, *SAID, DONE, wire="compressed")[0]
    assert "was not understood" in found(START, BAD_ANSWER, wire="lines end in CR")[0]
