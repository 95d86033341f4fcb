"""What a generation has cost, as meta keeps it while it runs."""

from __future__ import annotations

import orjson

from worker.providers.anthropic import AnthropicProvider
from worker.providers.chain import Target
from worker.spending import Spending


async def test_what_was_counted_is_priced_once_and_not_with_each_heartbeat() -> None:
    client = AnthropicProvider(api_key="k", base_url="http://127.0.0.1:1", silence_s=1)
    model = "claude-haiku-4-5"
    target = Target(f"anthropic/{model}", client, model, "anthropic", "anthropic", priced_as="anthropic")
    spending = Spending()
    spending.count(target, {"input_tokens": 1_000_000, "output_tokens": 0})
    first = spending.encoded()
    assert spending.encoded() is first
    spending.count(target, {"input_tokens": 2_000_000, "output_tokens": 0})
    second = spending.encoded()
    assert orjson.loads(second)["cost_usd"] == 2 * orjson.loads(first)["cost_usd"] > 0
    spending.close(target, {"input_tokens": 2_000_000, "output_tokens": 0, "provider": {}})
    assert "usage_incomplete" not in orjson.loads(spending.encoded())
    await client.aclose()
