"""A worker process, put together: its provider, its worker, its signals, its end."""

from __future__ import annotations

import asyncio
import signal
import sys

from broker.settings import Settings
from worker.providers.choose import make_provider
from worker.worker import Worker


def _parent_went(worker: Worker) -> None:
    asyncio.get_running_loop().remove_reader(sys.stdin.fileno())  # it never writes: readable means closed
    worker.stop()


async def work(settings: Settings, *, parent_pipe: bool = False) -> bool:
    """Run a worker until SIGTERM or SIGINT. With `parent_pipe`, also until standard input ends: its parent is gone.

    False if it had to end since a part of it died.
    """
    provider, standin = make_provider(settings)
    worker = Worker(settings, provider)
    loop = asyncio.get_running_loop()
    if standin:
        standin.on_death = lambda: loop.call_soon_threadsafe(worker.fail)
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, worker.stop)
    if parent_pipe:
        loop.add_reader(sys.stdin.fileno(), _parent_went, worker)
    try:
        await worker.run()
    finally:
        if standin:
            standin.close()
    return not worker.has_failed
