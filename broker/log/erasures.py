"""Orders to erase a person: all streams of a user, or of a session, whatever state they are in.

An order lies in le:erasures before anything is erased, and a worker carries it out (worker/archiving/people.py, which
tells its states and races). It holds the person's name until then, and no longer.
"""

from __future__ import annotations

from typing import NamedTuple

import orjson
from redis.asyncio import Redis

from broker.log.keys import Keys
from broker.store.durable import require_durable

ORDERED, ERASING, DONE = "ordered", "erasing", "done"

KEPT_MS = 7 * 86_400_000
"""How long an order that is done can be looked up."""

_ADVANCE = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""


class Order(NamedTuple):
    """`by`: who ordered it, as in the access record. `reason`: the caller's own words. Times are in ms.

    `found`, `erased`: how many streams so far. `look_from`: no look before that; 0: there was none yet.
    `chain`: how far the tenant's chain of seals had come before anything was erased.
    """

    id: str
    tenant: str
    by: str
    at: int
    user: str | None = None
    session: str | None = None
    reason: str | None = None
    state: str = ORDERED
    found: int = 0
    erased: int = 0
    look_from: int = 0
    chain: int = 0
    finished: int | None = None

    def encode(self) -> str:
        return orjson.dumps(self._asdict()).decode()

    @classmethod
    def decode(cls, text: str) -> Order:
        """Fields of a newer release are left out."""
        held = orjson.loads(text)
        return cls(**{name: held[name] for name in cls._fields if name in held})

    @property
    def person(self) -> str | None:
        """As who acts (`who`); None for a session."""
        return None if self.user is None else person(self.user)

    def done(self, now_ms: int) -> Order:
        """The order without the name that it was about."""
        return self._replace(state=DONE, user=None, session=None, finished=now_ms)


def person(user: str) -> str:
    return f"user:{user}"


class Held(NamedTuple):
    """An order as it was read: who changes it must have read its last state."""

    order: Order
    text: str


class Orders:
    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def add(self, order: Order) -> None:
        """Raises RedisUnavailable; also where Redis has not said in time that it is on disk."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hset(self._keys.erasures, order.id, order.encode())
            await require_durable(pipe)

    async def find(self, order_id: str) -> Order | None:
        text = await self._redis.hget(self._keys.erasures, order_id)  # type: ignore[misc]  # sync or async
        return None if text is None else Order.decode(text.decode())

    async def all(self) -> list[Held]:
        """The oldest first."""
        found = await self._redis.hvals(self._keys.erasures)  # type: ignore[misc]  # as above
        texts = [text.decode() for text in found]
        return sorted((Held(Order.decode(text), text) for text in texts), key=lambda held: held.order.at)

    async def advance(self, held: Held, order: Order) -> Held | None:
        """None: another worker has changed it meanwhile. So a slow one never brings a name back."""
        text = order.encode()
        args = (order.id, held.text, text)
        is_changed = await self._redis.eval(_ADVANCE, 1, self._keys.erasures, *args)  # type: ignore[misc]  # as above
        return Held(order, text) if is_changed else None

    async def forget(self, order: Order) -> None:
        await self._redis.hdel(self._keys.erasures, order.id)  # type: ignore[misc]  # as above
