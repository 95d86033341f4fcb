"""What workers announce of their models, and what servers read of it."""

from redis.asyncio import Redis

from broker.log.keys import Keys
from broker.log.models import KEPT_S, Announced, Models

REAL, STANDIN = Announced(False, ["claude-sonnet-5-5", "claude-haiku-4-5"]), Announced(True)


async def test_what_workers_announce_is_known_together(redis: Redis) -> None:
    models = Models(redis, Keys())
    await models.announce({"anthropic": REAL}, {"fast": ["anthropic/claude-haiku-4-5"]}, "fast")
    await models.announce({"vllm": STANDIN}, {}, "anthropic/claude-sonnet-5-5")
    known = await models.known()
    assert known.providers == {"anthropic": REAL, "vllm": STANDIN._replace(models=[])}
    assert known.aliases == {"fast": ["anthropic/claude-haiku-4-5"]}
    assert known.default == "anthropic/claude-sonnet-5-5"


async def test_before_any_worker_has_said_so_nothing_is_known(redis: Redis) -> None:
    assert await Models(redis, Keys()).known() == ({}, {}, None)


async def test_what_nobody_has_said_for_seven_days_is_left_out_and_then_removed(redis: Redis) -> None:
    models, keys = Models(redis, Keys()), Keys()
    await models.announce({"gone": REAL}, {"old": ["gone/x"]}, "gone/x")
    now_s, _ = await redis.time()
    for name in (b"gone", b"old"):
        entry = await redis.hget(keys.models, name)
        at = entry.partition(b'"at":')[2].rstrip(b"}")
        await redis.hset(keys.models, name, entry.replace(at, b"%d" % ((now_s - KEPT_S - 1) * 1000)))
    known = await models.known()
    assert (known.providers, known.aliases, known.default) == ({}, {}, "gone/x")
    await models.announce({"anthropic": REAL}, {}, "anthropic/x")
    assert set(await redis.hkeys(keys.models)) == {b"anthropic", b"*"}
    assert KEPT_S - 60 < await redis.ttl(keys.models) <= KEPT_S


async def test_what_is_not_of_our_making_hides_nothing_else(redis: Redis) -> None:
    models = Models(redis, Keys())
    others = [
        b"",
        b"5",
        b"[]",
        b"{",
        b'{"kind":[]}',
        b'{"kind":"provider"}',
        b'{"kind":"alias","chain":"x","at":1}',
        b"\xff",
    ]
    await redis.hset(Keys().models, mapping={f"other-{n}": entry for n, entry in enumerate(others)})
    await models.announce({"anthropic": REAL}, {}, "anthropic/x")
    assert (await models.known()).providers == {"anthropic": REAL}
