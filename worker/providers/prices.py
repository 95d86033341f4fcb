"""What a turn cost, in USD: by genai-prices' table, offline, or by an operator's own prices.

Both count what the provider counted, once the turn is over: the figure is kept with the events, and no later table
changes it. A model without a known price costs None, never 0.

genai-prices is imported on first use: that takes 30 ms, and its first calculation as long again or longer (warm_up).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genai_prices import UpdatePrices, Usage
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, Provider

logger = logging.getLogger(__name__)

MICRO_USD = Decimal("0.000001")
MILLION = 1_000_000

IDS = {"anthropic": "anthropic", "openai": "openai", "openai-chat": "openai", "gemini": "google"}
"""Our built-in providers, and what genai-prices calls them."""

FORMS = {
    "anthropic": ("usage", "default"),
    "openai": ("usage", "responses"),
    "openai-chat": ("usage", "chat"),
    "gemini": ("usageMetadata", "default"),
}
"""Where each provider's own usage stands in its answer, and what genai-prices calls that form of it."""

CONTEXT = ("service_tier", "speed")
"""Parts of a provider's usage that choose between prices."""


@dataclass(frozen=True, slots=True)
class Price:
    """An operator's price of a model, in USD per million tokens. A cache price that is missing is the input's."""

    input: Decimal
    output: Decimal
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None

    def of(self, usage: Mapping[str, Any]) -> Decimal:
        read = self.input if self.cache_read is None else self.cache_read
        write = self.input if self.cache_write is None else self.cache_write
        return (
            _count(usage, "input_tokens") * self.input
            + _count(usage, "cache_read_input_tokens") * read
            + _count(usage, "cache_creation_input_tokens") * write
            + _count(usage, "output_tokens") * self.output
        ) / MILLION


def cost_usd(
    provider: str, model: str, usage: Mapping[str, Any], own: Price | None, *, base_url: str | None = None
) -> Decimal | None:
    """What one turn, or one failed try, cost; to the micro-dollar. None: its price is not known.

    `usage`: of this turn alone, in the common fields, which share no token. What its `provider` tells in addition (how
    long a cache is kept, web searches, audio) is charged too, if genai-prices has a price for it. `own` goes before the
    table. `base_url`: where the provider is reached, if that is not its own address. A host that genai-prices knows has
    that host's prices; beyond that a built-in provider has its own (a gateway, say), and any other has none.
    """
    if own is not None:
        return _rounded(own.of(usage))
    found = _table_of(provider, base_url)
    known = found and found.find_model(model, all_providers=_snapshot().providers)
    if not found or not known:
        return None
    for counted in _countings(provider, usage):
        try:
            priced = known.calc_price(counted, found, price_context=_context(usage))
        except ValueError:  # parts that genai-prices cannot tell apart, such as cached audio
            continue
        is_by_token = priced.model_price.input_mtok is not None and priced.model_price.output_mtok is not None
        return _rounded(priced.total_price) if is_by_token else None  # it lists models whose price it does not know
    logger.warning("model %s/%s: genai-prices cannot price what was counted, so its cost is unknown", provider, model)
    return None


def table_name(own: Price | None) -> str:
    """What the prices are from, as it is kept beside a cost."""
    if own is not None:
        return "models file"
    from genai_prices import __version__

    snapshot = _snapshot()
    updated = f" updated {snapshot.timestamp:%Y-%m-%d}" if snapshot.from_auto_update else ""
    return f"genai-prices {__version__}{updated}"


def warm_up() -> None:
    """Do beforehand, in a thread, what the first cost would have to wait for."""
    cost_usd("anthropic", "claude-haiku-4-5", {"input_tokens": 1, "output_tokens": 1}, None)


def keep_updated(url: str | None = None) -> UpdatePrices:
    """Load the current table from the internet, now and once an hour, in a thread of its own (LASTEVENT_PRICES_UPDATE).

    If it cannot be reached, or cannot be read, the log says so, and the last table counts: at first the package's.
    """
    from genai_prices import UpdatePrices
    from genai_prices.update_prices import DEFAULT_UPDATE_URL

    class Updating(UpdatePrices):
        def fetch(self) -> DataSnapshot | None:
            try:
                return super().fetch()
            except Exception as error:  # of HTTP, of JSON, of the table's form
                logger.warning("prices could not be updated (%s): %s counts", type(error).__name__, table_name(None))
                return _snapshot()

    updating = Updating(url=url or DEFAULT_UPDATE_URL)
    updating.start()
    return updating


def known_models(provider: str, *, base_url: str | None = None) -> list[str]:
    """The models of a provider that answer in text, by the names that genai-prices has for them."""
    found = _table_of(provider, base_url)
    if not found:
        return []
    is_its_own = found.model_match.is_match if found.model_match else lambda _: True  # Google's table has Claude too
    return sorted(model.id for model in found.models if is_its_own(model.id) and _answers_in_text(model))


def provider_of(model: str) -> str | None:
    """The built-in provider that a model's name without one belongs to, by genai-prices: gpt-… is openai."""
    for name in ("anthropic", "openai", "gemini"):
        found = _table_of(name, None)
        if found and found.model_match and found.model_match.is_match(model):
            return name
    return None


def _snapshot() -> DataSnapshot:
    from genai_prices.data_snapshot import get_snapshot

    return get_snapshot()


def _table_of(provider: str, base_url: str | None) -> Provider | None:
    """Not by the model's name, which the snapshot would keep for ever: callers choose it."""
    snapshot = _snapshot()
    asked: list[tuple[str | None, str | None]] = [(None, base_url)] if base_url else []
    if provider in IDS:
        asked.append((IDS[provider], None))
    for provider_id, url in asked:
        try:
            return snapshot.find_provider(None, provider_id, url)
        except LookupError:
            continue
    return None


def _countings(provider: str, usage: Mapping[str, Any]) -> Iterator[Usage]:
    """The usage as genai-prices takes it: at first with all that the provider told, then in the common fields alone.

    Its `input_tokens` has the cached ones in it.
    """
    from genai_prices import Usage, extract_usage

    details: list[Usage] = []
    if provider in FORMS and isinstance(usage.get("provider"), Mapping):
        place, form = FORMS[provider]
        try:
            told = extract_usage({place: usage["provider"]}, provider_id=IDS[provider], api_flavor=form)
        except ValueError:  # it is not as genai-prices knows it: what counts is in the common fields
            pass
        else:
            details.append(told.usage)
    read, written = _count(usage, "cache_read_input_tokens"), _count(usage, "cache_creation_input_tokens")
    for counted in (*details, Usage()):
        counted.input_tokens = _count(usage, "input_tokens") + read + written
        counted.cache_read_tokens = read
        counted.cache_write_tokens = written
        counted.output_tokens = _count(usage, "output_tokens")
        yield counted


def _context(usage: Mapping[str, Any]) -> dict[str, str]:
    told = usage.get("provider")
    given = {name: told.get(name) for name in CONTEXT} if isinstance(told, Mapping) else {}
    return {name: value for name, value in given.items() if isinstance(value, str)}


def _answers_in_text(model: ModelInfo) -> bool:
    """A name that ends with a dash stands for all that begin so."""
    prices = model.get_prices(datetime.now(UTC))
    return prices.input_mtok is not None and prices.output_mtok is not None and not model.id.endswith("-")


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if type(value) is int and value > 0 else 0


def _rounded(usd: Decimal) -> Decimal:
    return usd.quantize(MICRO_USD, ROUND_HALF_UP)
