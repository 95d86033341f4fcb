"""Streams for tests: how one comes into each of its states, and what may befall it there.

Time is never waited for: a lease that has run out, a stream that is old, a Redis that has lost its last second are
written into Redis as they would be found there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from broker.errors import LeaseHeld
from broker.log.event import encode_data
from broker.log.inputs import MAX_WAITING
from broker.log.meta import Meta, NewStream, new_claim_id, new_sid
from broker.log.seizures import Seizures
from broker.log.steps import Append, Claimed, Seized, Seizure, Unsent
from broker.log.stream_log import StreamLog
from broker.log.writer import GroupCommit
from broker.store.connect import connect
from worker.sweeper import Sweeper
from worker.waiting import Waiting

if TYPE_CHECKING:
    from tests.rig.deployment import Deployment

T = TypeVar("T")

LIMIT_S = 60.0
PROMPT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 100}


def new_stream(sid: str = "", **fields: Any) -> NewStream:
    known: dict[str, Any] = {"tenant": "t", "session": "s", "model": "anthropic/some-model", "request": PROMPT}
    return NewStream(sid=sid or new_sid(), **{**known, **fields})


async def queued(log: StreamLog, **fields: Any) -> str:
    new = new_stream(**fields)
    await log.create(new)
    return new.sid


async def running(log: StreamLog, **fields: Any) -> Claimed:
    return await log.claim(await queued(log, **fields), new_claim_id(), "worker-1")


async def running_through_a_restart(log: StreamLog) -> Claimed:
    """Redis has restarted, and was away for longer than the writer's lease."""
    claimed = await running(log)
    await survive_a_restart_of_redis(log, claimed.sid)
    await expire_lease(log, claimed.sid)
    return claimed


async def taken_over(log: StreamLog, sid: str) -> Claimed:
    """The stream in another worker's hands, after its first one died."""
    while True:
        await expire_lease(log, sid)
        with suppress(LeaseHeld):  # it is not dead at all, and has renewed its lease in between
            return await log.claim(sid, new_claim_id(), "worker-2")


@asynccontextmanager
async def committing(log: StreamLog) -> AsyncIterator[GroupCommit]:
    """A group commit that runs, for at most LIMIT_S."""
    commit = GroupCommit(log)
    loop = asyncio.create_task(commit.run())
    try:
        async with asyncio.timeout(LIMIT_S):
            yield commit
    finally:
        loop.cancel()
        await asyncio.wait([loop])


def text(*words: str) -> list[Unsent]:
    return [Unsent("text_delta", encode_data({"text": word})) for word in words]


def ending(kind: str = "done") -> Unsent:
    return Unsent(kind, b"{}")


def batch(claimed: Claimed, first: int, *events: Unsent) -> Append:
    return Append(claimed.sid, claimed.pen, first, events)


async def tell_as_much_as_may_wait(log: StreamLog, sid: str) -> list[str]:
    """Inputs of this stream's agent, written at once as the step writes each of them; their ids."""
    async with log.redis.pipeline(transaction=False) as pipe:
        for _ in range(MAX_WAITING):
            pipe.xadd(log.keys.stream(sid).inputs, {"k": "input", "d": "{}"})
        return [entry_id.decode() for entry_id in await pipe.execute()]


async def ids(log: StreamLog, sid: str) -> list[int]:
    return [event.id for event in await log.read_all(sid)]


async def kinds(log: StreamLog, sid: str) -> list[str]:
    """Without what is for operators alone."""
    return [event.kind for event in await log.read_all(sid) if not event.kind.startswith("internal.")]


async def meta(log: StreamLog, sid: str) -> dict[str, str]:
    """As it is stored."""
    [found] = await log.read_meta(sid)
    return dict(found.fields) if found else {}


async def seize(log: StreamLog, sid: str, kind: str, data: bytes, *, claim_id: str = "", **options: bool) -> Seized:
    """An ending that nobody keeps."""
    return await log.seize_or_put_back(Seizure(sid, claim_id or new_claim_id(), kind, data), **options)


def with_redis(deployment: Deployment, step: Callable[[StreamLog], Awaitable[T]]) -> T:
    """What a step on a deployment's own log gives, for tests that are no coroutines."""

    async def run() -> T:
        async with connect(deployment.redis_url) as redis:
            return await step(StreamLog(redis))

    return asyncio.run(run())


# -- what may befall a stream ----------------------------------------------------------------------------


async def expire_lease(log: StreamLog, sid: str) -> None:
    await log.redis.hset(log.keys.stream(sid).meta, "lease_until", "1")


async def grow_old(log: StreamLog, sid: str, by_s: float) -> None:
    created = int((await meta(log, sid))["created"]) - round(by_s * 1000)
    await log.redis.hset(log.keys.stream(sid).meta, "created", str(created))


async def survive_a_restart_of_redis(log: StreamLog, sid: str) -> None:
    await log.redis.hset(log.keys.stream(sid).meta, "boot", "a run_id of before")


async def remember(log: StreamLog, sid: str) -> Callable[[], Awaitable[None]]:
    """The stream as it is now. Calling the result makes Redis forget whatever came after."""
    keys = log.keys.stream(sid)[:2]
    copies = [(key, await log.redis.dump(key), await log.redis.pttl(key)) for key in keys]

    async def roll_back() -> None:
        for key, copy, ttl_ms in copies:
            await log.redis.restore(key, max(0, ttl_ms), copy, replace=True)

    return roll_back


def sweeper(log: StreamLog, take: Callable[[str, Meta], Awaitable[object]]) -> Sweeper:
    """A worker's that has no room and no app: it only ends and forgets."""
    seizures = Seizures(log)
    waiting = Waiting(log, seizures, wait_s=300, name="worker-1")
    return Sweeper(log, seizures, room=lambda: False, take=take, runs=lambda _: False, waiting=waiting)
