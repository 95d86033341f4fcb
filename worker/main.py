"""A worker process: arq hands it streams, leases say that it has them, tasks of its own run them.

Wiring, in the order things happen:
  arq's queue → Dispatcher takes a job while there is room → Worker.take claims the stream → a task runs the
  Generation → its StreamWriter → GroupCommit → the log. Beside them: the Heartbeat keeps the leases, the Sweeper
  takes what nobody has, the Archiver moves what has ended into the archive.

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
from contextlib import suppress
from typing import Any

import arq.worker
from arq.connections import ArqRedis

from broker.archive.setup import open_writer
from broker.errors import (
    LasteventError,
    LeaseHeld,
    RedisUnavailable,
    StoreUnavailable,
    StreamClosed,
    StreamNotFound,
)
from broker.log.keys import Keys
from broker.log.meta import new_claim_id
from broker.log.queue import JOB, connect_queue, enqueue
from broker.log.seizures import Seizures
from broker.log.steps import Claimed
from broker.log.stream_log import StreamLog
from broker.log.writer import GroupCommit, StreamWriter
from broker.process.loops import Loops
from broker.settings import Settings
from broker.store.connect import connect
from broker.store.errors import translating_redis_errors as from_redis
from worker.abandonment import Abandonment
from worker.archiving.archiver import Archiver
from worker.generation import Generation
from worker.providers import Provider
from worker.providers.anthropic import AnthropicProvider
from worker.standin.server import StandIn
from worker.sweeper import Heartbeat, Sweeper

logger = logging.getLogger(__name__)

LOOK_S = 0.005
"""Between two looks of arq at its queue, at least; many jobs take several."""

IDLE_LOOK_S = 0.5
"""Between two looks of a worker that has nothing to take up and that nobody wakes: a published word may be lost."""

PICK_AT_ONCE = 32
"""Jobs being claimed at a time: a burst of requests must not be picked up one a poll."""

JOB_TIMEOUT_S = 60

HAND_OVER_S = 5.0
"""A worker that leaves gives its streams this long: what is left of them goes on when their leases have run out."""

LISTEN_S = 2.0
"""How long the subscription is listened to at a time."""

CLOSE_S = 5.0


class Dispatcher(arq.worker.Worker):
    """arq's worker, which takes a job only while this process has room for a generation.

    arq compares `max_jobs` with its running jobs before each pick. A job lasts until its stream is claimed, and then
    counts as a running generation; so what is picked never exceeds the room.
    """

    def __init__(self, *args: Any, room: Callable[[], int], woken: asyncio.Event, **kwargs: Any) -> None:
        self._room = room
        self._woken = woken
        super().__init__(*args, max_jobs=PICK_AT_ONCE, poll_delay=LOOK_S, **kwargs)

    async def _poll_iteration(self) -> None:
        """A look at the queue; with nothing in hand, the next one is when there may be something to find."""
        await super()._poll_iteration()
        if not self.tasks:
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_LOOK_S):
                    await self._woken.wait()
        self._woken.clear()  # a word that comes from here on has a look after it

    @property
    def max_jobs(self) -> int:
        return min(PICK_AT_ONCE, self._room())

    @max_jobs.setter
    def max_jobs(self, _: int) -> None:
        """arq sets it once; the room decides."""


class Worker:
    """Raises BadKey if there is an archive, and no key to seal it with."""

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
            is_archived=bool(settings.archive_url),
        )
        self._commit = GroupCommit(self._log)
        self._seizures = Seizures(self._log)
        self._running: dict[asyncio.Task[None], Generation] = {}
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._stopping = asyncio.Event()
        self._has_work = asyncio.Event()
        self.has_failed = False
        self._heartbeat = Heartbeat(self._log)
        self._abandonment = Abandonment(self._log, self._seizures)
        self._archive = open_writer(settings) if settings.archive_url else None
        self._sweeper = Sweeper(self._log, self._seizures, room=lambda: self.room() > 0, take=self.take)

    def room(self) -> int:
        """How many more generations may start here."""
        return 0 if self._stopping.is_set() else max(0, self._settings.concurrency - len(self._running))

    async def run(self) -> None:
        """Work until `stop`; then let what runs finish, for `worker_drain_s` at most."""
        keeping = {
            "pulse": self._commit.pulse.run,
            "group commit": self._commit.run,
            "heartbeat": self._heartbeat.run,
            "seizure listener": self._heartbeat.listen,
            "seizures": self._seizures.run,
            "abandonment": self._abandonment.run,
        }
        if self._archive:
            archiver = Archiver(
                self._log,
                self._archive,
                after_s=self._settings.archive_after_s,
                retention_s=self._settings.archive_retention,
            )
            keeping["archiver"] = archiver.run
        finding = {"sweeper": self._sweeper.run, "dispatch": self._dispatch, "queue listener": self._listen_for_work}
        keepers, finders = Loops(keeping, self.fail), Loops(finding, self.fail)
        try:
            await self._stopping.wait()
            await finders.end()
            await self._finish_running()
            await self._hand_over()
        finally:
            await finders.end()
            await _end(list(self._running))
            await keepers.end()
            await self._provider.aclose()
            await self._redis.aclose()
            if self._archive:
                await self._archive.database.aclose()

    def stop(self) -> None:
        self._stopping.set()

    def fail(self) -> None:
        self.has_failed = True
        self.stop()

    async def take(self, sid: str) -> None:
        """Claim a stream and run it in a task of its own. Raises StreamNotFound, StreamClosed, LeaseHeld, LogHealing.

        A takeover is taken also when this worker is full: it holds the lease, tells the viewers, and waits its turn.
        """
        claimed = await self._claim(sid)
        generation = Generation(claimed, StreamWriter(self._commit, claimed), self._provider)
        task = asyncio.create_task(generation.run(self._slots), name=f"generation {sid}")
        self._running[task] = generation
        self._heartbeat.keep(generation.writer)
        self._abandonment.begin(claimed)
        task.add_done_callback(self._ended)

    async def _claim(self, sid: str) -> Claimed:
        claim_id = new_claim_id()
        try:
            return await self._log.claim(sid, claim_id, self._name)
        except RedisUnavailable:
            # Perhaps only the reply was lost: the same claim again is answered with the same pen. Without it the
            # stream would wait for its lease to run out, and its viewers would see a restart for nothing.
            return await self._log.claim(sid, claim_id, self._name)

    def _ended(self, task: asyncio.Task[None]) -> None:
        generation = self._running.pop(task)
        self._has_work.set()  # there is room for it
        self._abandonment.end(generation.writer.sid)
        if task.cancelled():
            self._heartbeat.forget(generation.writer)
        elif error := task.exception():
            self._heartbeat.forget(generation.writer)
            logger.error("a generation ended without its ending; it is begun again", exc_info=error)

    async def _finish_running(self) -> None:
        if self._running and not self.has_failed:
            await asyncio.wait(list(self._running), timeout=self._settings.worker_drain_s)

    async def _hand_over(self) -> None:
        """What has not finished goes to another worker now, not when its lease runs out."""
        generations = list(self._running.values())
        if not generations:
            return
        await _end(list(self._running))  # and with them their connections to the provider
        queue = connect_queue(self._settings.redis_url, self._keys)
        try:
            async with asyncio.timeout(HAND_OVER_S):
                await asyncio.gather(*(self._hand_one_over(generation, queue) for generation in generations))
        except (TimeoutError, StoreUnavailable):
            logger.warning("not every stream could be handed over; their leases run out")
        finally:
            await queue.aclose(close_connection_pool=True)

    async def _hand_one_over(self, generation: Generation, queue: ArqRedis) -> None:
        try:
            if await generation.hand_over():
                with from_redis():
                    await enqueue(queue, self._keys, generation.writer.sid)
        except StoreUnavailable:
            raise
        except LasteventError as lost:
            logger.info("stream %s: not handed over (%s)", generation.writer.sid, lost.code)

    async def _dispatch(self) -> None:
        queue = connect_queue(self._settings.redis_url, self._keys)
        dispatcher = Dispatcher(
            [arq.worker.func(self._job, name=JOB, keep_result=0)],  # type: ignore[arg-type]  # a bound method will do
            queue_name=self._keys.jobs,
            redis_pool=queue,
            room=self.room,
            handle_signals=False,
            woken=self._has_work,
            job_timeout=JOB_TIMEOUT_S,
            job_serializer=queue.job_serializer,
            job_deserializer=queue.job_deserializer,
            log_results=False,
        )
        try:
            await dispatcher.async_run()
        finally:
            await _close(dispatcher, queue)

    async def _listen_for_work(self) -> None:
        """Wake the dispatcher when a stream is queued."""
        async with self._redis.pubsub() as queued:
            await queued.subscribe(self._keys.queued)
            while True:
                if await queued.get_message(timeout=LISTEN_S):  # what was queued before the subscription counts too
                    self._has_work.set()

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
        ended, _ = await asyncio.wait(list(dispatcher.tasks.values()), timeout=CLOSE_S)
        for task in ended:
            if not task.cancelled():
                task.exception()  # looked at, or asyncio complains: what failed them has ended the loop, which is said
    await queue.aclose(close_connection_pool=True)


def make_provider(settings: Settings) -> tuple[Provider, StandIn | None]:
    """The anthropic SDK, against the real API, or (no key and no base URL) against the stand-in."""
    standin = None if _has_api() else StandIn()
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
