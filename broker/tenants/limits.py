"""How much a tenant may have. `lastevent limits set` writes it, servers and workers read it; what is not set for a
tenant is as the settings say.

In Redis a hash of JSON objects, a tenant's by its name. All of them are read at once: a thousand are 100 KB.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import orjson

from broker.errors import REDIS_AWAY, StoreUnavailable
from broker.store.shared import Shared
from broker.tenants.keyring import DEFAULT_TENANT, TENANT

if TYPE_CHECKING:  # it takes long to import, and each `lastevent --help` would
    from redis.asyncio import Redis

logger = logging.getLogger(__name__)

READ_EVERY_S = 5.0
"""A change counts everywhere within so much."""

MOST = 10**9
MOST_WEIGHT = 1000

LISTS = ("models", "agents")
_NAME = re.compile(r"[\x21-\x2b\x2d-\x7e]{1,200}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one tenant; each None: no limit (a `weight` of 1).

    `streams_running`: at once; those of workers wait beyond it. `viewers`: of each web process. `weight`: the tenant's
    share of the workers, against the others'. `models`, `agents`: the names that may be asked for. `max_tokens`: of an
    answer.
    """

    creations_per_minute: int | None = None
    streams_running: int | None = None
    viewers: int | None = None
    weight: int | None = None
    models: tuple[str, ...] | None = None
    max_tokens: int | None = None
    agents: tuple[str, ...] | None = None

    def changed(self, values: Mapping[str, Any]) -> Limits:
        """With these values by name; None: no longer set. Raises ValueError, which names what may be set."""
        for name, value in values.items():
            if name not in NAMES:
                raise ValueError(f"there is no such limit; there are {', '.join(NAMES)}")
            if value is not None:
                _require(name, value)
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return replace(self, **given)

    def as_json(self) -> dict[str, Any]:
        """Those that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


NAMES = tuple(field.name for field in fields(Limits))


def _require(name: str, value: object) -> None:
    if name in LISTS:
        named = value if isinstance(value, list | tuple) else ()
        if not (named and all(isinstance(one, str) and _NAME.fullmatch(one) for one in named)):
            raise ValueError(f"{name}: one name or more, separated by commas")
    else:
        most = MOST_WEIGHT if name == "weight" else MOST
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name}: a whole number from 1 to {most}")


class TenantLimits:
    """`key`: the hash's name in Redis. `given`: of the settings. The tenant `default`, which has the keys of
    LASTEVENT_API_KEYS, has of those only what concerns models: its callers were there before there were limits.
    """

    def __init__(
        self, redis: Redis, key: str, given: Limits = Limits(), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._redis = redis
        self._key = key
        self.given = given
        self._given_to_default = replace(given, creations_per_minute=None, streams_running=None, viewers=None)
        self._clock = clock
        self._set: dict[str, Limits] | None = None
        self._read_again_at = float("-inf")
        self._reading = Shared()

    async def of(self, tenant: str) -> Limits:
        """What counts for this tenant. While Redis is away, what counted last; raises RedisUnavailable if that is not
        known.
        """
        if self._clock() >= self._read_again_at and (self._set is None or not self._reading.is_asked(self._key)):
            await self._reading.ask(self._key, self._read)
        return self._merged(tenant)

    async def set(self, tenant: str, values: Mapping[str, Any]) -> Limits:
        """Change some of a tenant's limits, as `Limits.changed` does; returns those that are set for it now.

        Raises ValueError, RedisUnavailable.
        """
        if not re.fullmatch(TENANT, tenant):
            raise ValueError("a tenant's name has a-z, 0-9 and -, begins with none of these hyphens, and is short")
        limits = (await self.all_set()).get(tenant, Limits()).changed(values)
        if stored := limits.as_json():
            await self._redis.hset(self._key, tenant, orjson.dumps(stored).decode())  # type: ignore[misc]  # of redis-py: it may be sync
        else:
            await self._redis.hdel(self._key, tenant)  # type: ignore[misc]
        self._read_again_at = float("-inf")
        return limits

    async def all_set(self) -> dict[str, Limits]:
        """Tenant → what is set for it. Raises RedisUnavailable."""
        found = {}
        for name, value in sorted((await self._redis.hgetall(self._key)).items()):  # type: ignore[misc]
            try:
                # Of a newer release there may be others: those that are known here count nevertheless.
                known = {limit: most for limit, most in orjson.loads(value).items() if limit in NAMES}
                found[name.decode()] = Limits().changed(known)
            except (ValueError, AttributeError, TypeError):  # JSON's and Unicode's are ValueErrors
                logger.warning(
                    "the limits of a tenant cannot be read; those of the settings count: lastevent limits",
                    extra={"lasting": "limits that cannot be read"},
                )
        return found

    async def _read(self) -> None:
        try:
            self._set = await self.all_set()
        except StoreUnavailable:
            if self._set is None:
                raise
            logger.warning("Redis is away; tenants' limits are those of before", extra=REDIS_AWAY)
        self._read_again_at = self._clock() + READ_EVERY_S

    def _merged(self, tenant: str) -> Limits:
        given = self._given_to_default if tenant == DEFAULT_TENANT else self.given
        own = (self._set or {}).get(tenant)
        return replace(given, **own.as_json()) if own else given
