"""What a generation has cost: every attempt counts, also one that came to nothing, since it was paid for.

Usage has the common counts of provider.py (they add up), and `provider`: the last attempt's own words. Costs are in US
dollars, rounded to a millionth, and fixed here: a later table of prices changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import orjson

from broker.log.meta import COUNTS
from worker.providers import prices
from worker.providers.chain import Target


class Spending:
    """`before`: what earlier workers of this stream had told (Meta.usage), or nothing."""

    def __init__(self, before: Mapping[str, Any] | None = None) -> None:
        before = before or {}
        self._usage: dict[str, Any] = dict(before.get("usage") or {})
        cost = before.get("cost_usd", 0 if not before else None)
        self._cost: Decimal | None = None if cost is None else Decimal(str(cost))
        self._is_incomplete = bool(before)  # a worker that was lost had not been told everything
        self._under_way: dict[object, tuple[Target, dict[str, Any]]] = {}
        self._have_begun: set[object] = set()
        self.tries = 1 if before else 0
        self._encoded: bytes | None = None

    def begin(self, of: object = None) -> None:
        """The try that is under way says something, and so costs something. `of`: whose it is, if several are."""
        self._have_begun.add(of)
        self._encoded = None

    def count(self, target: Target, usage: dict[str, Any], of: object = None) -> None:
        """The try that is under way has cost this so far."""
        self._under_way[of] = target, usage
        self._encoded = None

    def close(
        self,
        target: Target,
        usage: dict[str, Any] | None,
        *,
        model: str | None = None,
        answered: bool = True,
        of: object = None,
    ) -> dict[str, Any] | None:
        """The try has ended: with its usage, or without (None: it broke off), and then what was counted so far is what
        is known. What it cost, as `internal.usage` says it; None if nothing is known of it.

        `answered`: something had come, so it cost something even if nothing was counted.
        """
        counted, self._encoded = self._under_way.pop(of, None), None
        self._have_begun.discard(of)
        is_incomplete = usage is None or "provider" not in usage
        usage = usage if usage is not None else counted[1] if counted else None
        if usage is None:
            self._is_incomplete |= answered
            return None
        cost = cost_of(target, usage, model)
        self._usage = _sum(self._usage, usage)
        self._cost = None if self._cost is None or cost is None else self._cost + cost
        self._is_incomplete |= is_incomplete
        self.tries += 1
        said = {"model": target.name, "usage": usage, "cost_usd": _number(cost)}
        said |= {"prices": prices.table_name(target.price)} if cost is not None else {}
        return said | ({"usage_incomplete": True} if is_incomplete else {})

    def told(self) -> dict[str, Any]:
        """For an ending: {"usage", "cost_usd", "usage_incomplete" if it is}; {} if nothing was counted."""
        usage, cost, is_incomplete = self._usage, self._cost, self._is_incomplete
        for target, counted in self._under_way.values():
            usage, one = _sum(usage, counted), cost_of(target, counted, None)
            cost, is_incomplete = (None if cost is None or one is None else cost + one), True
        is_incomplete |= bool(self._have_begun)
        if not usage:
            return {"usage_incomplete": True} if is_incomplete else {}
        told = {"usage": usage, "cost_usd": _number(cost)}
        return told | ({"usage_incomplete": True} if is_incomplete else {})

    def encoded(self) -> bytes:
        """`told`, as meta keeps it. Empty if JSON cannot hold it.

        Kept, since a heartbeat asks all generations at once, twice: to price 500 of them takes 0.1 s each time.
        """
        if self._encoded is None:
            try:
                self._encoded = orjson.dumps(self.told())
            except TypeError:
                self._encoded = b""
        return self._encoded


def _sum(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {**one, **other, **summed(one, other)}


def summed(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The counts alone."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in COUNTS if name in one or name in other}


def cost_of(target: Target, usage: Mapping[str, Any], model: str | None) -> Decimal | None:
    """By the name that was asked for, or else by that of what answered."""
    for name in (target.model, model):
        if name and (cost := _cost_by_name(target, name, usage)) is not None:
            return cost
    return None


def _cost_by_name(target: Target, model: str, usage: Mapping[str, Any]) -> Decimal | None:
    return prices.cost_usd(target.priced_as, model, usage, target.price, base_url=target.base_url)


def _number(cost: Decimal | None) -> float | None:
    return None if cost is None else float(cost)
