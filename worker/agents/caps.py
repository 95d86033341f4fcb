"""What a run may do at most: per turn, per run and per session. Sub-agents share what their parent has left.

    tool_calls_per_turn   calls beyond it are answered `too_many_calls`, which the model reads
    tool_calls            likewise; and the next turn is asked for without tools
    turns                 LimitReached, `too_many_turns`
    seconds               LimitReached, `agent_failed`; waiting for a person's approval does not count
    session_tool_calls    as tool_calls, over all streams of the session
    session_cost_usd      LimitReached, `budget_exceeded`, before a turn is asked for

An agent's limits are its own; the settings are ceilings over them. Turns, calls and seconds are counted by each attempt
for itself: a takeover goes through the same turns and calls again, from the log. What a session has used is in Redis,
where an attempt that repeats a step changes nothing: calls are a set of their keys, costs one sum a stream.

A limit of the session counts runs that have one: an agent without does not ask Redis. Redis is away: the call or the
turn waits until it is back, as it would for its place in the log. Without a session these two limits do not apply.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from decimal import Decimal
from typing import Any, NamedTuple, Protocol, TypeVar

from broker.errors import REDIS_AWAY, StoreUnavailable
from broker.log.keys import Keys
from broker.store.connect import Client

logger = logging.getLogger(__name__)

SESSION_S = 7 * 86_400
"""A session that was quiet for so long begins anew."""

RETRY_S = 0.5

MICRO = 1_000_000
"""Costs are kept in millionths of a dollar: whole numbers add up exactly."""

T = TypeVar("T")


class Ceilings(Protocol):
    """The settings over every agent's own limits. None: no ceiling."""

    @property
    def max_turns(self) -> int | None: ...
    @property
    def max_tool_calls(self) -> int | None: ...
    @property
    def session_tool_calls(self) -> int | None: ...
    @property
    def session_cost_usd(self) -> float | None: ...


class Limits(NamedTuple):
    """As an agent announces them (lastevent.Limits, which has the same defaults)."""

    turns: int = 10
    tool_calls: int = 20
    tool_calls_per_turn: int = 8
    parallel: int = 8
    seconds: float = 600
    session_tool_calls: int | None = None
    session_cost_usd: float | None = None

    @classmethod
    def announced(cls, said: Mapping[str, Any], ceilings: Ceilings) -> Limits:
        own = cls(**{name: value for name, value in said.items() if name in cls._fields})
        return own._replace(
            turns=_lower(own.turns, ceilings.max_turns),
            tool_calls=_lower(own.tool_calls, ceilings.max_tool_calls),
            session_tool_calls=_lower(own.session_tool_calls, ceilings.session_tool_calls),
            session_cost_usd=_lower(own.session_cost_usd, ceilings.session_cost_usd),
        )


def _lower(own: Any, ceiling: Any) -> Any:
    return min((one for one in (own, ceiling) if one is not None), default=None)


class LimitReached(Exception):
    """The run, or the sub-agent whose limit it is (`of`), ends here."""

    def __init__(self, code: str, message: str, of: Allowance) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.of = of


class Allowance:
    """What is left of the limits. A sub-agent's is within its parent's: what it takes, both have taken.

    `session`: None where the stream has none.
    """

    def __init__(self, limits: Limits, session: Session | None = None, parent: Allowance | None = None) -> None:
        self.limits = limits
        self._session = session
        self._all: list[Allowance] = [self, *(parent._all if parent else ())]
        self._turns = 0
        self._calls = 0
        self._clock = _Clock()

    def within(self, limits: Limits) -> Allowance:
        """A sub-agent's."""
        return Allowance(limits, self._session, self)

    def includes(self, other: Allowance) -> bool:
        """Whether what `other` has reached is reached here too."""
        return other in self._all

    # -- turns -------------------------------------------------------------------------------------------

    def take_turn(self) -> None:
        """One turn, asked for or found in the log. Raises LimitReached."""
        for one in self._all:
            if one._turns >= one.limits.turns:
                raise LimitReached(
                    "too_many_turns",
                    f"The agent has used the {one.limits.turns} turns that its limits allow, and had not finished.",
                    one,
                )
        for one in self._all:
            one._turns += 1

    async def spend(self, cost_usd: float | None) -> None:
        """Before a turn is asked for: may it cost anything? `cost_usd`: what this stream has cost so far.

        Raises LimitReached.
        """
        spent = await self._spent(cost_usd)
        for one in self._all:
            limit = one.limits.session_cost_usd
            if limit is not None and spent >= round(limit * MICRO):
                raise LimitReached(
                    "budget_exceeded", f"This session has used the ${limit:g} that its limits allow.", one
                )

    async def note_cost(self, cost_usd: float | None) -> None:
        """After a turn, for the session's other streams."""
        await self._spent(cost_usd)

    async def _spent(self, cost_usd: float | None) -> int:
        if self._session is None or all(one.limits.session_cost_usd is None for one in self._all):
            return 0
        return await self._session.spent(cost_usd)

    # -- calls -------------------------------------------------------------------------------------------

    @property
    def has_calls(self) -> bool:
        """Whether a call would be run now, as far as this run is concerned."""
        return all(one._calls < one.limits.tool_calls for one in self._all)

    async def take_call(self, key: str) -> str | None:
        """A call that is to be run. `key`: its own, whatever attempt. Returns why not, or None."""
        if not self.has_calls:
            return "This run has made all the tool calls that its limits allow. Answer without more of them."
        self.count_call()  # before the session is asked: calls at once must not all find room
        limit = _lower_of(one.limits.session_tool_calls for one in self._all)
        if self._session is None or limit is None or await self._session.takes(key, limit):
            return None
        return "This session has made all the tool calls that its limits allow. Answer without more of them."

    def count_call(self) -> None:
        """A call that an earlier attempt began: it is not refused."""
        for one in self._all:
            one._calls += 1

    # -- time --------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def time(self) -> AsyncIterator[None]:
        """What runs in it raises LimitReached after `seconds`."""
        try:
            async with asyncio.timeout(self.limits.seconds) as timeout:
                self._clock.timeout = timeout
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            message = f"The agent did not finish within the {self.limits.seconds:g} s that its limits allow."
            raise LimitReached("agent_failed", message, self) from None
        finally:
            self._clock.timeout = None

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """A wait for a person."""
        for one in self._all:
            one._clock.stop()
        try:
            yield
        finally:
            for one in self._all:
                one._clock.go_on()


def _lower_of(limits: Iterator[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


class _Clock:
    """It stands while somebody waits, or several do."""

    def __init__(self) -> None:
        self.timeout: asyncio.Timeout | None = None
        self._waits = 0
        self._left_s: float | None = None

    def stop(self) -> None:
        self._waits += 1
        if self._waits == 1 and self.timeout and not self.timeout.expired() and (when := self.timeout.when()):
            self._left_s = when - asyncio.get_running_loop().time()
            self.timeout.reschedule(None)

    def go_on(self) -> None:
        self._waits -= 1
        if self._waits == 0 and self._left_s is not None:
            left_s, self._left_s = self._left_s, None
            if self.timeout and not self.timeout.expired():
                self.timeout.reschedule(asyncio.get_running_loop().time() + left_s)


# ---- A session

_TAKES = """
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 then
  if redis.call('SCARD', KEYS[1]) >= tonumber(ARGV[2]) then
    return 0
  end
  redis.call('SADD', KEYS[1], ARGV[1])
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""


class Session:
    """What the streams of one session have used, as Redis knows it."""

    def __init__(self, redis: Client, keys: Keys, tenant: str, session: str, sid: str) -> None:
        self._redis = redis
        self._calls = keys.calls(tenant, session)
        self._costs = keys.cost(tenant, session)
        self._sid = sid
        self._has_warned = False

    async def takes(self, key: str, limit: int) -> bool:
        """One call more, or one that is counted already. False: there were so many."""

        async def step() -> bool:
            return bool(await self._redis.eval(_TAKES, 1, self._calls, key, str(limit), str(SESSION_S)))  # type: ignore[misc]

        return await until_answered(step, f"stream {self._sid}: a tool's call waits to be counted")

    async def spent(self, cost_usd: float | None) -> int:
        """This stream has cost so much; the cost of the whole session, in millionths of a dollar."""
        if cost_usd is None and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "stream %s: what it costs is not known, so session_cost_usd does not hold it. "
                "Give its model a price in LASTEVENT_MODELS_FILE.",
                self._sid,
            )

        async def step() -> int:
            async with self._redis.pipeline(transaction=True) as pipe:
                if cost_usd is not None:
                    pipe.hset(self._costs, self._sid, str(round(Decimal(str(cost_usd)) * MICRO)))
                pipe.expire(self._costs, SESSION_S)
                pipe.hvals(self._costs)
                return sum(map(int, (await pipe.execute())[-1]))

        return await until_answered(step, f"stream {self._sid}: its next turn waits for what the session has cost")


async def until_answered(step: Callable[[], Awaitable[T]], what: str) -> T:
    """A step that may be repeated, repeated while Redis is away."""
    while True:
        try:
            return await step()
        except StoreUnavailable:
            logger.warning("Redis is away; %s", what, extra=REDIS_AWAY)
            await asyncio.sleep(RETRY_S)
