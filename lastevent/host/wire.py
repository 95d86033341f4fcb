"""The wire to the worker: a socket pair, one JSON object a line, in both directions.

Either side asks, and each ask has one reply with its id. Everything may be called from any thread; only the event
loop's thread reads.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import itertools
import json
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from lastevent.errors import CallFailed

MAX_LINE = 4 * 1024 * 1024
"""Bytes of a line, as the worker takes it."""

_READ = 256 * 1024
_FLUSH = 64 * 1024
"""Beyond this many bytes they are written at once; fewer wait for the end of the loop's turn, since a system call costs
more than an event does."""

_POLL_MS = 20
"""What is waited for may also come from another thread, which the socket does not tell."""

Answer = concurrent.futures.Future[dict[str, Any]]


class TooLong(ValueError):
    pass


class Wire:
    """`heed` gets each message that is no reply, `is_gone` is called once when the worker's end is closed."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._out = bytearray()
        self._rest = b""
        self._ids = itertools.count(1)
        self._asked: dict[int, tuple[Any, Answer]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.get_ident()
        # Callbacks of the wire's own run in no run's context: who is held up must not seem to be them.
        self._nobody = contextvars.copy_context()
        self._will_flush = self._is_writing = False
        self.is_closed = self._is_forked = self._is_reading = False
        end.setblocking(False)

    def serve(self, heed: Callable[[dict[str, Any]], None], is_gone: Callable[[], None]) -> None:
        """From now on what comes is heeded, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._heed, self._is_gone = heed, is_gone
        self._loop.add_reader(self._end, self._read)

    # -- out ---------------------------------------------------------------------------------------------------

    def send(self, message: Mapping[str, Any]) -> None:
        """TooLong for more than a line takes, ValueError for what is not JSON: then nothing was sent."""
        line = encoded(message)
        with self._lock:
            if self.is_closed:
                return
            self._out += line
            is_much, is_first = len(self._out) >= _FLUSH, not self._will_flush
            self._will_flush = True
        if is_much:
            self.flush()
        elif is_first:
            self._soon(self.flush)

    def flush(self) -> None:
        """Give the kernel what it takes now; the loop gives it the rest."""
        with self._lock:
            self._will_flush = False
            self._write()
            if bool(self._out) is self._is_writing:
                return
            self._is_writing = not self._is_writing
        self._soon(self._heed_writable)

    def finish(self, within_s: float) -> None:
        """Everything is written, or the time is up."""
        until = time.monotonic() + within_s
        while (left_s := until - time.monotonic()) > 0:
            with self._lock:
                self._write()
                if not self._out:
                    return
            select.select([], [self._end], [], left_s)

    def _write(self) -> None:
        try:
            while self._out and not self.is_closed:
                sent = self._end.send(memoryview(self._out)[:_READ])
                del self._out[:sent]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._out.clear()  # the worker is gone; reading finds it

    def _heed_writable(self) -> None:
        if self._loop is None or self.is_closed:
            return
        if self._is_writing:
            self._loop.add_writer(self._end, self.flush)
        else:
            self._loop.remove_writer(self._end)

    def _soon(self, callback: Callable[[], None]) -> None:
        if self._loop is None:
            return
        if threading.get_ident() == self._thread:
            self._loop.call_soon(callback, context=self._nobody)
        else:
            self._loop.call_soon_threadsafe(callback, context=self._nobody)

    # -- asks --------------------------------------------------------------------------------------------------

    def ask(self, run: Any, what: str, data: Mapping[str, Any]) -> Answer:
        if self._is_forked:
            raise RuntimeError(f"This is a forked process: {what} must be asked by the one that runs the agent.")
        answer: Answer = concurrent.futures.Future()
        number = next(self._ids)
        with self._lock:
            self._asked[number] = run, answer
        try:
            self.send({"op": "ask", "run": run, "id": number, "what": what, "data": data})
        except ValueError:
            self._asked.pop(number, None)
            raise
        if self.is_closed:
            answer.cancel()
        answer.add_done_callback(lambda answer: self._give_up(run, number) if answer.cancelled() else None)
        return answer

    def _give_up(self, run: Any, number: int) -> None:
        """Its code was cancelled alone, by a time limit of its own say: what it asked for is to end, too."""
        with self._lock:
            was_asked = self._asked.pop(number, None) is not None
        if was_asked:
            self.send({"op": "cancel_ask", "run": run, "id": number})

    def drop_asks(self, run: Any) -> None:
        """Nobody of the run waits any more."""
        with self._lock:
            dropped = [number for number, (asker, _) in self._asked.items() if asker == run]
            answers = [self._asked.pop(number)[1] for number in dropped]
        for answer in answers:
            answer.cancel()

    def wait(self, future: concurrent.futures.Future[Any], timeout_s: float | None = None) -> Any:
        """Its result, waited for by a thread; also by the loop's own, which reads what comes meanwhile."""
        if threading.get_ident() == self._thread and self._loop is not None:
            self._read_until(future, timeout_s)
            timeout_s = 0 if timeout_s is not None else None
        try:
            return future.result(timeout_s)
        except concurrent.futures.CancelledError:
            raise asyncio.CancelledError from None  # no Exception: a framework would take it for the tool's own

    def is_on_loop(self) -> bool:
        return threading.get_ident() == self._thread

    def _read_until(self, future: concurrent.futures.Future[Any], timeout_s: float | None) -> None:
        poll, until = select.poll(), None if timeout_s is None else time.monotonic() + timeout_s
        while not future.done() and not self.is_closed and (until is None or time.monotonic() < until):
            self.flush()
            poll.register(self._end, select.POLLIN | (select.POLLOUT if self._out else 0))
            poll.poll(_POLL_MS)
            self._read()
        if self.is_closed:
            future.cancel()

    # -- in ----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        # Nothing may be raised in here by the watchdog: half a line would be lost.
        self._is_reading = True
        try:
            given = self._end.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            given = b""
        else:
            if given:
                self._take(given)
        finally:
            self._is_reading = False
        if not given:
            self._close()

    def _take(self, given: bytes) -> None:
        *lines, self._rest = (self._rest + given).split(b"\n") if b"\n" in given else [self._rest + given]
        for line in lines:
            message = json.loads(line)
            if message["op"] == "reply":
                self._replied(message)
            else:
                self._heed(message)

    def _replied(self, message: dict[str, Any]) -> None:
        with self._lock:
            _, answer = self._asked.pop(message["id"], (None, None))
        if answer is None or not answer.set_running_or_notify_cancel():
            return
        if error := message.get("error"):
            answer.set_exception(CallFailed(error["code"], error.get("message") or error["code"]))
        else:
            answer.set_result(message.get("ok") or {})

    def _close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        if self._loop is not None:
            self._loop.remove_reader(self._end)
            self._loop.remove_writer(self._end)
        with self._lock:
            answers = [answer for _, answer in self._asked.values()]
            self._asked.clear()
            self._out.clear()
        for answer in answers:
            answer.cancel()
        self._is_gone()

    def may_not_be_interrupted(self) -> bool:
        """An exception in the midst of it would lose half a line, or keep a lock."""
        return self._is_reading or self._lock.locked()

    def abandon(self) -> None:
        """In a forked process: the wire is its parent's, and so is all that the event loop has at work. Who returns to
        the loop from a fork ends there: every other run, and every tool amid its call, would go on in both."""
        self.is_closed = self._is_forked = True
        self._lock = threading.Lock()
        self._end.close()
        if self._loop is not None:
            self._loop.call_soon(os._exit, 1)
            getattr(self._loop, "_ready", deque()).rotate(1)  # before what would have been next


class Credit:
    """How many events of a run the worker takes now; one more costs one, and whoever has none waits, in order."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._waiting: deque[concurrent.futures.Future[None]] = deque()
        self._lock = threading.Lock()

    def take(self) -> bool:
        with self._lock:
            if self._count <= 0 or self._waiting:
                return False
            self._count -= 1
            return True

    def wait(self) -> concurrent.futures.Future[None]:
        """Done once it is taken."""
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._lock:
            self._waiting.append(future)
        self.give(0)
        return future

    def give(self, count: int) -> None:
        granted = []
        with self._lock:
            self._count += count
            while self._count > 0 and self._waiting:
                future = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    self._count -= 1
                    granted.append(future)
        for future in granted:
            future.set_result(None)

    def refuse(self) -> None:
        with self._lock:
            waiting, self._waiting = list(self._waiting), deque()
        for future in waiting:
            future.cancel()


def encoded(message: Mapping[str, Any]) -> bytes:
    """A line. Half a surrogate pair, which models say when a text is cut within an emoji, becomes U+FFFD."""
    try:
        line = _json(message) + b"\n"
    except ValueError:
        try:
            line = _json(_without_surrogates(message)) + b"\n"
        except ValueError as error:
            raise ValueError(f"It is not JSON: {error}") from None
    if len(line) > MAX_LINE:
        raise TooLong(f"It has {len(line):,} bytes; at most {MAX_LINE:,} may be said at once.")
    return line


def _json(message: Mapping[str, Any]) -> bytes:
    try:
        from pydantic_core import to_json
    except ImportError:  # then this says so
        return json.dumps(message).encode()
    return to_json(message, inf_nan_mode="null")


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {_without_surrogates(key): _without_surrogates(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_surrogates(one) for one in value]
    return value
