"""One generation: claim → provider → events → one ending.

Every path out of `generate` but one writes exactly one terminal event: the provider finished (`done`), it failed
and no try is left (`error`), the stream is full (`error`), or an unforeseen error occurred (`error`). The one
exception is a worker that may no longer write: its pen was taken (its new holder writes the ending), or the process
is stopping: then `hand_over` gives the pen up, and another worker takes over.

Turns, tries and attempts. A provider may pause: then its turn is sent back, and the next one goes on in the same
answer. While viewers have received nothing of a turn, it is tried again silently, 3 times in all, with the next model
of the chain (chain.py), or with backoff. Once they have received something (text, thinking, a tool), `restart` takes
everything back and the next *attempt* begins, in which the turns that were finished are said again; a stream has 3
attempts, takeovers by other workers included.

What the provider has counted is kept of every try (spending.py): it was paid for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol

import orjson

from broker.errors import LasteventError, StreamLimit
from broker.log.event import DONE, ERROR, RESTART, START, STATUS, TEXT_DELTA, Event, merge_deltas, text_since_restart
from broker.log.steps import Claimed
from broker.log.turn import message as message_of
from broker.log.writer import StreamWriter
from broker.process.loops import is_being_cancelled
from worker.attempts import MAX_ATTEMPTS, WORKER_LOST, may_restart
from worker.providers.chain import Breaker, Course, Target
from worker.providers.failures import ProviderFailure
from worker.providers.provider import Counted, Finish
from worker.schema import violation
from worker.spending import Spending

logger = logging.getLogger(__name__)

MAX_PAUSES = 10
"""A provider that pauses again and again would go on for ever, and every turn is paid for."""

INTERNAL = "internal."

CITATION = "citation"

UNREPEATED = frozenset({START, STATUS, "internal.usage", "internal.trace", "internal.failover"})
"""Events of a finished turn that are no part of what was said."""


class Ending(NamedTuple):
    kind: str
    data: dict[str, Any]


class ProviderBroke(Exception):
    """One try at the provider failed. `shown`: viewers have received some of it."""

    def __init__(self, failure: ProviderFailure, target: Target, *, shown: bool) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.target = target
        self.shown = shown


class Models(Protocol):
    """The models that this worker can reach (providers/choose.py)."""

    async def chain(self, model: str | list[str]) -> list[Target]:
        """Raises ProviderFailure for one that there is not."""


class Generation:
    def __init__(self, claimed: Claimed, writer: StreamWriter, models: Models, breaker: Breaker) -> None:
        self._claimed = claimed
        self._writer = writer
        self._models = models
        self._breaker = breaker
        self._request: dict[str, Any] = claimed.meta.request or {}
        self._asked: list[Any] = self._request.get("messages", [])
        self._attempt = claimed.attempt
        self._spending = Spending(claimed.meta.usage)
        self._began = time.monotonic()
        self._first_text_s: float | None = None
        self._is_chain = False
        self._has_started = False
        self._turns = 0  # that are finished
        self._turn_began = 0  # the id before its first event
        self._characters = 0  # of text, in finished turns
        self._kept: list[tuple[str, dict[str, Any]]] = []  # events of finished turns, which a restart says again

    @property
    def writer(self) -> StreamWriter:
        return self._writer

    async def hand_over(self) -> bool:
        """`run` was cancelled because this worker is stopping. True: the stream waits for another worker.

        A stream that must not restart ends here. Raises why the pen was lost.
        """
        writer = self._writer
        may_go_on = may_restart(self._claimed.meta.on_worker_loss, self._attempt)
        if not (may_go_on or writer.closed):
            writer.write(ERROR, {**WORKER_LOST, **self._counted()})
        await writer.flush()
        if writer.closed:
            return False
        await writer.release()
        return True

    async def run(self, slots: asyncio.Semaphore) -> None:
        """Until the ending is in the log, or the pen is lost. A takeover is announced before there is a slot for it."""
        task = asyncio.current_task()
        assert task
        # A cancel must reach the provider while it is silent: losing the pen wakes this task wherever it waits.
        self._writer.on_lost = task.cancel
        try:
            self._write_ending(await self._generate(slots))
            await self._writer.flush()
        except LasteventError as lost:
            logger.info("stream %s: stopped (%s)", self._claimed.sid, lost.code)
        except asyncio.CancelledError:
            if not self._writer.lost:
                raise  # the process is stopping; another worker takes over when the lease expires
            logger.info("stream %s: stopped (%s)", self._claimed.sid, self._writer.lost.code)
        finally:
            self._writer.on_lost = None

    async def _generate(self, slots: asyncio.Semaphore) -> Ending:
        if "request" not in self._claimed.meta.fields:
            return self._error(
                "internal_error", "The request of this stream is gone. Start it again.", recoverable=True
            )
        try:
            self._announce()
            async with slots:
                return await self._answer()
        except StreamLimit as full:
            return self._error(full.code, str(full), recoverable=False)
        except ProviderFailure as failure:
            return self._error(failure.code, failure.message, recoverable=failure.retryable)
        except LasteventError as error:
            if self._writer.lost is error:
                raise
            return self._unforeseen()
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            return self._unforeseen()  # something in the provider was cancelled, but not by us
        except Exception:
            return self._unforeseen()

    def _unforeseen(self) -> Ending:
        logger.exception("stream %s: the worker failed", self._claimed.sid)
        return self._error("internal_error", "The worker failed while it ran this generation.", recoverable=True)

    def _write_ending(self, ending: Ending) -> None:
        try:
            self._writer.write(*ending)
        except TypeError:  # the provider's text, or its counts, cannot be written as JSON
            self._writer.write(*self._unforeseen())

    def _announce(self) -> None:
        """A takeover is announced at once: what the lost worker sent is void."""
        if self._attempt > 1:
            self._writer.write(RESTART, {"attempt": self._attempt, "reason": WORKER_LOST["code"]})

    def _start(self, target: Target) -> None:
        """And say again what earlier turns of this answer had said."""
        told = {"model": target.name, "provider": target.answers_as, "attempt": self._attempt}
        self._writer.write(START, told)
        self._has_started = True
        for kind, data in self._kept:
            self._writer.write(kind, {**data, "replayed": True} if kind.startswith("tool_") else data)

    # -- turns, tries, attempts --------------------------------------------------------------------------

    async def _answer(self) -> Ending:
        targets = await self._models.chain(self._request.get("model") or self._claimed.meta.model or "")
        self._is_chain = len(targets) > 1
        left_out = await self._breaker.left_out([target.name for target in targets]) if self._is_chain else set()
        course = Course(targets, left_out)
        for _ in range(MAX_PAUSES):
            finish = await self._turn(course)
            if not finish.is_paused:
                break
            await self._send_back()
            course = Course([course.target])  # nobody else knows this turn in its own form
        return await self._done(finish, course.target)

    async def _turn(self, course: Course) -> Finish:
        """One turn, whole. Raises ProviderFailure if it cannot be had."""
        while True:
            target = course.target
            if not (self._is_chain or self._has_started):
                self._start(target)
            try:
                finish = await self._try(target)
            except ProviderBroke as broke:
                await self._note(broke)
                wait_s = self._go_on(broke, course)
                if wait_s:
                    await asyncio.sleep(wait_s)
            else:
                await self._breaker.succeeded(target.name)
                if not self._has_started:  # nothing that it said is for viewers
                    self._begin(target)
                self._close(target, finish.usage, model=finish.model, is_all=not finish.is_paused)
                if finish.native is not None:
                    self._write_turn(finish, target)
                return finish

    def _go_on(self, broke: ProviderBroke, course: Course) -> float:
        """What is tried next, and how long until then, s. Raises the failure if nothing is left to try."""
        failure = broke.failure
        if failure.after_effects and self._request.get("on_tool_effects") != "restart":
            message = f"{failure.message} It had run a tool by then, so it is not asked again by itself."
            raise ProviderFailure(failure.code, message, retryable=failure.retryable)
        if broke.shown and self._attempt == MAX_ATTEMPTS:
            raise failure
        if not (course.restarts_after(failure) if broke.shown else course.goes_on_after(failure)):
            raise failure
        wait_s = course.wait_s(broke.target, failure)
        if broke.shown:
            self._attempt += 1
            self._has_started = False
            self._writer.write(RESTART, {"attempt": self._attempt, "reason": failure.code})
        elif wait_s:
            self._writer.write(STATUS, {"message": "The model is busy; trying again."})
        if course.target is not broke.target:
            moved = {"from": broke.target.name, "to": course.target.name, "code": failure.code}
            self._writer.write("internal.failover", moved)
        return wait_s

    async def _try(self, target: Target) -> Finish:
        shown, writer = False, self._writer
        self._turn_began = writer.tail
        try:
            async with aclosing(target.client.stream(target.model, self._request)) as answer:
                async for said in answer:
                    if isinstance(said, Finish):
                        return said
                    if isinstance(said, Counted):
                        self._count(target, said.usage)
                        continue
                    if not shown:
                        shown = self._shows(said[0], target)
                    if said[0] == CITATION and self._turns:
                        said = CITATION, self._moved(said[1])
                    if self._first_text_s is None:
                        self._note_first_text(said[0])
                    writer.write(*said)
                    if writer.is_behind:
                        await writer.drain()
        except ProviderFailure as failure:
            raise ProviderBroke(failure, target, shown=shown) from failure
        raise AssertionError("a provider's stream ended with neither a Finish nor a failure")

    def _shows(self, kind: str, target: Target) -> bool:
        """Whether viewers receive it. A chain starts with whoever of it answers."""
        if kind.startswith(INTERNAL):
            return False
        if not self._has_started:
            self._begin(target)
        self._spending.begin()
        self._writer.note_usage(self._spending.encoded)
        return True

    def _begin(self, target: Target) -> None:
        """What turns before this one had said is no part of it."""
        self._start(target)
        self._turn_began = self._writer.tail

    def _moved(self, citation: dict[str, Any]) -> dict[str, Any]:
        """A provider counts the characters of its turn, viewers those of the answer."""
        places = {name: citation.get(name) for name in ("start", "end")}
        return citation | {name: at + self._characters for name, at in places.items() if at is not None}

    async def _send_back(self) -> None:
        """What the provider said so far becomes a part of the request, and what a restart would say again."""
        said, kept, self._characters = await asyncio.to_thread(self._said)
        self._request = {**self._request, "messages": [*self._asked, said]}
        self._kept += kept
        self._turns += 1

    def _said(self) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]], int]:
        """In a thread: 100,000 events take 0.5 s, in which no other generation would go on."""
        written = self._written()
        events = merge_deltas(self._writer.written_since(self._turn_began))
        kept = [(event.kind, orjson.loads(event.data)) for event in events if event.kind not in UNREPEATED]
        return message_of(written), kept, len(text_since_restart(written))

    def _written(self) -> list[Event]:
        return self._writer.written_since(self._writer.pen.base - 1)

    # -- what is written beside the answer ---------------------------------------------------------------

    def _write_turn(self, finish: Finish, target: Target) -> None:
        provider = target.name.partition("/")[0]
        turn = {"turn": self._turns, "provider": provider, "form": target.form, "model": target.model}
        self._writer.write("internal.turn", {**turn, "stop_reason": finish.stop_reason, "native": finish.native})

    async def _note(self, broke: ProviderBroke) -> None:
        """For operators: what went wrong, in the provider's own words. And it was paid for."""
        failure, target = broke.failure, broke.target
        logger.warning(
            "stream %s: %s failed: %s (HTTP status %s, request id %s)",
            *(self._claimed.sid, target.name, failure.code, failure.status or "-", failure.request_id or "-"),
        )
        trace = {"code": failure.code, "status": failure.status, "request_id": failure.request_id}
        said = (failure.said or failure.message).encode(errors="replace").decode()  # half a surrogate pair, perhaps
        self._writer.write("internal.trace", {"model": target.name, **trace, "message": said})
        self._close(target, None, answered=broke.shown)
        if failure.retryable or failure.moves_on:
            await self._breaker.failed(target.name)

    def _count(self, target: Target, usage: dict[str, Any]) -> None:
        self._spending.count(target, usage)
        self._writer.note_usage(self._spending.encoded)

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
        is_all = is_all and not self._spending.tries
        spent = self._spending.close(target, usage, model=model, answered=answered)
        if spent and not is_all:
            self._writer.write("internal.usage", {"turn": self._turns, "attempt": self._attempt, **spent})

    def _note_first_text(self, kind: str) -> None:
        if kind == TEXT_DELTA:
            self._first_text_s = time.monotonic() - self._began

    # -- endings -----------------------------------------------------------------------------------------

    async def _done(self, finish: Finish, target: Target) -> Ending:
        said = {
            "provider_stop_reason": finish.provider_stop_reason,
            "stop_sequence": finish.stop_sequence,
            "stop_details": finish.stop_details,
            "model": f"{target.name.partition('/')[0]}/{finish.model or target.model}",
            "response_id": finish.response_id,
            "schema_violation": await self._violation(),
        }
        data = {
            "stop_reason": finish.stop_reason,
            **self._spending.told(),
            **{name: value for name, value in said.items() if value is not None},
            "ttft_ms": None if self._first_text_s is None else round(self._first_text_s * 1000),
            "duration_ms": round((time.monotonic() - self._began) * 1000),
        }
        return Ending(DONE, data)

    async def _violation(self) -> dict[str, str] | None:
        if "output_schema" not in self._request:
            return None
        text = await asyncio.to_thread(lambda: text_since_restart(self._written()))  # 0.3 s for 100,000 events
        # None: only a tool is called, or nothing is said.
        return await violation(self._request["output_schema"], text) if text else None

    def _error(self, code: str, message: str, *, recoverable: bool) -> Ending:
        return Ending(ERROR, {"code": code, "message": message, "recoverable": recoverable, **self._counted()})

    def _counted(self) -> dict[str, Any]:
        """What is known of the usage; nothing, if JSON cannot hold it."""
        return self._spending.told() if self._spending.encoded() else {}
