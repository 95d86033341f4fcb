"""What a start needs of Redis is asked once, and again when the answer may have changed (faults/test_refusals.py)."""

from __future__ import annotations

import asyncio

import pytest

from broker.errors import StoreUnavailable, WrongType
from broker.log.keys import Keys
from broker.log.needs import AGAIN_S, Needs
from broker.store.connect import Client, connect
from tests.rig.streams import LIMIT_S


@pytest.fixture
def client(redis: Client, valkey_url: str) -> Client:
    return connect(valkey_url)


async def questions(redis: Client) -> int:
    """Each begins with a MULTI."""
    return int((await redis.info("commandstats")).get("cmdstat_multi", {"calls": 0})["calls"])


async def test_redis_is_asked_once_and_not_with_each_request(redis: Client, client: Client) -> None:
    needs = Needs(client, Keys())
    before = await questions(redis)
    for _ in range(10):
        await needs.require()
    assert await questions(redis) == before + 1
    await client.aclose()


async def test_a_key_of_another_type_is_a_doubt_too(redis: Client, client: Client) -> None:
    needs = Needs(client, Keys())
    await needs.require()
    await redis.set(Keys().leases, "of something else", ex=60)
    with pytest.raises(WrongType):
        await client.zcard(Keys().leases)
    assert not needs.are_met
    with pytest.raises(StoreUnavailable, match="The key le:leases"):
        await needs.require()
    await redis.delete(Keys().leases)
    await client.aclose()


async def test_a_doubt_that_comes_while_redis_is_asked_leads_to_another_question(redis: Client, client: Client) -> None:
    needs = Needs(client, Keys())
    asking = asyncio.create_task(needs.require())
    await asyncio.sleep(0)
    needs.doubt()
    await asking
    assert not needs.are_met
    running = asyncio.create_task(needs.run())
    async with asyncio.timeout(LIMIT_S):
        await needs.met()
    running.cancel()
    await client.aclose()


async def test_many_requests_ask_together_and_what_is_missing_is_asked_again_a_second_later(
    redis: Client, client: Client
) -> None:
    await redis.set(Keys().leases, "of something else")
    needs = Needs(client, Keys())
    before = await questions(redis)
    refused = await asyncio.gather(*(needs.require() for _ in range(20)), return_exceptions=True)
    assert {str(one).partition(" in ")[0] for one in refused} == {"The key le:leases"}
    assert await questions(redis) == before + 1
    await redis.delete(Keys().leases)
    running = asyncio.create_task(needs.run())
    async with asyncio.timeout(AGAIN_S + LIMIT_S):
        await needs.met()
    running.cancel()
    await client.aclose()
