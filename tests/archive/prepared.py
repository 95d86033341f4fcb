"""An archive's schema is made, by a process that is killed (SIGKILL) at a step of it: `… url step`, 0 for none."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import sqlalchemy as sa

from broker.archive.database import Database

url, kill_at = sys.argv[1], int(sys.argv[2])
seen = 0


def count(*_: object) -> None:
    global seen
    seen += 1
    if seen == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)


sa.event.listen(sa.Engine, "before_cursor_execute", count)
sa.event.listen(sa.Engine, "commit", count)
asyncio.run(Database(url).prepared())
