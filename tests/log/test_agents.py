"""What workers announce of their agents, and what servers and sweepers read of it."""

from redis.asyncio import Redis

from broker.log.agents import KEPT_S, RENEWED_S, Agents, Announced
from broker.log.keys import Keys

SUPPORT = Announced("shop", {"type": "object"}, ["args"], [{"name": "refund", "title": "Refunding"}])
DIGEST = Announced("news", None, [], [])


async def said(redis: Redis, name: str, seconds_ago: float) -> None:
    """As if it had been announced so long ago."""
    entry = await redis.hget(Keys().agents, name)
    at = entry.partition(b'"at":')[2].rstrip(b"}")
    earlier = b"%d" % (int(at) - round(seconds_ago * 1000))
    await redis.hset(Keys().agents, name, entry.replace(at, earlier))


async def test_what_workers_of_several_apps_announce_is_known_together_and_since_when(redis: Redis) -> None:
    agents = Agents(redis, Keys())
    assert await agents.announce({"support": SUPPORT}) == {}
    assert await agents.announce({"digest": DIGEST}) == {}
    known = await agents.known()
    now_s, _ = await redis.time()
    assert {name: agent._replace(at=0) for name, agent in known.items()} == {"digest": DIGEST, "support": SUPPORT}
    assert all(now_s - 60 < agent.at / 1000 <= now_s + 1 for agent in known.values())
    assert await agents.find("support") == known["support"]


async def test_an_agent_that_nobody_has_announced_is_not_known(redis: Redis) -> None:
    assert await Agents(redis, Keys()).known() == {}
    assert await Agents(redis, Keys()).find("support") is None


async def test_an_app_without_agents_leaves_what_others_announced(redis: Redis) -> None:
    agents = Agents(redis, Keys())
    await agents.announce({"digest": DIGEST})
    assert await agents.announce({}) == {}
    assert list(await agents.known()) == ["digest"]


async def test_what_nobody_has_said_for_seven_days_is_left_out_and_then_removed(redis: Redis) -> None:
    agents, keys = Agents(redis, Keys()), Keys()
    await agents.announce({"support": SUPPORT})
    await said(redis, "support", KEPT_S + 1)
    assert (await agents.known(), await agents.find("support")) == ({}, None)
    await agents.announce({"digest": DIGEST})
    assert await redis.hkeys(keys.agents) == [b"digest"]
    assert KEPT_S - 60 < await redis.ttl(keys.agents) <= KEPT_S


async def test_two_apps_with_one_name_are_told_of_each_other_while_both_run(redis: Redis) -> None:
    agents, theirs = Agents(redis, Keys()), SUPPORT._replace(app="other")
    await agents.announce({"support": SUPPORT})
    assert await agents.announce({"support": theirs}) == {"support": "shop"}
    await said(redis, "support", 3 * RENEWED_S)
    assert await agents.announce({"support": SUPPORT}) == {}


async def test_what_is_not_of_our_making_hides_nothing_else(redis: Redis) -> None:
    agents = Agents(redis, Keys())
    others = [b"", b"5", b"[]", b"{", b"{}", b'{"app":1}', b'{"app":"a","show":[],"tools":[],"at":1}', b"\xff"]
    await redis.hset(Keys().agents, mapping={f"other-{n}": entry for n, entry in enumerate(others)})
    await agents.announce({"support": SUPPORT})
    assert list(await agents.known()) == ["support"]
    assert await agents.find("other-0") is None
