"""The secret of read tokens: one for all servers, whatever Redis loses."""

import asyncio

from redis.asyncio import Redis

from broker.log.keys import Keys
from broker.log.secret import SharedSecret


async def test_servers_that_start_together_have_the_same(redis: Redis) -> None:
    servers = [SharedSecret(redis, Keys()) for _ in range(5)]
    await asyncio.gather(*(server.load() for server in servers))
    assert len({server.known for server in servers}) == 1
    assert len(servers[0].known[0]) >= 32


async def test_a_server_that_knows_it_puts_it_back(redis: Redis) -> None:
    old, young = SharedSecret(redis, Keys()), SharedSecret(redis, Keys())
    await old.load()
    await redis.delete(Keys().secret)
    await old.load()
    await young.load()
    assert young.known == old.known


async def test_where_a_newer_one_was_made_meanwhile_both_are_accepted(redis: Redis) -> None:
    old, young = SharedSecret(redis, Keys()), SharedSecret(redis, Keys())
    await old.load()
    [before] = old.known
    await redis.delete(Keys().secret)
    await young.load()
    await old.load()
    await young.load()
    assert old.known == (*young.known, before)
    assert before not in young.known
