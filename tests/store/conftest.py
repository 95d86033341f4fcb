"""A client of Redis, over a wire that can be broken."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from broker.store.connect import Client, connect
from tests.rig.proxy import Proxy, proxy_to


@pytest.fixture
async def proxy(redis: Redis, valkey_url: str) -> AsyncIterator[Proxy]:
    async with proxy_to(valkey_url) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Client]:
    client = connect(proxy.url)
    yield client
    await client.aclose()
