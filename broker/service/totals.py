"""What several streams used and cost together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from broker.log.meta import COUNTS

MOST_TOKENS, MOST_USD = 10**12, 10**9
"""Of one stream. A number beyond it is no count, and must not make a sum that JSON cannot hold."""


def cost_of(ending: Any) -> float | int | None:
    """What a stream cost in USD, as its ending says; None: that is not known."""
    said = ending.get("cost_usd") if isinstance(ending, Mapping) else None
    if isinstance(said, bool) or not isinstance(said, int | float):
        return None
    return said if 0 <= said <= MOST_USD else None


def is_incomplete(ending: Any) -> bool:
    """Whether the provider did not say all that it counted: an attempt was cut."""
    return isinstance(ending, Mapping) and ending.get("usage_incomplete") is True


def totals(streams: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """{"usage", "cost_usd", "usage_incomplete", "without_price"} of streams' records, or of their endings.

    `cost_usd` is the sum of the costs that are known, null if none is; `without_price` counts the streams that used
    something and whose cost is not known.
    """
    usage = dict.fromkeys(COUNTS, 0)
    cost: Decimal | None = None
    incomplete, without_price = False, 0
    for stream in streams:
        counted = _counted(stream.get("usage"))
        for name, count in counted.items():
            usage[name] += count
        incomplete = incomplete or is_incomplete(stream)
        usd = cost_of(stream)
        if usd is not None:
            cost = (cost or Decimal(0)) + Decimal(str(usd))
        elif any(counted.values()):
            without_price += 1
    return {
        "usage": usage,
        "cost_usd": None if cost is None else float(cost),
        "usage_incomplete": incomplete,
        "without_price": without_price,
    }


def _counted(usage: Any) -> dict[str, int]:
    if not isinstance(usage, Mapping):
        return {}
    return {name: usage[name] for name in COUNTS if type(usage.get(name)) is int and 0 <= usage[name] <= MOST_TOKENS}
