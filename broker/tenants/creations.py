"""How many streams a tenant may start in a minute: counted in Redis, for all servers together.

A sliding window of two counters (the library `limits`): what was started in the minute before counts by how much of it
is still within the last 60 s. To ask for each creation would cost a fifth of it, so a process asks for a hundredth of
the limit at once, and starts that many without asking: with n processes a tenant may start n % less, or more, than it
should. Limits below 200 are exact.

Nor is Redis asked again for a tenant that was refused, before the moment at which there is room: nothing but time makes
some, and who does not wait must cost the others little.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import NamedTuple, TypeVar

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from broker.errors import RateLimited
from broker.store.connect import Client
from broker.tenants.enforcement import Enforcement
from broker.tenants.limits import TenantLimits

T = TypeVar("T")

LIMIT = "creations_per_minute"

PARTS = 100
KEPT_S = 60.0
"""How long what was asked for ahead counts."""

FULL_S = 1.0
"""How long a refusal counts at most, without another question. Redis may lose what was counted."""


class _Full(NamedTuple):
    """A tenant that may start no more for now. Times are those of time.monotonic()."""

    per_minute: int
    has_room_s: float
    ask_again_s: float


def _refusal(full: _Full) -> RateLimited:
    refused = RateLimited(
        f"At most {full.per_minute} streams may be started in a minute, and so many have been. Nothing was started. "
        "Wait before the next one.",
        LIMIT,
    )
    refused.retry_after_s = max(1, full.has_room_s - time.monotonic())
    return refused


class Creations:
    """`prefix`: of the counters' names in Redis. They go over this client's connections: the library would read
    LASTEVENT_REDIS_URL otherwise than we do.
    """

    def __init__(self, redis: Client, prefix: str, limits: TenantLimits, enforcement: Enforcement) -> None:
        self.limits = limits
        self._redis = redis
        self.enforcement = enforcement
        storage = RedisStorage(
            "async+redis://",
            implementation="redispy",
            key_prefix=prefix,
            connection_pool=redis.connection_pool,  # type: ignore[arg-type]  # documented beside a type that forgets it
        )
        self._window = SlidingWindowCounterRateLimiter(storage)
        self._ahead: dict[str, tuple[int, float]] = {}
        self._asking: set[str] = set()
        self._full: dict[str, _Full] = {}

    async def count(self, tenant: str) -> None:
        """One more is about to be started. Raises RateLimited, with the time after which there is room, or
        RedisUnavailable.
        """
        per_minute = (await self.limits.of(tenant)).creations_per_minute
        if per_minute is None:
            return
        if self._has_one_ahead(tenant):
            return
        if full := self._still_full(tenant, per_minute):
            self.enforcement.refuses(LIMIT)
            raise _refusal(full)
        item = RateLimitItemPerMinute(per_minute, namespace=tenant)
        if await self._asks_ahead(tenant, item, per_minute // PARTS):
            return
        if await self._answered(self._window.hit(item, LIMIT)) or not self.enforcement.refuses(LIMIT):
            return
        has_room_at = (await self._answered(self._window.get_window_stats(item, LIMIT))).reset_time
        left_s = has_room_at - time.time()
        now_s = time.monotonic()
        self._full[tenant] = full = _Full(per_minute, now_s + left_s, now_s + min(left_s, FULL_S))
        raise _refusal(full)

    def _still_full(self, tenant: str, per_minute: int) -> _Full | None:
        full = self._full.get(tenant)
        if full and full.per_minute == per_minute and time.monotonic() < full.ask_again_s:
            return full
        self._full.pop(tenant, None)
        return None

    async def _asks_ahead(self, tenant: str, item: RateLimitItemPerMinute, part: int) -> bool:
        """One at a time of each tenant: those of a burst would each take a hundredth, and use one of it."""
        if part < 2 or tenant in self._asking:
            return False
        self._asking.add(tenant)
        try:
            has_room = await self._answered(self._window.hit(item, LIMIT, cost=part))
        finally:
            self._asking.discard(tenant)
        if has_room:
            self._ahead[tenant] = (part - 1, time.monotonic() + KEPT_S)
        return has_room

    def _has_one_ahead(self, tenant: str) -> bool:
        left, until_s = self._ahead.pop(tenant, (0, 0.0))
        if not left or until_s < time.monotonic():
            return False
        self._ahead[tenant] = (left - 1, until_s)
        return True

    async def _answered(self, question: Awaitable[T]) -> T:
        try:
            return await question
        except Exception as error:
            if meaning := self._redis.meaning(error):
                raise meaning from error
            raise
