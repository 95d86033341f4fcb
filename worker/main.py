"""A worker process: arq hands it streams, leases say that it has them, tasks of its own run them.

Wiring, in the order things happen:
  arq's queue → Dispatcher takes a job while there is room → Worker.take claims the stream → a task runs the
  Generation → its StreamWriter → GroupCommit → the log. Beside them: the Heartbeat keeps the leases, the Sweeper
  takes what nobody has.

A job ends as soon as its stream is claimed, so arq's queue holds waiting work only, and nothing depends on arq
knowing what runs: if the worker dies, its leases run out. arq's loop ends when Redis is away for some seconds;
it is started again, and generations in flight do not notice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import arq.worker
from arq.connections import ArqRedis

from broker.connect import JOB, connect, connect_queue
from broker.errors import LasteventError, LeaseHeld, LogHealing, RedisUnavailable, StreamClosed, StreamNotFound
from broker.keys import Keys
from broker.log import Claimed, StreamLog, new_claim_id
from broker.settings import Settings
from broker.supervise import for_ever
from broker.writer import GroupCommit, StreamWriter
from worker.generation import Generation
from worker.lease import Heartbeat, Sweeper
from worker.providers import Provider
from worker.providers.anthropic import AnthropicProvider
from worker.standin import StandIn, start_in_thread

logger = logging.getLogger(__name__)

POLL_S = 0.02
"""arq polls for jobs: 0.02 s finds one after 14 ms at the median (its default, 0.5 s: 262 ms); 48 idle commands/s."""

PICK_AT_ONCE = 32
"""Jobs being claimed at a time: a burst of requests must not be picked up one a poll."""

JOB_TIMEOUT_S = 60
CLOSE_S = 5.0


class Dispatcher(arq.worker.Worker):
    """arq's worker, which takes a job only while this process has room for a generation.

    arq compares `max_jobs` with its running jobs before each pick. A job lasts until its stream is claimed, and then
    counts as a running generation; so what is picked never exceeds the room.
    """

    def __init__(self, *args: Any, room: Callable[[], int], **kwargs: Any) -> None:
        self._room = room
        super().__init__(*args, max_jobs=PICK_AT_ONCE, **kwargs)

    @property
    def max_jobs(self) -> int:
        return min(PICK_AT_ONCE, self._room())

    @max_jobs.setter
    def max_jobs(self, _: int) -> None:
        """arq sets it once; the room decides."""


class Worker:
    def __init__(self, settings: Settings, provider: Provider) -> None:
        self._settings = settings
        self._provider = provider
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._keys = Keys(settings.key_prefix)
        self._redis = connect(settings.redis_url)
        self._log = StreamLog(
            self._redis,
            self._keys,
            retention_s=settings.retention_s,
            max_events=settings.max_events,
            max_bytes=settings.max_bytes,
        )
        self._commit = GroupCommit(self._log)
        self._running: dict[asyncio.Task[None], StreamWriter] = {}
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._stopping = asyncio.Event()
        self._heartbeat = Heartbeat(self._log, self._running.values())
        self._sweeper = Sweeper(self._log, room=lambda: self.room() > 0, take=self.take)

    def room(self) -> int:
        """How many more generations may start here."""
        return 0 if self._stopping.is_set() else max(0, self._settings.concurrency - len(self._running))

    async def run(self) -> None:
        """Work until `stop`; then let what runs finish, for `worker_drain_s` at most."""
        keeping = [
            asyncio.create_task(for_ever("group commit", self._commit.run)),
            asyncio.create_task(for_ever("heartbeat", self._heartbeat.run)),
        ]
        finding = [
            asyncio.create_task(for_ever("sweeper", self._sweeper.run)),
            asyncio.create_task(for_ever("dispatch", self._dispatch)),
        ]
        try:
            await self._stopping.wait()
            await _end(finding)
            await self._finish_running()
        finally:
            await _end([*finding, *self._running])
            await _end(keeping)
            await self._provider.aclose()
            await self._redis.aclose()

    def stop(self) -> None:
        self._stopping.set()

    async def take(self, sid: str) -> None:
        """Claim a stream and run it in a task of its own. Raises StreamNotFound, StreamClosed, LeaseHeld, LogHealing.

        A takeover is taken also when this worker is full: it holds the lease, tells the viewers, and waits its turn.
        """
        claimed = await self._claim(sid)
        writer = StreamWriter(self._commit, claimed)
        generation = Generation(claimed, writer, self._provider)
        task = asyncio.create_task(generation.run(self._slots), name=f"generation {sid}")
        self._running[task] = writer
        task.add_done_callback(self._ended)

    async def _claim(self, sid: str) -> Claimed:
        claim_id = new_claim_id()
        try:
            return await self._log.claim(sid, claim_id, self._name)
        except LogHealing:
            raise
        except RedisUnavailable:
            # Perhaps only the reply was lost: the same claim again is answered with the same pen. Without it the
            # stream would wait for its lease to run out, and its viewers would see a restart for nothing.
            return await self._log.claim(sid, claim_id, self._name)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if not task.cancelled() and (error := task.exception()):
            logger.error("a generation ended without its ending", exc_info=error)

    async def _finish_running(self) -> None:
        if self._running:
            await asyncio.wait(list(self._running), timeout=self._settings.worker_drain_s)

    async def _dispatch(self) -> None:
        queue = connect_queue(self._settings.redis_url, self._keys)
        dispatcher = Dispatcher(
            [arq.worker.func(self._job, name=JOB, keep_result=0)],  # type: ignore[arg-type]  # a bound method will do
            queue_name=self._keys.jobs,
            redis_pool=queue,
            room=self.room,
            handle_signals=False,
            poll_delay=POLL_S,
            job_timeout=JOB_TIMEOUT_S,
            job_serializer=queue.job_serializer,
            job_deserializer=queue.job_deserializer,
            log_results=False,
        )
        try:
            await dispatcher.async_run()
        finally:
            await _close(dispatcher, queue)

    async def _job(self, _: dict[str, Any], sid: str) -> None:
        try:
            await self.take(sid)
        except (StreamNotFound, StreamClosed, LeaseHeld):
            pass  # delivered twice, cancelled before it began, or taken by a sweeper: all normal
        except LasteventError:
            logger.warning("stream %s could not be claimed now; a sweeper will find it", sid)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _close(dispatcher: Dispatcher, queue: ArqRedis) -> None:
    # Jobs in hand last a claim, some ms. One cut off after its claim would leave a stream without an owner for a lease.
    if dispatcher.tasks:
        await asyncio.wait(list(dispatcher.tasks.values()), timeout=CLOSE_S)
    await queue.aclose(close_connection_pool=True)


def make_provider(settings: Settings) -> tuple[Provider, StandIn | None]:
    """The anthropic SDK, against the real API, or (no key and no base URL) against the stand-in."""
    standin = None if _has_api() else start_in_thread()
    provider = AnthropicProvider(
        api_key="stand-in" if standin else None,
        base_url=standin.base_url if standin else None,
        silence_s=settings.provider_silence_s,
    )
    return provider, standin


def _has_api() -> bool:
    return bool(os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("ANTHROPIC_BASE_URL"))


def _parent_went(worker: Worker) -> None:
    asyncio.get_running_loop().remove_reader(sys.stdin.fileno())  # it never writes: readable means closed
    worker.stop()


async def work(settings: Settings, *, parent_pipe: bool = False) -> None:
    """Run a worker until SIGTERM or SIGINT. With `parent_pipe`, also until standard input ends: its parent is gone."""
    provider, standin = make_provider(settings)
    worker = Worker(settings, provider)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, worker.stop)
    if parent_pipe:
        loop.add_reader(sys.stdin.fileno(), _parent_went, worker)
    try:
        await worker.run()
    finally:
        if standin:
            standin.close()
