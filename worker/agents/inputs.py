"""What callers tell the agents of this worker while they run: inputs, and decisions about approvals.

One subscription wakes whoever waits, for all streams. What is published while it breaks is missed, and Redis may be
away: so it is read at each new subscription, and every LOOK_S.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from broker.errors import REDIS_AWAY, RedisUnavailable
from broker.log.inputs import APPROVAL, BEGINNING, INPUT, Entry, InputList
from broker.log.keys import Keys
from broker.store.connect import Client
from broker.store.listen import messages
from worker.agents.journal import Decision

logger = logging.getLogger(__name__)

LOOK_S = 5.0

T = TypeVar("T")


class Inputs:
    """Waiting ends by cancellation, and goes on while Redis is away. A method that does not wait may raise
    RedisUnavailable; one that adds raises StreamClosed once the stream has ended."""

    def __init__(self, redis: Client, keys: Keys) -> None:
        self._redis = redis
        self._channel = keys.input
        self._list = InputList(redis, keys)
        self._waiting: dict[str, set[asyncio.Event]] = {}

    async def listen(self) -> None:
        """Wake who waits, for ever. Raises RedisUnavailable while no subscription can be made."""
        async with aclosing(messages(self._redis, self._channel)) as heard:
            async for sid in heard:
                self._wake(sid.decode() if sid is not None else None)

    async def waiting(self, sid: str, after: str = BEGINNING) -> list[Entry]:
        """The inputs that came after this one (its id), in their order."""
        return [entry for entry in await self._list.read(sid, after) if entry.what == INPUT]

    async def next(self, sid: str, after: str = BEGINNING) -> Entry:
        """The first input after this one, as soon as there is one."""

        async def look() -> Entry | None:
            return next(iter(await self.waiting(sid, after)), None)

        return await self._until(sid, look)

    async def taken(self, sid: str, *entry_ids: str) -> None:
        """The log has these inputs: they make room for others."""
        await self._list.remove(sid, *entry_ids)

    async def ask(self, sid: str, approval_id: str, data: dict[str, Any]) -> None:
        """From now on callers can decide it. Repeating it, after a takeover say, changes nothing."""
        await self._list.ask(sid, approval_id, data)

    async def decided(self, sid: str, approval_id: str) -> Decision:
        """The decision, as soon as there is one."""

        async def look() -> Decision | None:
            return next((_decision(one) for one in await self._list.read(sid) if _is_about(one, approval_id)), None)

        return await self._until(sid, look)

    async def decide(self, sid: str, approval_id: str, decision: Decision) -> Decision:
        """Decide it here, because nobody did in time. Returns the decision that stands: somebody may have been first.

        Raises ApprovalNotFound if it was not asked for.
        """
        return _decision(await self._list.decide(sid, approval_id, decision._asdict()))

    async def _until(self, sid: str, look: Callable[[], Awaitable[T | None]]) -> T:
        woken = asyncio.Event()
        self._waiting.setdefault(sid, set()).add(woken)  # before the first look: what comes in between wakes
        try:
            while True:
                woken.clear()
                try:
                    if (found := await look()) is not None:
                        return found
                except RedisUnavailable:
                    logger.warning("stream %s: its inputs are read when Redis is back", sid, extra=REDIS_AWAY)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await woken.wait()
        finally:
            self._waiting[sid].discard(woken)
            if not self._waiting[sid]:
                del self._waiting[sid]

    def _wake(self, sid: str | None) -> None:
        """None: all, since something may have been missed."""
        for waiting in list(self._waiting.values()) if sid is None else [self._waiting.get(sid, set())]:
            for woken in waiting:
                woken.set()


def _is_about(entry: Entry, approval_id: str) -> bool:
    return entry.what == APPROVAL and entry.about == approval_id


def _decision(entry: Entry) -> Decision:
    return Decision(entry.data["approve"], entry.data["reason"] or "", entry.data["by"])
