"""Shared streams beside what looks after all streams: nobody holds them, and nothing of them stays behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from unittest.mock import AsyncMock

import pytest
from redis.asyncio import Redis

from broker.errors import LeaseHeld, StreamClosed, StreamExpired, StreamNotFound
from broker.log.burial import bury
from broker.log.meta import SHARED
from broker.log.paths import Paths, Place
from broker.log.seizures import Seizures
from broker.log.steps import Produce, Producer
from broker.log.stream_log import StreamLog
from tests.rig.key_leaks import fail_on_leaked_keys
from tests.rig.streams import meta, new_stream, seize, sweeper
from worker.sweeper import CREATION_S, LOOK_AT_SHARED_S

MESSAGES = (("ds.message", b'{"m":1}'), ("ds.message", b'{"m":"two"}'))
YEAR_MS = 365 * 86_400_000
LIFE_MS = 60_000


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis)


async def named(log: StreamLog, path: str = "a/b", **fields: object) -> str:
    """A shared stream with two messages, at this path."""
    new = new_stream(producer=SHARED, request=None, path=path, durable={"type": "application/json"}, **fields)
    await log.create(new)
    await log.produce(Produce(new.sid, MESSAGES, Producer("p", 0, 0), seq="1"))
    assert await log.paths.put(new.tenant, path, new.sid, "")
    return new.sid


async def ages(log: StreamLog, sid: str, by_ms: int) -> None:
    """As if it had been made so long ago, and nobody had looked at it since."""
    created = int((await meta(log, sid))["created"])
    await log.redis.hset(log.keys.stream(sid).meta, "created", created - by_ms)  # type: ignore[misc]
    await log.redis.zadd(log.keys.leases, {sid: 0})


async def swept(log: StreamLog) -> AsyncMock:
    """What a sweeper's worker was given."""
    taken = AsyncMock()
    await sweeper(log, taken).sweep()
    return taken


async def test_no_sweeper_ends_a_shared_stream_however_long_nobody_writes_to_it(log: StreamLog) -> None:
    sid = await named(log)
    await ages(log, sid, YEAR_MS)
    (await swept(log)).assert_not_called()
    assert (await meta(log, sid))["state"] == "running"
    look_ms = await log.redis.zscore(log.keys.leases, sid)
    assert look_ms is not None
    assert 0 < look_ms - await log.now_ms() <= 1000 * LOOK_AT_SHARED_S


async def test_nobody_takes_its_pen(log: StreamLog) -> None:
    sid = await named(log)
    with pytest.raises(LeaseHeld):
        await log.claim(sid, "a claim", "a worker")
    with pytest.raises(LeaseHeld):
        await Seizures(log).seize(sid, "error", b"{}", only_expired=True)


async def test_one_that_no_path_names_is_erased_once_its_creation_must_be_over(log: StreamLog) -> None:
    new = new_stream(producer=SHARED, request=None, path="a/b", durable={"type": "application/json"})
    await log.create(new)
    await swept(log)
    assert (await meta(log, new.sid))["state"] == "running"
    await ages(log, new.sid, round(1000 * CREATION_S))
    await swept(log)
    await swept(log)
    left = await meta(log, new.sid)
    assert left["erased_by"] == "lastevent"
    assert "path" not in left
    await fail_on_leaked_keys(log.redis)


async def test_one_whose_life_is_over_takes_nothing_and_is_erased(log: StreamLog) -> None:
    sid = await named(log)
    await log.redis.hset(log.keys.stream(sid).meta, "expires", await log.now_ms())  # type: ignore[misc]
    with pytest.raises(StreamNotFound):
        await log.produce(Produce(sid, MESSAGES))
    with pytest.raises(StreamNotFound):
        await log.prolong(sid, LIFE_MS)
    await log.redis.zadd(log.keys.leases, {sid: 0})
    await swept(log)
    await swept(log)
    assert (await meta(log, sid))["state"] == "cancelled"
    assert await log.paths.find("t", "a/b") is None
    await fail_on_leaked_keys(log.redis)


async def test_what_is_written_or_read_moves_the_end_of_a_life(log: StreamLog) -> None:
    sid = await named(log)
    for use in (log.produce(Produce(sid, (), life_ms=LIFE_MS)), log.prolong(sid, 2 * LIFE_MS)):
        before = int((await meta(log, sid)).get("expires", 0))
        await use
        assert int((await meta(log, sid))["expires"]) > before


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_all_keys_of_one_that_has_ended_have_a_life(log: StreamLog, how: str) -> None:
    sid = await named(log)
    if how == "closed":
        await log.produce(Produce(sid, (), closes=True))
    else:
        await seize(log, sid, "cancelled", b"{}")
    assert await log.redis.pttl(log.keys.stream(sid).producers) > 0
    await log.redis.zadd(log.keys.leases, {sid: 0})
    await swept(log)
    assert await log.redis.pttl(log.keys.path("t", "a/b")) > 0
    await fail_on_leaked_keys(log.redis)


async def test_what_is_erased_leaves_neither_producers_nor_its_path(log: StreamLog) -> None:
    sid = await named(log)
    await log.produce(Produce(sid, (), closes=True))
    [known] = await log.read_meta(sid)
    assert known
    await log.erase(sid, known, await log.now_ms(), by="key:1")
    assert not await log.redis.exists(log.keys.stream(sid).producers, log.keys.path("t", "a/b"))
    with pytest.raises((StreamNotFound, StreamClosed, StreamExpired)):
        await log.produce(Produce(sid, MESSAGES))


async def test_a_burial_may_be_cut_short_anywhere_and_repeated(log: StreamLog) -> None:
    sid = await named(log)
    [known] = await log.read_meta(sid)
    assert known
    await log.paths.remove("t", "a/b", sid)
    await bury(log, Seizures(log), sid, known)
    await bury(log, Seizures(log), sid, known)
    assert "erased" in await meta(log, sid)


async def test_an_append_of_more_than_a_stream_holds_changes_nothing(redis: Redis) -> None:
    log = StreamLog(redis, max_bytes=1024)
    sid = await named(log)
    before = await meta(log, sid)
    with pytest.raises(Exception, match="limit"):
        await log.produce(Produce(sid, [("ds.message", b"1" * 1024)], Producer("p", 0, 1)))
    assert await meta(log, sid) == before
    assert (await log.produce(Produce(sid, (), Producer("p", 0, 1), closes=True))).state == "done"


# -- paths ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def paths(log: StreamLog) -> AsyncIterator[Paths]:
    """Of streams that there are not."""
    yield log.paths
    await log.redis.delete(*(log.keys.path("t", path) for path in "abcfg"))


async def test_of_two_that_want_a_path_one_gets_it(paths: Paths) -> None:
    assert await paths.put("t", "a", "one", "")
    assert not await paths.put("t", "a", "two", "")
    assert await paths.put("t", "a", "one", "")  # its answer was lost
    assert await paths.put("t", "a", "two", "one")
    assert await paths.find("t", "a") == Place("two", False, {})


async def test_paths_of_tenants_are_apart(paths: Paths) -> None:
    assert await paths.put("t", "a", "one", "")
    assert await paths.find("u", "a") is None


async def test_a_path_whose_stream_has_forks_is_blocked_until_the_last_of_them_is_gone(paths: Paths) -> None:
    await paths.put("t", "a", "source", "")
    for fork in ("f", "g"):
        assert await paths.forked("t", "a", "source", f"sid-{fork}", fork)
        await paths.put("t", fork, f"sid-{fork}", "", "a")
    await paths.remove("t", "a", "source")
    assert not await paths.put("t", "a", "another", "source")
    assert not await paths.forked("t", "a", "source", "sid-h", "h")
    await paths.remove("t", "f", "sid-f")
    found = await paths.find("t", "a")
    assert found
    assert found.is_gone
    await paths.remove("t", "g", "sid-g")
    assert await paths.find("t", "a") is None


async def chain(paths: Paths) -> None:
    """a ← b ← c, and the streams at a and b are deleted."""
    await paths.put("t", "a", "sid-a", "")
    for source, fork in (("a", "b"), ("b", "c")):
        await paths.forked("t", source, f"sid-{source}", f"sid-{fork}", fork)
        await paths.put("t", fork, f"sid-{fork}", "", source)
    await paths.remove("t", "a", "sid-a")
    await paths.remove("t", "b", "sid-b")


async def test_the_last_fork_frees_a_whole_chain(paths: Paths) -> None:
    await chain(paths)
    assert [bool(await paths.find("t", path)) for path in "abc"] == [True, True, True]
    await paths.remove("t", "c", "sid-c")
    assert [await paths.find("t", path) for path in "abc"] == [None, None, None]


async def test_who_asks_for_a_blocked_path_frees_it_if_the_last_fork_went_without_a_word(
    log: StreamLog, paths: Paths
) -> None:
    await chain(paths)
    await log.redis.delete(log.keys.path("t", "c"))  # whoever deleted it died behind this
    assert [await paths.find("t", path) for path in "ba"] == [None, None]
