"""Execution: a stream that this worker has claimed, from its claim to exactly one ending.

Every path out of `_end_of` but one writes exactly one terminal event: it was answered (`done`), it failed and no try is
left (`error`), the stream is full (`error`), or an unforeseen error occurred (`error`). The one exception is a worker
that may no longer write: its pen was taken (its new holder writes the ending), or the process is stopping: then
`hand_over` gives the pen up, and another worker takes over.

What answers is a model (generation.py) or an agent (agents/run.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from broker import gauges, traces
from broker.errors import LasteventError, StreamClosed, StreamLimit
from broker.log.event import CANCELLED, ERROR
from broker.log.steps import Claimed
from broker.log.writer import StreamWriter
from broker.process.logs import ABOUT
from broker.process.loops import is_being_cancelled
from broker.traces import Span
from worker.attempts import WORKER_LOST
from worker.providers.failures import ProviderFailure
from worker.stage import Stage

logger = logging.getLogger(__name__)


class Ending(NamedTuple):
    kind: str
    data: dict[str, Any]


class Execution(ABC):
    def __init__(self, claimed: Claimed, writer: StreamWriter, stage: Stage) -> None:
        self._claimed = claimed
        self._writer = writer
        self._stage = stage
        self._request: dict[str, Any] = claimed.meta.request or {}
        self._began = time.monotonic()

    @abstractmethod
    async def _answer(self) -> Ending:
        """All that is said before the ending. May raise StreamLimit, ProviderFailure, or whatever it likes."""

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for a person, and takes no slot."""
        return False

    @property
    def tenant(self) -> str:
        return self._claimed.meta.tenant

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
            self._count(ERROR, str(WORKER_LOST["code"]))
            return False
        await writer.release()
        return True

    async def run(self, slots: asyncio.Semaphore) -> None:
        """Until the ending is in the log, or the pen is lost. A takeover is announced before there is a slot for it."""
        task = asyncio.current_task()
        assert task
        sid = self._claimed.sid
        ABOUT.set(lambda: {"stream": sid})  # tasks that outlive this one keep it: no more than this
        # A cancel must reach the provider while it is silent: losing the pen wakes this task wherever it waits.
        self._writer.on_lost = task.cancel
        with traces.generating(sid, self._claimed.meta.traceparent, self._claimed.attempt) as span:
            await self._run(slots, span)

    async def _run(self, slots: asyncio.Semaphore, span: Span) -> None:
        try:
            ending = self._write_ending(await self._end_of(slots))
            await self._writer.flush()
            self._count(ending.kind, ending.data.get("code", ""))
            span.ended(ending.kind, ending.data.get("code", ""))
        except LasteventError as lost:
            logger.info("stream %s: stopped (%s)", self._claimed.sid, lost.code)
            span.failed(lost.code)
        except asyncio.CancelledError:
            if not self._writer.lost:
                raise  # the process is stopping; another worker takes over when the lease expires
            logger.info("stream %s: stopped (%s)", self._claimed.sid, self._writer.lost.code)
            span.failed(self._writer.lost.code)
        finally:
            self._writer.on_lost = None
            if isinstance(self._writer.lost, StreamClosed):  # seized: by its user, or since nobody watches it
                self._count(CANCELLED)

    def _count(self, state: str, code: str = "") -> None:
        gauges.streams_ended.labels(gauges.tenant(self._claimed.meta.tenant), state, code).inc()

    async def _end_of(self, slots: asyncio.Semaphore) -> Ending:
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

    def _write_ending(self, ending: Ending) -> Ending:
        try:
            self._stage.write(*ending)
        except TypeError:  # the provider's text, or its counts, cannot be written as JSON
            ending = self._unforeseen()
            self._stage.write(*ending)
        return ending

    def _error(self, code: str, message: str, *, recoverable: bool) -> Ending:
        return Ending(ERROR, {"code": code, "message": message, "recoverable": recoverable, **self._counted()})

    def _counted(self) -> dict[str, Any]:
        """What is known of the usage; nothing, if JSON cannot hold it."""
        return self._stage.spending.told() if self._stage.spending.encoded() else {}
