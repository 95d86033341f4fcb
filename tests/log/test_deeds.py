"""Deeds that wait for Redis."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from broker.log import deeds
from broker.log.deeds import CREATED, Deed, Deeds
from broker.log.keys import Keys


async def test_deeds_wait_for_redis_and_what_finds_no_room_is_said(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deeds, "MAX_WAITING", 2)
    noted = Deeds(redis, Keys(), retention_s=60, is_archived=False)
    for sid in ("a", "b", "c"):
        noted.note(Deed("acme", "key:abc", CREATED, sid))
    assert (noted.waiting, noted.lost) == (2, 1)
    assert "deeds are lost" in caplog.text
    assert "acme" not in caplog.text
    await noted.flush()
    assert [one.deed.stream async for page in noted.newest() for one in page] == ["b", "a"]
