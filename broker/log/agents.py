"""The agents that workers can run, as they announce them: servers have none of their users' code.

In Redis a hash of JSON, an agent by its name, with its app, what callers need to know of it, and the time at which a
worker last said so. A worker announces only what it could run at that moment; so `at` tells the sweepers, too, for how
long there has been nobody for an agent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from redis.asyncio import Redis

from broker.log.keys import Keys

RENEWED_S = 30.0
"""How often a worker announces."""

KEPT_S = 7 * 86_400
"""Where no worker runs for a weekend, an agent is still known, and its name no mistake."""


class Announced(NamedTuple):
    """`input_schema`: None if any input will do. `tools`: {"name", "title"} of each. `at`: when a worker last said so
    (ms by Redis' clock); whoever announces need not say."""

    app: str
    input_schema: Any
    show: Sequence[str]
    tools: Sequence[Mapping[str, Any]]
    at: int = 0


class Agents:
    """May raise RedisUnavailable."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._key = keys.agents

    async def announce(self, agents: Mapping[str, Announced]) -> dict[str, str]:
        """Say what this worker can run. To be repeated every RENEWED_S.

        Returns the names that another app has announced within that time, each with that app: only one can have them.
        """
        now_ms, before = await self._now_ms(), await self._read()
        if agents:
            entries = {name: orjson.dumps(agent._replace(at=now_ms)._asdict()) for name, agent in agents.items()}
            await self._redis.hset(self._key, mapping=entries)  # type: ignore[misc]  # of redis-py: it may be sync
            await self._redis.expire(self._key, KEPT_S)
        if outdated := [name for name, agent in before.items() if not _is_kept(agent, now_ms) and name not in agents]:
            await self._redis.hdel(self._key, *outdated)  # type: ignore[misc]
        others = {name: agent for name in agents if (agent := before.get(name)) and agent.app != agents[name].app}
        return {name: other.app for name, other in others.items() if now_ms - other.at < RENEWED_S * 2000}

    async def known(self) -> dict[str, Announced]:
        now_ms = await self._now_ms()
        return {name: agent for name, agent in sorted((await self._read()).items()) if _is_kept(agent, now_ms)}

    async def find(self, name: str) -> Announced | None:
        found = await self._redis.hget(self._key, name)  # type: ignore[misc]
        agent = _parsed(found) if found else None
        return agent if agent and _is_kept(agent, await self._now_ms()) else None

    async def _read(self) -> dict[str, Announced]:
        """What something else than a worker has written is left out."""
        entries: Iterable[tuple[bytes, bytes]] = (await self._redis.hgetall(self._key)).items()  # type: ignore[misc]
        parsed = ((name.decode(errors="replace"), _parsed(entry)) for name, entry in entries)
        return {name: agent for name, agent in parsed if agent}

    async def _now_ms(self) -> int:
        seconds, microseconds = await self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000


_FORM: Mapping[str, type] = {"app": str, "input_schema": object, "show": list, "tools": list, "at": int}


def _parsed(entry: bytes) -> Announced | None:
    try:
        found = orjson.loads(entry)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), of) for name, of in _FORM.items()):
        return None
    return Announced(*(found[name] for name in _FORM)) if "input_schema" in found else None


def _is_kept(agent: Announced, now_ms: int) -> bool:
    return now_ms - agent.at < KEPT_S * 1000
