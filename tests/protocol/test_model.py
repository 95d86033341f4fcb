"""The protocol, explored: it holds in every world within the bounds, and fails as soon as one of its rules is left out.

`python -m tests.protocol` explores larger bounds (minutes), and prints what each rule is for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.protocol.calls import CallSearch
from tests.protocol.model import Producer
from tests.protocol.producers import Bounds as Producing
from tests.protocol.producers import ProducerSearch, Request, sent
from tests.protocol.search import (
    Bounds,
    Search,
    World,
    check_all,
    check_can_end,
    check_kept,
    check_log,
    check_viewer,
)
from tests.rig.long import LONG

STATES = 700_000
"""More than this is a mistake in the bounds: some 1 KB each."""

BLIND = Bounds(viewer=False, cancels=0, lost_replies=0)
TWO = BLIND._replace(texts=2, endings=False)
"""Two texts of a writer: the second may go the short way."""

GIVEN = BLIND._replace(given=True)
THREE = BLIND._replace(workers=3, absences=2, endings=False)

PAID = BLIND._replace(cancels=1, counts=1, endings=False, absences=0)

CLEAN = BLIND._replace(clean_restarts=1, absences=0)
CALLS = BLIND._replace(texts=0, endings=False, calls=True)
"""A call of an agent's tool, which may not run again by itself."""


def _short(bounds: Bounds, **narrower: Any) -> Bounds:
    """The largest ones are narrower in the suite, each in another direction."""
    return bounds if LONG else bounds._replace(**narrower)


QUICK = [
    pytest.param(TWO, id="two texts, one of all goes away, a rollback"),
    pytest.param(_short(BLIND._replace(cancels=1), texts=0), id="two workers, a cancel, one of all goes away"),
    pytest.param(_short(BLIND._replace(releases=True), endings=False), id="two workers, who may release"),
    pytest.param(BLIND._replace(creates_again=True), id="a stream that is created again after it vanished"),
    pytest.param(GIVEN, id="a stream with a given id, which may have been there before"),
    pytest.param(_short(GIVEN._replace(cancels=1, viewer=True), absences=0), id="a given id, a viewer, a cancel"),
    pytest.param(_short(Bounds(absences=0), texts=0), id="a viewer, a cancel, lost replies"),
    pytest.param(_short(Bounds(absences=0, lost_replies=0, rollbacks=2), cancels=0), id="two rollbacks"),
    pytest.param(Bounds(cancels=0, lost_replies=0, absences=0, workers=1, cursor=99), id="a cursor from elsewhere"),
    pytest.param(
        _short(Bounds(cancels=0, lost_replies=0, endings=False), cut_off=False), id="a viewer, zombies, takeovers"
    ),
    pytest.param(CLEAN._replace(cancels=1), id="a clean restart and a rollback, in either order, and a cancel"),
    pytest.param(CLEAN._replace(releases=True), id="a clean restart and a rollback, and workers that release"),
    pytest.param(
        _short(Bounds(absences=0, rollbacks=0, clean_restarts=1), lost_replies=0),
        id="a viewer, a cancel, a clean restart",
    ),
    pytest.param(_short(PAID._replace(releases=True), texts=0), id="usage, workers that release, a cancel"),
    pytest.param(PAID._replace(lost_replies=1), id="usage, lost replies, a cancel"),
    pytest.param(PAID._replace(absences=1, rollbacks=0, counts=2), id="usage, one of all goes away, a cancel"),
]

# Each rule, and the smallest bounds in which leaving it out does harm (found by trying; the first that did).
NEEDED = {
    "epoch": (BLIND, "another holds the pen"),
    "claim id": (BLIND, "another holds the pen"),
    "skip": (BLIND._replace(lost_replies=1), "G6"),
    "jump": (BLIND, "G1"),
    "jump of a first claim": (BLIND, "G1"),
    "base counts as used": (BLIND._replace(cancels=1, absences=2), "G1"),
    "boot rule": (BLIND._replace(cancels=1), "G1"),
    "only a clean stop is marked": (BLIND._replace(cancels=1), "G3"),
    "a mark serves once": (CLEAN, "G1"),
    "only a settled server is continued": (CLEAN._replace(cancels=1), "G3"),
    "adopt": (BLIND, "G6"),
    "restore": (BLIND, "G6"),
    "created again": (BLIND._replace(creates_again=True), "G1"),
    "given: counted from afar": (GIVEN, "G1"),
    "given: an epoch of the clock": (GIVEN, "G1"),
    "given: healing goes first": (GIVEN, "G1"),
    "adopt only from ahead": (THREE, "can add nothing"),
    "stood still: append": (BLIND, "stood still adds events"),
    "stood still: restore": (BLIND, "stood still adds events"),
    "ending kept": (Bounds(absences=0, lost_replies=0), "G3"),
    "seizure kept": (BLIND._replace(cancels=1), "G3"),
    "no new ending while healing": (BLIND._replace(cancels=1, absences=0), "G3"),
    "writers go before claims": (Bounds(absences=0), "G3"),
    "a release leaves the epoch": (BLIND._replace(releases=True), "G6"),
    "a repeated claim renews": (Bounds(cancels=0, zombies=False, cut_off=False, endings=False), "G2"),
    "no claim is repeated elsewhere": (Bounds(cancels=0, zombies=False, cut_off=False, endings=False), "G2"),
    "terminal never dropped": (Bounds(cancels=0, lost_replies=0, absences=0, workers=1, cursor=99), "G3"),
    "viewer's cursor": (Bounds(cancels=0, lost_replies=0, absences=0, workers=1), "waits"),
    "gap notice": (Bounds(absences=0, lost_replies=0), "not told"),
    "extend: the pen": (TWO, "another holds the pen"),
    "extend: the length": (TWO, "G6"),
    "extend: not after standing still": (TWO._replace(texts=3), "stood still adds events"),
    "renew: the pen": (TWO, "renews the lease of"),
    "renew: the length": (TWO, "G6"),
    "extend: a pen's first events go the whole way": (
        BLIND._replace(lost_replies=1, releases=True, absences=0, endings=False),
        "extends the log, and the stream's pen is",
    ),
    "a seizure takes over the usage": (PAID, "P7"),
    "a claim keeps the usage": (PAID._replace(releases=True), "P7"),
    "only the pen sets the usage": (PAID._replace(absences=1, rollbacks=0), "P7"),
    "every renewal carries the usage": (PAID, "P7"),
    "a takeover repeats the usage": (PAID._replace(releases=True), "P7"),
    "seizures keep what was written": (PAID, "G3"),
}


@pytest.mark.parametrize("bounds", QUICK)
def test_the_protocol_keeps_its_guarantees(bounds: Bounds) -> None:
    trace = Search(bounds).run(STATES)
    assert trace is None, f"\n{trace}"


@pytest.mark.parametrize("rule", NEEDED)
def test_no_rule_can_be_left_out(rule: str) -> None:
    bounds, harm = NEEDED[rule]
    trace = Search(bounds, frozenset([rule])).run(STATES)
    print(f"\nwithout {rule!r}: {trace}")
    assert trace is not None
    assert harm in trace.violation, f"\n{trace}"


def test_a_stream_can_always_be_ended() -> None:
    trace = Search(BLIND, check=check_can_end).run(STATES)
    assert trace is None, f"\n{trace}"


def _ignoring_what_is_admitted(w: World) -> None:
    check_log(w)
    check_kept(w)
    check_viewer(w)


ADMITTED: dict[str, tuple[Bounds, Callable[[World], None]]] = {
    "a writer that was cut off, superseded, and came back after Redis had lost that": (
        Bounds(zombies=False, cancels=0, lost_replies=0, endings=False),
        _ignoring_what_is_admitted,
    ),
}


@pytest.mark.parametrize("loss", ADMITTED)
def test_what_is_admitted_does_happen(loss: str) -> None:
    """An exception that excuses nothing would only hide something."""
    bounds, check = ADMITTED[loss]
    assert check is not check_all
    trace = Search(bounds, check=check).run(STATES)
    print(f"\n{loss}: {trace}")
    assert trace is not None


# -- calls of an agent's tools: calls.py ---------------------------------------------------------------------

QUICK_CALLS = [
    pytest.param(CALLS._replace(cancels=1, zombies=False, cut_off=False), id="one of all dies, a rollback, a cancel"),
    pytest.param(CALLS, id="one of all goes away and may come back, a rollback"),
    pytest.param(CALLS._replace(idempotent=True, cut_off=False), id="likewise, idempotent"),
    pytest.param(
        CALLS._replace(idempotent=True, absences=2, rollbacks=0, lost_replies=1), id="idempotent, lost replies"
    ),
    pytest.param(CALLS._replace(absences=2, rollbacks=0, lost_replies=1), id="two go away, lost replies"),
    pytest.param(CALLS._replace(releases=True, absences=0), id="workers that hand over, a rollback"),
]

NEEDED_BY_CALLS = {
    "begun before it runs": (CALLS._replace(rollbacks=0), "J2"),
    "ended before it is used": (CALLS._replace(rollbacks=0, idempotent=True), "J3"),
    "a finished call is not run again": (CALLS._replace(rollbacks=0, idempotent=True), "J1"),
    "an unknown call is not run again": (CALLS._replace(rollbacks=0), "J2"),
    "kept is set with the event": (CALLS._replace(rollbacks=0), "J4"),
}


@pytest.mark.parametrize("bounds", QUICK_CALLS)
def test_a_finished_call_never_runs_again_and_an_unknown_one_only_if_it_may(bounds: Bounds) -> None:
    trace = CallSearch(bounds).run(STATES)
    assert trace is None, f"\n{trace}"


@pytest.mark.parametrize("rule", NEEDED_BY_CALLS)
def test_no_rule_of_calls_can_be_left_out(rule: str) -> None:
    bounds, harm = NEEDED_BY_CALLS[rule]
    trace = CallSearch(bounds, frozenset([rule])).run(STATES)
    print(f"\nwithout {rule!r}: {trace}")
    assert trace is not None
    assert harm in trace.violation, f"\n{trace}"


def test_what_redis_forgets_with_the_worker_gone_may_run_again() -> None:
    """Admitted: Redis loses its last second, and who wrote it is not there to put it back."""
    bounds = CALLS._replace(zombies=False, cut_off=False)
    trace = CallSearch(bounds, excuses=False).run(STATES)
    print(f"\n{trace}")
    assert trace is not None
    assert any("rolled back" in move for move in trace.moves)
    assert CallSearch(bounds._replace(rollbacks=0), excuses=False).run(STATES) is None
    assert CallSearch(bounds._replace(absences=0), excuses=False).run(STATES) is None


# -- several producers of one stream: producers.py -----------------------------------------------------------

PIPELINED = Producing(sent("p", 0, 3), rollbacks=2)
SESSIONS = Producing((*sent("p", 0, 2), *sent("p", 1, 2)))
CLOSING = Producing((*sent("p", 0, 2, closes=True), *sent("q", 0, 1)))
NUMBERED = Producing(tuple(Request(Producer(id, 0, 0), seq) for id, seq in zip("pqr", "122", strict=True)))
CANCELLED = Producing((*sent("p", 0, 1, closes=True), *sent("q", 0, 1)), cancels=1, rollbacks=2)

PRODUCING = [
    pytest.param(PIPELINED, id="one that sends ahead, two rollbacks"),
    pytest.param(SESSIONS, id="an old session beside a new one"),
    pytest.param(CLOSING, id="one of two closes the stream"),
    pytest.param(NUMBERED, id="appends that the application numbers"),
    pytest.param(CANCELLED, id="a close, a cancel, two rollbacks"),
]

NEEDED_BY_PRODUCERS = {
    "producer's epoch": (SESSIONS, "D1"),
    "producer's sequence": (PIPELINED, "D2"),
    "no hole in a sequence": (PIPELINED, "D4"),
    "a session begins at 0": (SESSIONS, "D4"),
    "Stream-Seq": (NUMBERED, "D5"),
    "closed": (CLOSING, "G3"),
    "shared ids jump": (CLOSING, "G1"),
    "no append while healing": (CANCELLED, "G1"),
    "producers are in the log's step": (PIPELINED, "D1"),
}


@pytest.mark.parametrize("bounds", PRODUCING)
def test_each_request_of_a_producer_is_in_the_log_once_and_in_order(bounds: Producing) -> None:
    trace = ProducerSearch(bounds).run(STATES)
    assert trace is None, f"\n{trace}"


@pytest.mark.parametrize("rule", NEEDED_BY_PRODUCERS)
def test_no_rule_of_producers_can_be_left_out(rule: str) -> None:
    bounds, harm = NEEDED_BY_PRODUCERS[rule]
    trace = ProducerSearch(bounds, frozenset([rule])).run(STATES)
    print(f"\nwithout {rule!r}: {trace}")
    assert trace is not None
    assert harm in trace.violation, f"\n{trace}"
