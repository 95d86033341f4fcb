"""One generation: the answer of a model, in one turn as a rule.

A provider may pause: then its turn is sent back, and the next one goes on in the same answer. How a turn is had, with
tries and attempts, is in turns.py; a stream has 3 attempts, takeovers by other workers included.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from broker.log.event import DONE, TEXT_DELTA, Event, text_since_restart
from broker.log.steps import Claimed
from broker.log.turn import TOOL_START
from broker.log.turn import message as message_of
from broker.log.writer import StreamWriter
from worker.arguments import Snapshots
from worker.execution import Ending, Execution
from worker.providers.chain import Breaker, Course, Target
from worker.providers.provider import Finish, ProviderEvent
from worker.schema import violation
from worker.stage import Stage
from worker.turns import Models, Turn, Turns
from worker.visibility import visible

if TYPE_CHECKING:
    from worker.agents.in_text import InText

MAX_PAUSES = 10
"""A provider that pauses again and again would go on for ever, and every turn is paid for."""


class Generation(Execution):
    def __init__(self, claimed: Claimed, writer: StreamWriter, models: Models, breaker: Breaker) -> None:
        super().__init__(claimed, writer, Stage(claimed, writer))
        self._asked: list[Any] = self._request.get("messages", [])
        self._show: Sequence[str] = claimed.meta.show or ()
        self._of_client: set[str] = set()  # ids of calls
        self._in_text = _in_text(self._request)
        if self._in_text:
            models = self._in_text.models(models)
        self._turns = Turns(self._stage, models, breaker, self._as_shown, begin=self._start)

    def _start(self, target: Target) -> None:
        self._stage.start({"model": target.name, "provider": target.answers_as})

    def _as_shown(self, kind: str, data: dict[str, Any]) -> Iterable[ProviderEvent]:
        if kind == TEXT_DELTA:
            return ((kind, data),)  # the way of nearly all events
        if kind == TOOL_START and data.get("client") is True:
            self._of_client.add(data["tool_call_id"])
        behind = self._snapshots.take(kind, data)
        return chain(
            visible(kind, data, self._show, self._of_client),
            chain.from_iterable(visible(*event, self._show, self._of_client) for event in behind),
        )

    def _request_for(self, target: Target) -> dict[str, Any]:
        """Each try begins with it."""
        self._snapshots = Snapshots(is_public="args" in self._show)
        return self._in_text.request_for(self._request, target, self._turns.number) if self._in_text else self._request

    async def _answer(self) -> Ending:
        course = await self._turns.course(self._request.get("model") or self._claimed.meta.model or "")
        for _ in range(MAX_PAUSES):
            turn = await self._turns.ask(self._request_for, course)
            if turn.finish.native is not None:
                self._write_turn(turn)
            if not turn.finish.is_paused:
                break
            await self._send_back()
            course = Course([turn.target])  # nobody else knows this turn in its own form
        return await self._done(turn.finish, turn.target)

    def _write_turn(self, turn: Turn) -> None:
        finish, target = turn.finish, turn.target
        said = {"turn": self._turns.number, "provider": target.name.partition("/")[0], "form": target.form}
        said |= {"model": target.model, "stop_reason": finish.stop_reason, "native": finish.native}
        self._stage.write("internal.turn", said)

    async def _send_back(self) -> None:
        """What the provider said so far becomes a part of the request."""
        self._stage.release()
        said, characters = await asyncio.to_thread(self._said)
        self._request = {**self._request, "messages": [*self._asked, said]}
        self._turns.end(characters - self._turns.characters)

    def _said(self) -> tuple[dict[str, Any], int]:
        """In a thread: 100,000 events take 0.5 s, in which no other generation would go on."""
        written = self._written()
        return message_of(written), len(text_since_restart(written))

    def _written(self) -> list[Event]:
        return self._writer.written_since(self._writer.pen.base - 1)

    # -- endings -----------------------------------------------------------------------------------------

    async def _done(self, finish: Finish, target: Target) -> Ending:
        violation = await self._violation()
        data = {
            "stop_reason": finish.stop_reason,
            **self._stage.spending.told(),
            **finish.told(),
            "model": f"{target.name.partition('/')[0]}/{finish.model or target.model}",
            **({} if violation is None else {"schema_violation": violation}),
            "ttft_ms": None if self._turns.first_text_s is None else round(self._turns.first_text_s * 1000),
            "duration_ms": round((time.monotonic() - self._began) * 1000),
        }
        return Ending(DONE, data)

    async def _violation(self) -> dict[str, str] | None:
        if "output_schema" not in self._request:
            return None
        text = await asyncio.to_thread(lambda: text_since_restart(self._written()))  # 0.3 s for 100,000 events
        # None: only a tool is called, or nothing is said.
        return await violation(self._request["output_schema"], text) if text else None


def _in_text(request: dict[str, Any]) -> InText | None:
    if "transform" not in request:
        return None
    from worker.agents.in_text import InText  # the way of few requests

    return InText(request["transform"], request.get("tools", ()))
