"""Which model of a chain is tried next, and which is left out for now because it has just failed for everybody.

    nothing of this turn shown    the next model, at once and in silence; the last one again, after a wait
    something of it shown         restart, then the next model
    refused                       no other model: the request is at fault
    unauthorized, no such model   the next model: the operator's fault should not be the user's

A wait that a provider asks for counts only where no other model is left. A model that failed 3 times in a row, each
within 30 s of the last, is left out of chains for 30 s by all workers: the breaker. It is shared in Redis
(`le:breaker:<provider/model>`, a count that expires), and a chain in which every model is left out tries them all.

Races: two workers count the same outage, or one counts a failure right after another's success: the count is off by
one, and a model is left out a moment sooner or later. Redis is away: no model is left out.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Sequence
from typing import NamedTuple

from broker.errors import REDIS_AWAY, LasteventError
from broker.log.keys import Keys
from broker.store.connect import Client
from worker.providers.failures import ProviderFailure
from worker.providers.prices import Price
from worker.providers.provider import Provider

logger = logging.getLogger(__name__)

MAX_TRIES = 3
BACKOFF_S = (0.5, 1.0)
BACKOFF_JITTER = 0.25
MAX_RETRY_AFTER_S = 30.0
"""A provider may ask for a longer wait than a person accepts."""

BROKEN_AFTER = 3
BROKEN_S = 30


class Target(NamedTuple):
    """A model that a request may be sent to. `name`: provider/model, as it was asked for."""

    name: str
    client: Provider
    model: str
    answers_as: str
    """The provider that viewers are told: its name, or that of the stand-in in its place."""
    form: str
    """The kind of provider, and so of the content in its own form."""
    priced_as: str = ""
    """Under which built-in provider its prices are found, or else by `base_url`."""
    base_url: str | None = None
    price: Price | None = None
    """The operator's own."""


class Course:
    """One turn's way through a chain."""

    def __init__(self, targets: Sequence[Target], left_out: Collection[str] = ()) -> None:
        """`targets`: at least one. `left_out`: names of those that the breaker leaves out."""
        self._targets = [target for target in targets if target.name not in left_out] or list(targets)
        self._max_tries = max(MAX_TRIES, len(self._targets))
        self._at = 0
        self._tries = 1

    @property
    def target(self) -> Target:
        return self._targets[self._at]

    def goes_on_after(self, failure: ProviderFailure) -> bool:
        """Move on to what is tried next; False: there is nothing left to try."""
        self._tries += 1
        if self._tries > self._max_tries:
            return False
        if not failure.retryable:
            # Not this one again. Those before it may do better by now.
            return failure.moves_on and self._forget_this_one()
        self._at = min(self._at + 1, len(self._targets) - 1)
        return True

    def restarts_after(self, failure: ProviderFailure) -> bool:
        """As `goes_on_after`, where viewers have seen something, which is void: with as many tries as at the start."""
        self._tries = 0
        return self.goes_on_after(failure)

    def wait_s(self, failed: Target, failure: ProviderFailure) -> float:
        """How long to wait before the next try. Nothing, if that is another model."""
        if self.target is not failed:
            return 0.0
        if failure.retry_after_s is not None:
            return min(failure.retry_after_s, MAX_RETRY_AFTER_S)
        times = max(self._tries - 1, 1)
        return BACKOFF_S[min(times, len(BACKOFF_S)) - 1] * (1 + random.uniform(0, BACKOFF_JITTER))

    def _forget_this_one(self) -> bool:
        del self._targets[self._at]
        self._at = min(self._at, len(self._targets) - 1)
        return bool(self._targets)


class Breaker:
    """Which models have failed for everybody. Nothing here fails a generation."""

    def __init__(self, redis: Client, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._has_failed: set[str] = set()

    async def left_out(self, names: Sequence[str]) -> set[str]:
        """Of these models, those that are not to be tried now."""
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.get(self._keys.breaker(name))
                counts = await pipe.execute()
        except LasteventError:
            logger.warning("Redis is away; no model is left out", extra=REDIS_AWAY)
            return set()
        failures = {name: int(count or 0) for name, count in zip(names, counts, strict=True)}
        self._has_failed |= {name for name, count in failures.items() if count}
        return {name for name, count in failures.items() if count >= BROKEN_AFTER}

    async def failed(self, name: str) -> None:
        self._has_failed.add(name)
        key = self._keys.breaker(name)
        try:
            # In one step: a count without a life would leave the model out for ever.
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.incrby(key, 1)
                pipe.expire(key, BROKEN_S)
                await pipe.execute()
        except LasteventError:
            logger.warning("Redis is away; a failure of %s was not counted", name, extra=REDIS_AWAY)

    async def succeeded(self, name: str) -> None:
        """Costs nothing as long as this worker knows of no failure."""
        if name not in self._has_failed:
            return
        self._has_failed.discard(name)
        try:
            await self._redis.delete(self._keys.breaker(name))
        except LasteventError:
            logger.warning("Redis is away; that %s works again was not told", name, extra=REDIS_AWAY)
