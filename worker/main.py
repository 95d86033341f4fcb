"""A worker process, put together: its provider, its worker, its signals, its end."""

from __future__ import annotations

import asyncio
import signal

from broker.process.parent import on_parents_end
from broker.settings import Settings
from worker.providers.choose import make_provider
from worker.worker import Worker


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
        on_parents_end(loop, worker.stop)
    try:
        await worker.run()
    finally:
        if standin:
            standin.close()
    return not worker.has_failed
