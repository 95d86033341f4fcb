"""What an agent is told while it runs: inputs, and decisions about the approvals that it asks for.

A Redis Stream beside the stream's log. Servers add to it, and only the stream's worker, the log's one writer, says in
the log what was taken (`input`, `internal.approval`). An entry has k (`input`, `ask`, `approval`), d (JSON) and, of the
latter two, a: the approval's id. Entries keep the order in which they came; their ids grow, also over a restart of
Redis.

What can be lost: what has not been taken yet, if Redis loses its last second. The log keeps what was taken.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson
from redis.asyncio import Redis

from broker.log import script
from broker.log.keys import Keys
from broker.log.script import Scripts

INPUT, ASK, APPROVAL = "input", "ask", "approval"

MAX_WAITING = 1000
MAX_WAITING_BYTES = 2**20
"""Of one stream, as JSON: an agent that does not listen must not fill Redis. Each addition goes through all of it, some
0.5 ms when it is full."""

BEGINNING = "0"
"""Before the first entry."""


class Entry(NamedTuple):
    """`about`: the approval's id, '' of an input. `data` of an approval: {"approve", "reason", "by"}."""

    id: str
    what: str
    data: dict[str, Any]
    about: str = ""


class InputList:
    """The list of each stream. A method that adds raises StreamNotFound, StreamClosed or RedisUnavailable."""

    def __init__(self, redis: Redis, keys: Keys, scripts: Scripts | None = None) -> None:
        self._redis = redis
        self._keys = keys
        self._scripts = scripts or Scripts(redis, keys)

    async def tell(self, sid: str, data: dict[str, Any]) -> Entry:
        """Add an input. Raises RateLimited while too much of it waits. Not to be repeated: each call adds one."""
        return await self._add(sid, INPUT, data)

    async def ask(self, sid: str, approval_id: str, data: dict[str, Any]) -> Entry:
        """Say that this approval is waited for. Repeating it is harmless."""
        return await self._add(sid, ASK, data, approval_id)

    async def decide(self, sid: str, approval_id: str, decision: dict[str, Any]) -> Entry:
        """The decision that stands: this one, or the one that came first. Raises ApprovalNotFound."""
        return await self._add(sid, APPROVAL, decision, approval_id)

    async def read(self, sid: str, after: str = BEGINNING) -> list[Entry]:
        """What came after this entry."""
        entries = await self._redis.xrange(self._keys.stream(sid).inputs, min=f"({after}")
        return [_entry(entry_id, fields) for entry_id, fields in entries]

    async def remove(self, sid: str, *entry_ids: str) -> None:
        """Inputs that the log has."""
        if entry_ids:
            await self._redis.xdel(self._keys.stream(sid).inputs, *entry_ids)

    async def _add(self, sid: str, what: str, data: dict[str, Any], about: str = "") -> Entry:
        text = orjson.dumps(data)
        limits = (MAX_WAITING, MAX_WAITING_BYTES)
        entry_id, stands = await self._scripts.run(script.inputs(sid, what, text, about, self._keys.input, *limits))
        return Entry(entry_id.decode(), what, orjson.loads(stands), about)


def _entry(entry_id: bytes, fields: dict[bytes, bytes]) -> Entry:
    data: dict[str, Any] = orjson.loads(fields[b"d"])
    return Entry(entry_id.decode(), fields[b"k"].decode(), data, fields.get(b"a", b"").decode())
