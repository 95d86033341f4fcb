"""A person's word before a call. The run waits for it without a slot, and its time does not run meanwhile.

    approval_request → a decision by POST, or none in time, which is a refusal → internal.approval → the call, or not

An approval has a random id: viewers see it, and could find arguments in one that is made of them. The log says which
call it is for (internal.approval_request), so a takeover waits for the same one, or finds it decided. What came before
is not done again: it is in the journal.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import orjson

from broker.log.event import OURSELVES
from worker.agents.calls import Call
from worker.agents.caps import Allowance, until_answered
from worker.agents.inputs import Inputs
from worker.agents.journal import APPROVAL, APPROVAL_REQUEST, TOOL_ARGS, Decision, Journal

REQUEST = "approval_request"


class Stage(Protocol):
    def write(self, kind: str, data: dict[str, Any], /) -> object: ...

    async def flush(self) -> None: ...


class Approvals:
    """One a stream. `without_slot`: leaves the worker's slot to others while it is entered."""

    def __init__(
        self,
        stage: Stage,
        journal: Journal,
        told: Inputs,
        *,
        timeout_s: float,
        without_slot: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self._stage = stage
        self._journal = journal
        self._inputs = told
        self._timeout_s = timeout_s
        self._without_slot = without_slot

    async def why_not(self, call: Call, allowance: Allowance) -> str | None:
        """For the model. None: it was approved. Raises what lost the pen, or StreamLimit."""
        decision = await self._decision(call, allowance)
        return None if decision.approve else f"This call was not approved. {decision.reason}".rstrip()

    async def _decision(self, call: Call, allowance: Allowance) -> Decision:
        of = _named(call)
        approval_id = self._journal.approval_ids.setdefault(of, secrets.token_hex(8))
        named = {"approval_id": approval_id, "of": of, "key": call.key, "tool_call_id": call.tool_call_id}
        if decided := self._journal.approvals.get(approval_id):
            return decided
        told = _told(call)
        if call.asked.turn_call is None:  # else a model's turn says them. Without its key it is no call that has begun
            self._stage.write(TOOL_ARGS, {**told, "args": call.asked.args})
        with allowance.untimed():
            async with self._without_slot():
                decision = await self._decided(named, told)
        self._stage.write(APPROVAL, {"approval_id": approval_id, **decision._asdict()})
        self._journal.approvals[approval_id] = decision
        return decision

    async def _decided(self, named: dict[str, str], told: dict[str, Any]) -> Decision:
        sid, approval_id = self._journal.sid, named["approval_id"]
        waits = f"stream {sid}: an approval waits"
        # Before viewers know of it: one of them may decide at once.
        await until_answered(lambda: self._inputs.ask(sid, approval_id, told), waits)
        self._stage.write(APPROVAL_REQUEST, named)
        self._stage.write(REQUEST, {"approval_id": approval_id, **told})
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._inputs.decided(sid, approval_id)
        except TimeoutError:
            reason = f"Nobody decided within {self._timeout_s:g} s."
            refusal = Decision(approve=False, reason=reason, by=OURSELVES)
            # Somebody may have been first: theirs stands.
            return await until_answered(lambda: self._inputs.decide(sid, approval_id, refusal), waits)


def _named(call: Call) -> str:
    """This call, whatever attempt; and not another one for the same `key=`, whose other arguments differ."""
    name = [call.key, call.asked.turn_call] if call.asked.key is not None else [call.key]
    return hashlib.sha256(orjson.dumps(name)).hexdigest()


def _told(call: Call) -> dict[str, Any]:
    asked = call.asked
    told = {"tool_call_id": call.tool_call_id, "tool": asked.tool}
    told |= {"title": asked.title} if asked.title else {}
    return told | ({"agent": asked.path} if asked.path else {})
