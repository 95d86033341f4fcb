"""What the process is: its standard streams, its signals, its parent.

A Ctrl-C in a terminal, or a service manager's SIGTERM, reaches the whole process group. Whether runs end is the
worker's to decide: it drains, and closes the wire. So both are heeded without effect here (not ignored: what user code
starts would inherit that), unless the parent has died.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from lastevent.host.wire import Wire

_PR_SET_PDEATHSIG = 1


def own(number: int) -> socket.socket:
    """The wire's end, which no process that user code starts inherits: it would keep the wire open after our end."""
    os.set_inheritable(number, False)
    return socket.socket(fileno=number)


def close_in_forks(wire: Wire) -> None:
    os.register_at_fork(after_in_child=wire.abandon)


def keep_standard_streams_apart() -> None:
    """What user code prints is the worker's log, which is stderr; what it reads is nothing."""
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def heed_signals(parent_died: Callable[[], None]) -> None:
    parent = os.getppid()

    def heed(*_: object) -> None:
        if os.getppid() != parent:
            parent_died()

    signal.signal(signal.SIGINT, heed)
    signal.signal(signal.SIGTERM, heed)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_within(seconds: float) -> None:
    """However stuck user code is, in the loop, a thread or at exit."""
    timer = threading.Timer(seconds, end_now)
    timer.daemon = True
    timer.start()


def end_now(code: int = 1) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
