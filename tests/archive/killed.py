"""An archiver that is killed at a step: `python -m tests.archive.killed redis-url archive-url folder turns`.

A step is anything that others may see, or that comes back to it: each statement and commit, each answer of Redis,
each file put in place; the kill comes before or after it. For each number on standard input a process is forked that
archives so many times and is killed (SIGKILL) at that step; its exit code is printed: 0 if it had fewer steps.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from broker.archive.database import Database
from broker.archive.heads import open_heads
from broker.archive.setup import HEADS_NAME
from broker.archive.signing import PRIVATE_NAME, load_signer
from broker.archive.writer import ArchiveWriter
from broker.log.stream_log import StreamLog
from worker.archiving import deeds
from worker.archiving.archiver import Archiver

RETENTION_S = 500.0


class Steps:
    def __init__(self, kill_at: int) -> None:
        self._left = kill_at
        self.count = False

    def one(self, *_: Any) -> None:
        if self.count:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(*args: Any, **named: Any) -> Any:
            self.one()
            answer = await call(*args, **named)
            self.one()
            return answer

        return counted


async def archive_once(redis_url: str, archive_url: str, folder: Path, turns: int, kill_at: int) -> None:
    steps = Steps(kill_at)
    for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
        sa.event.listen(sa.Engine, name, steps.one)
    AbstractConnection.read_response = steps.around(AbstractConnection.read_response)
    replace = Path.replace
    Path.replace = lambda *args: (steps.one(), replace(*args), steps.one())[1]  # type: ignore[method-assign]
    database = Database(archive_url)
    await database.prepared()
    redis = Redis.from_url(redis_url)
    log = StreamLog(redis, retention_s=RETENTION_S, is_archived=True)
    writer = ArchiveWriter(database, load_signer(folder / PRIVATE_NAME), open_heads(str(folder / HEADS_NAME)))
    steps.count = True
    archiver = Archiver(log, writer, after_s=0, retention_s=lambda _: None, settle_s=0)
    deeds.DEEDS_SETTLE_MS = -1000
    for _ in range(turns):
        await archiver.archive_once()


def main() -> None:
    redis_url, archive_url, folder, turns = sys.argv[1:]
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            asyncio.run(archive_once(redis_url, archive_url, Path(folder), int(turns), int(line)))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
