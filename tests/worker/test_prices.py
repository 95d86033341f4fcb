"""What a turn cost. Figures are computed by hand from the prices that stand beside them (USD per million tokens)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from threading import Thread
from typing import Any

import orjson
import pytest
from genai_prices import data_snapshot, update_prices

from tests.rig.deployment import wait_until
from worker.providers import prices
from worker.providers.prices import Price, cost_usd, known_models, provider_of, table_name

PACKAGE = f"genai-prices {version('genai-prices')}"

USAGE = {
    "input_tokens": 1_000,
    "cache_read_input_tokens": 20_000,
    "cache_creation_input_tokens": 4_000,
    "output_tokens": 500,
    "thinking_tokens": 100,  # they are in output_tokens
}


@pytest.mark.parametrize(
    ("provider", "model", "usd"),
    [
        # 1, 0.1, 1.25, 5: 0.001 + 0.002 + 0.005 + 0.0025
        ("anthropic", "claude-haiku-4-5", "0.010500"),
        ("anthropic", "claude-haiku-4-5-20251001", "0.010500"),
        # 0.25, 0.025, no price for writing a cache: as input, 2: 0.00025 + 0.0005 + 0.001 + 0.001
        ("openai", "gpt-5-mini", "0.002750"),
        ("openai-chat", "gpt-5-mini-2025-08-07", "0.002750"),
        # 0.3, 0.03, as input, 2.5: 0.0003 + 0.0006 + 0.0012 + 0.00125
        ("gemini", "gemini-2.5-flash", "0.003350"),
    ],
)
def test_each_token_is_charged_once_at_its_own_price(provider: str, model: str, usd: str) -> None:
    assert cost_usd(provider, model, USAGE, None) == Decimal(usd)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("anthropic", "claude-of-tomorrow"),
        ("openai", "gpt-5-minix"),
        ("vllm", "gpt-5-mini"),  # whose server it is, is not known
        ("gemini", "gemma-3"),  # in the table, without a price
        ("openai", "text-embedding-3-small"),  # has a price, but none for an answer
    ],
)
def test_an_unknown_price_is_none(provider: str, model: str) -> None:
    assert cost_usd(provider, model, USAGE, None) is None


def test_ones_own_price_goes_before_the_table() -> None:
    own = Price(Decimal(2), Decimal(8), Decimal("0.5"), Decimal(3))
    # 0.002 + 0.01 + 0.012 + 0.004
    assert cost_usd("anthropic", "claude-haiku-4-5", USAGE, own) == Decimal("0.028000")
    assert cost_usd("vllm", "qwen3", USAGE, own) == Decimal("0.028000")
    assert table_name(own) == "models file"
    assert table_name(None) == PACKAGE


def test_a_cache_without_a_price_of_its_own_costs_what_input_costs() -> None:
    # (1,000 + 20,000 + 4,000) × 2 + 500 × 8
    assert cost_usd("vllm", "qwen3", USAGE, Price(Decimal(2), Decimal(8))) == Decimal("0.054000")


def test_a_host_that_is_known_has_that_hosts_prices() -> None:
    tokens = {"input_tokens": 1_000_000, "output_tokens": 1_000_000}
    groq = "https://api.groq.com/openai/v1"
    by_host = cost_usd("mine", "llama-3.3-70b-versatile", tokens, None, base_url=groq)
    assert by_host == Decimal("0.59") + Decimal("0.79")
    assert cost_usd("mine", "llama-3.3-70b-versatile", tokens, None, base_url="http://gpu1:8000/v1") is None
    # a gateway in front of a built-in provider
    assert cost_usd("anthropic", "claude-haiku-4-5", tokens, None, base_url="http://gateway:4000") == Decimal(6)


def test_what_a_provider_tells_in_addition_is_charged() -> None:
    told = {
        "input_tokens": 1_000,
        "cache_read_input_tokens": 20_000,
        "cache_creation_input_tokens": 4_000,
        "cache_creation": {"ephemeral_5m_input_tokens": 1_000, "ephemeral_1h_input_tokens": 3_000},
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
        "output_tokens": 500,
    }
    # An hour's cache is 2, not 1.25: 0.00225 more. A search is 0.01.
    assert cost_usd("anthropic", "claude-haiku-4-5", {**USAGE, "provider": told}, None) == Decimal("0.032750")


@pytest.mark.parametrize(
    "told",
    [
        None,
        "nothing",
        {"input_tokens": "many"},
        {"input_tokens": True, "output_tokens": -1},
        {"input_tokens": 1, "output_tokens": 1, "cache_creation": {"ephemeral_1h_input_tokens": 9_999_999}},
        {"input_tokens": 1, "output_tokens": 1, "server_tool_use": [1], "service_tier": 7},
    ],
)
def test_a_providers_word_that_does_not_add_up_is_left_out(told: Any) -> None:
    assert cost_usd("anthropic", "claude-haiku-4-5", {**USAGE, "provider": told}, None) == Decimal("0.010500")


def test_audio_in_is_charged_as_audio() -> None:
    told = {
        "promptTokenCount": 1_000,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 200}, {"modality": "AUDIO", "tokenCount": 800}],
        "candidatesTokenCount": 100,
        "totalTokenCount": 1_100,
    }
    usage = {"input_tokens": 1_000, "output_tokens": 100, "provider": told}
    # 200 × 0.3 + 800 × 1 + 100 × 2.5
    assert cost_usd("gemini", "gemini-2.5-flash", usage, None) == Decimal("0.001110")


@pytest.mark.parametrize("odd", [True, -5, 2.5, "3", None])
def test_only_a_whole_number_counts(odd: Any) -> None:
    assert cost_usd("anthropic", "claude-haiku-4-5", {"input_tokens": odd, "output_tokens": 1}, None) == Decimal(
        "0.000005"
    )


def test_it_is_rounded_to_the_micro_dollar() -> None:
    assert cost_usd("vllm", "x", {"input_tokens": 1}, Price(Decimal("0.5"), Decimal(0))) == Decimal("0.000001")
    assert cost_usd("vllm", "x", {"input_tokens": 1}, Price(Decimal("0.4"), Decimal(0))) == Decimal("0.000000")


def test_a_models_name_tells_its_provider() -> None:
    names = {name: provider_of(name) for name in ("claude-of-tomorrow", "gpt-5-mini", "o3", "gemini-3-pro", "qwen3")}
    assert list(names.values()) == ["anthropic", "openai", "openai", "gemini", None]


def test_models_that_answer_in_text_are_listed() -> None:
    assert "claude-haiku-4-5" in known_models("anthropic")
    assert known_models("openai") == known_models("openai-chat")
    assert not {"whisper-1", "text-embedding-3-small", "ft:gpt-3.5-turbo-"} & set(known_models("openai"))
    assert all(name.startswith("gemini-") for name in known_models("gemini"))  # Google's table has Claude, too
    assert known_models("vllm", base_url="http://gpu1:8000/v1") == []
    assert "openai/gpt-oss-120b" in known_models("mine", base_url="https://api.groq.com/openai/v1")


def test_names_that_callers_choose_are_not_kept() -> None:
    snapshot = data_snapshot.get_snapshot()
    before = [len(cache) for cache in _caches(snapshot)]
    for n in range(100):
        cost_usd("anthropic", f"made-up-{n}", USAGE, None)
        provider_of(f"made-up-{n}")
    assert [len(cache) for cache in _caches(snapshot)] == before


def _caches(snapshot: Any) -> list[Any]:
    return [snapshot._lookup_cache, snapshot._provider_cache, snapshot._provider_misses]


# -- the updater ---------------------------------------------------------------------------------------------

NEW = [
    {
        "id": "anthropic",
        "name": "Anthropic",
        "api_pattern": r"https://api\.anthropic\.com",
        "models": [
            {
                "id": "claude-of-tomorrow",
                "match": {"equals": "claude-of-tomorrow"},
                "prices": {"input_mtok": 1, "output_mtok": 2},
            }
        ],
    }
]


@pytest.fixture
def table() -> Iterator[dict[str, Any]]:
    """What a server on loopback gives as the current table: `body`, at `url`."""
    given: dict[str, Any] = {"body": b""}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(given["body"])

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        given["url"] = f"http://127.0.0.1:{server.server_port}/"
        yield given
        server.shutdown()
        thread.join()
    data_snapshot.set_custom_snapshot(None)


def test_the_current_table_is_loaded_if_asked_for(table: dict[str, Any]) -> None:
    table["body"] = orjson.dumps(NEW)
    updating = prices.keep_updated(table["url"])
    try:
        assert updating.wait(10)
    finally:
        _stop(updating)
    assert cost_usd("anthropic", "claude-of-tomorrow", USAGE, None) == Decimal("0.026000")  # 25,000 × 1 + 500 × 2
    assert " updated 20" in table_name(None)


@pytest.mark.parametrize("body", [b"<html>", b"[]]", b'[{"id": 1}]', b"{}"])
def test_a_table_that_cannot_be_read_is_said_and_the_packages_counts(
    table: dict[str, Any], body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    table["body"] = body
    with caplog.at_level(logging.WARNING):
        updating = prices.keep_updated(table["url"])
        try:
            assert updating.wait(10)
        finally:
            _stop(updating)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("prices could not be updated (")
    assert line.endswith(f"{PACKAGE} counts")
    assert cost_usd("anthropic", "claude-haiku-4-5", USAGE, None) == Decimal("0.010500")


def _stop(updating: update_prices.UpdatePrices) -> None:
    updating.stop()
    wait_until(lambda: update_prices._shared_updater.thread is None, "its thread has ended")
