"""What a worker with an app does besides: it keeps the app's processes, tells servers of its agents, and runs their
streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from broker.errors import REDIS_AWAY, LasteventError, RedisUnavailable
from broker.log.agents import RENEWED_S, Agents
from broker.log.keys import Keys
from broker.log.steps import Claimed
from broker.log.stream_log import StreamLog
from broker.log.writer import StreamWriter
from broker.settings import Settings
from broker.store.connect import Client
from worker.agents.app import App
from worker.agents.attempt import Means
from worker.agents.inputs import Inputs
from worker.agents.run import AgentRun
from worker.execution import Execution
from worker.providers.chain import Breaker
from worker.providers.choose import Providers

logger = logging.getLogger(__name__)


class AgentWork:
    def __init__(
        self,
        app: App,
        log: StreamLog,
        redis: Client,
        keys: Keys,
        models: Providers,
        breaker: Breaker,
        settings: Settings,
    ) -> None:
        self.app = app
        self.is_announced = asyncio.Event()
        """Servers know the agents, or there is nothing that they could know: the app cannot be imported."""
        self._announced = Agents(redis, keys)
        self._inputs = Inputs(redis, keys)
        self._means = Means(app, log, redis, keys, self._inputs, models, breaker, settings)

    @property
    def keeping(self) -> Mapping[str, Callable[[], Awaitable[object]]]:
        """Loops that streams need until the last one has ended."""
        return {"app": self.app.run, "inputs": self._inputs.listen}

    def execution(self, claimed: Claimed, writer: StreamWriter) -> Execution:
        return AgentRun(claimed, writer, self._means)

    async def announce(self, wake: Callable[[], object]) -> None:
        """Whenever the app's processes come or go, and every RENEWED_S. Ends by cancellation.

        `wake`: there may be room for streams that had none.
        """
        woken = self.app.changes()
        try:
            await self.app.tried.wait()
            told: object = None
            while True:
                now = self.app.announced()
                if now != told or not woken.is_set():
                    await self._announce()
                    told = now
                self.is_announced.set()
                wake()
                woken.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(RENEWED_S):
                        await woken.wait()
        finally:
            self.app.forget_changes(woken)

    async def _announce(self) -> None:
        try:
            others = await self._announced.announce(self.app.announced())
        except RedisUnavailable:
            logger.warning("Redis is away; the agents were not announced", extra=REDIS_AWAY)
        except LasteventError as error:
            logger.warning("the agents were not announced: %s", error)
        else:
            for name, app in others.items():
                logger.error(
                    "the agent %s is in the app %s too: its streams go to whichever announced it last. Rename one.",
                    *(name, app),
                    extra={"lasting": f"agent {name}"},
                )
