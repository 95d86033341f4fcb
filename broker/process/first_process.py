"""The first process of a container. The kernel drops a signal that it has no handler for, also SIGTERM, whose default
would end any other process: `docker stop` while we are still importing would wait for its time limit, and kill.
"""

from __future__ import annotations

import os
import signal
import sys

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def heed_signals() -> None:
    """End at SIGTERM from here on. Each command sets handlers of its own later."""
    if os.getpid() == 1:
        for signum in SIGNALS:
            signal.signal(signum, lambda number, _: sys.exit(128 + number))
