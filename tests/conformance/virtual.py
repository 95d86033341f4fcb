"""Virtual time, for a thread and for an event loop: two hours of it take a millisecond."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Sequence
from typing import Any, Protocol

LONG_S = 7200.0
MAX_STEPS = 20_000  # more is a spin


class Stopped(BaseException):
    """The app's thread is ended where it waits, as by Ctrl-C."""


class TooLong(BaseException):
    pass


class Clock(Protocol):
    def now(self) -> float: ...

    def sleep(self, seconds: float) -> Any: ...


class Wall:
    """Dates, which somebody may set: [ms, by ms]."""

    def __init__(self, clock: Clock, began: float, jumps: Sequence[tuple[int, int]]) -> None:
        self.clock, self.began, self.jumps = clock, began, jumps

    def __call__(self) -> float:
        now = self.clock.now()
        return self.began + now + sum(by for at, by in self.jumps if at <= now * 1000) / 1000


class ThreadClock:
    """Of one thread, in which nothing happens but what it waits for. It raises Stopped at `stop_s`."""

    def __init__(self, stop_s: float | None) -> None:
        self.time, self.stop_s, self.steps = 0.0, stop_s, 0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.steps += 1
        until = self.time + seconds
        if self.stop_s is not None and until >= self.stop_s:
            self.time, self.stop_s = self.stop_s, None
            raise Stopped
        self.time = until
        if until > LONG_S:
            raise TooLong
        if self.steps > MAX_STEPS:
            raise AssertionError(f"it spins, at {until} s")


class _Selector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.time, self.steps = 0.0, 0

    def select(self, timeout: float | None = None) -> Any:
        self.steps += 1
        if timeout is None or self.steps > MAX_STEPS:
            raise AssertionError(f"it {'hangs' if timeout is None else 'spins'}, at {self.time} s")
        self.time += max(timeout, 0)
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """Its time goes on to the next timer as soon as nothing is ready."""

    def __init__(self) -> None:
        self.virtual = _Selector()
        super().__init__(self.virtual)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.virtual.time

    now = time
    sleep = staticmethod(asyncio.sleep)
