"""One generation: claim → provider → events → one ending.

Every path out of `generate` but one writes exactly one terminal event: the provider finished (`done`), it failed
and no try is left (`error`), the stream is full (`error`), or an unforeseen error occurred (`error`). The one
exception is a worker that may no longer write: its pen was taken (its new holder writes the ending), or the process
is stopping: then `hand_over` gives the pen up, and another worker takes over.

A provider may pause: then its turn is sent back, and the next one goes on in the same answer. How a turn is had, with
tries and attempts, is in turns.py; a stream has 3 attempts, takeovers by other workers included.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, NamedTuple

from broker.errors import LasteventError, StreamLimit
from broker.log.event import DONE, ERROR, Event, text_since_restart
from broker.log.steps import Claimed
from broker.log.turn import message as message_of
from broker.log.writer import StreamWriter
from broker.process.loops import is_being_cancelled
from worker.attempts import WORKER_LOST
from worker.providers.chain import Breaker, Course, Target
from worker.providers.failures import ProviderFailure
from worker.providers.provider import Finish
from worker.schema import violation
from worker.stage import Stage
from worker.turns import Models, Turn, Turns

logger = logging.getLogger(__name__)

MAX_PAUSES = 10
"""A provider that pauses again and again would go on for ever, and every turn is paid for."""


class Ending(NamedTuple):
    kind: str
    data: dict[str, Any]


class Generation:
    def __init__(self, claimed: Claimed, writer: StreamWriter, models: Models, breaker: Breaker) -> None:
        self._claimed = claimed
        self._writer = writer
        self._request: dict[str, Any] = claimed.meta.request or {}
        self._asked: list[Any] = self._request.get("messages", [])
        self._stage = Stage(claimed, writer)
        self._turns = Turns(self._stage, models, breaker, lambda kind, data: ((kind, data),), begin=self._start)
        self._began = time.monotonic()

    @property
    def writer(self) -> StreamWriter:
        return self._writer

    async def hand_over(self) -> bool:
        """`run` was cancelled because this worker is stopping. True: the stream waits for another worker.

        A stream that must not restart ends here. Raises why the pen was lost.
        """
        writer = self._writer
        if not (self._stage.may_be_taken_over or writer.closed):
            self._stage.write(ERROR, {**WORKER_LOST, **self._counted()})
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
            self._stage.announce()
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
            self._stage.write(*ending)
        except TypeError:  # the provider's text, or its counts, cannot be written as JSON
            self._stage.write(*self._unforeseen())

    def _start(self, target: Target) -> None:
        self._stage.start({"model": target.name, "provider": target.answers_as})

    async def _answer(self) -> Ending:
        course = await self._turns.course(self._request.get("model") or self._claimed.meta.model or "")
        for _ in range(MAX_PAUSES):
            turn = await self._turns.ask(lambda _: self._request, course)
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
            **self._stage.spending.told(),
            **{name: value for name, value in said.items() if value is not None},
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

    def _error(self, code: str, message: str, *, recoverable: bool) -> Ending:
        return Ending(ERROR, {"code": code, "message": message, "recoverable": recoverable, **self._counted()})

    def _counted(self) -> dict[str, Any]:
        """What is known of the usage; nothing, if JSON cannot hold it."""
        return self._stage.spending.told() if self._stage.spending.encoded() else {}
