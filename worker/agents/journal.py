"""Journal: what a stream's log says of an agent's calls, turns, approvals and inputs. The log is the journal.

A worker that takes a stream over starts the agent again from its first line. What had been finished is not done again:
its result is read here. calls.py writes what is read here, in an order that makes this true:

    tool_start, internal.tool_args → confirmed → the tool runs → internal.tool_result, tool_end → confirmed → used

So a call is in one of three states, and each says what may have happened outside:

    not begun    nothing. It may run
    unfinished   it may have run, once or not at all (or be running, in a child of a worker that stands still)
    finished     it has run, and this is its result, or its error; it never runs again

All attempts count, whatever `restart` took back from the viewers. The first outcome of a call counts: it was used.

Which call is which? A *key* names it: its agent, its tool, its arguments, and how often this very call was begun in an
attempt. No ordinal over all calls: parallel ones change their order between attempts, and a model that is asked again
may ask otherwise; an ordinal would then hand a result to another question. Two calls that are alike in all may change
places: their results answer the same question.
A key is ASCII, since tools hand it to other services in headers, and other agents' names cannot be imitated in it.

Memory of one stream, of one worker; it does no I/O. What it knows stays when Redis loses the log's last second: a
result that this attempt has used is used to its end.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson

from broker.errors import StreamNotFound
from broker.log.event import Event, is_internal
from broker.log.readable import ReadableLog
from worker.agents.caps import RETRY_S, until_answered
from worker.agents.joining import add_joined
from worker.stage import Repeated

TOOL_ARGS, TOOL_RESULT, TURN = "internal.tool_args", "internal.tool_result", "internal.turn"
APPROVAL_REQUEST, APPROVAL, INPUT = "internal.approval_request", "internal.approval", "input"
ERRORS = frozenset({"tool_error", "internal.tool_error"})

AGENT_END, RESTART, USAGE = "agent_end", "restart", "internal.usage"

KINDS = frozenset({TOOL_ARGS, TOOL_RESULT, TURN, APPROVAL_REQUEST, APPROVAL, INPUT, RESTART, USAGE}) | ERRORS
"""What a journal is made of. Of a sub-agent, all that viewers got of it besides."""

OUTCOME_UNKNOWN = "outcome_unknown"
UNKNOWN = {
    "code": OUTCOME_UNKNOWN,
    "message": (
        "It is not known whether this call took effect: it was cut off before it answered, and it was not run again. "
        "Find out first whether it took effect, before you repeat it."
    ),
}


class Finished(NamedTuple):
    """How a call ended: its result (JSON), or, if it failed, an error {"code", "message"}."""

    result: Any = None
    error: dict[str, str] | None = None
    duration_ms: int | None = None


class Unfinished(NamedTuple):
    """It was begun, and nobody knows how it ended. What follows is its tool's to say (calls.py)."""


class UnderWay(NamedTuple):
    """It was begun in this very attempt: another call with the same `key=` waits for its end."""


Found = Finished | Unfinished | UnderWay | None
"""None: it was not begun before."""

FinishedTurn = Mapping[str, Any]
"""The data of `internal.turn`."""


class Begun(NamedTuple):
    """A call of this attempt. `key`: the idempotency key that the tool sees."""

    key: str
    tool_call_id: str
    found: Found


class Decision(NamedTuple):
    """On an approval."""

    approve: bool
    reason: str
    by: str


@dataclass(slots=True)
class _Call:
    key: str
    tool_call_id: str
    may_have_run: bool = False
    is_under_way: bool = False
    outcome: Finished | None = None

    def begin(self) -> Found:
        """What is known of it. It is under way from here on, unless it has ended."""
        if self.outcome:
            return self.outcome
        if self.is_under_way:
            return UnderWay()
        self.is_under_way = True
        return Unfinished() if self.may_have_run else None


class Journal:
    """`events`: the whole log as the claim found it, from the second attempt on. A long one is folded in a thread:
    `read_journal`."""

    def __init__(self, sid: str, events: Iterable[Event] = ()) -> None:
        self.sid = sid
        self.approval_ids: dict[str, str] = {}
        """Of each approval that was asked for, by what it is for."""
        self.approvals: dict[str, Decision] = {}
        self.inputs: list[dict[str, Any]] = []
        """The data of each input that an attempt took, in order."""
        self._calls: dict[str, _Call] = {}  # by key
        self._ids: dict[str, _Call] = {}
        self._turns: dict[tuple[str, int], FinishedTurn] = {}
        self._begun: Counter[str] = Counter()  # in this attempt
        self.usages: list[tuple[str, Mapping[str, Any]]] = []
        """(path, usage) of each try of an agent's turns."""
        self._said: dict[str, Sequence[Repeated]] = {}  # by agents' paths
        self._being_said: dict[str, list[tuple[str, Repeated]]] = {}  # (path, event) since the restart, by first names
        for event in events:
            if counts(event):
                data = orjson.loads(event.data)
                self._fold(event.kind, data)
                self._note_said(event.kind, data)
        self._being_said.clear()

    def turn(self, path: str, number: int) -> FinishedTurn | None:
        """What `internal.turn` says of an agent's turn. None: it was not finished."""
        return self._turns.get((path, number))

    def said_by(self, path: str) -> Sequence[Repeated]:
        """What viewers got of a sub-agent that has ended, and of those that it ran, in order."""
        return self._said.get(path, ())

    # -- this attempt's calls ----------------------------------------------------------------------------

    def begin(
        self,
        path: str,
        tool: str,
        args: Any,
        *,
        key: Sequence[str] | None = None,
        turn_call: tuple[int, str] | None = None,
    ) -> Begun:
        """A call of this attempt, and what is known of it. `path`: its agent's, '' for the top one.

        `key`: the arguments that name its effect: one call a stream for these, whatever else differs.
        `turn_call`: of a model's turn, its number and the id that the call has there. Without either, calls that are
        alike are counted.
        Raises ValueError if `args` are no JSON.
        """
        name = self._name(path, tool, args, key, turn_call)
        call = self._calls.get(name)
        if call is None:
            # Of own code, random: viewers see it, and would find arguments that they can guess in a digest of the key.
            call = self._add(name, self._unused(turn_call[1] if turn_call else f"call_{secrets.token_hex(8)}", name))
        return Begun(name, call.tool_call_id, call.begin())

    def outcome(self, key: str) -> Finished | None:
        call = self._calls.get(key)
        return call.outcome if call else None

    def is_under_way(self, key: str) -> bool:
        return key in self._calls and self._calls[key].is_under_way

    def note_run(self, tool_call_id: str) -> None:
        """The log is about to say that this call was begun."""
        self._ids[tool_call_id].may_have_run = True

    def end(self, tool_call_id: str, outcome: Finished) -> None:
        """A call of this attempt has ended."""
        call = self._ids[tool_call_id]
        call.outcome, call.is_under_way = call.outcome or outcome, False

    def drop(self, tool_call_id: str) -> None:
        """A call of this attempt came to nothing: it was cut off, or did not begin to run."""
        call = self._ids.get(tool_call_id)
        if call is None:
            return
        call.is_under_way = False
        if not (call.may_have_run or call.outcome):
            del self._calls[call.key], self._ids[tool_call_id]

    def _name(
        self, path: str, tool: str, args: Any, key: Sequence[str] | None, turn_call: tuple[int, str] | None
    ) -> str:
        of_agent = "/".join(quote(part, safe="") for part in (self.sid, *path.split("/")) if part)
        if key is not None:
            named = {name: args.get(name) for name in key}
            return f"{of_agent}/{quote(tool, safe='')}.{_digest(canonical(named))}"
        if turn_call:
            number, call_id = turn_call
            return f"{of_agent}/{number}.{quote(call_id, safe='')}"
        very_call = f"{of_agent}/{quote(tool, safe='')}.{_digest(canonical(args))}"
        self._begun[very_call] += 1
        return f"{very_call}.{self._begun[very_call]}"

    def _unused(self, preferred: str, name: str) -> str:
        """Ids are unique in a stream. A provider's need not be: some number the calls of each turn from 0."""
        return preferred if preferred not in self._ids else f"{preferred}.{_digest(name)}"

    def _add(self, key: str, tool_call_id: str) -> _Call:
        call = self._calls[key] = self._ids[tool_call_id] = _Call(key, tool_call_id)
        return call

    # -- reading the log ---------------------------------------------------------------------------------

    def _fold(self, kind: str, data: Any) -> None:
        """Agents write events too: one that has not the form of ours is none of ours."""
        match kind, data:
            case "internal.tool_args", {"key": str(key), "tool_call_id": str(tool_call_id)}:
                self._of_log(key, tool_call_id).may_have_run = True
            case "internal.tool_result", {"key": str(key), "tool_call_id": str(tool_call_id)}:
                error, took_ms = data.get("error"), data.get("duration_ms")
                outcome = Finished(None if error else data.get("output"), error, took_ms)
                self.end(self._of_log(key, tool_call_id).tool_call_id, outcome)
            case (("tool_error" | "internal.tool_error"), {"code": "outcome_unknown", "tool_call_id": str(told)}):
                if told in self._ids:  # the model was told so, and went on from there
                    self.end(told, Finished(error=UNKNOWN))
            case "internal.turn", {"turn": int(number)}:
                self._turns.setdefault((data.get("agent") or "", number), data)
            case "internal.approval_request", {"approval_id": str(), "of": str(), "key": str(), "tool_call_id": str()}:
                self.approval_ids.setdefault(data["of"], data["approval_id"])
                self._of_log(data["key"], data["tool_call_id"])
            case "internal.approval", {"approval_id": str(approval_id), "approve": bool(approve)}:
                said = Decision(approve, str(data.get("reason") or ""), str(data.get("by") or ""))
                self.approvals.setdefault(approval_id, said)
            case "internal.usage", {"usage": dict(usage)}:
                self.usages.append((str(data.get("agent") or ""), usage))
            case "input", dict() if not data.get("replayed"):
                self.inputs.append(data)

    def _note_said(self, kind: str, data: Any) -> None:
        if kind == RESTART:
            self._being_said.clear()
        if is_internal(kind) or not (isinstance(data, dict) and isinstance(path := data.get("agent"), str) and path):
            return
        family = self._being_said.setdefault(path.partition("/")[0], [])
        family.append((path, (kind, data, None)))
        if kind == AGENT_END:
            said: list[Repeated] = []
            for whose, event in family:
                if whose == path or whose.startswith(f"{path}/"):
                    add_joined(said, event[0], dict(event[1]))
            self._said[path] = said

    def _of_log(self, key: str, tool_call_id: str) -> _Call:
        return self._calls.get(key) or self._add(key, tool_call_id)


async def read_journal(log: ReadableLog, sid: str, *, up_to: int = 0) -> Journal:
    """The journal of a stream, as its log is now, once Redis is there. Raises StreamNotFound.

    With `up_to` the log is read until it has this event: if Redis has lost it, the writer who waits here puts it back,
    or loses the pen, which cancels the waiting. A journal without it might run a finished call again.
    """
    while True:
        try:
            events, cursor = await until_answered(
                lambda: _read(log, sid), f"stream {sid}: its journal waits to be read"
            )
        except StreamNotFound:
            if not up_to:
                raise
        else:
            if cursor >= up_to:
                return await asyncio.to_thread(Journal, sid, events)
        await asyncio.sleep(RETRY_S)


async def _read(log: ReadableLog, sid: str) -> tuple[list[Event], int]:
    """What concerns a journal, and the id of the last event."""
    events: list[Event] = []
    cursor, more = 0, True
    while more:
        page = await log.read_page(sid, cursor)
        events += filter(counts, page.events)
        cursor, more = page.events[-1].id if page.events else cursor, page.more
    return events, cursor


def counts(event: Event) -> bool:
    """Whether it adds to the journal."""
    return event.kind in KINDS or (b'"agent":' in event.data and not is_internal(event.kind))


def is_progress(kind: str, data: Mapping[str, Any]) -> bool:
    """Whether the next attempt need not do this again. append.lua decides likewise: a result without a call's key is
    that of a tool which a provider ran, in a turn that may still break off."""
    return kind == TURN or (kind == TOOL_RESULT and "key" in data)


def canonical(value: Any) -> bytes:
    """One text for one JSON value, whatever the order of its members: sorted, without blanks, UTF-8.

    Raises ValueError for what the log cannot hold."""
    try:
        orjson.dumps(value)
        # Python's own: its form of a number is the same in each release, and workers of two releases share streams.
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return text.encode()


def _digest(value: bytes | str) -> str:
    return hashlib.sha256(value if isinstance(value, bytes) else value.encode()).hexdigest()[:16]
