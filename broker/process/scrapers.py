"""Who may read /metrics where others than this machine reach the admin port: who has an API key with metrics:read."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from broker.errors import RedisUnavailable, WrongType
from broker.log.keys import Keys
from broker.settings import Settings
from broker.store.connect import connect
from broker.tenants.keyring import Keyring, given_key
from broker.tenants.scopes import EVERYTHING, METRICS, opens
from broker.tenants.stored_keys import StoredKeys


class Scrapers:
    """Asked in a thread. The keys in Redis are read at each scrape: a worker and a supervisor need them for nothing
    else. While Redis is away, or something else has written the keys, those that were read last are good.
    """

    def __init__(self, settings: Settings, redis_url: str | None = None) -> None:
        self._redis_url = redis_url or settings.redis_url
        self._keys = Keys(settings.key_prefix)
        self._ring = Keyring((given_key(secret, EVERYTHING) for secret in settings.keys), may_open=False)
        self._reading = threading.Lock()

    def have(self, credential: str) -> bool:
        with suppress(RedisUnavailable, WrongType), self._reading:
            asyncio.run(self._read())
        try:
            key = self._ring.find(credential)
        except RedisUnavailable:  # it has not been read yet
            return False
        return key is not None and opens(key.scopes, METRICS)

    async def _read(self) -> None:
        async with connect(self._redis_url, connections=1) as redis:
            self._ring.know(await StoredKeys(redis, self._keys.api_keys, self._keys.api_keys_changed).read())
