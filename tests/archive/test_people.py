"""A person is erased: everywhere, also what runs and what starts meanwhile, and nothing that is left says who."""

from __future__ import annotations

import asyncio
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from broker.log.access import AccessRecord, View
from broker.log.deeds import CANCELLED, CREATED, Deed, Deeds
from broker.log.erasures import DONE, ERASING, KEPT_MS, Order, Orders
from broker.log.seizures import Seizures
from broker.log.stream_log import StreamLog
from tests.archive.archive import TestArchive, finish
from tests.archive.conftest import open_archive
from tests.rig.long import LONG
from tests.rig.streams import meta, queued, running, sweeper
from worker.archiving import deeds as moving
from worker.archiving import people as people_
from worker.archiving.archiver import Archiver
from worker.archiving.people import People
from worker.archiving.turn import Turn

ANN, SESSION = "ann-of-arendelle", "about-anns-illness"
RETENTION_S = 500.0
FOLDER = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def deeds_move_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "DEEDS_SETTLE_MS", -1000)


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[TestArchive]:
    async with open_archive(f"sqlite:///{tmp_path}/archive.db", tmp_path) as archive:
        yield archive


@pytest.fixture
def log(redis: Redis) -> StreamLog:
    return StreamLog(redis, retention_s=RETENTION_S, is_archived=True)


def archiver_of(log: StreamLog, archive: TestArchive) -> Archiver:
    return Archiver(log, archive.writer, after_s=0, retention_s=lambda _: None, settle_s=0)


async def sweep(log: StreamLog) -> None:
    for sid in await log.redis.zrange(log.keys.leases, 0, -1):
        await log.redis.zadd(log.keys.leases, {sid: 1})

    async def take(sid: str) -> None:
        pass

    await sweeper(log, take).sweep()


async def order(log: StreamLog, **whose: str | None) -> Order:
    placed = Order(secrets.token_hex(16), "t", "key:abc", await log.now_ms(), reason="she asked", **whose)  # type: ignore[arg-type]
    await Orders(log.redis, log.keys).add(placed)
    return placed


async def until_done(log: StreamLog, archiver: Archiver | People, order: Order) -> Order:
    for _ in range(50):
        await (archiver.archive_once() if isinstance(archiver, Archiver) else archiver.carry_out())
        found = await Orders(log.redis, log.keys).find(order.id)
        assert found
        if found.state == DONE:
            return found
    raise AssertionError(f"the order stays {found}")


async def of_which_only_the_hook_is_left(log: StreamLog, **whose: str) -> None:
    """Its retention is over, and its receiver is down."""
    sid = await finish(log, **whose)
    [meta] = await log.read_meta(sid)
    assert meta
    await log.hooks.collect(sid, meta, await log.now_ms())
    keys = log.keys.stream(sid)
    await log.redis.delete(*set(keys) - {keys.hook})
    await log.redis.zrem(log.keys.leases, sid)
    await log.index.remove(sid, "t", whose["session"])


async def a_life(log: StreamLog, archiver: Archiver | None) -> list[str]:
    """Ann's streams: archived, archived and gone from Redis, ended, running, waiting."""
    hers = {"user": ANN, "session": SESSION, "webhook": f"https://{ANN}.example/"}
    await of_which_only_the_hook_is_left(log, **hers)
    archived, gone = await finish(log, **hers, idempotency=f"{ANN}-1 digest"), await finish(log, **hers)
    await log.redis.set(log.keys.idempotency("t", f"{ANN}-1"), f"{archived} digest created", ex=100)
    await log.redis.set(log.keys.idempotency("t", f"{ANN}-2"), f"{gone} digest created", ex=100)
    if archiver:
        await sweep(log)
        await archiver.archive_once()
        await log.redis.delete(*log.keys.stream(gone))
    ended, runs, waits = await finish(log, **hers), (await running(log, **hers)).sid, await queued(log, **hers)
    access = AccessRecord(log.redis, log.keys, retention_s=RETENTION_S, is_archived=archiver is not None)
    for sid in (archived, ended):
        view = View(sid, {"tenant": "t", "who": f"user:{ANN}", "address": "::1", "requested": 0})
        access.opened(view)
        access.closed(view, "left")
    await access.close()
    deeds = Deeds(log.redis, log.keys, retention_s=RETENTION_S, is_archived=archiver is not None)
    deeds.note(Deed("t", "key:abc", CREATED, archived, "::1", "r1", {"user": ANN}))
    deeds.note(Deed("t", f"user:{ANN}", CANCELLED, "another", "::1", "r2"))
    deeds.note(Deed("t", "user:bob", CANCELLED, ended, "::1", "r3"))
    deeds.note(Deed("t", "key:abc", CREATED, "another", "::1", "r4"))
    await deeds.flush()
    await log.redis.sadd(log.keys.calls("t", SESSION), "call")
    await log.redis.hset(log.keys.cost("t", SESSION), ended, "5")
    for key in (log.keys.calls("t", SESSION), log.keys.cost("t", SESSION)):
        await log.redis.expire(key, 100)
    return [archived, gone, ended, runs, waits]


async def what_redis_holds(redis: Redis) -> bytes:
    """Names and values of all keys."""
    held = []
    async for key in redis.scan_iter():
        reads = {
            b"string": redis.get,
            b"hash": redis.hgetall,
            b"set": redis.smembers,
            b"zset": lambda key: redis.zrange(key, 0, -1),
            b"stream": redis.xrange,
        }
        if read := reads.get(await redis.type(key)):  # it may have expired just now
            held.append(repr((key, await read(key))))
    return "\n".join(held).encode()


async def is_named(redis: Redis, folder: Path | None) -> list[str]:
    """Where a name of hers is still to be read."""
    held = {"redis": await what_redis_holds(redis), **(files_of(folder) if folder else {})}
    return [
        f"{name} in {place}" for place, content in held.items() for name in (ANN, SESSION) if name.encode() in content
    ]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("whose", [{"user": ANN}, {"session": SESSION}], ids=["a user", "a session"])
async def test_every_stream_of_a_person_is_gone_and_its_name_is_nowhere(
    log: StreamLog, archive: TestArchive, tmp_path: Path, whose: dict[str, str]
) -> None:
    archiver = archiver_of(log, archive)
    sids = await a_life(log, archiver)
    bobs = await finish(log, user="bob", session="bobs")
    placed = await order(log, **whose)
    done = await until_done(log, archiver, placed)
    assert (done.found, done.erased, done.user, done.session) == (5, 5, None, None)
    for sid in sids:
        found = await archive.reader.find(sid)
        assert found
        assert (found.erased is not None, found.erased_by, found.user) == (True, "key:abc", None)
    assert (await meta(log, bobs))["user"] == "bob"
    assert await log.redis.zscore(log.keys.sessions("t"), "bobs")
    if "user" in whose:
        assert await is_named(log.redis, tmp_path) == []
    report = await archive.audit()
    assert report.findings == []
    assert report.deeds == 4
    await sweep(log)


async def test_its_statement_says_who_ordered_when_why_and_which_and_its_seals_verify(
    log: StreamLog, archive: TestArchive
) -> None:
    archiver = archiver_of(log, archive)
    sids = await a_life(log, archiver)
    placed = await order(log, user=ANN)
    await until_done(log, archiver, placed)
    await until_done(log, archiver, placed)
    [said] = [claims for claims in await statements(archive) if claims["kind"] == "erasures"]
    assert said["streams"] == sorted(sids)
    assert (said["erasure"], said["by"], said["reason"], said["ordered"]) == (
        placed.id,
        "key:abc",
        "she asked",
        placed.at,
    )
    emptied = {row["id"] for row in await archive.rows("SELECT id FROM deeds WHERE record IS NULL")}
    assert (set(said["deeds"]), len(emptied)) == (emptied, 3)
    await sweep(log)


async def statements(archive: TestArchive) -> list[dict[str, object]]:
    rows = await archive.rows("SELECT number FROM seals WHERE tenant = 't' ORDER BY number")
    seals = [await archive.seal_at("t", row["number"]) for row in rows]
    return [seal.claims() for seal in seals if seal]


async def test_what_starts_while_a_person_is_erased_is_found_by_the_next_look(
    log: StreamLog, archive: TestArchive
) -> None:
    archiver = archiver_of(log, archive)
    placed = await order(log, user=ANN)
    await archiver.archive_once()
    late = await queued(log, user=ANN)
    done = await until_done(log, archiver, placed)
    assert done.found == 1
    assert (await archive.reader.find(late)).erased  # type: ignore[union-attr]
    await sweep(log)


async def test_an_order_is_done_a_lease_after_its_last_find_at_the_earliest(
    log: StreamLog, archive: TestArchive
) -> None:
    archiver = Archiver(log, archive.writer, after_s=0, retention_s=lambda _: None)
    placed = await order(log, user=ANN)
    for _ in range(3):
        await archiver.archive_once()
    found = await Orders(log.redis, log.keys).find(placed.id)
    assert found
    assert found.state == ERASING
    assert found.look_from > placed.at + log.lease_s * 900


async def test_another_tenants_streams_and_what_is_shared_with_others_stay(
    log: StreamLog, archive: TestArchive
) -> None:
    archiver = archiver_of(log, archive)
    hers = await finish(log, user=ANN, session="all-of-us")
    bobs = await finish(log, user="bob", session="all-of-us")
    elsewhere = await finish(log, user=ANN, tenant="other")
    await until_done(log, archiver, await order(log, user=ANN))
    assert (await archive.reader.find(hers)).erased  # type: ignore[union-attr]
    assert await log.redis.zrange(log.keys.session("t", "all-of-us"), 0, -1) == [bobs.encode()]
    assert (await meta(log, elsewhere))["user"] == ANN
    await sweep(log)


async def test_without_an_archive_whoever_has_the_turn_erases(redis: Redis) -> None:
    log = StreamLog(redis, retention_s=RETENTION_S)
    sids = await a_life(log, None)
    people = People(log, Seizures(log), Turn(redis, log.keys.archiver), settle_s=0)
    done = await until_done(log, people, await order(log, user=ANN))
    assert (done.found, done.erased) == (len(sids), len(sids))
    assert await is_named(redis, None) == []
    deeds = Deeds(redis, log.keys, retention_s=1, is_archived=False)
    left = [one.deed.request_id async for page in deeds.newest() for one in page]
    assert left == ["r4"]
    await sweep(log)


async def test_one_tenants_orders_keep_neither_the_others_nor_the_archive_waiting(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each looks through all of Redis. A tenant that ordered 1,500 held up everybody's for minutes."""
    monkeypatch.setattr(people_, "GO_S", 0)
    log = StreamLog(redis, retention_s=RETENTION_S)
    for _ in range(5):
        await order(log, user=secrets.token_hex(4))
    of_another = Order(secrets.token_hex(16), "another", "key:b", await log.now_ms(), user=ANN)
    await Orders(redis, log.keys).add(of_another)
    people = People(log, Seizures(log), Turn(redis, log.keys.archiver), settle_s=0)
    goes = 0
    while (found := await Orders(redis, log.keys).find(of_another.id)) and found.state != DONE:
        assert await people.carry_out(), "there is more to do"
        goes += 1
    assert goes <= 4, "two looks, and one of the other tenant before each"
    while await people.carry_out():
        pass
    assert {held.order.state for held in await Orders(redis, log.keys).all()} == {DONE}


async def test_a_worker_that_was_slow_brings_no_name_back(log: StreamLog, archive: TestArchive) -> None:
    orders = Orders(log.redis, log.keys)
    placed = await order(log, user=ANN)
    [stale] = await orders.all()
    await until_done(log, archiver_of(log, archive), placed)
    assert await orders.advance(stale, stale.order._replace(state=ERASING)) is None
    assert await is_named(log.redis, None) == []


async def test_an_order_that_is_done_is_forgotten_after_a_week(log: StreamLog, archive: TestArchive) -> None:
    orders, now_ms = Orders(log.redis, log.keys), await log.now_ms()
    await orders.add(Order("old", "t", "key:abc", 1).done(now_ms - KEPT_MS - 1))
    await orders.add(Order("new", "t", "key:abc", 1).done(now_ms - KEPT_MS + 60_000))
    await archiver_of(log, archive).archive_once()
    assert [held.order.id for held in await orders.all()] == ["new"]


async def test_orders_that_are_done_cost_no_round_trip_each(log: StreamLog, archive: TestArchive) -> None:
    orders, now_ms = Orders(log.redis, log.keys), await log.now_ms()
    for number in range(20):
        await orders.add(Order(str(number), "t", "key:abc", 1).done(now_ms))
    await log.redis.config_resetstat()
    await archiver_of(log, archive).people.carry_out()
    assert (await log.redis.info("stats"))["total_commands_processed"] < 10


@pytest.mark.processes
async def test_killed_at_any_step_a_person_is_erased_once_and_wholly(
    log: StreamLog, valkey_url: str, tmp_path: Path
) -> None:
    every = 1 if LONG else 151
    url = f"sqlite:///{tmp_path}/archive.db"
    async with open_archive(url, tmp_path) as archive:
        whole = archiver_of(log, archive)
        argv = [sys.executable, "-m", "tests.archive.killed", valkey_url, url, str(tmp_path), "3"]
        steps, orders = 0, 0
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=FOLDER) as killer:  # noqa: ASYNC220
            assert killer.stdin
            assert killer.stdout
            for kill_at in range(1, 10_000, every):
                sids = await a_life(log, whole)
                placed, orders = await order(log, user=ANN), orders + 1
                killer.stdin.write(b"%d\n" % kill_at)
                killer.stdin.flush()
                status = int(await asyncio.to_thread(killer.stdout.readline))
                assert status in (0, -signal.SIGKILL)
                await log.redis.delete(log.keys.archiver)  # the dead one's turn is over
                done = await until_done(log, whole, placed)
                assert done.found == done.erased == len(sids), f"step {kill_at}"
                assert await is_named(log.redis, tmp_path) == [], f"step {kill_at}"
                if status == 0:
                    break
                steps = kill_at
            killer.stdin.close()
        assert steps > 300, "these are not all steps"
        await archive.writer.settle_heads()
        assert (await archive.audit()).findings == []
        said = [claims["erasure"] for claims in await statements(archive) if claims["kind"] == "erasures"]
        assert (len(said), len(set(said))) == (orders, orders)
        await sweep(log)
