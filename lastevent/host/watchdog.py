"""Who holds the event loop up: told after a second, interrupted after LASTEVENT_AGENT_BLOCKED_S.

One run that blocks (time.sleep, a loop without await, a blocking receive) silences every other run of its process. The
loop ticks; a thread counts its own beats since the last tick. Beats and not time: a process that was stopped as a whole
was not held up.

The interruption is a signal: its handler runs in the main thread, right inside of the code that blocks, and raises
there. It must not hit an innocent: only if the loop has not ticked since, and the task at work is the one that was
found then, and the code at work is a run's. Code held in C that looks at no signals is the worker's to kill.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Any

from lastevent.context import CURRENT
from lastevent.errors import AgentBlocked
from lastevent.host.runs import Run
from lastevent.host.serving import Host
from lastevent.host.wire import Wire

BEAT_S = 0.25
WARN_S = 1.0
AGAIN_S = 1.0
"""Code may swallow an AgentBlocked, and a signal may come at a moment when none may be raised: it comes again."""

_MAX_STACK = 64 * 1024


class Watchdog:
    def __init__(self, wire: Wire, host: Host, blocked_s: float) -> None:
        self._wire, self._host, self._blocked_s = wire, host, blocked_s
        self._loop = asyncio.get_running_loop()
        self._main = threading.get_ident()
        self._ticks = 0
        self._suspect: tuple[int, asyncio.Task[Any] | None] | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lastevent watchdog", daemon=True)

    def start(self) -> None:
        signal.signal(signal.SIGUSR1, self._interrupt)
        self._tick()
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()

    def _tick(self) -> None:
        self._ticks += 1
        self._loop.call_later(BEAT_S, self._tick)

    # -- in its thread ---------------------------------------------------------------------------------------

    def _watch(self) -> None:
        seen, beats, told, interrupt_s = 0, 0, False, self._blocked_s
        while not self._is_over.wait(BEAT_S):
            if self._ticks != seen:
                seen, beats, told, interrupt_s = self._ticks, 0, False, self._blocked_s
                continue
            beats += 1
            held_s = beats * BEAT_S
            if held_s >= WARN_S and not told:
                self._tell(held_s)
                told = True
            if held_s >= interrupt_s:
                self._suspect = seen, self._at_work()
                signal.pthread_kill(self._main, signal.SIGUSR1)
                interrupt_s += AGAIN_S

    def _tell(self, held_s: float) -> None:
        run = self._host.run_of(self._at_work())
        frame = sys._current_frames().get(self._main)
        stack = "".join(traceback.format_stack(frame))[-_MAX_STACK:]
        self._wire.send({"op": "held_up", "run": run.id if run else None, "seconds": held_s, "stack": stack})
        self._wire.flush()  # the loop would do it, but it is held up

    def _at_work(self) -> asyncio.Task[Any] | None:
        return asyncio.current_task(self._loop)

    # -- in the main thread, within the code that blocks -----------------------------------------------------

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        suspect, self._suspect = self._suspect, None
        if suspect is None or suspect != (self._ticks, self._at_work()) or self._wire.may_not_be_interrupted():
            return
        context = CURRENT.get(None)
        run = context._run if context is not None else None
        if not isinstance(run, Run):
            return
        blocked = AgentBlocked(f"It held up the event loop of its process for {self._blocked_s:g} s.")
        run.blocked = blocked
        self._loop.call_soon_threadsafe(run.end_blocked, blocked, suspect[1])
        raise blocked
