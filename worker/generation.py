"""One generation: claim → provider → events → one ending.

Every path out of `generate` but one writes exactly one terminal event: the provider finished (`done`), it failed
and no try is left (`error`), the stream is full (`error`), or an unforeseen error occurred (`error`). The one
exception is a worker that may no longer write: its pen was taken (its new holder writes the ending), or the process
is stopping: then `hand_over` gives the pen up, and another worker takes over.

Tries and attempts. While viewers have received nothing, the provider is tried again silently, 3 times in all, with
backoff. Once they have received something (text, thinking, a tool), `restart` takes it back and the next *attempt*
begins; a stream has 3 attempts, takeovers by other workers included.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import aclosing
from typing import Any, NamedTuple

from broker.errors import LasteventError, StreamLimit
from broker.log.event import DONE, ERROR, RESTART, START, STATUS, TEXT_DELTA
from broker.log.steps import Claimed
from broker.log.writer import StreamWriter
from broker.process.loops import is_being_cancelled
from worker.attempts import MAX_ATTEMPTS, WORKER_LOST, may_restart
from worker.providers.failures import ProviderFailure
from worker.providers.provider import Counted, Finish, Provider

logger = logging.getLogger(__name__)

MAX_TRIES = 3
BACKOFF_S = (0.5, 1.0)
BACKOFF_JITTER = 0.25
MAX_RETRY_AFTER_S = 30.0
"""A provider may ask for a longer wait than a person accepts."""


class Ending(NamedTuple):
    kind: str
    data: dict[str, Any]


class ProviderBroke(Exception):
    """One try at the provider failed. `shown`: viewers have received some of it."""

    def __init__(self, failure: ProviderFailure, *, shown: bool) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.shown = shown


class Generation:
    def __init__(self, claimed: Claimed, writer: StreamWriter, provider: Provider) -> None:
        self._claimed = claimed
        self._writer = writer
        self._provider = provider
        self._model = claimed.meta.model_name
        self._attempt = claimed.attempt
        self._began = time.monotonic()
        self._first_text_s: float | None = None

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
            writer.write(ERROR, WORKER_LOST)
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
            return _error("internal_error", "The request of this stream is gone. Start it again.", recoverable=True)
        try:
            self._announce()
            async with slots:
                self._start()
                return await self._attempts()
        except StreamLimit as full:
            return _error(full.code, str(full), recoverable=False)
        except ProviderBroke as broke:
            return _error(broke.failure.code, broke.failure.message, recoverable=broke.failure.retryable)
        except LasteventError:
            raise  # the pen is lost
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            return self._unforeseen()  # something in the provider was cancelled, but not by us
        except Exception:
            return self._unforeseen()

    def _unforeseen(self) -> Ending:
        logger.exception("stream %s: the worker failed", self._claimed.sid)
        return _error("internal_error", "The worker failed while it ran this generation.", recoverable=True)

    def _write_ending(self, ending: Ending) -> None:
        try:
            self._writer.write(*ending)
        except TypeError:  # the provider's text, or its counts, cannot be written as JSON
            self._writer.write(*self._unforeseen())

    def _announce(self) -> None:
        """A takeover is announced at once: what the lost worker sent is void."""
        if self._attempt > 1:
            self._writer.write(RESTART, {"attempt": self._attempt, "reason": WORKER_LOST["code"]})

    def _start(self) -> None:
        provider, model = self._provider.name, self._claimed.meta.model
        self._writer.write(START, {"model": model, "provider": provider, "attempt": self._attempt})

    async def _attempts(self) -> Ending:
        while True:
            try:
                return await self._tries()
            except ProviderBroke as broke:
                if not (broke.shown and broke.failure.retryable and self._attempt < MAX_ATTEMPTS):
                    raise
                self._attempt += 1
                self._writer.write(RESTART, {"attempt": self._attempt, "reason": broke.failure.code})
                await asyncio.sleep(_patience_s(broke.failure, tries=1))
                self._start()

    async def _tries(self) -> Ending:
        tries = 1
        while True:
            try:
                return await self._stream()
            except ProviderBroke as broke:
                if broke.shown or not broke.failure.retryable or tries == MAX_TRIES:
                    raise
                self._writer.write(STATUS, {"message": "The model is busy; trying again."})
                await asyncio.sleep(_patience_s(broke.failure, tries))
                tries += 1

    async def _stream(self) -> Ending:
        shown, writer = False, self._writer
        try:
            async with aclosing(self._provider.stream(self._model, self._claimed.meta.request or {})) as events:
                async for event in events:
                    if isinstance(event, Finish):
                        return self._done(event)
                    if isinstance(event, Counted):
                        continue
                    if self._first_text_s is None:
                        self._note_first_text(event[0])
                    writer.write(*event)
                    shown = True
                    if writer.is_behind:
                        await writer.drain()
        except ProviderFailure as failure:
            raise ProviderBroke(failure, shown=shown) from failure
        raise AssertionError("a provider's stream ended with neither a Finish nor a failure")

    def _note_first_text(self, kind: str) -> None:
        if kind == TEXT_DELTA:
            self._first_text_s = time.monotonic() - self._began

    def _done(self, finish: Finish) -> Ending:
        ttft_ms = None if self._first_text_s is None else round(self._first_text_s * 1000)
        duration_ms = round((time.monotonic() - self._began) * 1000)
        data = {
            "stop_reason": finish.stop_reason,
            "usage": finish.usage,
            "ttft_ms": ttft_ms,
            "duration_ms": duration_ms,
        }
        return Ending(DONE, data)


def _error(code: str, message: str, *, recoverable: bool) -> Ending:
    return Ending(ERROR, {"code": code, "message": message, "recoverable": recoverable})


def _patience_s(failure: ProviderFailure, tries: int) -> float:
    if failure.retry_after_s is not None:
        return min(failure.retry_after_s, MAX_RETRY_AFTER_S)
    return BACKOFF_S[min(tries, len(BACKOFF_S)) - 1] * (1 + random.uniform(0, BACKOFF_JITTER))
