"""Calls: the calls of a stream's agents, each written into the log before and after it runs.

The order is what makes a takeover exact (journal.py); each arrow is a confirmed append under the pen:

    `open`:  tool_start, internal.tool_args  →  the tool runs  →  `close`:  internal.tool_result, tool_end  →  used

So a writer that was fenced meanwhile runs nothing (its `open` raises why the pen was lost) and uses nothing; nor does
one whose process stood still when it should have read that its events are there (`StreamWriter.hold`). What
`open` answers for a call that an earlier attempt had begun:

| in the log                        | answer                                                                    |
|-----------------------------------|---------------------------------------------------------------------------|
| finished, by a result or an error | that; the viewers, who have forgotten it, get its events, `replayed`      |
| begun, the tool is idempotent     | to run again, with the same key                                           |
| begun, the tool has a `resolve`   | to ask it: a result; or not done, then to run it; or it cannot tell, then |
|                                   | what follows                                                              |
| begun, otherwise                  | not run: `outcome_unknown`, and the model is told to find out first       |

`internal.tool_result` begins with its call's key. append.lua looks for that: only a result which a takeover can use is
progress (`kept` in meta), and not one of a tool that the provider ran in a turn that may break off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from broker.log.pulse import now_s
from worker.agents.journal import (
    OUTCOME_UNKNOWN,
    TOOL_ARGS,
    TOOL_RESULT,
    UNKNOWN,
    Finished,
    Found,
    Journal,
    UnderWay,
    Unfinished,
)
from worker.stage import Stage

INVALID_ARGS, TOO_MANY_CALLS, NOT_APPROVED = "invalid_args", "too_many_calls", "not_approved"
REFUSALS = frozenset({INVALID_ARGS, TOO_MANY_CALLS, NOT_APPROVED})

OUR_WORDS = frozenset({OUTCOME_UNKNOWN, TOO_MANY_CALLS, "timeout", "result_too_large"})
"""Codes whose message is a sentence of ours, so that anybody may read it. `not_approved` has an operator's reason."""

NOT_FINISHED = {
    "code": "failed",
    "message": "The same call was under way at the same time, and came to nothing. This one was not run.",
}


class Asked(NamedTuple):
    """A call as an agent asks for it. `path`: the agent's, '' for the top one.

    `turn_call`: the number of the model's turn and the call's id there; None if code of one's own calls.
    `key`, `is_idempotent`, `has_resolve`, `title`, `is_public`: of the tool. A step is shown to nobody.
    """

    path: str
    tool: str
    args: Any
    key: tuple[str, ...] | None = None
    turn_call: tuple[int, str] | None = None
    title: str | None = None
    is_idempotent: bool = False
    has_resolve: bool = False
    is_public: bool = True
    is_step: bool = False


@dataclass(slots=True)
class Call:
    """A call of this attempt. `key`: the idempotency key that the tool sees. `found`: what the journal says of it."""

    asked: Asked
    key: str
    tool_call_id: str
    found: Found

    @property
    def is_finished(self) -> bool:
        return isinstance(self.found, Finished)

    @property
    def is_under_way(self) -> bool:
        """The same call is, at this moment: that one is allowed and counted, and its outcome is this one's too."""
        return isinstance(self.found, UnderWay)

    @property
    def was_allowed(self) -> bool:
        """When it began, perhaps in an earlier attempt."""
        return isinstance(self.found, Unfinished) or (isinstance(self.found, Finished) and not self.was_refused)

    @property
    def was_refused(self) -> bool:
        """By a limit, say: nothing was run for it."""
        error = self.found.error if isinstance(self.found, Finished) else None
        return error is not None and error["code"] in REFUSALS


class Opened(NamedTuple):
    """What is to be done: run the tool, or ask its `resolve` first, and then `close`; or give what there is back."""

    do: Literal["run", "resolve", "replay", "error"]
    call: Call
    result: Any = None
    error: dict[str, str] | None = None


class Calls:
    """One a stream. `show`: of the stream (`args`, `results`); what is not in it is for operators."""

    def __init__(self, journal: Journal, stage: Stage, *, show: Container[str] = ()) -> None:
        self.journal = journal
        self._stage = stage
        self._show = show
        self._open: dict[str, Call] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._told: set[str] = set()

    def begin(self, asked: Asked) -> Call:
        """Name the call. Nothing is written yet: who calls may still ask whether it is allowed. Every call is then
        opened, refused or dropped. Raises ValueError if its arguments are no JSON."""
        begun = self.journal.begin(asked.path, asked.tool, asked.args, key=asked.key, turn_call=asked.turn_call)
        return Call(asked, *begun)

    async def open(self, call: Call) -> Opened:
        """Raises the error that lost the pen, or StreamLimit: then nothing may run."""
        if call.is_under_way:
            return await self._outcome_of_other(call)
        if isinstance(call.found, Finished):
            return await self._replay(call, call.found)
        if call.found is None or call.asked.is_idempotent or call.asked.has_resolve:
            return await self._run(call)
        self._say_start(call)
        self._say_end(call, unknown := Finished(error=UNKNOWN))
        self._finish(call, unknown)
        return Opened("error", call, error=unknown.error)

    async def hold(self) -> None:
        """Some time has passed since `open`, and the tool has not run yet, or is to run again.

        Raises the error that lost the pen: then it may not.
        """
        await self._stage.writer.hold(0)

    async def close(self, tool_call_id: str, outcome: Finished) -> None:
        """The tool has answered. Its outcome may be used when this returns: then the log has it.

        Raises the error that lost the pen, or StreamLimit: then nothing may be used. TypeError: JSON cannot express the
        result; the call is still open.
        """
        call = self._open[tool_call_id]
        self._write_outcome(call, outcome)
        try:
            await self._stage.flush()
        finally:
            self._finish(call, outcome)  # also if only this waiting was cancelled: it is on its way

    def give_up(self, tool_call_id: str) -> None:
        """Its code was cut off alone, and the run goes on: nobody knows what the call did. See `drop`."""
        if call := self._open.get(tool_call_id):
            self.drop(call)

    async def refuse(self, call: Call, code: str, message: str) -> Opened:
        """It is not run: a limit, an approval that was refused, arguments that do not fit.

        This stays so, except under a `key=`: it had no effect, so the effect that the key names may still come.
        """
        outcome = Finished(error={"code": code, "message": message})
        self._say_start(call)
        if call.asked.key is None:
            self._write_outcome(call, outcome)
            await self._stage.flush()
            self._finish(call, outcome)
        else:
            self._say_end(call, outcome)
            self.drop(call)
        return Opened("error", call, error=outcome.error)

    def drop(self, call: Call) -> None:
        """It was cut by a cancel, which is no outcome: a later call under its key finds it unfinished, if it ran."""
        if call.is_under_way:
            return  # it waited for another one's end
        self._open.pop(call.tool_call_id, None)
        self.journal.drop(call.tool_call_id)
        self._wake(call)

    async def _run(self, call: Call) -> Opened:
        self._open[call.tool_call_id] = call
        self.journal.note_run(call.tool_call_id)
        began_s = now_s()
        self._say_start(call)
        of_turn = {"turn": call.asked.turn_call[0]} if call.asked.turn_call else {}
        args = {**self._named(call), "args": call.asked.args}
        self._stage.write(TOOL_ARGS, {**args, "key": call.key, **of_turn, **self._of_agent(call)})
        if "args" in self._show and self._is_shown(call) and not of_turn:  # else the model's turn has shown them
            self._stage.write("tool_args", {**args, "complete": True, **self._of_agent(call)})
        await self._stage.flush()
        await self._stage.writer.hold(began_s)
        return Opened("run" if call.found is None or not call.asked.has_resolve else "resolve", call)

    async def _replay(self, call: Call, found: Finished) -> Opened:
        if call.tool_call_id in self._told:  # in this attempt: it may still be on its way
            await self._stage.flush()
        else:
            self._say_start(call, replayed=True)
            self._say_end(call, found, replayed=True)
        if found.error:
            return Opened("error", call, error=found.error)
        return Opened("replay", call, found.result)

    def _write_outcome(self, call: Call, outcome: Finished) -> None:
        said = {"output": outcome.result} if outcome.error is None else {"error": outcome.error}
        took = {} if outcome.duration_ms is None else {"duration_ms": outcome.duration_ms}
        # The key comes first, see above.
        self._stage.write(TOOL_RESULT, {"key": call.key, **self._named(call), **said, **took, **self._of_agent(call)})
        self._say_end(call, outcome)

    def _finish(self, call: Call, outcome: Finished) -> None:
        self.journal.end(call.tool_call_id, outcome)
        self._open.pop(call.tool_call_id, None)
        self._wake(call)

    # -- the same call twice, at the same time -----------------------------------------------------------

    async def _outcome_of_other(self, call: Call) -> Opened:
        """If that one comes to nothing, this one does not run in its place: only the other one was allowed."""
        if self.journal.is_under_way(call.key):
            await self._ended.setdefault(call.key, asyncio.Event()).wait()
        if found := self.journal.outcome(call.key):
            return await self._replay(call, found)
        return Opened("error", call, error=NOT_FINISHED)

    def _wake(self, call: Call) -> None:
        if ended := self._ended.pop(call.key, None):
            ended.set()

    # -- what viewers get --------------------------------------------------------------------------------

    def _say_start(self, call: Call, *, replayed: bool = False) -> None:
        asked = call.asked
        title = {"title": asked.title} if asked.title else {}
        of_turn = {"turn": asked.turn_call[0]} if asked.turn_call else {}
        again = {"replayed": True} if replayed else {}
        said = {**self._named(call), **title, **of_turn, **self._of_agent(call), **again}
        self._stage.write(self._visibly(call, "tool_start"), said)
        self._told.add(call.tool_call_id)

    def _say_end(self, call: Call, outcome: Finished, *, replayed: bool = False) -> None:
        said, error = self._named(call), outcome.error
        if outcome.duration_ms is not None:
            said["duration_ms"] = outcome.duration_ms
        shows = "results" in self._show and self._is_shown(call)
        if error:
            said["code"] = error["code"]
            if shows or error["code"] in OUR_WORDS:
                said["message"] = error["message"]
        elif shows:
            said["output"] = outcome.result
        again = {"replayed": True} if replayed else {}
        kind = self._visibly(call, "tool_error" if error else "tool_end")
        self._stage.write(kind, {**said, **self._of_agent(call), **again})

    @staticmethod
    def _is_shown(call: Call) -> bool:
        return call.asked.is_public and not call.asked.is_step

    def _visibly(self, call: Call, kind: str) -> str:
        return kind if self._is_shown(call) else f"internal.{kind}"

    @staticmethod
    def _named(call: Call) -> dict[str, Any]:
        return {"tool_call_id": call.tool_call_id, "tool": call.asked.tool}

    @staticmethod
    def _of_agent(call: Call) -> dict[str, str]:
        return {"agent": call.asked.path} if call.asked.path else {}
