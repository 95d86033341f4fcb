"""Dispatch: arq's queue hands streams to this worker, as far as it has room.

A job ends as soon as its stream is claimed, so arq's queue holds waiting work only, and nothing depends on arq knowing
what runs: if the worker dies, its leases expire. arq's loop ends when Redis is away for some seconds; it is started
again, and generations in flight do not notice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

import arq.worker
from arq.connections import ArqRedis

from broker.errors import LasteventError, LeaseHeld, StreamClosed, StreamNotFound
from broker.log.keys import Keys
from broker.log.queue import JOB, JOB_TIMEOUT_S, connect_queue
from broker.store.connect import Client
from broker.store.listen import messages
from broker.tenants.keyring import DEFAULT_TENANT

logger = logging.getLogger(__name__)

LOOK_S = 0.005
"""The least time between two looks of arq at its queue; many jobs take several looks."""

IDLE_LOOK_S = 0.5
"""Between two looks of an idle worker that nothing wakes: a notification may be lost."""

PICK_AT_ONCE = 4
"""Jobs claimed at a time. Who comes while arq works off what it has read waits for all of that, whoever's it is (it
would read 160). Beside 10,000 short generations of another tenant, on one core for all, a first text took 132 ms with
32 of them, 44 with 8. More would take up a burst no sooner: 60 starts at once have all their first texts after 0.8 s,
be it 4 or 32; claims take CPU, and a look costs little beside them."""

READ_AT_ONCE = 2 * PICK_AT_ONCE
"""The first of them may be in other workers' hands just now. (With 4 it took 28 ms, with 8 it takes 47.)"""

CLOSE_S = 5.0
"""How long jobs in hand may take to end when this worker stops."""


class Dispatcher(arq.worker.Worker):
    """arq's worker, which takes a job only while this process has room for a generation.

    arq compares `max_jobs` with its running jobs before each pick. A job lasts until its stream is claimed, and then
    counts as a running generation; so what is picked never exceeds the room.
    """

    def __init__(
        self, *args: Any, room: Callable[[], int], woken: asyncio.Event, has_looked: asyncio.Event, **kwargs: Any
    ) -> None:
        self._room = room
        self._woken = woken
        self._has_looked = has_looked
        super().__init__(*args, max_jobs=PICK_AT_ONCE, queue_read_limit=READ_AT_ONCE, poll_delay=LOOK_S, **kwargs)

    async def _poll_iteration(self) -> None:
        """Look at the queue; with no job in hand, wait until there may be one to find."""
        await super()._poll_iteration()
        self._has_looked.set()
        if not self.tasks:
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_LOOK_S):
                    await self._woken.wait()
        self._woken.clear()  # a notification from here on is followed by another look

    @property
    def max_jobs(self) -> int:
        return min(PICK_AT_ONCE, self._room())

    @max_jobs.setter
    def max_jobs(self, _: int) -> None:
        """arq sets it once; the room decides."""


class Dispatch:
    """`room()`: how many more streams of this queue may start here. `take(sid, tenant)` claims a stream and runs
    it, or parks it. `app`: whose queue it is; None: that of plain streams."""

    def __init__(
        self,
        redis_url: str,
        redis: Client,
        keys: Keys,
        *,
        room: Callable[[], int],
        take: Callable[[str, str], Awaitable[object]],
        app: str | None = None,
    ) -> None:
        self._redis_url = redis_url
        self._redis = redis
        self._keys = keys
        self._room = room
        self._take = take
        self._queue = keys.jobs_of(app)
        self._has_work = asyncio.Event()
        self._has_looked = asyncio.Event()
        self._is_listening = asyncio.Event()

    async def wait_until_taking(self) -> None:
        """Until what is queued from now on is taken at once."""
        await self._has_looked.wait()
        await self._is_listening.wait()

    def wake(self) -> None:
        """There may be a stream to take: look now."""
        self._has_work.set()

    async def run(self) -> None:
        """Take jobs for ever. Ends only by cancellation, or when arq has lost Redis."""
        queue = connect_queue(self._redis_url, self._keys)
        dispatcher = Dispatcher(
            [arq.worker.func(self._job, name=JOB, keep_result=0)],  # type: ignore[arg-type]  # a bound method will do
            queue_name=self._queue,
            redis_pool=queue,
            room=self._room,
            handle_signals=False,
            woken=self._has_work,
            has_looked=self._has_looked,
            job_timeout=JOB_TIMEOUT_S,
            job_serializer=queue.job_serializer,
            job_deserializer=queue.job_deserializer,
            log_results=False,
        )
        try:
            await dispatcher.async_run()
        finally:
            await _close(dispatcher, queue)

    async def listen(self) -> None:
        """Wake this worker when a stream is queued, for ever. Ends only by cancellation."""
        async with aclosing(messages(self._redis, self._keys.queued)) as queued:
            async for _ in queued:  # also at the subscription: a stream may have been queued before it
                self._is_listening.set()
                self._has_work.set()

    async def _job(self, _: dict[str, Any], sid: str, *, tenant: str = DEFAULT_TENANT) -> None:
        try:
            await self._take(sid, tenant)
        except (StreamNotFound, StreamClosed, LeaseHeld):
            pass  # delivered twice, cancelled before it began, or taken by a sweeper: all normal
        except LasteventError:
            logger.warning("stream %s: it cannot be claimed now; a sweeper will find it", sid)


async def _close(dispatcher: Dispatcher, queue: ArqRedis) -> None:
    # Jobs in hand last a claim, some ms. One cut off after its claim would leave a stream without an owner for a lease.
    if dispatcher.tasks:
        ended, _ = await asyncio.wait(list(dispatcher.tasks.values()), timeout=CLOSE_S)
        for task in ended:
            if not task.cancelled():
                task.exception()  # retrieved, or asyncio complains; what failed it also ended the loop, which is logged
    await queue.aclose(close_connection_pool=True)
