"""Erasing a person, for callers: an order, and how far it has come. Workers carry it out (log/erasures.py)."""

from __future__ import annotations

import secrets
from typing import Any

from broker.auth import Grant
from broker.errors import ErasureNotFound
from broker.log.erasures import Order, Orders
from broker.log.stream_log import StreamLog
from broker.service.bodies import ErasePerson
from broker.service.record import erasure_json


class Erasing:
    """Each call raises RedisUnavailable."""

    def __init__(self, log: StreamLog) -> None:
        self._log = log
        self._orders = Orders(log.redis, log.keys)

    async def order(self, body: ErasePerson, grant: Grant) -> dict[str, Any]:
        """Returns once Redis has the order on disk. The same order twice erases nothing twice."""
        now_ms = await self._log.now_ms()
        whose = (body.user_id, body.session_id, body.reason)
        order = Order(secrets.token_hex(16), grant.tenant, grant.who, now_ms, *whose)
        await self._orders.add(order)
        return erasure_json(order)

    async def find(self, order_id: str, grant: Grant) -> dict[str, Any]:
        """Raises ErasureNotFound, also for another tenant's."""
        order = await self._orders.find(order_id)
        if order is None or order.tenant != grant.tenant:
            raise ErasureNotFound("There is no erasure with this id; one that is done can be looked up for a week.")
        return erasure_json(order)
