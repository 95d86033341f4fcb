"""The checker of what agents did is checked: what is right passes, and each wrong is caught."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.faults.checker import Entry
from tests.faults.ledger import Acted, Deeds, Effect, Tools, judge

TOOLS = Tools({"charge": "charged", "look": "looked", "settle": "settled"}, frozenset({"look"}), frozenset({"settle"}))
CHARGED, LOOKED = "<charge=charged 0>.", "<look=looked 0>."


def at(id: int) -> float:
    block, place = divmod(id, 1_000_000)
    return 1_700_000_000 + 10 * block + place


def entry(id: int, kind: str, **data: Any) -> Entry:
    return Entry(id, kind, json.dumps(data), round(at(id) * 1000))


def begun(id: int, key: str = "k") -> Entry:
    return entry(id, "internal.tool_args", tool_call_id=f"id of {key}", key=key, args={"n": 0})


def finished(id: int, output: str = "charged 0", key: str = "k") -> Entry:
    return entry(id, "internal.tool_result", tool_call_id=f"id of {key}", key=key, output=output)


def unknown(id: int) -> Entry:
    return entry(id, "tool_error", tool_call_id="id of k", code="outcome_unknown")


def said(id: int, text: str) -> Entry:
    return entry(id, "text_delta", text=text)


def ran(when: float, tool: str = "charge", key: str = "k") -> Effect:
    return Effect(when, "s", "", tool, 0, key)


RESTART = entry(1_000_001, "restart", attempt=2, reason="worker_lost")
WHOLE = [begun(3), finished(5), said(6, CHARGED), entry(7, "done")]
TAKEN_OVER = [begun(3), finished(5), RESTART, said(1_000_003, CHARGED), entry(1_000_004, "done")]
CUT = [begun(3), RESTART, unknown(1_000_002), said(1_000_003, "<charge!outcome_unknown>."), entry(1_000_004, "done")]
AGAIN = [begun(3), RESTART, begun(1_000_002), finished(1_000_004, "looked 0"), said(1_000_005, LOOKED),
         entry(1_000_006, "done")]  # fmt: skip


def judged(
    log: Sequence[Entry], *effects: Effect, tool: str = "charge", lost: Sequence[tuple[float, float]] = ()
) -> Deeds:
    return judge([(Acted("s", "walker", [[tool]]), log)], effects, TOOLS, lost=lost)


@pytest.mark.parametrize(
    ("log", "effects", "tool"),
    [
        (WHOLE, [ran(at(4))], "charge"),
        (TAKEN_OVER, [ran(at(4))], "charge"),
        (CUT, [ran(at(4))], "charge"),
        (CUT, [], "charge"),  # it was cut off before its effect
        (AGAIN, [ran(at(4), "look"), ran(at(1_000_003), "look")], "look"),
        ([begun(3), entry(4, "cancelled")], [ran(at(4) + 0.5)], "charge"),
    ],
)
def test_what_is_right_passes(log: list[Entry], effects: list[Effect], tool: str) -> None:
    assert judged(log, *effects, tool=tool).findings == []


@pytest.mark.parametrize(
    ("log", "effects", "tool", "what"),
    [
        (TAKEN_OVER, [ran(at(4)), ran(at(1_000_003))], "charge", "ran again"),
        (AGAIN, [ran(at(4), "look"), ran(at(1_000_005), "look")], "look", "ran again"),
        (CUT, [ran(at(4)), ran(at(1_000_003))], "charge", "ran 2 times"),
        ([*AGAIN[:2], begun(1_000_002, "other"), *AGAIN[3:]], [ran(at(4), "look"), ran(at(1_000_003), "look", "other")],
         "look", "under 2 keys"),
        (CUT, [ran(at(4), "look")], "look", "said to be unknown"),
        (CUT, [ran(at(4), "settle")], "settle", "said to be unknown"),
        (WHOLE, [ran(at(2))], "charge", "nothing of it before"),
        (WHOLE[2:], [ran(at(4))], "charge", "nothing of it before"),
        ([*WHOLE[:2], finished(5), *WHOLE[2:]], [ran(at(4))], "charge", "finished 2 times"),
        ([*WHOLE[:2], said(6, "<charge=charged 1>."), WHOLE[-1]], [ran(at(4))], "charge", "it says"),
        ([*TAKEN_OVER[:3], said(1_000_002, CHARGED), *TAKEN_OVER[3:]], [ran(at(4))], "charge", "it says"),
        ([begun(3), entry(4, "cancelled")], [ran(at(4) + 3)], "charge", "after the ending"),
        ([entry(3, "error", code="agent_failed")], [], "charge", "nothing of the kind"),
        ([*WHOLE[:2], entry(5, "internal.turn", turn=0), entry(6, "internal.turn", turn=0), *WHOLE[2:]], [ran(at(4))],
         "charge", "its turns are"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(log: list[Entry], effects: list[Effect], tool: str, what: str) -> None:
    found = judged(log, *effects, tool=tool).findings
    assert any(what in finding for finding in found), found


def test_what_redis_lost_with_its_worker_may_run_again() -> None:
    log = [*TAKEN_OVER[2:3], begun(1_000_001), finished(1_000_004), said(1_000_005, CHARGED), entry(1_000_006, "done")]
    effects = [ran(at(4)), ran(at(1_000_003))]
    assert judged(log, *effects).findings
    deeds = judged(log, *effects, lost=[(at(3), at(5))])
    assert deeds.findings == []
    assert deeds.counts["admitted: Redis lost it"] > 0


def test_a_turn_that_redis_lost_with_its_worker_is_asked_again_and_its_calls_have_other_keys() -> None:
    log = [
        *(TAKEN_OVER[2], begun(1_000_001, "other"), finished(1_000_004, key="other")),
        *(said(1_000_005, CHARGED), entry(1_000_006, "done")),
    ]
    effects = [ran(at(4)), ran(at(1_000_003), "charge", "other")]
    assert any("under 2 keys" in finding for finding in judged(log, *effects).findings)
    assert judged(log, *effects, lost=[(at(3), at(5))]).findings == []


def test_what_takeovers_found_is_counted() -> None:
    counts = judged(TAKEN_OVER, ran(at(4))).counts + judged(CUT, ran(at(4))).counts
    assert counts["takeovers"] == 2
    assert (
        counts["finished calls at takeovers"]
        == counts["calls in flight at takeovers"]
        == 1
        == counts["outcome_unknown"]
    )


@pytest.mark.parametrize(
    ("texts", "is_right"),
    [(["0,1,", "0,1,"], True), (["0,1,", "1,0,"], False), (["0,1,"], False), (["0,1,", "0,"], False)],
)
def test_each_child_of_a_crowd_has_counted_in_its_order(texts: list[str], is_right: bool) -> None:
    log = [entry(n, "agent_text_delta", agent=f"writer.{n}", text=text) for n, text in enumerate(texts, 1)]
    log += [said(8, "4 4"), entry(9, "done")]
    found = judge([(Acted("s", "crowd", [], children=2), log)], [], TOOLS).findings
    assert (found == []) == is_right, found
