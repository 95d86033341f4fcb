"""A stream that your own process writes: `async with client.producer(session_id="s1") as out: await out.text("Hello")`.

What is said is numbered, kept, and sent by a task (a thread) of its own, one request at a time. outbox.py decides what
is sent and what an answer means, opening.py how the stream is come by; here are their two drivers.

Leaving the block writes `done`; an exception `error`, with the name of its type, never its text, which may hold
anything; a cancellation `cancelled`. It returns when the log has the ending. That is sent again after a while, which
`client.close()` waits for.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

from lastevent.client import once
from lastevent.client.calls import new_key
from lastevent.client.errors import StreamError
from lastevent.client.opening import JSON, Ask, Opened, attach, start
from lastevent.client.outbox import ENDINGS, Answer, Outbox, Refusal, Send, Wait, encoded
from lastevent.events import Event

LEAVING_S = 5.0
"""How long an exception is held up by its ending. It is sent all the same, as long as the process lives."""

GIVEN_UP_S = 60.0
"""An ending that waits for a server behind an exception is given up after two leases: the stream has ended by then."""

log = logging.getLogger("lastevent")

T = TypeVar("T")
_Steps = Generator[Ask | Wait, Answer | None, T]


class _Said:
    """What both producers have: the outbox, and what may be said to it."""

    def __init__(self, steps: _Steps[Opened | Refusal]) -> None:
        self._steps = steps
        self._is_left = False
        self._box: Outbox | None = None
        self._crash: Exception | None = None
        self._opened: Opened | None = None

    @property
    def id(self) -> str:
        """Of the stream."""
        return self._is_open.sid

    @property
    def events_url(self) -> str:
        """Where it is followed, on the server."""
        return f"/v1/streams/{self.id}/events"

    @property
    def last_event_id(self) -> int:
        """Of what was said, whether the log has it yet or not. 1: nothing."""
        return self._out.last_id

    @property
    def written(self) -> list[Event]:
        """What a process before this one has written; empty if the stream is new. What is said now comes behind it."""
        return [Event.received(number, kind, data) for number, kind, data in self._is_open.written]

    @property
    def _is_open(self) -> Opened:
        if self._opened is None:
            raise RuntimeError("A producer is used in its block: `async with client.producer(…) as out:`.")
        return self._opened

    @property
    def _out(self) -> Outbox:
        assert self._is_open
        assert self._box
        return self._box

    def _step(self, answer: Answer | None) -> Ask | Wait | None:
        """Towards a stream. None: it is there. Raises StreamError."""
        try:
            return self._steps.send(answer)
        except StopIteration as found:
            opened = found.value
        if isinstance(opened, Refusal):
            raise _error_of(opened)
        self._opened = opened
        self._box = Outbox(opened.epoch, time.monotonic(), opened.kept)
        return None

    def _require_writable(self) -> None:
        """Raises StreamError if nothing can be said any more, and what the token's function raised."""
        if self._crash:
            raise self._crash
        if trouble := self._out.trouble:
            raise _error_of(trouble)
        if self._out.has_ended:
            raise StreamError("stream_closed", 0, "The ending was said: nothing can come after it.")

    def _say(self, kind: str, data: Mapping[str, Any]) -> None:
        self._require_writable()
        self._out.add(encoded(kind, data), is_ending=kind in ENDINGS)

    def _say_ending(self, error: BaseException | None) -> None:
        if not self._crash and not self._out.refusal and not self._out.has_ended:
            kind, data = _ending_of(error if error or not self._out.spoilt_by else _error_of(self._out.spoilt_by))
            self._out.add(encoded(kind, data), is_ending=True)

    @property
    def _is_settled(self) -> bool:
        """Whether there is nothing to wait for at the block's end."""
        return bool(self._crash) or self._out.is_confirmed or (bool(self._out.spoilt_by) and not self._out.has_ended)

    def _asked(self, send: Send) -> Ask:
        return Ask("POST", f"/v1/streams/{self.id}/{send.call}", send.content, JSON, send.why)

    def _learn(self, sent: Send, answer: Answer | None) -> None:
        now = time.monotonic()
        if answer is None:
            self._out.unanswered(sent, now)
        else:
            self._out.answered(sent, answer, now)

    def _lose_patience(self, limit_s: float | None) -> None:
        silent_s = self._out.silent_s(time.monotonic())
        if limit_s is not None and silent_s > limit_s and not self._out.is_confirmed:
            self._out.fail("lost", 0, f"No server has taken anything for {silent_s:.0f} s. Is it there?")

    def _tell_if_unheard(self) -> None:
        """Of an ending whose block has been left already: nobody is there to whom it could be raised."""
        if self._crash or self._out.refusal:
            log.warning("The ending of stream %s may not be in its log: %s", self.id, self._crash or self._out.refusal)


class AsyncProducer(_Said):
    """By `AsyncClient.producer`. Its methods return at once, but while 2,000 events are unsent.

    They raise StreamError: `writer_superseded` (another process writes this stream), `stream_closed` (somebody has
    cancelled it, or it was silent for longer than its lease), `invalid_request` (an event before was refused), …
    """

    def __init__(self, client: once.AsyncAsking, steps: _Steps[Opened | Refusal], patience_s: float | None) -> None:
        super().__init__(steps)
        self._client = client
        self._is_said = asyncio.Event()
        self._is_moved = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None
        self._limit_s = patience_s

    async def text(self, text: str) -> None:
        """A piece of the answer."""
        await self.event("text_delta", text=text)

    async def status(self, message: str) -> None:
        """A text for the person who waits: "Reading…"."""
        await self.event("status", message=message)

    async def event(self, kind: str, /, **data: Any) -> None:
        """Any event of docs/API.md, or of a kind of your own. `done`, `error` and `cancelled` end the stream.

        Raises ValueError for a kind that no producer may write, and for data that is no JSON.
        """
        self._require_writable()
        while self._out.is_full and not self._crash and not self._out.trouble:
            await self._moved()
        self._say(kind, data)
        self._is_said.set()
        await asyncio.sleep(0)  # who never waits for anything else would send nothing

    async def __aenter__(self) -> AsyncProducer:
        answer: Answer | None = None
        while True:
            step = self._step(answer)
            if step is None:
                break
            if isinstance(step, Wait):
                await asyncio.sleep(step.seconds or 0)
                answer = None
            else:
                answer = await once.ask(self._client, step)
        self._sending = asyncio.get_running_loop().create_task(self._send(), name=f"lastevent-{self.id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._sending
        try:
            await self._leave(error)
        finally:
            self._is_left = True
            if error is not None:
                self._limit_s = GIVEN_UP_S
            self._client._settle(self._sending)
        if error is None:
            if self._crash:
                raise self._crash
            if trouble := self._out.trouble:
                raise _error_of(trouble)

    async def _leave(self, error: BaseException | None) -> None:
        while True:
            self._say_ending(error)
            self._is_said.set()
            settled = self._until_settled()
            if error is None:
                await settled
            else:
                try:
                    await asyncio.wait_for(settled, LEAVING_S)
                except (TimeoutError, asyncio.TimeoutError):  # two classes in Python 3.10
                    return
            if not self._out.spoilt_by or self._out.has_ended or self._out.refusal or self._crash:
                return

    async def _until_settled(self) -> None:
        while not self._is_settled:
            await self._moved()

    async def _moved(self) -> None:
        self._is_moved.clear()
        await self._is_moved.wait()

    async def _send(self) -> None:
        try:
            while step := self._out.next(time.monotonic()):
                if isinstance(step, Wait):
                    await self._until_said(step.seconds)
                else:
                    self._learn(step, await once.ask(self._client, self._asked(step)))
                self._lose_patience(self._limit_s)
                self._is_moved.set()
        except Exception as error:  # of the token's function: raised at the next call
            self._crash = error
        finally:
            self._is_moved.set()
            if self._is_left:
                self._tell_if_unheard()

    async def _until_said(self, seconds: float | None) -> None:
        self._is_said.clear()
        with suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(self._is_said.wait(), seconds)


class Producer(_Said):
    """By `Client.producer`: as AsyncProducer, from any thread. A thread of its own sends."""

    def __init__(self, client: once.Asking, steps: _Steps[Opened | Refusal], patience_s: float | None) -> None:
        super().__init__(steps)
        self._client = client
        self._moved = threading.Condition()
        self._sending: threading.Thread | None = None
        self._limit_s = patience_s

    def text(self, text: str) -> None:
        """A piece of the answer."""
        self.event("text_delta", text=text)

    def status(self, message: str) -> None:
        """A text for the person who waits: "Reading…"."""
        self.event("status", message=message)

    def event(self, kind: str, /, **data: Any) -> None:
        """Any event of docs/API.md, or of a kind of your own. `done`, `error` and `cancelled` end the stream.

        Raises ValueError for a kind that no producer may write, and for data that is no JSON.
        """
        with self._moved:
            self._require_writable()
            self._moved.wait_for(lambda: not self._out.is_full or self._crash or self._out.trouble)
            self._say(kind, data)
            self._moved.notify_all()

    def __enter__(self) -> Producer:
        answer: Answer | None = None
        while True:
            step = self._step(answer)
            if step is None:
                break
            if isinstance(step, Wait):
                time.sleep(step.seconds or 0)
                answer = None
            else:
                answer = once.ask_now(self._client, step)
        self._sending = threading.Thread(target=self._send, name=f"lastevent-{self.id}", daemon=True)
        self._sending.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._sending
        try:
            with self._moved:
                self._leave(error)
        finally:
            self._is_left = True
            if error is not None:
                self._limit_s = GIVEN_UP_S
            self._client._settle(self._sending)
        if error is None:
            if self._crash:
                raise self._crash
            if trouble := self._out.trouble:
                raise _error_of(trouble)

    def _leave(self, error: BaseException | None) -> None:
        while True:
            self._say_ending(error)
            self._moved.notify_all()
            if not self._moved.wait_for(lambda: self._is_settled, None if error is None else LEAVING_S):
                return
            if not self._out.spoilt_by or self._out.has_ended or self._out.refusal or self._crash:
                return

    def _send(self) -> None:
        try:
            self._send_all()
        except Exception as error:  # of the token's function: raised at the next call
            self._crash = error
        finally:
            with self._moved:
                self._moved.notify_all()
                if self._is_left:
                    self._tell_if_unheard()

    def _send_all(self) -> None:
        while True:
            with self._moved:
                step = self._out.next(time.monotonic())
                if step is None:
                    return
                if isinstance(step, Wait):
                    self._moved.wait(step.seconds)
                    self._lose_patience(self._limit_s)
                    self._moved.notify_all()
                    continue
            answer = once.ask_now(self._client, self._asked(step))
            with self._moved:
                self._learn(step, answer)
                self._lose_patience(self._limit_s)
                self._moved.notify_all()


def steps(key: str | None, id: str | None, epoch: int, fields: Mapping[str, Any]) -> _Steps[Opened | Refusal]:
    """How the stream is come by: it is there (`id`), or started under `key`, by default one of its own."""
    if id is not None:
        if fields or key:
            raise ValueError("A stream that is there was started with its fields and its key: give the id alone.")
        return attach(id, epoch)
    said = {name: value for name, value in fields.items() if value is not None}
    return start({**said, "producer": "external"}, key or new_key())


def _ending_of(error: BaseException | None) -> tuple[str, dict[str, Any]]:
    if error is None:
        return "done", {}
    if not isinstance(error, Exception):  # cancelled, interrupted, or an async generator that was left
        return "cancelled", {"reason": "cancelled", "by": "producer"}
    message = f"The producer has failed: {type(error).__name__}."
    return "error", {"code": "producer_failed", "message": message, "recoverable": False}


def _error_of(refusal: Refusal) -> StreamError:
    return StreamError(*refusal)
