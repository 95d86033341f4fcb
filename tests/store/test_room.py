"""Room: new streams leave Redis a reserve, and asking for it costs one question a second."""

from typing import Any

import pytest
from redis.asyncio import Redis

from broker.errors import StoreFull
from broker.store import room
from broker.store.room import Room

RESERVE = 0.2


class Counted:
    """A Redis that says what the test sets, and counts how often it is asked."""

    def __init__(self, **memory: int) -> None:
        self.memory = memory
        self.asked = 0

    async def info(self, section: str) -> dict[str, Any]:
        assert section == "memory"
        self.asked += 1
        return self.memory


async def has_room(counted: Counted) -> bool:
    try:
        await Room(counted, RESERVE).require()  # type: ignore[arg-type]  # all that it uses of a Redis
    except StoreFull:
        return False
    return True


async def test_there_is_room_up_to_the_reserve() -> None:
    assert await has_room(Counted(used_memory=800, maxmemory=1000))
    assert not await has_room(Counted(used_memory=801, maxmemory=1000))


async def test_without_maxmemory_there_is_always_room() -> None:
    assert await has_room(Counted(used_memory=2**50, maxmemory=0))
    assert await has_room(Counted(used_memory=2**50))


async def test_a_thousand_calls_in_a_second_ask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: now_s[0])
    counted = Counted(used_memory=1000, maxmemory=1000)
    asked = Room(counted, RESERVE)  # type: ignore[arg-type]
    for _ in range(1000):
        with pytest.raises(StoreFull):
            await asked.require()
    assert counted.asked == 1
    counted.memory["used_memory"] = 0
    now_s[0] += room.ASK_S
    await asked.require()
    assert counted.asked == 2


async def test_a_request_that_would_reach_into_the_reserve_is_refused_and_what_was_stored_counts_at_once() -> None:
    room = Room(Counted(used_memory=500, maxmemory=1000), RESERVE)  # type: ignore[arg-type]
    with pytest.raises(StoreFull):
        await room.require(301)
    await room.require(300)
    room.take(300)
    with pytest.raises(StoreFull):
        await room.require(1)


async def test_a_real_server_is_asked(redis: Redis) -> None:
    used = (await redis.info("memory"))["used_memory"]
    try:
        await redis.config_set("maxmemory", used * 10)
        await Room(redis, RESERVE).require()
        with pytest.raises(StoreFull):
            await Room(redis, reserve=0.99).require()
    finally:
        await redis.config_set("maxmemory", "0")
