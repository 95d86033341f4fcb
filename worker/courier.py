"""The courier: every worker has one, which delivers webhooks. At least once; the races are in broker/log/hooks.py.

In order: look at what is due in le:webhooks → begin an attempt, which no other worker then does → Redis has that, and
with it the ending, on its disk → send (sending.py) → a deed for the audit → settle, with the time of the next attempt.
A worker that dies on the way has its attempts begun again by another one, HOLD_S after it began them.

2xx is delivered. 410 stops: the receiver wants no more of it. All else is tried again, AFTER_S later, or when the
receiver's Retry-After says, whichever is later.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from broker import gauges
from broker.errors import REDIS_AWAY, StoreUnavailable
from broker.log.deeds import WEBHOOK_SENT, Deed, Deeds
from broker.log.event import OURSELVES
from broker.log.hooks import DELIVERED, FAILED, PAGE, PENDING, STOPPED, Attempt, Due
from broker.log.stream_log import StreamLog
from broker.store.durable import Kept, write_durably
from worker.sending import Answer, Sender

logger = logging.getLogger(__name__)

LOOK_S = 1.0

AFTER_S = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Between one attempt and the next: 5 s, 5 min, 30 min, 2, 5, 10, 14, 20, 24 h. Ten attempts in 3.2 days."""

SPREAD = 0.2
"""Each is up to so much shorter or longer: what failed together does not come back together."""

LONGEST_RETRY_AFTER_S = 86_400.0

AT_ONCE = 32
OF_A_HOST = 8
"""A receiver that lets everybody wait for 10 s takes no more places than this."""

OF_A_TENANT = 16
"""Nor does whoever names it, by as many names as they like, take more than this."""

MOST_PAGES = 4
"""Of those that are due, looked through at a time for those that have a place. The next look goes on from there."""

GONE = 410


class Courier:
    """`keys`: tenant → what signs its webhooks. `look_s`, `after_s`: other times."""

    def __init__(
        self,
        log: StreamLog,
        sender: Sender,
        keys: Callable[[str], Sequence[bytes]],
        *,
        look_s: float = LOOK_S,
        after_s: Sequence[float] = AFTER_S,
    ) -> None:
        self._log = log
        self._hooks = log.hooks
        self._sender = sender
        self._keys = keys
        self._look_s = look_s
        self._after_s = after_s
        self._deeds = Deeds(log.redis, log.keys, retention_s=log.retention_s, is_archived=log.is_archived)
        self._writing = asyncio.Lock()
        self._under_way: dict[asyncio.Task[None], Due] = {}
        self._page = 0
        self._woken = asyncio.Event()
        self.waiting: int | None = None
        """How many webhooks are pending; None: not known now."""

    def wake(self) -> None:
        """Something is due now."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver for ever. Ends only by cancellation; what is under way ends with it, and is begun again elsewhere."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._look_s):
                        await self._woken.wait()
                self._woken.clear()
                try:
                    await self.look()
                except StoreUnavailable:
                    self.waiting = None
                    logger.warning("Redis is away; webhooks wait", extra=REDIS_AWAY)
                    await asyncio.sleep(self._look_s)
        finally:
            for task in list(self._under_way):
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    async def look(self) -> None:
        """Begin what is due, as far as there are places. Raises StoreUnavailable."""
        begun = [attempt for sid in await self._due() if (attempt := await self._hooks.begin(sid))]
        self.waiting = await self._hooks.waiting()
        if not begun:
            return
        if not await self._is_kept(begun):
            for attempt in begun:  # or the next one would not ask for the disk
                await self._hooks.give_back(attempt)
            return
        for attempt in begun:
            task = asyncio.create_task(self._deliver(attempt), name=f"webhook of {attempt.sid}")
            self._under_way[task] = Due(attempt.sid, attempt.url, attempt.tenant)
            task.add_done_callback(self._ended)

    async def delivered(self) -> None:
        """Until nothing is under way here."""
        while self._under_way:
            await asyncio.wait(list(self._under_way))

    async def _due(self) -> list[str]:
        """Streams, the longest due first."""
        now_ms = await self._log.now_ms()
        under_way = {due.sid for due in self._under_way.values()}
        hosts = Counter(_host(due.url) for due in self._under_way.values())
        tenants = Counter(due.tenant for due in self._under_way.values())
        chosen: list[str] = []
        first, self._page = self._page, 0
        for page in range(first, first + MOST_PAGES):
            found = await self._hooks.due(now_ms, page * PAGE)
            for sid, url, tenant in found:
                if len(chosen) + len(under_way) >= AT_ONCE:
                    return chosen
                host = _host(url)
                is_erased = not url  # `begin` takes it away
                if sid not in under_way and (is_erased or (hosts[host] < OF_A_HOST and tenants[tenant] < OF_A_TENANT)):
                    hosts[host] += 1
                    tenants[tenant] += 1
                    chosen.append(sid)
            if len(found) < PAGE:
                return chosen
        self._page = first + MOST_PAGES  # behind so many that wait for a place there may be others
        return chosen

    async def _is_kept(self, begun: Sequence[Attempt]) -> bool:
        """Whether what a receiver will be told is on Redis' disk: it must not come undone once somebody acts on it."""
        command = self._hooks.held(begun)
        if all(attempt.number > 1 for attempt in begun):
            await self._log.redis.execute_command(*command)  # type: ignore[no-untyped-call]
            return True
        async with self._log.redis.pipeline(transaction=False) as pipe:
            pipe.execute_command(*command)
            kept = await write_durably(pipe)
        if kept is Kept.LATE:
            logger.warning("webhooks wait: %s", kept.value, extra={"lasting": "webhooks wait for Redis' disk"})
        return kept is not Kept.LATE

    async def _deliver(self, attempt: Attempt) -> None:
        keys = self._keys(attempt.tenant)
        if keys:
            answer = await self._sender.send(attempt.sid, attempt.url, keys, attempt.body)
        else:
            answer = Answer(error="no_secret")
            logger.warning(
                "stream %s: LASTEVENT_WEBHOOK_SECRETS has nothing that signs its webhook; set it for workers too",
                attempt.sid,
            )
        left_ms = await self._hooks.left_ms(attempt.sid)
        if left_ms <= 0:  # erased meanwhile
            return
        state, next_ms = await self._outcome(attempt, answer, left_ms)
        await self._note(attempt, answer, state)
        if await self._hooks.settle(attempt, state, answer.status, next_ms):
            _say(attempt, answer, state)

    async def _outcome(self, attempt: Attempt, answer: Answer, left_ms: int) -> tuple[str, int | None]:
        """The state, and of one that stays pending when it is tried again."""
        if answer.is_delivered:
            return DELIVERED, None
        if answer.status == GONE:
            return STOPPED, None
        if attempt.number > len(self._after_s):
            return FAILED, None
        asked_s = min(answer.retry_after_s or 0.0, LONGEST_RETRY_AFTER_S)
        after_s = self._after_s[attempt.number - 1] * random.uniform(1 - SPREAD, 1 + SPREAD)
        wait_ms = round(max(after_s, asked_s) * 1000)
        if wait_ms >= left_ms:  # it would be gone by then, and nobody would say so
            return FAILED, None
        return PENDING, await self._log.now_ms() + wait_ms

    async def _note(self, attempt: Attempt, answer: Answer, state: str) -> None:
        """Before it is settled: an attempt of which a killed worker says nothing is followed by another, that does."""
        detail: dict[str, Any] = {"attempt": attempt.number, "host": _host(attempt.url), "state": state}
        detail |= {"status": answer.status} if answer.error is None else {"error": answer.error}
        self._deeds.note(Deed(attempt.tenant, OURSELVES, WEBHOOK_SENT, attempt.sid, detail=detail))
        async with self._writing:
            await self._deeds.flush()

    def _ended(self, task: asyncio.Task[None]) -> None:
        sid = self._under_way.pop(task).sid
        self.wake()  # there is a place
        if task.cancelled() or not (error := task.exception()):
            return
        if isinstance(error, StoreUnavailable):
            logger.warning("stream %s: Redis went away during its webhook, which is sent again", sid, extra=REDIS_AWAY)
        else:
            logger.error("stream %s: its webhook failed here, and is tried again", sid, exc_info=error)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _say(attempt: Attempt, answer: Answer, state: str) -> None:
    gauges.webhooks.labels("retried" if state == PENDING else state).inc()
    what = answer.error or f"status {answer.status}"
    level = logging.WARNING if state in (STOPPED, FAILED) else logging.INFO
    logger.log(level, "stream %s: its webhook, attempt %d: %s; it is %s", attempt.sid, attempt.number, what, state)
