"""Worker: claims streams, runs each in a task of its own, and keeps their leases.

In the order things happen:
  Dispatch takes a job while there is room → `take` finds a place for it (places.py) and claims the stream → a task runs
  the Generation, or of an agent the AgentRun → its StreamWriter → GroupCommit → the log. Beside them: the Heartbeat
  keeps the leases, the Sweeper takes over streams without a living owner, the Archiver moves ended streams into the
  archive.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from arq.connections import ArqRedis

from broker import gauges
from broker.archive.setup import open_writer
from broker.errors import (
    REDIS_AWAY,
    Draining,
    LasteventError,
    RedisUnavailable,
    StoreUnavailable,
    StreamClosed,
    StreamNotFound,
)
from broker.log.keys import Keys
from broker.log.meta import Meta, new_claim_id
from broker.log.models import RENEWED_S, Models
from broker.log.needs import Needs
from broker.log.queue import connect_queue, enqueue
from broker.log.seizures import Seizures
from broker.log.steps import Claimed
from broker.log.stream_log import StreamLog
from broker.log.writer import GroupCommit, StreamWriter
from broker.process.loops import Loops, watch_lag
from broker.settings import Settings
from broker.store.connect import connect
from broker.tenants.keyring import DEFAULT_TENANT
from broker.tenants.limits import Limits, TenantLimits
from worker.abandonment import Abandonment
from worker.archiving.archiver import Archiver
from worker.archiving.people import People
from worker.archiving.turn import Turn
from worker.courier import Courier
from worker.dispatch import Dispatch
from worker.execution import Execution
from worker.generation import Generation
from worker.heartbeat import Heartbeat
from worker.places import WorkersPlaces
from worker.providers.chain import Breaker
from worker.providers.choose import Providers
from worker.sending import Sender
from worker.sweeper import Sweeper
from worker.waiting import Waiting

if TYPE_CHECKING:
    from worker.agents.app import App
    from worker.agents.work import AgentWork

logger = logging.getLogger(__name__)

HAND_OVER_S = 5.0
"""How long a stopping worker hands its streams over. Those left are taken over when their leases expire."""


WAITING = 4
"""As many runs as may go on, times this, may wait for a person besides. They cost no time, but memory: more than that
count as going on."""


class Worker:
    """`app`: whose agents it runs, besides plain generations.

    Raises BadKey if there is an archive but no key to seal it with.
    """

    def __init__(self, settings: Settings, models: Providers, app: App | None = None) -> None:
        self._settings = settings
        self._models = models
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._keys = Keys(settings.key_prefix)
        self._redis = connect(settings.redis_url)
        self._needs = Needs(self._redis, self._keys)
        self._log = StreamLog(
            self._redis,
            self._keys,
            retention_s=settings.retention_s,
            max_events=settings.max_events,
            max_bytes=settings.max_bytes,
            is_archived=bool(settings.archive_url),
            has_webhooks=bool(settings.webhook_secrets),
        )
        self._commit = GroupCommit(self._log)
        self._breaker = Breaker(self._redis, self._keys)
        self._seizures = Seizures(self._log)
        self._running: dict[asyncio.Task[None], Execution] = {}
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._stopping = asyncio.Event()
        self.has_failed = False
        self._heartbeat = Heartbeat(self._log)
        self._abandonment = Abandonment(self._log, self._seizures)
        self._archive = open_writer(settings) if settings.archive_url else None
        self._agents = self._agent_work(app) if app else None
        self._waiting = Waiting(self._log, self._seizures, wait_s=settings.agent_wait_s, name=self._name)
        self._limits = TenantLimits(self._redis, self._keys.limits, Limits(streams_running=settings.streams_running))
        self._places = WorkersPlaces(
            self._redis,
            self._keys,
            self._limits,
            name=self._name,
            slots=settings.concurrency,
            waiting=self._waiting_for_a_person,
            is_observed=settings.limits == "observe",
        )
        self._courier = Courier(self._log, Sender(settings.webhooks_may_reach), settings.webhook_keys)
        self._sweeper = Sweeper(
            self._log,
            self._seizures,
            room=lambda: self.room() > 0,
            take=self._take_found,
            runs=self._runs,
            app=app.name if app else None,
            waiting=self._waiting,
            on_webhook=self._courier.wake,
        )
        self._dispatch = Dispatch(settings.redis_url, self._redis, self._keys, room=self.room, take=self.take)
        self._dispatches = [self._dispatch, *self._dispatch_of_agents()]

    def room(self) -> int:
        """How many more generations may start here."""
        if self._stopping.is_set() or not self._needs.are_met:
            return 0
        most, held = self._settings.concurrency, len(self._running)
        waiting = sum(execution.is_waiting for execution in self._running.values())
        return max(0, most - held + min(waiting, WAITING * most))

    def _waiting_for_a_person(self) -> set[str]:
        return {execution.writer.sid for execution in self._running.values() if execution.is_waiting}

    def _agent_work(self, app: App) -> AgentWork:
        from worker.agents.work import AgentWork  # a worker without an app loads nothing of it

        return AgentWork(app, self._log, self._redis, self._keys, self._models, self._breaker, self._settings)

    def _dispatch_of_agents(self) -> list[Dispatch]:
        if not self._agents:
            return []
        name = self._agents.app.name
        url, room, take = self._settings.redis_url, self._room_for_agents, self._take_of_app
        return [Dispatch(url, self._redis, self._keys, room=room, take=take, app=name)]

    def _runs(self, agent: str) -> bool:
        return self._agents is not None and self._agents.app.runs(agent)

    def _room_for_agents(self) -> int:
        """None while no process of the app could take a run: its streams wait in the queue, not under our pen."""
        return self.room() if self._agents and self._agents.app.is_ready else 0

    async def run(self) -> None:
        """Work until `stop`; then let running generations finish, for `worker_drain_s` at most."""
        keeping = {
            "pulse": self._commit.pulse.run,
            "group commit": self._commit.run,
            "heartbeat": self._heartbeat.run,
            "seizure listener": self._once_fit(lambda: self._heartbeat.listen(self._redis)),
            "seizures": self._seizures.run,
            "abandonment": self._abandonment.run,
            "needs": self._needs.run,
            "lag": watch_lag,
            "places": self._once_fit(self._places.run),
            "courier": self._once_fit(self._courier.run),
        }
        self._give_gauges()
        if self._archive:
            archiver = Archiver(
                self._log,
                self._archive,
                after_s=self._settings.archive_after_s,
                retention_s=self._settings.archive_retention,
                view_records=self._settings.view_records_per_stream,
                seizures=self._seizures,
            )
            keeping["archiver"] = archiver.run
        else:
            keeping["erasures"] = People(self._log, self._seizures, Turn(self._redis, self._keys.archiver)).run
        if self._agents:
            keeping.update(self._agents.keeping)
        keepers = Loops(keeping, self.fail)
        try:
            await self._models.warm_up()  # before anything is claimed: another worker may be warm
            await self._find_until_stopped()
            await self._finish_running()
            await self._hand_over()
        finally:
            await _end(list(self._running))
            await keepers.end()
            await self._places.stop()
            if self._agents:
                await self._agents.app.aclose()
            await self._models.aclose()
            await self._redis.aclose()
            if self._archive:
                await self._archive.database.aclose()

    def _give_gauges(self) -> None:
        gauges.generations_running.source = lambda: len(self._running)
        gauges.writer_bytes.source = lambda: self._commit.unconfirmed_bytes
        gauges.lease_margin_seconds.source = self._heartbeat.margin_s
        gauges.webhooks_pending.source = lambda: self._courier.waiting
        gauges.runs_overdue.source = self._waiting.overdue

    async def _find_until_stopped(self) -> None:
        finding = {
            "sweeper": self._once_fit(self._sweeper.run),
            "dispatch": self._once_fit(self._dispatch.run),
            "queue listener": self._once_fit(self._dispatch.listen),
            "models": self._once_fit(self._announce_models),
        }
        if self._agents:
            agents, [dispatch] = self._agents, self._dispatches[1:]
            finding |= {
                "agents' dispatch": self._once_fit(dispatch.run),
                "agents' queue listener": self._once_fit(dispatch.listen),
                "agents": self._once_fit(lambda: agents.announce(dispatch.wake)),
            }
        finders = Loops(finding, self.fail)
        try:
            await self._stopping.wait()
        finally:
            await finders.end()

    async def _announce_models(self) -> None:
        """Make the other providers ready, and tell servers, which have no keys, what there is. Ends by cancellation."""
        announcing = Models(self._redis, self._keys)
        await self._models.warm_prices()
        await self._announce(announcing)  # not after SDKs of seconds: a provider that no server knows is refused
        await self._models.warm_the_rest()
        while True:
            await self._announce(announcing)
            await asyncio.sleep(RENEWED_S)

    async def _announce(self, announcing: Models) -> None:
        providers, aliases = await asyncio.to_thread(self._models.announced)
        try:
            await announcing.announce(providers, aliases, self._settings.default_model)
        except RedisUnavailable:
            logger.warning("Redis is away; the models were not announced", extra=REDIS_AWAY)
        except LasteventError as error:
            logger.warning("the models were not announced: %s", error)

    def _once_fit(self, run: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
        """A loop that looks for work, and does not begin before Redis has what the work needs."""

        async def once_fit() -> None:
            await self._needs.met()
            try:
                await run()
            except Exception as error:
                self._redis.meaning(error)  # arq's own connections do not say what was refused
                raise

        return once_fit

    async def wait_until_taking(self) -> None:
        """Until a generation that is asked for now would start here at once."""
        await self._heartbeat.is_listening.wait()
        await self._dispatch.wait_until_taking()
        if self._agents:
            await self._agents.is_announced.wait()

    async def require_taking(self) -> None:
        """A generation that is asked for now would start here. Raises Draining or RedisUnavailable."""
        if self._stopping.is_set():
            raise Draining("This worker is stopping.")
        await self._needs.require()
        try:
            async with asyncio.timeout(0):
                await self.wait_until_taking()
        except TimeoutError:
            raise RedisUnavailable("This worker does not take generations yet.") from None

    def stop(self) -> None:
        self._stopping.set()

    def fail(self) -> None:
        self.has_failed = True
        self.stop()

    async def take(
        self,
        sid: str,
        tenant: str = DEFAULT_TENANT,
        app: str | None = None,
        *,
        is_owed: bool = False,
        reason: str = "handed_over",
    ) -> None:
        """Claim a stream and run it in a task of its own; or park it, if its tenant has as many as it may have. Raises
        StreamNotFound, StreamClosed, LeaseHeld, LogHealing or RedisUnavailable.

        `is_owed`: a takeover. It is accepted even when this worker is full, or the tenant: it holds the lease, says so,
        and waits for a slot. `reason`: of a takeover, as it is counted.
        """
        await self._needs.require()
        is_here = self._places.holds(sid)
        if not await self._places.take(sid, tenant, app, is_owed=is_owed):
            return
        try:
            await self._run_in_place(sid, tenant, app, reason)
        except (StreamClosed, StreamNotFound):
            if not is_here:
                self._places.give_back(sid)
            raise
        except BaseException:  # whatever it is: a place that is kept here for nobody is renewed for ever
            if not is_here:  # another worker holds the lease and the place; or it will be tried again
                self._places.leave(sid)
            raise

    async def _run_in_place(self, sid: str, tenant: str, app: str | None, reason: str) -> None:
        claimed = await self._claim(sid)
        if claimed.meta.tenant != tenant:  # an older release has queued it, and named none
            await self._places.take(sid, claimed.meta.tenant, app, is_owed=True)
        if claimed.meta.agent is not None and not self._runs(claimed.meta.agent):
            self._places.give_back(sid)
            await self._give_back(claimed)
            return
        generation = self._execution(claimed, self._writer(claimed))
        _count(claimed, reason)
        task = asyncio.create_task(generation.run(self._slots), name=f"generation {sid}")
        self._running[task] = generation
        self._heartbeat.keep(generation.writer)
        self._abandonment.begin(claimed)
        task.add_done_callback(self._ended)

    async def _take_found(self, sid: str, meta: Meta) -> None:
        """What the sweeper has found: nobody's, and in no queue."""
        app = self._agents.app.name if self._agents and meta.agent is not None else None
        await self.take(sid, meta.tenant, app, is_owed=meta.state == "running", reason="lease_expired")

    async def _take_of_app(self, sid: str, tenant: str) -> None:
        """A worker of another release of the app has queued it, perhaps, and this one's has no such agent."""
        [meta] = await self._log.read_fields(["agent"], sid)
        if meta and meta.agent is not None and not self._runs(meta.agent):
            logger.info(
                "stream %s: this worker has no agent %s; a sweeper of one that has will find it", sid, meta.agent
            )
        else:
            await self.take(sid, tenant, self._agents.app.name if self._agents else None)

    async def _give_back(self, claimed: Claimed) -> None:
        """It came by the wrong queue, or the app's last process has ended since: the sweepers find it."""
        logger.warning(
            "stream %s: this worker cannot run the agent %s now; it waits for another", claimed.sid, claimed.meta.agent
        )
        await self._log.release(claimed.sid, claimed.pen, unbegun=True)

    def _execution(self, claimed: Claimed, writer: StreamWriter) -> Execution:
        if self._agents and claimed.meta.agent is not None:
            return self._agents.execution(claimed, writer)
        return Generation(claimed, writer, self._models, self._breaker)

    def _writer(self, claimed: Claimed) -> StreamWriter:
        if not claimed.meta.sentences:
            return StreamWriter(self._commit, claimed)
        from worker.speaking import SpeakingWriter  # the way of few streams

        return SpeakingWriter(self._commit, claimed)

    async def _claim(self, sid: str) -> Claimed:
        claim_id = new_claim_id()
        try:
            return await self._log.claim(sid, claim_id, self._name)
        except RedisUnavailable:
            # Perhaps only the reply was lost: the same claim, repeated, returns the same pen. Otherwise the stream
            # would wait for its lease to expire, and its viewers would see a needless restart.
            return await self._log.claim(sid, claim_id, self._name)

    def _ended(self, task: asyncio.Task[None]) -> None:
        generation = self._running.pop(task)
        for dispatch in self._dispatches:
            dispatch.wake()  # there is room for it
        self._abandonment.end(generation.writer.sid)
        if task.cancelled():
            self._heartbeat.forget(generation.writer)
            self._places.leave(generation.writer.sid)
        elif error := task.exception():
            self._heartbeat.forget(generation.writer)
            self._places.leave(generation.writer.sid)
            logger.error(
                "stream %s: its generation stopped without an ending; it restarts when its lease expires",
                generation.writer.sid,
                exc_info=error,
            )
        else:
            self._places.give_back(generation.writer.sid)

    async def _finish_running(self) -> None:
        if self._running and not self.has_failed:
            await asyncio.wait(list(self._running), timeout=self._settings.worker_drain_s)

    async def _hand_over(self) -> None:
        """Unfinished generations go to another worker now, not when their leases expire."""
        generations = list(self._running.values())
        if not generations:
            return
        await _end(list(self._running))  # and with them their connections to the provider
        queue = connect_queue(self._settings.redis_url, self._keys)
        try:
            async with asyncio.timeout(HAND_OVER_S):
                await asyncio.gather(*(self._hand_one_over(generation, queue) for generation in generations))
        except (TimeoutError, StoreUnavailable):
            logger.warning("not every stream could be handed over; the rest is taken over when the leases expire")
        finally:
            await queue.aclose(close_connection_pool=True)

    def _app_of(self, generation: Execution) -> str | None:
        return None if isinstance(generation, Generation) or not self._agents else self._agents.app.name

    async def _hand_one_over(self, generation: Execution, queue: ArqRedis) -> None:
        try:
            if await generation.hand_over():
                tenant = generation.tenant
                weight = (await self._limits.of(tenant)).weight or 1
                sid, app = generation.writer.sid, self._app_of(generation)
                await enqueue(queue, self._keys, sid, app, tenant=tenant, weight=weight, has_turn=True)
        except StoreUnavailable:
            raise
        except LasteventError as lost:
            logger.info("stream %s: not handed over (%s)", generation.writer.sid, lost.code)


def _count(claimed: Claimed, reason: str) -> None:
    if claimed.attempt > 1:
        gauges.takeovers.labels(reason).inc()
    elif started_ms := claimed.meta.started:
        gauges.queue_wait_seconds.observe((started_ms - claimed.meta.created) / 1000)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
