"""Judges what agents did, by the ledger that their tools wrote outside of the product, and by the final logs.

It imports nothing of the product, and knows the app (acting.py) only by what each tool is said to be. The rules:

- a call that is finished in the log never runs again, and is finished once
- one that was begun and not finished runs again only if its tool is idempotent, or can be asked, and with the same key
- nothing runs that the log does not have as begun before it
- nothing begins behind an ending
- each turn of a model is in the log once: what is finished is not asked for again
- the text of the last attempt is that of what its calls gave, or of its turns
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.checker import TERMINAL, Entry

CLOCKS_S = 0.05
"""The log's times are in ms, and a process may be paused between two lines of its own."""

CANCEL_S = 2.0
"""How long after an ending code that is cancelled may not have heard of it."""


NEVER = frozenset({"agent_failed", "agent_blocked", "invalid_input", "too_many_turns"})
"""Endings that no fault may bring about."""


class Effect(NamedTuple):
    at: float
    sid: str
    agent: str
    tool: str
    n: int
    key: str


class Tools(NamedTuple):
    """The tools, as their decorators say: what each gives, and which may run again when they were cut."""

    gives: Mapping[str, str]
    may_run_again: frozenset[str]
    can_be_asked: frozenset[str]


class Acted(NamedTuple):
    """A stream of an agent, as it was asked for. `steps`: each step's tools, by their order the calls' numbers."""

    sid: str
    agent: str
    steps: Sequence[Sequence[str]]
    children: int = 0
    """Of a crowd; each counts."""


@dataclass
class Deeds:
    findings: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def find(self, sid: str, what: str) -> None:
        self.findings.append(f"agents: stream {sid}: {what}")


def read_ledger(path: Path) -> list[Effect]:
    return [Effect(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def judge(
    streams: Iterable[tuple[Acted, Sequence[Entry]]],
    effects: Iterable[Effect],
    tools: Tools,
    *,
    lost: Sequence[tuple[float, float]] = (),
) -> Deeds:
    """`lost`: what Redis had written in these times is gone. Who dies then takes what was begun with it."""
    deeds = Deeds()
    by_stream: defaultdict[str, list[Effect]] = defaultdict(list)
    for effect in effects:
        by_stream[effect.sid].append(effect)
    for acted, entries in streams:
        if entries:
            _Stream(acted, entries, by_stream.pop(acted.sid, []), tools, lost, deeds).check()
    return deeds


class _Call:
    """What the log has of one key."""

    def __init__(self) -> None:
        self.begun: list[Entry] = []
        self.finished: list[tuple[Entry, dict[str, Any]]] = []
        self.effects: list[Effect] = []
        self.unknown: Entry | None = None
        """It is said so."""


class _Stream:
    def __init__(
        self,
        acted: Acted,
        entries: Sequence[Entry],
        effects: Sequence[Effect],
        tools: Tools,
        lost: Sequence[tuple[float, float]],
        deeds: Deeds,
    ) -> None:
        self.acted, self.entries, self.effects, self.tools, self.deeds = acted, entries, effects, tools, deeds
        self.lost = lost
        self.calls: defaultdict[str, _Call] = defaultdict(_Call)
        self.number: dict[str, int] = {}
        """Of each key: its call's."""
        self.takeovers = [entry for entry in entries if entry.kind == "restart"]
        """Also those after the end of the app's process."""

    def find(self, what: str) -> None:
        self.deeds.find(self.acted.sid, what)

    def check(self) -> None:
        self._read()
        counts = self.deeds.counts
        counts[f"streams of {self.acted.agent}"] += 1
        counts["takeovers"] += sum(json.loads(entry.data)["reason"] == "worker_lost" for entry in self.takeovers)
        counts["calls"] += len(self.calls)
        for key, call in self.calls.items():
            self._check_call(key, call)
        self._check_names()
        self._check_ending()
        self._check_turns()
        if self.entries[-1].kind == "done":
            self._check_text()

    def _read(self) -> None:
        ids: dict[str, str] = {}
        for entry in self.entries:
            if entry.kind == "internal.tool_args":
                data = json.loads(entry.data)
                ids[data["tool_call_id"]] = data["key"]
                self.number[data["key"]] = data["args"]["n"]
                self.calls[data["key"]].begun.append(entry)
            elif entry.kind == "internal.tool_result":
                data = json.loads(entry.data)
                self.calls[data["key"]].finished.append((entry, data))
            elif entry.kind in ("tool_error", "internal.tool_error"):
                data = json.loads(entry.data)
                if data["code"] == "outcome_unknown" and (key := ids.get(data["tool_call_id"])):
                    self.calls[key].unknown = entry
        for effect in self.effects:
            self.calls[effect.key].effects.append(effect)

    # -- calls -------------------------------------------------------------------------------------------

    def _check_call(self, key: str, call: _Call) -> None:
        effects = call.effects
        tool = effects[0].tool if effects else ""
        if len(call.finished) > 1:
            self.find(f"{key} is finished {len(call.finished)} times")
        for effect in effects:
            if not any(begun.t / 1000 <= effect.at + CLOCKS_S for begun in call.begun) and not self._is_lost(effect.at):
                self.find(f"{key} ran at {effect.at:.3f}, and the log has nothing of it before")
        self._count_takeovers(call)
        after = [effect for effect in effects if call.finished and effect.at > call.finished[0][0].t / 1000 + CLOCKS_S]
        if after and not self._is_lost(call.finished[0][0].t / 1000):
            self.deeds.counts["finished calls that ran twice"] += 1
            self.find(f"{key} ran again, {after[0].at - call.finished[0][0].t / 1000:.3f} s after it was finished")
        if len(effects) > 1 and tool not in self.tools.may_run_again and not self._is_lost(effects[0].at):
            self.deeds.counts["calls in flight that ran twice"] += 1
            self.find(f"{key} ran {len(effects)} times: {effects}")
        if len(effects) > 1 and tool in self.tools.may_run_again:
            self.deeds.counts["idempotent calls run again"] += 1
        if call.unknown:
            self.deeds.counts["outcome_unknown"] += 1
            if tool in self.tools.may_run_again | self.tools.can_be_asked:
                self.find(f"{key} is said to be unknown, though {tool} can be run again, or be asked")

    def _count_takeovers(self, call: _Call) -> None:
        """How the takeovers found it: finished, or in flight."""
        for takeover in self.takeovers:
            if call.finished and call.finished[0][0].id < takeover.id:
                self.deeds.counts["finished calls at takeovers"] += 1
            elif call.unknown and call.unknown.id < takeover.id:
                self.deeds.counts["unknown calls at takeovers"] += 1
            elif call.begun and call.begun[0].id < takeover.id:
                self.deeds.counts["calls in flight at takeovers"] += 1

    def _is_lost(self, at: float) -> bool:
        """The log had it, and may have lost it together with whoever could put it back."""
        is_lost = any(begin <= at <= end for begin, end in self.lost)
        self.deeds.counts["admitted: Redis lost it"] += is_lost
        return is_lost

    def _check_names(self) -> None:
        """A turn that Redis lost with its worker is asked for again, and its calls have other ids then."""
        keys: defaultdict[tuple[str, str, int], dict[str, float]] = defaultdict(dict)
        for effect in sorted(self.effects, key=lambda effect: effect.at):
            keys[effect.agent, effect.tool, effect.n].setdefault(effect.key, effect.at)
        for name, ran_at in keys.items():
            if not all(self._is_lost(at) for at in list(ran_at.values())[:-1]):
                self.find(f"{name} ran under {len(ran_at)} keys: {sorted(ran_at)}")

    def _check_ending(self) -> None:
        last = self.entries[-1]
        if last.kind not in TERMINAL:
            return  # the checker of all streams says so
        if last.kind == "error" and (code := json.loads(last.data)["code"]) in NEVER:
            self.find(f"it ended as {code}, though its code does nothing of the kind")
        late = max((effect.at - last.t / 1000 for effect in self.effects), default=0.0)
        if last.kind == "cancelled":
            self.deeds.counts["cancelled"] += 1
        if late > CANCEL_S:
            self.find(f"a tool began {late:.3f} s after the ending ({last.kind})")

    # -- what was said -----------------------------------------------------------------------------------

    def _check_turns(self) -> None:
        numbers = [data["turn"] for data in self._turns()]
        self.deeds.counts["turns"] += len(numbers)
        first = min(numbers, default=0)
        if numbers != list(range(first, first + len(numbers))) and not self.lost:
            self.find(f"its turns are {numbers}")

    def _turns(self) -> Iterator[dict[str, Any]]:
        for entry in self.entries:
            if entry.kind == "internal.turn":
                yield json.loads(entry.data)

    def _check_text(self) -> None:
        said: defaultdict[str, str] = defaultdict(str)
        for agent, text in self._said():
            said[agent] += text
        self.deeds.counts["texts"] += 1
        if self.acted.agent == "crowd":
            self._check_crowd(said)
        elif said[""] != (expected := "".join(self._expected())):
            self.deeds.counts["texts that are not exact"] += 1
            self.find(f"it says {said['']!r}, and not {expected!r}")

    def _said(self) -> Iterator[tuple[str, str]]:
        """In the last attempt: which agent (the top one is ''), and what."""
        begin = self.takeovers[-1].id if self.takeovers else 0
        for entry in self.entries:
            if entry.id > begin and entry.kind in ("text_delta", "agent_text_delta"):
                data = json.loads(entry.data)
                yield data.get("agent", ""), data["text"]

    def _check_crowd(self, said: Mapping[str, str]) -> None:
        """Each child has counted in its order, all as far as the others, and nothing is lost."""
        children = [text for agent, text in said.items() if agent]
        counted = "".join(f"{number}," for number in range(children[0].count(",") if children else 0))
        lengths = " ".join([str(len(counted))] * self.acted.children)
        if children != [counted] * self.acted.children or said.get("") != lengths:
            self.deeds.counts["texts that are not exact"] += 1
            self.find(f"its {self.acted.children} children say {dict(said)}")

    def _expected(self) -> Iterator[str]:
        if self.acted.agent == "clerk":
            yield from (turn["text"] for turn in self._turns())
            return
        calls = {self.number[key]: call for key, call in self.calls.items() if key in self.number}
        for n, tool in enumerate(tool for step in self.acted.steps for tool in step):
            yield f"<{tool}{self._outcome(tool, n, calls.get(n))}>"
        yield "."

    def _outcome(self, tool: str, n: int, call: _Call | None) -> str:
        if call is None:
            return " was never called"
        if call.unknown:
            return "!outcome_unknown"
        right = f"{self.tools.gives[tool]} {n}"
        [*given] = [data.get("output") for _, data in call.finished]
        return f"={right}" if given == [right] else f" has the results {given}"
