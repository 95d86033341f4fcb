"""The client's line: batch after batch on one connection, and what becomes of a batch when that breaks."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis.exceptions
from redis.asyncio import Redis

import broker.store.line
from broker.errors import RedisRefuses, RedisUnavailable
from broker.store.connect import Client, connect
from tests.rig.deployment import until
from tests.rig.proxy import Proxy

SOON_S = 0.2


async def echo(client: Client, *words: str) -> list[str]:
    return [answer.decode() for answer in await client.send_batch(lambda: [("ECHO", word) for word in words])]


async def test_answers_come_in_the_order_of_the_commands(client: Client, proxy: Proxy) -> None:
    words = [str(n) * 1000 for n in range(1000)]
    assert await echo(client, *words) == words
    assert await echo(client, "again") == ["again"]
    assert proxy.connections == 1


async def test_one_batch_is_under_way_at_a_time_and_each_gets_its_own_answers(client: Client, proxy: Proxy) -> None:
    batches = [[f"{batch}.{n}" for n in range(batch + 1)] for batch in range(20)]
    assert await asyncio.gather(*(echo(client, *batch) for batch in batches)) == batches
    assert proxy.connections == 1


async def test_what_is_sent_is_asked_for_when_nothing_is_waited_for_any_more(client: Client, proxy: Proxy) -> None:
    for waits_for in ("a connection", "a turn"):
        now = "before"
        proxy.hold()
        under_way = asyncio.create_task(echo(client, "first")) if waits_for == "a turn" else None
        sent = asyncio.create_task(client.send_batch(lambda: [("ECHO", now)]))  # noqa: B023  (it is what is tested)
        await until(lambda: proxy.held, "Redis is waited for")
        now = "by then"
        proxy.release()
        assert await sent == [b"by then"], waits_for
        if under_way:
            assert await under_way == ["first"]
    assert proxy.connections == 1


async def test_what_redis_refuses_is_redis_pys_own_error_among_the_other_answers(client: Client) -> None:
    await client.set("le:line", "no list", ex=60)
    commands = [("LPUSH", "le:line", 1), ("EVALSHA", "0" * 40, 0), ("ECHO", "x")]
    wrong, unknown, right = await client.send_batch(lambda: commands)
    assert type(wrong) is redis.exceptions.ResponseError
    assert str(wrong).startswith("WRONGTYPE")
    assert type(unknown) is redis.exceptions.NoScriptError
    assert right == b"x"


async def test_an_answer_that_says_that_redis_cannot_serve_is_that_of_the_whole_batch(
    client: Client, redis: Redis
) -> None:
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisUnavailable, match="no memory left"):
            await client.send_batch(lambda: [("ECHO", "x"), ("SET", "le:line", "x", "EX", 60)])
    finally:
        await redis.config_set("maxmemory", 0)
    assert await echo(client, "x") == ["x"]


async def test_a_replica_is_left_at_once(client: Client, proxy: Proxy, redis: Redis) -> None:
    await echo(client, "x")
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]
    try:
        with pytest.raises(RedisUnavailable, match="replica"):
            await client.send_batch(lambda: [("SET", "le:line", "x", "EX", 60)])
    finally:
        await redis.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]
    assert await echo(client, "x") == ["x"]
    assert proxy.connections == 2


async def test_of_a_cancelled_batch_no_late_answer_is_taken_for_the_next_ones(client: Client, proxy: Proxy) -> None:
    await echo(client, "x")
    proxy.hold()
    batch = asyncio.create_task(echo(client, "cancelled"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # it is sent
    batch.cancel()
    proxy.release()
    assert await echo(client, "next") == ["next"]
    with pytest.raises(asyncio.CancelledError):
        await batch


async def test_who_is_cancelled_while_waiting_for_a_turn_breaks_nothing(client: Client, proxy: Proxy) -> None:
    await echo(client, "x")
    proxy.hold()
    first, second = (asyncio.create_task(echo(client, word)) for word in ("first", "second"))
    await asyncio.sleep(0)
    second.cancel()
    proxy.release()
    assert await first == ["first"]
    assert await echo(client, "next") == ["next"]
    assert proxy.connections == 1


async def test_a_redis_that_is_silent_amid_a_batch_is_away_and_its_late_answer_nobodys(
    client: Client, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.store.line, "SILENCE_S", SOON_S)
    await echo(client, "x")
    proxy.hold()
    with pytest.raises(RedisUnavailable):
        await echo(client, "late")
    proxy.release()
    assert await echo(client, "next") == ["next"]


async def test_a_redis_that_goes_on_answering_is_not_away_however_long_it_takes(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.store.line, "SILENCE_S", 2 * SOON_S)
    slow = [("EVAL", "for _ = 1, 1000000 do end", 0), ("ECHO", "x" * 20_000)]
    began_s = time.monotonic()
    assert len(await client.send_batch(lambda: slow * 100)) == 200
    assert time.monotonic() - began_s > broker.store.line.SILENCE_S


async def test_a_lost_reply_loses_the_whole_batch_and_the_next_has_a_connection_of_its_own(
    client: Client, proxy: Proxy
) -> None:
    await echo(client, "x")
    proxy.lose_next_reply()
    with pytest.raises(RedisUnavailable):
        await echo(client, "lost")
    assert await echo(client, "next") == ["next"]
    assert proxy.connections == 2


async def test_a_reply_that_is_no_redis_is_said_and_not_read_on(client: Client, proxy: Proxy) -> None:
    await echo(client, "x")
    proxy.garble_next_reply()
    with pytest.raises(RedisUnavailable, match="does not speak its protocol"):
        await echo(client, "garbled")
    assert await echo(client, "next") == ["next"]


async def test_what_comes_between_two_batches_is_no_answer_to_the_next(
    client: Client, proxy: Proxy, redis: Redis
) -> None:
    await client.send_batch(lambda: [("SUBSCRIBE", "le:line")])
    await redis.publish("le:line", "nobody asked")

    async def is_dropped() -> bool:
        [(_, subscribers)] = await redis.pubsub_numsub("le:line")
        return bool(subscribers == 0)

    await until(is_dropped, "the line has dropped its connection")
    assert await echo(client, "next") == ["next"]
    assert proxy.connections == 2


async def test_a_connection_that_was_forgotten_costs_one_short_wait(
    client: Client, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.store.line, "ASK_AFTER_S", SOON_S / 2)
    monkeypatch.setattr(broker.store.line, "ANSWER_S", SOON_S)
    await echo(client, "x")
    proxy.forget_after(SOON_S)
    await asyncio.sleep(1.5 * SOON_S)
    async with asyncio.timeout(broker.store.line.SILENCE_S):
        with pytest.raises(RedisUnavailable):
            await echo(client, "lost")
        assert await echo(client, "next") == ["next"]


async def test_a_refused_password_is_named(valkey_url: str) -> None:
    client = connect(valkey_url.replace("unix://", "unix://nobody:wrong@"))
    with pytest.raises(RedisRefuses, match="user or the password"):
        await client.send_batch(lambda: [("ECHO", "x")])
    await client.aclose()


async def test_the_line_is_closed_with_its_client_for_good(client: Client, redis: Redis) -> None:
    async def connections() -> int:
        return len(await redis.client_list())

    before = await connections()
    await echo(client, "x")
    assert await connections() == before + 1
    await client.aclose()
    with pytest.raises(RedisUnavailable):
        await echo(client, "x")

    async def is_gone() -> bool:
        return await connections() == before

    await until(is_gone, "Redis has let it go")
