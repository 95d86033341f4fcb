"""Turns: one turn of a model, whole, however many tries and models it takes.

While viewers have received nothing of a turn, it is tried again silently, 3 times in all, with the next model of the
chain (chain.py), or with backoff. Once they have received something (text, a tool), `restart` takes everything back and
the next *attempt* begins, in which what stands is said again (stage.py).

What the provider has counted is kept of every try (spending.py): it was paid for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol

from broker import gauges, traces
from broker.log.event import STATUS, TEXT_DELTA, is_internal
from broker.traces import Span
from worker.providers.chain import Breaker, Course, Target
from worker.providers.failures import ProviderFailure
from worker.providers.provider import Counted, Finish, ProviderEvent
from worker.stage import Part, Stage

logger = logging.getLogger(__name__)

CITATION = "citation"

DIRECTIONS = {
    "input_tokens": "input",
    "cache_read_input_tokens": "cache_read",
    "cache_creation_input_tokens": "cache_write",
    "output_tokens": "output",
}
"""Of the counts that add up, as a price list has them. Tokens of thinking are in the output."""

Request = dict[str, Any]

AsShown = Callable[[str, dict[str, Any]], Iterable[ProviderEvent]]
"""From what a provider said to the events of the stream (visibility.py)."""


class Models(Protocol):
    """The models that this worker can reach (providers/choose.py)."""

    async def chain(self, model: str | list[str]) -> list[Target]:
        """Raises ProviderFailure for one that there is not."""


class Turn(NamedTuple):
    """A turn that is whole. `said`: everything that the provider said, in its own order, if it was to be kept."""

    finish: Finish
    target: Target
    said: list[ProviderEvent]


class TryBroke(Exception):
    """One try at the provider failed. `shown`: viewers have received some of it."""

    def __init__(self, failure: ProviderFailure, target: Target, *, shown: bool) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.code = failure.code
        self.target = target
        self.shown = shown


class Turns:
    """The turns of one speaker, one after the other.

    `begin(target)` writes `start`, where that waits for who answers; `keeps`: each Turn has what was `said`.
    """

    def __init__(
        self,
        stage: Stage,
        models: Models,
        breaker: Breaker,
        as_shown: AsShown,
        *,
        begin: Callable[[Target], object],
        agent: str = "",
        keeps: bool = False,
    ) -> None:
        self.number = 0
        """Of the turn that is under way."""
        self.characters = 0
        """Of text, in the turns before this one."""
        self.said: list[ProviderEvent] = []
        """Of the turn that is under way, as far as it has come."""
        self.part = Part()
        self.first_text_s: float | None = None
        self._stage = stage
        self._models = models
        self._breaker = breaker
        self._as_shown = as_shown
        self._begin = begin
        self._of_agent = {"agent": agent} if agent else {}
        self._keeps = keeps
        self._began = time.monotonic()
        self._is_chain = False

    async def course(self, model: str | list[str]) -> Course:
        """The way through these models, without those that the breaker leaves out. Raises ProviderFailure."""
        targets = await self._models.chain(model)
        self._is_chain = len(targets) > 1
        left_out = await self._breaker.left_out([target.name for target in targets]) if self._is_chain else set()
        return Course(targets, left_out)

    async def ask(self, request_for: Callable[[Target], Request], course: Course) -> Turn:
        """One turn, whole. Raises ProviderFailure if it cannot be had."""
        stage = self._stage
        while True:
            target = course.target
            if not (self._is_chain or stage.has_started):
                self._begin(target)
            request = request_for(target)
            try:
                with traces.chatting(target.name) as span:
                    finish = await self._try(target, request, span)
                    span.counted(finish.model, finish.stop_reason, finish.usage)
            except TryBroke as broke:
                gauges.provider_attempts.labels(broke.failure.code).inc()
                await self._note(broke)
                wait_s = await self._go_on(broke, course, request)
                if wait_s:
                    await asyncio.sleep(wait_s)
            else:
                gauges.provider_attempts.labels("ok").inc()
                await self._breaker.succeeded(target.name)
                if not stage.has_started:  # nothing that it said is for viewers
                    self._begin(target)
                self._close(target, finish.usage, model=finish.model, is_all=not (finish.is_paused or self._keeps))
                return Turn(finish, target, self.said)

    def interrupt(self, target: Target) -> list[ProviderEvent]:
        """`ask` was cancelled, and what has come of the turn stands. It was paid for."""
        self._close(target, None, answered=bool(self.said))
        return self.said

    def end(self, characters: int) -> None:
        """The turn is over, and has so many characters of text."""
        self.number += 1
        self.characters += characters

    async def _go_on(self, broke: TryBroke, course: Course, request: Request) -> float:
        """What is tried next, and how long until then, s. Raises the failure if nothing is left to try."""
        failure, stage = broke.failure, self._stage
        if failure.after_effects and request.get("on_tool_effects") != "restart":
            message = f"{failure.message} It had run a tool by then, so it is not asked again by itself."
            raise ProviderFailure(failure.code, message, retryable=failure.retryable)
        if broke.shown and not stage.may_restart:
            raise failure
        if not (course.restarts_after(failure) if broke.shown else course.goes_on_after(failure)):
            raise failure
        wait_s = course.wait_s(broke.target, failure)
        if broke.shown:
            await stage.restart(failure.code)
        elif wait_s:
            stage.write(STATUS, {"message": "The model is busy; trying again."})
        if course.target is not broke.target:
            moved = {"from": broke.target.name, "to": course.target.name, "code": failure.code}
            stage.write("internal.failover", {**moved, **self._of_agent})
        return wait_s

    async def _try(self, target: Target, request: Request, span: Span) -> Finish:
        stage, shown, asked_s = self._stage, False, time.monotonic()
        is_silent = True
        self.said, self.part = [], Part()
        try:
            async with aclosing(target.client.stream(target.model, request)) as answer:
                async for said in answer:
                    if isinstance(said, Finish):
                        return said
                    if isinstance(said, Counted):
                        self._count(target, said.usage)
                        continue
                    if self._keeps:
                        self.said.append(said)
                    if said[0] == CITATION and self.characters:
                        said = CITATION, self._moved(said[1])
                    for kind, data in self._as_shown(*said):
                        if not shown and not is_internal(kind):
                            shown = True
                            self._show(target)
                        if is_silent and kind == TEXT_DELTA:
                            is_silent = False
                            self._hear(target, time.monotonic() - asked_s, span)
                        stage.write(kind, data, self.part)
                    if stage.writer.is_behind:
                        await stage.writer.drain()
        except ProviderFailure as failure:
            stage.void(self.part)
            self.said = []  # a turn that is interrupted before its next try has said nothing
            raise TryBroke(failure, target, shown=shown) from failure
        raise AssertionError("a provider's stream ended with neither a Finish nor a failure")

    def _hear(self, target: Target, waited_s: float, span: Span) -> None:
        """The first text of a try."""
        span.first_text()
        if self.first_text_s is None:
            self.first_text_s = time.monotonic() - self._began
            gauges.provider_first_text_seconds.observe(waited_s, gauges.model(target.name))

    def _show(self, target: Target) -> None:
        """Viewers receive something. A chain starts with whoever of it answers."""
        if not self._stage.has_started:
            self._begin(target)
        self._stage.spending.begin(self)
        self._stage.writer.note_usage(self._stage.spending.encoded)

    def _moved(self, citation: dict[str, Any]) -> dict[str, Any]:
        """A provider counts the characters of its turn, viewers those of the answer."""
        places = {name: citation.get(name) for name in ("start", "end")}
        return citation | {name: at + self.characters for name, at in places.items() if at is not None}

    # -- what is written beside the answer ---------------------------------------------------------------

    async def _note(self, broke: TryBroke) -> None:
        """For operators: what went wrong, in the provider's own words. And it was paid for."""
        failure, target = broke.failure, broke.target
        logger.warning(
            "stream %s: %s failed: %s (HTTP status %s, request id %s)",
            *(self._stage.writer.sid, target.name, failure.code, failure.status or "-", failure.request_id or "-"),
        )
        trace = {"code": failure.code, "status": failure.status, "request_id": failure.request_id, **self._of_agent}
        said = (failure.said or failure.message).encode(errors="replace").decode()  # half a surrogate pair, perhaps
        self._stage.write("internal.trace", {"model": target.name, **trace, "message": said})
        self._close(target, None, answered=broke.shown)
        if failure.retryable or failure.moves_on:
            await self._breaker.failed(target.name)

    def _count(self, target: Target, usage: dict[str, Any]) -> None:
        self._stage.spending.count(target, usage, self)
        self._stage.writer.note_usage(self._stage.spending.encoded)

    def _close(
        self,
        target: Target,
        usage: dict[str, Any] | None,
        *,
        model: str | None = None,
        answered: bool = True,
        is_all: bool = False,
    ) -> None:
        """A try is over. What it cost is an event of its own, unless it `is_all`: then the ending says the same."""
        spending = self._stage.spending
        is_all = is_all and not spending.tries
        spent = spending.close(target, usage, model=model, answered=answered, of=self)
        if spent:
            self._count_tokens(target, spent["usage"])
        if spent and not is_all:
            at = {"turn": self.number, "attempt": self._stage.attempt, **self._of_agent}
            self._stage.write("internal.usage", {**at, **spent})

    def _count_tokens(self, target: Target, usage: dict[str, Any]) -> None:
        tenant, model = gauges.tenant(self._stage.writer.claimed.meta.tenant), gauges.model(target.name)
        for name, direction in DIRECTIONS.items():
            if tokens := usage.get(name):
                gauges.provider_tokens.labels(tenant, model, direction).inc(tokens)
