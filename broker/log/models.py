"""The models that workers can run, as they announce them: servers have no provider's key and no models file.

In Redis a hash of JSON: a provider or an alias by its name, the default model under `*`. Each has the time at which a
worker last said so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from redis.asyncio import Redis

from broker.log.keys import Keys

RENEWED_S = 30.0
"""How often a worker announces."""

KEPT_S = 7 * 86_400
"""Where no worker runs for a weekend, streams of its models may still be queued."""

_DEFAULT = "*"


class Announced(NamedTuple):
    """A provider. `models`: names that are known without asking it; it may have others."""

    is_standin: bool
    models: Sequence[str] = ()


class Known(NamedTuple):
    """`aliases`: name → the models that are tried, one after the other. `default`: None if no worker has said."""

    providers: Mapping[str, Announced]
    aliases: Mapping[str, Sequence[str]]
    default: str | None


class Models:
    """May raise RedisUnavailable."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._key = keys.models

    async def announce(
        self, providers: Mapping[str, Announced], aliases: Mapping[str, Sequence[str]], default: str
    ) -> None:
        """Say what this worker can run. To be repeated every RENEWED_S."""
        now_ms = await self._now_ms()
        entries: dict[str, dict[str, Any]] = {
            **{name: {"kind": "provider", **one._asdict(), "at": now_ms} for name, one in providers.items()},
            **{name: {"kind": "alias", "chain": list(chain), "at": now_ms} for name, chain in aliases.items()},
            _DEFAULT: {"kind": "default", "model": default, "at": now_ms},
        }
        await self._redis.hset(self._key, mapping={name: orjson.dumps(entry) for name, entry in entries.items()})  # type: ignore[misc]  # of redis-py: it may be sync
        await self._redis.expire(self._key, KEPT_S)
        if outdated := [name for name, entry in (await self._read()).items() if not _is_fresh(entry, now_ms)]:
            await self._redis.hdel(self._key, *outdated)  # type: ignore[misc, arg-type]

    async def known(self) -> Known:
        now_ms = await self._now_ms()
        fresh = {name.decode(): entry for name, entry in (await self._read()).items() if _is_fresh(entry, now_ms)}
        providers = {
            name: Announced(entry["is_standin"], entry["models"])
            for name, entry in sorted(fresh.items())
            if entry["kind"] == "provider"
        }
        aliases = {name: entry["chain"] for name, entry in sorted(fresh.items()) if entry["kind"] == "alias"}
        return Known(providers, aliases, fresh[_DEFAULT]["model"] if _DEFAULT in fresh else None)

    async def _read(self) -> dict[bytes, Any]:
        return {name: _parsed(entry) for name, entry in (await self._redis.hgetall(self._key)).items()}  # type: ignore[misc]

    async def _now_ms(self) -> int:
        seconds, microseconds = await self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000


_FORMS: Mapping[str, Mapping[str, type]] = {
    "provider": {"is_standin": bool, "models": list},
    "alias": {"chain": list},
    "default": {"model": str},
}


def _parsed(entry: bytes) -> Any:
    """None: something else than a worker has written it."""
    try:
        found = orjson.loads(entry)
    except orjson.JSONDecodeError:
        return None
    kind = found.get("kind") if isinstance(found, dict) else None
    if not isinstance(kind, str) or (form := _FORMS.get(kind)) is None:
        return None
    is_ours = all(isinstance(found.get(name), of) for name, of in {**form, "at": int}.items())
    return found if is_ours else None


def _is_fresh(entry: Any, now_ms: int) -> bool:
    return entry is not None and now_ms - entry["at"] < KEPT_S * 1000
