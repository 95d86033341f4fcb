"""Agents that hold their process up, crash, are cancelled, or all speak at once; one deployment for all of it."""

from __future__ import annotations

import json
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import deployment_in
from tests.faults.acting import LEDGER, SECRET, TOOLS
from tests.faults.ledger import Effect, read_ledger
from tests.faults.stage import children_of
from tests.rig.deployment import HTTP, Deployment, wait_until
from tests.rig.long import LONG

ROOT = Path(__file__).resolve().parents[2]
BLOCKED_S = 2.5

BLOCKED = dict.fromkeys(("sleep", "spin", "receive"), "agent_blocked")
CRASHED = dict.fromkeys(("C", "exit", "segfault"), "agent_crashed")
ENDINGS = {**BLOCKED, **CRASHED, "raise": "agent_failed"}
"""How each culprit does it, and the code of its ending."""

CULPRITS = [[*ENDINGS], *([how] for how in ENDINGS)] if LONG else [["sleep", "C", "segfault", "raise"]]


@pytest.fixture(scope="module")
def acting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("acting")
    settings = {
        LEDGER: str(folder / "ledger"),
        "PYTHONPATH": str(ROOT),
        "LASTEVENT_AGENT_BLOCKED_S": str(BLOCKED_S),
        "LASTEVENT_LOG_LEVEL": "info",
    }
    with deployment_in(folder, servers=1, app="tests.faults.acting", **settings) as deployment:
        yield deployment


def said(deployment: Deployment, sid: str, kind: str) -> list[dict[str, Any]]:
    return [event["data"] for event in deployment.log_of(sid) if event["event"] == kind]


def longest_gap_s(deployment: Deployment, sid: str) -> float:
    times = [event["t"] for event in deployment.log_of(sid) if event["event"] == "text_delta"]
    return max(after - before for before, after in pairwise(times)) / 1000


def has_begun(deployment: Deployment, sid: str, kind: str = "text_delta") -> bool:
    return bool(said(deployment, sid, kind))


# -- held up -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hows", CULPRITS, ids="+".join)
def test_who_holds_up_or_ends_the_process_ends_alone(acting: Deployment, hows: list[str]) -> None:
    plain = [acting.create(f"[[tokens=10000 rate=10 ttft_ms=0]] {n}") for n in range(10)]
    walk = {"steps": [["look"]] * 10, "ms": 300}
    others = [acting.ask("walker", input=walk) for _ in range(5 if LONG else 2)]
    for sid in (*plain, *others):
        wait_until(lambda sid=sid: has_begun(acting, sid), "all have begun")
    culprits = {how: acting.ask("culprit", input=how) for how in hows}

    codes = {}
    for how, sid in culprits.items():
        assert acting.wait_until_ended(sid, 120)["state"] == "error"
        codes[how] = said(acting, sid, "error")[-1]["code"]
    assert codes == {how: ENDINGS[how] for how in hows}
    assert {acting.wait_until_ended(sid, 120)["state"] for sid in others} == {"done"}
    assert {HTTP.post(f"{acting.url}/v1/streams/{sid}/cancel").json()["state"] for sid in plain} == {"cancelled"}

    gap_s = max(longest_gap_s(acting, sid) for sid in plain)
    print(f"longest gap of a plain stream beside {', '.join(hows)}: {gap_s:.2f} s")
    assert gap_s < BLOCKED_S, "none was silent for as long as the agents' process was"
    log = acting.workers[0].output.read_text()
    for how, sid in culprits.items():
        assert how == "raise" or sid in log, f"the culprit ({how}) is named"
        assert SECRET not in public(acting, sid)
    assert SECRET not in log
    if "raise" in culprits:
        assert SECRET in json.dumps(said(acting, culprits["raise"], "internal.trace")), "operators have it"


def public(deployment: Deployment, sid: str) -> str:
    """All that end users can be sent of it."""
    forms = ("events", "replay", "export", "text")
    answers = [HTTP.get(f"{deployment.url}/v1/streams/{sid}/{form}?audience=public") for form in forms]
    lines = HTTP.get(
        f"{deployment.url}/v1/streams/{sid}/events?audience=public", headers={"Accept": "application/x-ndjson"}
    )
    for answer in (*answers, lines):
        assert answer.status_code == 200, answer.text
    return "\n".join(answer.text for answer in (*answers, lines))


# -- cancelled -----------------------------------------------------------------------------------------------


def test_a_cancel_reaches_the_code_and_nothing_begins_after_it(acting: Deployment) -> None:
    ledger = Path(acting.environment[LEDGER])
    sids = {how: acting.ask("patient", input=how) for how in ("await", "tool", "thread", "tools")}
    begun = '[[call=charge:{"n":0,"ms":3600000} call=charge:{"n":1,"ms":3600000}]]'
    sids["loop"] = acting.ask("clerk", prompt=begun)
    left = {how: Path(f"{ledger}.{sid}.left") for how, sid in sids.items() if how != "loop"}

    def effects(how: str) -> list[Effect]:
        return [effect for effect in read_ledger(ledger) if effect.sid == sids[how]]

    for how in ("await", "thread"):
        wait_until(Path(f"{ledger}.{sids[how]}.began").exists, "it waits")
    wait_until(lambda: said(acting, sids["thread"], "tool_start"), "its thread waits")
    for how, count in {"tool": 1, "tools": 12, "loop": 2}.items():
        wait_until(lambda how=how, count=count: len(effects(how)) >= count, f"{how} has begun {count} calls")
    for sid in sids.values():
        assert HTTP.post(f"{acting.url}/v1/streams/{sid}/cancel").json()["state"] == "cancelled"
    for path in left.values():
        wait_until(lambda path=path: path.exists() and path.read_text().endswith("to its end"), "its finally has run")
    wait_until(Path(f"{ledger}.{sids['thread']}.thread").exists, "the thread has left")

    ended = {how: acting.log_of(sid)[-1]["t"] / 1000 for how, sid in sids.items()}
    heard = {how: float(path.read_text().split()[0]) - ended[how] for how, path in left.items()}
    print("heard of it after", {how: f"{seconds:.3f} s" for how, seconds in heard.items()})
    assert max(heard.values()) < 2.0
    for how, sid in sids.items():
        events = acting.log_of(sid)
        assert [event["event"] for event in events].count("cancelled") == 1
        in_log = {event["data"]["key"] for event in events if event["event"] == "internal.tool_args"}
        assert {effect.key for effect in effects(how)} <= in_log, "nothing ran that the log does not have as begun"
    for how in ("tool", "thread", "loop"):
        assert not said(acting, sids[how], "internal.tool_result"), "what was cut has no result"
    assert acting.wait_until_ended(acting.ask("walker", input={"steps": [[*TOOLS]], "ms": 1}))["state"] == "done"


# -- all at once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_killed", [False, True], ids=["in peace", "with a restart in the middle"])
def test_of_fifty_children_that_write_at_once_nothing_is_lost_or_reordered(acting: Deployment, is_killed: bool) -> None:
    sid = acting.ask("crowd", input={"children": 50, "events": 20, "pause_ms": 100 if is_killed else 0})
    if is_killed:
        wait_until(lambda: len(said(acting, sid, "agent_text_delta")) > 200, "they are in the middle")
        [app] = children_of(acting.workers[0].pid)
        os.kill(app, signal.SIGKILL)
    assert acting.wait_until_ended(sid, 120)["state"] == "done"
    events = acting.log_of(sid)
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    restarts = [at for at, event in enumerate(events) if event["event"] == "restart"]
    assert len(restarts) == is_killed
    texts: defaultdict[str, list[str]] = defaultdict(list)
    marks: defaultdict[str, list[str]] = defaultdict(list)
    for event in events[restarts[-1] if restarts else 0 :]:
        if event["event"] in ("agent_start", "agent_end"):
            marks[event["data"]["agent"]].append(event["event"])
        if event["event"] == "agent_text_delta":
            texts[event["data"]["agent"]].append(event["data"]["text"])
    assert sorted(texts) == sorted(f"writer.{n}" for n in range(1, 51))
    assert all(mark == ["agent_start", "agent_end"] for mark in marks.values()), "nothing follows of those that died"
    assert {"".join(text) for text in texts.values()} == {"".join(f"{number}," for number in range(20))}
